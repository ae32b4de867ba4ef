//! How many flows each client has, in fixed memory: in the whole table, and to one backend from each block of source ports.
//!
//! A count stands in two rows, at places that follow from a keyed hash, and the smaller of both is read (count-min sketch,
//! Cormode and Muthukrishnan 2005). It is never too small; it is too large by what shares both places, a few thousandths of a
//! percent of all flows. Counters change when flows are inserted and removed, never for a packet.

use crate::hash::FlowHash;
use crate::sync::{AtomicU32, Ordering};

/// The counts of one flow table. Not in the memory that outlives the process: adoption counts anew.
#[derive(Debug)]
pub(crate) struct Shares {
    /// By client.
    pub(crate) flows: Counts,
    /// By client, backend and block of source ports.
    pub(crate) ports: Counts,
}

impl Shares {
    /// Counts for a table of this capacity.
    pub(crate) fn new(capacity_flows: u32) -> Self {
        Self { flows: Counts::new(CLIENT_BITS), ports: Counts::new(port_bits(capacity_flows)) }
    }

    /// Their memory for a table of this capacity, in bytes.
    pub(crate) const fn bytes_for(capacity_flows: u32) -> u64 {
        let counters = (1_u64 << CLIENT_BITS) + (1 << port_bits(capacity_flows));
        2 * counters * size_of::<AtomicU32>() as u64
    }
}

/// Counts in two rows.
#[derive(Debug)]
pub(crate) struct Counts {
    /// Each row has two to the power of so many counters.
    bits: u32,
    counters: Box<[AtomicU32]>,
}

impl Counts {
    fn new(bits: u32) -> Self {
        Self { bits, counters: (0..2_usize << bits).map(|_| AtomicU32::new(0)).collect() }
    }

    /// The count of what has this hash.
    pub(crate) fn of(&self, hash: FlowHash) -> u32 {
        let [first, second] = self.places(hash).map(|place| self.counters[place].load(Ordering::Relaxed));
        first.min(second)
    }

    /// The largest count of all, or slightly more.
    pub(crate) fn largest(&self) -> u32 {
        let row = &self.counters[..1 << self.bits];
        row.iter().map(|counter| counter.load(Ordering::Relaxed)).max().unwrap_or(0)
    }

    pub(crate) fn add(&self, hash: FlowHash) {
        self.places(hash).iter().for_each(|place| {
            self.counters[*place].fetch_add(1, Ordering::Relaxed);
        });
    }

    /// Takes back one [`add`](Self::add), which has happened before.
    pub(crate) fn remove(&self, hash: FlowHash) {
        self.places(hash).iter().for_each(|place| {
            // Minus one, modulo 2^32.
            self.counters[*place].fetch_add(u32::MAX, Ordering::Relaxed);
        });
    }

    pub(crate) fn clear(&self) {
        self.counters.iter().for_each(|counter| counter.store(0, Ordering::Relaxed));
    }

    fn places(&self, hash: FlowHash) -> [usize; 2] {
        let [first, second] = hash.buckets(1 << self.bits);
        [first as usize, (1 << self.bits) + second as usize]
    }
}

/// 4,096 counters in a row: 16 KB, which [`Counts::largest`] reads in less than a microsecond.
const CLIENT_BITS: u32 = 12;

/// As many counters in a row as a quarter of the flows: blocks of ports are small, so that the counts of a full table must
/// hardly disturb one another.
const fn port_bits(capacity_flows: u32) -> u32 {
    let bits = (capacity_flows / 4).next_power_of_two().trailing_zeros();
    if bits < CLIENT_BITS {
        CLIENT_BITS
    } else if bits > PORT_BITS_MAX {
        PORT_BITS_MAX
    } else {
        bits
    }
}

const PORT_BITS_MAX: u32 = 24;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_never_too_small_and_hardly_too_large() {
        let counts = Counts::new(CLIENT_BITS);
        let hash = |n: u32| FlowHash(n.wrapping_mul(0x85eb_ca6b) ^ 0x5bd1_e995);
        (0..1000).for_each(|_| counts.add(hash(0)));
        (1..40_000).for_each(|n| counts.add(hash(n)));
        // Ten others per counter on average.
        let count = counts.of(hash(0));
        assert!((1000..1040).contains(&count), "{count}");
        assert!((count..1060).contains(&counts.largest()));
        assert!((1..2000).all(|n| (1..40).contains(&counts.of(hash(n)))));
        (1..40_000).for_each(|n| counts.remove(hash(n)));
        assert_eq!((counts.of(hash(0)), counts.largest()), (1000, 1000));
        counts.clear();
        assert_eq!(counts.largest(), 0);
    }

    #[test]
    fn the_memory_is_what_was_said() {
        for capacity in [64, 262_144, 10_000_000] {
            let Shares { flows, ports } = Shares::new(capacity);
            let bytes = size_of_val(&*flows.counters) + size_of_val(&*ports.counters);
            assert_eq!(bytes as u64, Shares::bytes_for(capacity));
        }
    }
}
