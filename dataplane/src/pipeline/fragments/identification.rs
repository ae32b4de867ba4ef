//! Identifications for packets whose source is replaced. Never looks at a packet.
//!
//! Two clients may choose one identification; behind one source address a backend would mix their fragments
//! (RFC 6864 section 4.3). RFC 7739 section 5.3 scatters counters by a keyed hash, so that nobody outside can
//! guess the next value.

use crate::burst::WorkerNumber;

/// One worker's identifications.
///
/// Workers count in steps of a power of two, each with a remainder of its own, from a start that follows from
/// the pair of addresses alone: no two workers give one identification to fragments between the same two
/// addresses. A worker repeats one only after all of its own were given: 65,536 for IPv4, shared among the workers.
#[derive(Debug)]
pub(super) struct Identifications {
    counters: Box<[u32; COUNTERS]>,
    worker: u32,
    step_log2: u32,
}

impl Identifications {
    pub(super) fn new(worker: WorkerNumber) -> Self {
        Self {
            counters: Box::new([0; COUNTERS]),
            worker: u32::try_from(worker.index).unwrap_or(0),
            step_log2: worker.count.next_power_of_two().trailing_zeros(),
        }
    }

    /// The next identification between two addresses, whose keyed hash this is. IPv4 takes the lower 16 bits.
    pub(super) fn next(&mut self, addresses_hash: u32) -> u32 {
        let counter = &mut self.counters[(addresses_hash >> 24) as usize];
        *counter = counter.wrapping_add(1);
        let own = (*counter << self.step_log2) | self.worker;
        addresses_hash.wrapping_mul(0x9e37_79b1).wrapping_add(own)
    }
}

/// Pairs of addresses share a counter by their hash: sharing makes it run faster, never repeat sooner than a
/// worker's share of all identifications.
const COUNTERS: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_identification_is_given_twice_between_two_addresses() {
        for count in [1_usize, 2, 3, 8] {
            let hash = 0xdead_beef;
            let per_worker = 65_536 / count.next_power_of_two();
            let mut given = HashSet::new();
            for index in 0..count {
                let mut ids = Identifications::new(WorkerNumber { index, count });
                let id16 = |id: u32| u16::try_from(id & 0xffff).unwrap();
                assert!((0..per_worker).all(|_| given.insert(id16(ids.next(hash)))), "{index} of {count}");
            }
            assert_eq!(given.len(), per_worker * count);
        }
    }

    #[test]
    fn pairs_of_addresses_start_elsewhere() {
        let mut ids = Identifications::new(WorkerNumber { index: 0, count: 1 });
        let starts: HashSet<u32> = (0..100).map(|pair: u32| ids.next(pair) & 0xffff).collect();
        assert!(starts.len() > 90);
    }
}
