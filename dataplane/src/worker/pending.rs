//! Fragments that wait for another of their packet. Bounded in number and time; never looks into one.

use std::collections::VecDeque;

use flowgate_flow::Tick;
use flowgate_tables::InterfaceId;

use crate::pipeline::EXPECTED_MS;
use crate::verdict::AwaitedFragment;

/// A frame that waits.
#[derive(Debug)]
pub(super) struct Pending<F> {
    pub(super) frame: F,
    pub(super) of: AwaitedFragment,
    pub(super) queue: usize,
    pub(super) ingress: InterfaceId,
    pub(super) since: Tick,
    /// Whether what it waited for has come.
    pub(super) is_called: bool,
}

/// Those of one worker, in the order in which they came.
#[derive(Debug)]
pub(super) struct PendingFragments<F> {
    waiting: VecDeque<Pending<F>>,
}

impl<F> Default for PendingFragments<F> {
    fn default() -> Self {
        Self { waiting: VecDeque::with_capacity(PENDING_MAX) }
    }
}

impl<F> PendingFragments<F> {
    /// Lets a fragment wait, unless the room is full or its packet has enough.
    pub(super) fn admit(&mut self, fragment: Pending<F>) -> Result<(), F> {
        let same = self.waiting.iter().filter(|other| other.of == fragment.of).count();
        if self.waiting.len() >= PENDING_MAX || same >= PENDING_PER_PACKET {
            return Err(fragment.frame);
        }
        self.waiting.push_back(fragment);
        Ok(())
    }

    /// Calls those that wait for `of`.
    pub(super) fn call(&mut self, of: AwaitedFragment) {
        self.waiting
            .iter_mut()
            .filter(|waiting| waiting.of == of)
            .for_each(|waiting| waiting.is_called = true);
    }

    /// The next that was called.
    pub(super) fn next_called(&mut self) -> Option<Pending<F>> {
        let at = self.waiting.iter().position(|waiting| waiting.is_called)?;
        self.waiting.remove(at)
    }

    /// The next that has waited in vain.
    pub(super) fn next_expired(&mut self, now: Tick) -> Option<F> {
        let at = self.waiting.iter().position(|waiting| now.since(waiting.since) > EXPECTED_MS)?;
        self.waiting.remove(at).map(|waiting| waiting.frame)
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }
}

/// Fragments that wait in all.
const PENDING_MAX: usize = 128;

/// Fragments of one packet that wait: those of the largest packet at an MTU of 1,500, whatever their order.
const PENDING_PER_PACKET: usize = 45;
