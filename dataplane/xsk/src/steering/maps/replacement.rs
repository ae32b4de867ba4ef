//! A map that is to take the place of a set's, since a map in the kernel cannot change its size.

use std::collections::BTreeSet;
use std::path::Path;

use super::key_set::{Entry, KeySet};
use crate::steering::sockets::InterfaceSlots;
use crate::steering::{ShortfallCause, SteeringError};

/// Entries that a set has room for at first. A hash map takes 16 bytes per entry for its buckets at once
/// (kernel/bpf/hashtab.c:htab_map_alloc), and the rest when entries are added.
pub(super) const INITIAL_CAPACITY: u32 = 4096;

/// A new map for a set, first planned, then filled.
pub(super) struct Replacement<E: Entry> {
    capacity: u32,
    /// What the new map holds, or is to hold once it is made.
    holds: BTreeSet<E>,
    set: Option<KeySet<E>>,
}

impl<E: Entry> Replacement<E> {
    /// The replacement of a set that has another size than it should have for the entries of `next`; `None` if the size is
    /// right.
    pub(super) fn plan(
        set: &KeySet<E>,
        interfaces: &[InterfaceSlots],
        (applied, next): (&BTreeSet<E>, &BTreeSet<E>),
        limit: u32,
    ) -> Option<Self> {
        let capacity = better_capacity(set.capacity(), next.len(), limit)?;
        let has_key = |entry: &&E| entry.to_key(interfaces).is_some();
        let holds: BTreeSet<E> = if next.len() <= capacity as usize {
            next.iter().filter(has_key).copied().collect()
        } else {
            // Entries that are served stay.
            let kept = next.intersection(applied);
            kept.chain(next.difference(applied)).filter(has_key).take(capacity as usize).copied().collect()
        };
        Some(Self { capacity, holds, set: None })
    }

    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Opens the new map, and fills it.
    pub(super) fn fill(
        &mut self,
        interfaces: &[InterfaceSlots],
        pin: &Path,
        name: &'static str,
    ) -> Result<(), SteeringError> {
        let mut set = KeySet::open(pin, name)?;
        let mut filled = BTreeSet::new();
        if let Err(shortfall) = set.add_new(interfaces, &mut filled, &self.holds)
            && let ShortfallCause::Kernel(source) = shortfall.cause
        {
            return Err(SteeringError::Entries { map: name, action: "fill", source });
        }
        self.holds = filled;
        self.set = Some(set);
        Ok(())
    }

    /// Brings the new map to what is wanted by now. What it has no room for is reported when it has taken its place.
    pub(super) fn follow(&mut self, interfaces: &[InterfaceSlots], next: &BTreeSet<E>) {
        if let Some(set) = &mut self.set {
            // What is refused here stays in `holds` or is missing there: the next change of the maps finds it, and reports it.
            let _ = set.remove_stale(interfaces, &mut self.holds, next);
            let _ = set.add_new(interfaces, &mut self.holds, next);
        }
    }

    /// What the new map holds.
    pub(super) fn holds(&self) -> &BTreeSet<E> {
        &self.holds
    }

    /// The new set and what it holds; `None` if it was never filled.
    pub(super) fn finish(self) -> Option<(KeySet<E>, BTreeSet<E>)> {
        Some((self.set?, self.holds))
    }
}

/// The size that a map of `capacity` entries should have instead; `None` if its own is right. A set grows when it is filled
/// to more than three quarters, so that entries which come one by one always find room, and it shrinks only when a limit
/// was lowered.
fn better_capacity(capacity: u32, len: usize, limit: u32) -> Option<u32> {
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    let grows = len > capacity - capacity / 4 && capacity < limit;
    let shrinks = capacity > limit && len <= limit;
    let fitting = len.saturating_add(len / 3).saturating_add(1).checked_next_power_of_two();
    (grows || shrinks).then(|| fitting.unwrap_or(limit).max(INITIAL_CAPACITY).min(limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_grows_before_it_is_full_and_never_beyond_its_limit() {
        let better = |capacity, len| better_capacity(capacity, len, 100_000);
        assert_eq!(better(4096, 0), None);
        assert_eq!(better(4096, 3072), None, "three quarters");
        assert_eq!(better(4096, 3073), Some(8192));
        assert_eq!(better(4096, 70_000), Some(100_000), "the limit is below the next power of two");
        assert_eq!(better(100_000, 100_000), None);
        assert_eq!(better(100_000, usize::MAX), None);
        assert_eq!(better(65_536, 1_000_000), Some(100_000));
        assert_eq!(better_capacity(8, 9, 16), Some(16));
    }

    #[test]
    fn a_set_above_a_lowered_limit_shrinks_if_what_it_holds_still_fits() {
        assert_eq!(better_capacity(262_144, 100, 10_000), Some(4096));
        assert_eq!(better_capacity(262_144, 9000, 10_000), Some(10_000));
        assert_eq!(better_capacity(262_144, 10_001, 10_000), None);
    }

    #[test]
    fn a_new_size_leaves_a_quarter_free_unless_the_limit_forbids_it() {
        for len in (0..300_000).step_by(1013) {
            let Some(capacity) = better_capacity(4096, len, 1 << 20) else { continue };
            assert_eq!(better_capacity(capacity, len, 1 << 20), None, "{len} entries in {capacity}");
        }
    }
}
