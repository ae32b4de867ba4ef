//! Frames that are held until something is known: the Ethernet address of a neighbour, or the first fragment of a packet.
//! Bounded in number and time.

use std::collections::VecDeque;

use flowgate_flow::Tick;
use flowgate_tables::InterfaceId;
use flowgate_tables::routing::NeighbourKey;

use crate::burst::RxChecksums;
use crate::pipeline::EXPECTED_MS;
use crate::verdict::AwaitedFragment;

/// A frame that is held until `K` is known.
#[derive(Debug)]
pub(super) struct Held<F, K> {
    pub(super) frame: F,
    pub(super) key: K,
    /// The state of the checksums of the queue that it came in by, which may be gone by now.
    pub(super) checksums: RxChecksums,
    pub(super) ingress: InterfaceId,
    pub(super) since: Tick,
    is_ready: bool,
}

impl<F, K> Held<F, K> {
    pub(super) fn new(
        frame: F,
        key: K,
        (checksums, ingress): (RxChecksums, InterfaceId),
        since: Tick,
    ) -> Self {
        Self { frame, key, checksums, ingress, since, is_ready: false }
    }
}

/// The limits of a queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeldLimits {
    /// Maximum number of frames.
    pub(super) total: usize,
    /// Maximum number of frames per key.
    pub(super) per_key: usize,
    /// Maximum age in milliseconds.
    pub(super) age_ms: u32,
}

/// RFC 1122 section 2.3.2.2: at least one packet per unresolved address should be saved. The kernel asks three times, a second
/// apart, and its answer that nobody replied has to find the packet here.
pub(super) const FOR_NEIGHBOUR: HeldLimits = HeldLimits { total: 64, per_key: 8, age_ms: 3_500 };

/// For how many milliseconds at least a packet waits before its sender is told that a neighbour does not answer. Without it the
/// first packet to one that is back would be refused for the failure of an earlier one.
pub(super) const PATIENCE_MS: u32 = 1_000;

/// 45 fragments make up the largest packet at an MTU of 1,500.
pub(super) const FOR_FRAGMENT: HeldLimits = HeldLimits { total: 128, per_key: 45, age_ms: EXPECTED_MS };

/// The held frames of one worker, in the order in which they were admitted.
#[derive(Debug)]
pub(super) struct HeldQueue<F, K> {
    frames: VecDeque<Held<F, K>>,
    limits: HeldLimits,
}

/// Frames held for the Ethernet address of a neighbour.
pub(super) type HeldForNeighbour<F> = HeldQueue<F, NeighbourKey>;
/// Fragments held for another fragment of their packet.
pub(super) type HeldForFragment<F> = HeldQueue<F, AwaitedFragment>;

impl<F, K: PartialEq> HeldQueue<F, K> {
    pub(super) fn new(limits: HeldLimits) -> Self {
        Self { frames: VecDeque::with_capacity(limits.total), limits }
    }

    /// Holds a frame. Gives it back if the queue is full, its key has its share, or it was held for too long already: a frame that
    /// is decided again may have to be held again.
    pub(super) fn admit(&mut self, held: Held<F, K>, now: Tick) -> Result<(), F> {
        // Counted at each admission, and searched linearly below: the queue has at most 128 frames, and only the slow path
        // comes here.
        let same = self.frames.iter().filter(|other| other.key == held.key).count();
        if self.frames.len() >= self.limits.total
            || same >= self.limits.per_key
            || self.is_expired(&held, now)
        {
            return Err(held.frame);
        }
        self.frames.push_back(held);
        Ok(())
    }

    /// Makes the frames ready that are held for `key`.
    pub(super) fn wake(&mut self, key: K) {
        self.frames.iter_mut().filter(|held| held.key == key).for_each(|held| held.is_ready = true);
    }

    /// Makes all frames ready.
    pub(super) fn wake_all(&mut self) {
        self.frames.iter_mut().for_each(|held| held.is_ready = true);
    }

    /// The first frame that is ready.
    pub(super) fn pop_ready(&mut self) -> Option<Held<F, K>> {
        let position = self.frames.iter().position(|held| held.is_ready)?;
        self.frames.remove(position)
    }

    /// A frame that was held for too long.
    pub(super) fn pop_expired(&mut self, now: Tick) -> Option<Held<F, K>> {
        let position = self.frames.iter().position(|held| self.is_expired(held, now))?;
        self.frames.remove(position)
    }

    pub(super) fn len(&self) -> usize {
        self.frames.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub(super) fn is_expired(&self, held: &Held<F, K>, now: Tick) -> bool {
        now.since(held.since) > self.limits.age_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HeldLimits = HeldLimits { total: 4, per_key: 2, age_ms: 100 };

    fn held(frame: u32, key: char, since: u32) -> Held<u32, char> {
        Held::new(frame, key, (RxChecksums::Complete, InterfaceId(0)), Tick(since))
    }

    #[test]
    fn a_queue_holds_so_many_in_all_and_for_one_key() {
        let mut queue = HeldQueue::new(LIMITS);
        for (frame, key, is_admitted) in
            [(1, 'a', true), (2, 'a', true), (3, 'a', false), (4, 'b', true), (5, 'c', true), (6, 'd', false)]
        {
            assert_eq!(queue.admit(held(frame, key, 0), Tick(0)).is_ok(), is_admitted, "{frame}");
        }
        assert_eq!(queue.len(), 4);
    }

    #[test]
    fn frames_leave_when_their_key_is_woken_or_their_time_is_over_the_oldest_first() {
        let mut queue = HeldQueue::new(LIMITS);
        for (frame, key, since) in [(1, 'a', 0), (2, 'b', 10), (3, 'a', 20)] {
            queue.admit(held(frame, key, since), Tick(since)).unwrap();
        }
        assert!(queue.pop_ready().is_none() && queue.pop_expired(Tick(100)).is_none());
        queue.wake('a');
        let ready: Vec<_> = std::iter::from_fn(|| queue.pop_ready()).map(|held| held.frame).collect();
        assert_eq!(ready, [1, 3]);
        assert_eq!(queue.pop_expired(Tick(111)).map(|held| held.frame), Some(2));
        assert!(queue.is_empty());
    }

    #[test]
    fn a_frame_that_was_held_for_its_whole_time_is_not_held_again() {
        let mut queue = HeldQueue::new(LIMITS);
        assert!(queue.admit(held(1, 'a', 0), Tick(100)).is_ok());
        assert_eq!(queue.admit(held(2, 'a', 0), Tick(101)), Err(2));
    }
}
