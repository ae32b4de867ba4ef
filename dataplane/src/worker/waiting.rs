//! Packets that wait for a neighbour. Bounded in number and time; never looks into one.

use std::collections::VecDeque;

use flowgate_flow::Tick;
use flowgate_tables::InterfaceId;
use flowgate_tables::routing::Unresolved;

/// Packets that wait for their next hop to be resolved. RFC 1122 section 2.3.2.2: at least one packet for
/// each address should be saved rather than discarded.
#[derive(Debug)]
pub(super) struct WaitingRoom<F> {
    waiting: VecDeque<Waiting<F>>,
    generation: u64,
}

/// A frame that waits.
#[derive(Debug)]
pub(super) struct Waiting<F> {
    pub(super) frame: F,
    pub(super) neighbour: Unresolved,
    pub(super) queue: usize,
    pub(super) ingress: InterfaceId,
    pub(super) since: Tick,
}

impl<F> Default for WaitingRoom<F> {
    fn default() -> Self {
        Self { waiting: VecDeque::with_capacity(WAITING_MAX), generation: 0 }
    }
}

impl<F> WaitingRoom<F> {
    /// Lets a packet wait, unless the room is full, its address has enough, or it waited too long.
    pub(super) fn admit(&mut self, packet: Waiting<F>, now: Tick) -> Result<(), F> {
        let same = self.waiting.iter().filter(|other| other.neighbour == packet.neighbour).count();
        if self.waiting.len() >= WAITING_MAX
            || same >= WAITING_PER_NEIGHBOUR
            || now.since(packet.since) > WAITING_MS
        {
            return Err(packet.frame);
        }
        self.waiting.push_back(packet);
        Ok(())
    }

    /// How many packets are to be decided again: all after a change of the tables, else those whose time
    /// is over.
    pub(super) fn due(&mut self, generation: u64, now: Tick) -> usize {
        if generation != self.generation {
            self.generation = generation;
            return self.waiting.len();
        }
        self.waiting.iter().take_while(|packet| now.since(packet.since) > WAITING_MS).count()
    }

    pub(super) fn leave(&mut self) -> Option<Waiting<F>> {
        self.waiting.pop_front()
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

/// Packets that wait in all.
const WAITING_MAX: usize = 64;

/// Packets that wait for one neighbour.
const WAITING_PER_NEIGHBOUR: usize = 8;

/// How long a packet waits: the kernel gives up on a neighbour after three seconds, a client sends a SYN
/// again after one.
const WAITING_MS: u32 = 1_000;
