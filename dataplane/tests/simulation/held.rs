//! The packets that must be waiting for a neighbour, and who must have been asked for.

use std::collections::VecDeque;

use crate::model::places::Neighbour;

/// Packets that one worker holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct HeldFrames {
    held: VecDeque<Held>,
    generation: u64,
}

/// A packet that waits.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) frame: Vec<u8>,
    pub(crate) neighbour: Neighbour,
    /// The interface it came by.
    pub(crate) ingress: usize,
    pub(crate) since: u64,
}

impl HeldFrames {
    /// Whether the packet may wait: at most 64, eight for one neighbour, and a second.
    pub(crate) fn admit(&mut self, packet: Held, now: u64) -> bool {
        let same = self.held.iter().filter(|other| other.neighbour == packet.neighbour).count();
        let room = self.held.len() < 64 && same < 8 && now - packet.since <= 1000;
        if room {
            self.held.push_back(packet);
        }
        room
    }

    /// How many are to be decided again now: all after a change of tables, else those whose time is over.
    pub(crate) fn due(&mut self, generation: u64, now: u64) -> usize {
        if generation != self.generation {
            self.generation = generation;
            return self.held.len();
        }
        self.held.iter().take_while(|packet| now - packet.since > 1000).count()
    }

    pub(crate) fn leave(&mut self) -> Option<Held> {
        self.held.pop_front()
    }
}
