//! Buckets of 32 slots, and their tags in half a cache line.
//!
//! One byte per slot: zero when it is free, else the tag of the flow hash. All 32 are compared at once, so that a lookup
//! touches the cache line of an entry only if its tag agrees. Large buckets fill evenly: with four fifths of all slots in
//! use hardly any bucket is full.

use crate::sync::{AtomicU64, Ordering};

use crate::arch::{AlignedWords, equal_bytes};

/// Slots in a bucket.
pub const BUCKET_SLOTS: u32 = 32;

/// The tags of one bucket.
///
/// They are read with acquire ordering: a thread that sees a slot free also sees that its entry was cleared.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Tags(AlignedWords);

impl Tags {
    /// The slots whose tag is `tag`.
    #[inline]
    pub fn matches(&self, tag: u8) -> Slots {
        Slots(equal_bytes(&self.0, tag))
    }

    /// The slots in use.
    #[inline]
    pub fn used(&self) -> Slots {
        Slots(!equal_bytes(&self.0, 0))
    }

    /// Claims a free slot for an entry with this tag; `None` when all are in use.
    pub fn claim(&self, tag: u8) -> Option<u32> {
        self.0.0.iter().zip(0..).find_map(|(word, number)| Some(number * 8 + claim_in(word, tag)?))
    }

    /// Releases a slot. Only its owner may do so.
    pub fn release(&self, slot: u32) {
        // A read-modify-write, since neighbours in the word are claimed and released at the same time.
        self.0.0[(slot / 8) as usize].fetch_and(!(0xff << (slot % 8 * 8)), Ordering::AcqRel);
    }
}

fn claim_in(tags: &AtomicU64, tag: u8) -> Option<u32> {
    // Relaxed: the exchange below, which acquires, decides whether the word was current.
    let mut word = tags.load(Ordering::Relaxed);
    loop {
        let slot = (0..8).find(|slot| (word >> (slot * 8)) & 0xff == 0)?;
        let claimed = word | (u64::from(tag) << (slot * 8));
        // Acquire: what the last owner did to the entry happened before. Release: see `Tags`.
        match tags.compare_exchange_weak(word, claimed, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => return Some(slot),
            Err(now) => word = now,
        }
    }
}

/// A set of slots of one bucket, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slots(u32);

impl Slots {
    /// The number of slots.
    #[inline]
    pub const fn count(self) -> u32 {
        self.0.count_ones()
    }

    /// Whether the slot is in the set.
    pub const fn contains(self, slot: u32) -> bool {
        self.0 & 1 << slot != 0
    }

    /// The lowest slot, if there is one.
    #[inline]
    pub const fn first(self) -> Option<u32> {
        if self.0 == 0 { None } else { Some(self.0.trailing_zeros()) }
    }
}

impl Iterator for Slots {
    type Item = u32;

    #[inline]
    fn next(&mut self) -> Option<u32> {
        let slot = self.first()?;
        // Clears the lowest bit that is set.
        self.0 &= self.0 - 1;
        Some(slot)
    }
}

/// A set of slots of two buckets, one bit each: those of the second bucket above those of the first. With both in one
/// word a lookup has no unpredictable branch on which bucket has the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidates(u64);

impl Candidates {
    /// No slot.
    pub const NONE: Self = Self(0);

    /// The slots of both buckets.
    #[inline]
    pub const fn new(first: Slots, second: Slots) -> Self {
        Self(first.0 as u64 | (second.0 as u64) << BUCKET_SLOTS)
    }
}

impl Iterator for Candidates {
    /// The bucket, 0 or 1, and its slot.
    type Item = (usize, u32);

    #[inline]
    fn next(&mut self) -> Option<(usize, u32)> {
        if self.0 == 0 {
            return None;
        }
        let bit = self.0.trailing_zeros();
        self.0 &= self.0 - 1;
        Some(((bit / BUCKET_SLOTS) as usize, bit % BUCKET_SLOTS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_can_be_claimed_and_no_more() {
        let tags = Tags::default();
        let slots: Vec<_> = (0..32).map(|_| tags.claim(7).unwrap()).collect();
        assert_eq!(slots, (0..32).collect::<Vec<_>>());
        assert_eq!(tags.claim(9), None);
        tags.release(19);
        assert_eq!(tags.used().count(), 31);
        assert_eq!(tags.claim(9), Some(19));
        assert_eq!(tags.matches(9).collect::<Vec<_>>(), [19]);
    }

    #[test]
    fn candidates_are_the_slots_of_the_first_bucket_and_then_those_of_the_second() {
        let candidates = Candidates::new(Slots(1 << 31 | 1), Slots(1 << 31 | 2));
        assert_eq!(candidates.collect::<Vec<_>>(), [(0, 0), (0, 31), (1, 1), (1, 31)]);
        assert_eq!({ Candidates::NONE }.next(), None);
    }
}
