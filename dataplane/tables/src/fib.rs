//! The forwarding information base: longest prefix match for IPv4. Never resolves a neighbour.

use std::net::Ipv4Addr;

use hashbrown::HashMap;

/// Values by IPv4 prefix; the longest prefix that covers an address wins.
///
/// One hash map per prefix length that occurs, tried from the longest: a gateway has a handful of
/// lengths, and only a new flow asks.
#[derive(Clone, Debug)]
pub struct Fib4<T> {
    by_len: Vec<(u32, HashMap<u32, T>)>,
}

impl<T> Default for Fib4<T> {
    fn default() -> Self {
        Self { by_len: Vec::new() }
    }
}

impl<T: Clone + PartialEq> PartialEq for Fib4<T> {
    fn eq(&self, other: &Self) -> bool {
        self.by_len == other.by_len
    }
}

impl<T> Fib4<T> {
    /// Adds a prefix and returns the value it had. Bits of `addr` beyond `len` do not matter; `len` is
    /// at most 32.
    pub fn insert(&mut self, addr: Ipv4Addr, len: u8, value: T) -> Option<T> {
        let mask = mask(len.min(32));
        let at = match self.by_len.binary_search_by(|(m, _)| mask.cmp(m)) {
            Ok(at) => at,
            Err(at) => {
                self.by_len.insert(at, (mask, HashMap::new()));
                at
            }
        };
        self.by_len[at].1.insert(addr.to_bits() & mask, value)
    }

    /// The value of the longest prefix that covers `addr`.
    pub fn lookup(&self, addr: Ipv4Addr) -> Option<&T> {
        self.by_len.iter().find_map(|(mask, prefixes)| prefixes.get(&(addr.to_bits() & mask)))
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

fn mask(len: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_longest_prefix_wins_and_the_default_route_covers_the_rest() {
        let mut fib = Fib4::default();
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
        let mut fib = Fib4::default();
        assert_eq!(fib.insert(Ipv4Addr::new(10, 0, 0, 1), 8, 1), None);
        assert_eq!(fib.insert(Ipv4Addr::new(10, 9, 9, 9), 8, 2), Some(1));
        assert_eq!(fib.lookup(Ipv4Addr::new(10, 3, 3, 3)), Some(&2));
    }

    proptest! {
        #[test]
        fn agrees_with_a_walk_over_all_prefixes(
            prefixes in proptest::collection::vec((any::<u32>(), 0_u8..=32), 0..40),
            probes in proptest::collection::vec(any::<u32>(), 20),
        ) {
            let mut fib = Fib4::default();
            for (i, &(addr, len)) in prefixes.iter().enumerate() {
                fib.insert(Ipv4Addr::from_bits(addr), len, i);
            }
            // Random addresses hardly ever fall into a long prefix: aim at the prefixes themselves too.
            for probe in probes.iter().copied().chain(prefixes.iter().map(|p| p.0 ^ 1)) {
                let oracle = prefixes
                    .iter()
                    .enumerate()
                    .filter(|(_, (addr, len))| (addr ^ probe) & mask(*len) == 0)
                    .max_by_key(|(i, (_, len))| (*len, *i))
                    .map(|(i, _)| i);
                prop_assert_eq!(fib.lookup(Ipv4Addr::from_bits(probe)).copied(), oracle);
            }
        }
    }
}
