//! The forwarding information base: values by prefix of one address family, found by longest prefix match. Which
//! neighbour a route leads to is resolved in `routing.rs`.

use prefix_trie::{Prefix, PrefixMap};

/// Values by prefix of one address family: `P` is [`ipnet::Ipv4Net`] or [`ipnet::Ipv6Net`].
///
/// Looked up when a flow is opened or its next hop has to be found anew, not for each packet.
#[derive(Clone, Debug)]
pub struct Fib<P: Prefix, T> {
    prefixes: PrefixMap<P, T>,
}

impl<P: Prefix, T> Default for Fib<P, T> {
    fn default() -> Self {
        Self { prefixes: PrefixMap::new() }
    }
}

impl<P: Prefix + PartialEq, T: PartialEq> PartialEq for Fib<P, T> {
    fn eq(&self, other: &Self) -> bool {
        // `PrefixMap::eq` (0.8.4) compares entries pairwise up to the end of the shorter map, so it takes an empty map
        // for equal to every other. The lengths have to be compared here.
        self.len() == other.len() && self.prefixes == other.prefixes
    }
}

impl<P: Prefix, T> Fib<P, T> {
    /// Adds a prefix and returns the value it had. Bits of the address beyond the length do not matter.
    pub fn insert(&mut self, prefix: P, value: T) -> Option<T> {
        // The map stores a prefix as given, and with its surplus bits it would compare unequal to the same prefix.
        self.prefixes.insert(P::from_repr_len(prefix.mask(), prefix.prefix_len()), value)
    }

    /// The value of the longest prefix that covers an address.
    pub fn lookup(&self, addr: impl Into<P>) -> Option<&T> {
        self.prefixes.get_lpm(&addr.into()).map(|(_, value)| value)
    }

    /// Whether exactly this prefix is in the table.
    pub fn contains(&self, prefix: &P) -> bool {
        self.prefixes.contains_key(prefix)
    }

    /// The number of prefixes.
    pub fn len(&self) -> usize {
        self.prefixes.len()
    }

    /// Whether there is no prefix.
    pub fn is_empty(&self) -> bool {
        self.prefixes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use ipnet::{Ipv4Net, Ipv6Net};
    use proptest::prelude::*;

    use super::*;

    fn net4(addr: Ipv4Addr, len: u8) -> Ipv4Net {
        Ipv4Net::new(addr, len).unwrap()
    }

    fn net6(addr: Ipv6Addr, len: u8) -> Ipv6Net {
        Ipv6Net::new(addr, len).unwrap()
    }

    #[test]
    fn a_table_with_more_prefixes_is_another_one_and_the_bits_behind_a_prefix_do_not_count() {
        let mut few = Fib::default();
        few.insert(net4(Ipv4Addr::new(10, 0, 0, 1), 8), 1);
        assert_ne!(few, Fib::default());
        assert_ne!(Fib::default(), few);
        let mut more = few.clone();
        more.insert(net4(Ipv4Addr::new(192, 0, 2, 0), 24), 2);
        assert_ne!(few, more);
        assert_ne!(more, few);
        let mut same = Fib::default();
        same.insert(net4(Ipv4Addr::new(10, 9, 9, 9), 8), 1);
        assert_eq!(few, same);
    }

    #[test]
    fn the_longest_prefix_wins_and_the_default_route_covers_the_rest() {
        let mut fib = Fib::default();
        fib.insert(net4(Ipv4Addr::UNSPECIFIED, 0), "default");
        fib.insert(net4(Ipv4Addr::new(10, 1, 2, 3), 8), "ten");
        fib.insert(net4(Ipv4Addr::new(10, 1, 0, 0), 16), "ten-one");
        fib.insert(net4(Ipv4Addr::new(10, 1, 2, 3), 32), "host");
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
        assert_eq!(fib.insert(net4(Ipv4Addr::new(10, 0, 0, 1), 8), 1), None);
        assert_eq!(fib.insert(net4(Ipv4Addr::new(10, 9, 9, 9), 8), 2), Some(1));
        assert_eq!(fib.lookup(Ipv4Addr::new(10, 3, 3, 3)), Some(&2));
    }

    #[test]
    fn an_ipv6_prefix_is_compared_over_all_its_bits() {
        let ip = |text: &str| text.parse::<Ipv6Addr>().unwrap();
        let mut fib = Fib::default();
        fib.insert(net6(Ipv6Addr::UNSPECIFIED, 0), "default");
        fib.insert(net6(ip("2001:db8::"), 64), "link");
        fib.insert(net6(ip("2001:db8::1"), 128), "host");
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
                fib.insert(net6(Ipv6Addr::from_bits(addr), len), i);
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
                fib.insert(net4(Ipv4Addr::from_bits(addr), len), i);
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
