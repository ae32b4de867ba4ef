//! IP identifications for fragmented packets whose source address is replaced.
//!
//! Two clients may use the same identification; behind one source address a backend would mix up their fragments (RFC 6864
//! section 4.3). Each pair of addresses starts at another value by a keyed hash, so that nobody outside can predict the next
//! one (RFC 7739 section 5.3).

use crate::burst::WorkerNumber;

/// The identifications of one worker.
///
/// Workers count in steps of a power of two from a start that depends on the pair of addresses alone, each with a remainder of
/// its own: two workers never assign the same identification between the same two addresses, without sharing memory. A worker
/// repeats one only after its share of all: for IPv4 65,536 divided by the (rounded up) number of workers.
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

    /// The next identification between two addresses, given by their keyed hash. IPv4 uses the lower 16 bits.
    pub(super) fn next(&mut self, addresses_hash: u32) -> u32 {
        let counter = &mut self.counters[(addresses_hash >> 24) as usize];
        *counter = counter.wrapping_add(1);
        let own = (*counter << self.step_log2) | self.worker;
        addresses_hash.wrapping_mul(0x9e37_79b1).wrapping_add(own)
    }
}

/// Number of counters. Pairs of addresses share a counter by their hash; sharing lets it advance faster, but not repeat earlier
/// than after a worker's share of all identifications.
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
