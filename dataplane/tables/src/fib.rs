//! The forwarding information base: longest prefix match for both address families. Never resolves a
//! neighbour.

use std::fmt::Debug;
use std::hash::Hash;
use std::net::{Ipv4Addr, Ipv6Addr};

use hashbrown::HashMap;

/// An address family whose prefixes a [`Fib`] can hold.
pub trait FibAddr: Copy + private::Sealed {
    /// The address as a number, the first bit of the address on top.
    type Bits: Copy + Debug + Eq + Ord + Hash;
    /// Length of an address in bits.
    const BITS: u8;

    /// The first `len` bits of the address, the others zero; a longer `len` than an address has keeps all.
    fn masked(self, len: u8) -> Self::Bits;
}

impl FibAddr for Ipv4Addr {
    type Bits = u32;
    const BITS: u8 = 32;

    #[inline]
    fn masked(self, len: u8) -> u32 {
        self.to_bits() & u32::MAX.checked_shl(u32::from(32 - len.min(32))).unwrap_or(0)
    }
}

impl FibAddr for Ipv6Addr {
    type Bits = u128;
    const BITS: u8 = 128;

    #[inline]
    fn masked(self, len: u8) -> u128 {
        self.to_bits() & u128::MAX.checked_shl(u32::from(128 - len.min(128))).unwrap_or(0)
    }
}

mod private {
    pub trait Sealed {}
    impl Sealed for std::net::Ipv4Addr {}
    impl Sealed for std::net::Ipv6Addr {}
}

/// Values by prefix of one address family; the longest prefix that covers an address wins.
///
/// One hash map per prefix length that occurs, tried from the longest: a gateway has a handful of
/// lengths, and only a new flow asks.
#[derive(Clone, Debug)]
pub struct Fib<A: FibAddr, T> {
    by_len: Vec<(u8, HashMap<A::Bits, T>)>,
}

impl<A: FibAddr, T> Default for Fib<A, T> {
    fn default() -> Self {
        Self { by_len: Vec::new() }
    }
}

impl<A: FibAddr, T: PartialEq> PartialEq for Fib<A, T> {
    fn eq(&self, other: &Self) -> bool {
        self.by_len == other.by_len
    }
}

impl<A: FibAddr, T> Fib<A, T> {
    /// Adds a prefix and returns the value it had. Bits of `addr` beyond `len` do not matter; `len` is
    /// at most that of an address.
    pub fn insert(&mut self, addr: A, len: u8, value: T) -> Option<T> {
        let len = len.min(A::BITS);
        let at = match self.by_len.binary_search_by(|(l, _)| len.cmp(l)) {
            Ok(at) => at,
            Err(at) => {
                self.by_len.insert(at, (len, HashMap::new()));
                at
            }
        };
        self.by_len[at].1.insert(addr.masked(len), value)
    }

    /// The value of the longest prefix that covers `addr`.
    pub fn lookup(&self, addr: A) -> Option<&T> {
        self.by_len.iter().find_map(|(len, prefixes)| prefixes.get(&addr.masked(*len)))
    }

    /// Whether exactly this prefix is in.
    pub fn contains(&self, addr: A, len: u8) -> bool {
        let exact = self.by_len.iter().find(|(l, _)| *l == len);
        exact.is_some_and(|(_, prefixes)| prefixes.contains_key(&addr.masked(len)))
    }

    /// How many prefixes there are.
    pub fn len(&self) -> usize {
        self.by_len.iter().map(|(_, prefixes)| prefixes.len()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_len.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_longest_prefix_wins_and_the_default_route_covers_the_rest() {
        let mut fib = Fib::default();
        fib.insert(Ipv4Addr::UNSPECIFIED, 0, "default");
        fib.insert(Ipv4Addr::new(10, 1, 2, 3), 8, "ten");
        fib.insert(Ipv4Addr::new(10, 1, 0, 0), 16, "ten-one");
        fib.insert(Ipv4Addr::new(10, 1, 2, 3), 32, "host");
        let at = |a, b, c, d| *fib.lookup(Ipv4Addr::new(a, b, c, d)).unwrap();
        assert_eq!(at(10, 1, 2, 3), "host");
        assert_eq!(at(10, 1, 2, 4), "ten-one");
        assert_eq!(at(10, 2, 2, 4), "ten");
        assert_eq!(at(192, 0, 2, 1), "default");
        assert_eq!(fib.len(), 4);
    }

    #[test]
    fn a_prefix_given_twice_has_the_later_value() {
        let mut fib = Fib::default();
        assert_eq!(fib.insert(Ipv4Addr::new(10, 0, 0, 1), 8, 1), None);
        assert_eq!(fib.insert(Ipv4Addr::new(10, 9, 9, 9), 8, 2), Some(1));
        assert_eq!(fib.lookup(Ipv4Addr::new(10, 3, 3, 3)), Some(&2));
    }

    #[test]
    fn an_ipv6_prefix_is_compared_over_all_its_bits() {
        let ip = |text: &str| text.parse::<Ipv6Addr>().unwrap();
        let mut fib = Fib::default();
        fib.insert(Ipv6Addr::UNSPECIFIED, 0, "default");
        fib.insert(ip("2001:db8::"), 64, "link");
        fib.insert(ip("2001:db8::1"), 128, "host");
        for (addr, value) in [
            ("2001:db8::1", "host"),
            ("2001:db8::2", "link"),
            ("2001:db8:0:1::1", "default"),
            ("::", "default"),
        ] {
            assert_eq!(fib.lookup(ip(addr)), Some(&value), "{addr}");
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_walk_over_all_ipv6_prefixes(
            prefixes in proptest::collection::vec((any::<u128>(), 0_u8..=128), 0..40),
            probes in proptest::collection::vec(any::<u128>(), 20),
        ) {
            let mut fib = Fib::default();
            for (i, &(addr, len)) in prefixes.iter().enumerate() {
                fib.insert(Ipv6Addr::from_bits(addr), len, i);
            }
            for probe in probes.iter().copied().chain(prefixes.iter().map(|p| p.0 ^ 1)) {
                let covers = |addr: u128, len: u8| (addr ^ probe).leading_zeros() >= u32::from(len);
                let oracle = prefixes
                    .iter()
                    .enumerate()
                    .filter(|(_, (addr, len))| covers(*addr, *len))
                    .max_by_key(|(i, (_, len))| (*len, *i))
                    .map(|(i, _)| i);
                prop_assert_eq!(fib.lookup(Ipv6Addr::from_bits(probe)).copied(), oracle);
            }
        }

        #[test]
        fn agrees_with_a_walk_over_all_prefixes(
            prefixes in proptest::collection::vec((any::<u32>(), 0_u8..=32), 0..40),
            probes in proptest::collection::vec(any::<u32>(), 20),
        ) {
            let mut fib = Fib::default();
            for (i, &(addr, len)) in prefixes.iter().enumerate() {
                fib.insert(Ipv4Addr::from_bits(addr), len, i);
            }
            // Random addresses hardly ever fall into a long prefix: aim at the prefixes themselves too.
            for probe in probes.iter().copied().chain(prefixes.iter().map(|p| p.0 ^ 1)) {
                let oracle = prefixes
                    .iter()
                    .enumerate()
                    .filter(|(_, (addr, len))| (addr ^ probe).leading_zeros() >= u32::from(*len))
                    .max_by_key(|(i, (_, len))| (*len, *i))
                    .map(|(i, _)| i);
                prop_assert_eq!(fib.lookup(Ipv4Addr::from_bits(probe)).copied(), oracle);
            }
        }
    }
}
