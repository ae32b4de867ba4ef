//! The packets that must be waiting for a neighbour or for the first fragment of their datagram.

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
    /// Whether the packet may wait: at most 64, eight for one neighbour, and three seconds and a half.
    pub(crate) fn admit(&mut self, packet: Held, now: u64) -> bool {
        let same = self.held.iter().filter(|other| other.neighbour == packet.neighbour).count();
        let room = self.held.len() < 64 && same < 8 && now - packet.since <= 3500;
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
        self.held.iter().take_while(|packet| now - packet.since > 3500).count()
    }

    pub(crate) fn leave(&mut self) -> Option<Held> {
        self.held.pop_front()
    }
}

/// Fragments that one worker holds until the first of their datagram has come.
#[derive(Clone, Debug, Default)]
pub(crate) struct HeldPieces {
    held: Vec<HeldPiece>,
}

#[derive(Clone, Debug)]
struct HeldPiece {
    frame: Held,
    /// The datagram.
    of: u64,
    is_due: bool,
}

impl HeldPieces {
    /// Whether the fragment may wait: at most 128, 45 of one datagram, and a second. If not, why.
    pub(crate) fn admit(&mut self, frame: Held, of: u64, now: u64) -> Result<(), &'static str> {
        let same = self.held.iter().filter(|other| other.of == of).count();
        if now - frame.since > 1000 {
            return Err("fragment_no_first");
        }
        if self.held.len() >= 128 || same >= 45 {
            return Err("fragment_excess");
        }
        self.held.push(HeldPiece { frame, of, is_due: false });
        Ok(())
    }

    /// Something has become known of this datagram.
    pub(crate) fn wake(&mut self, of: u64) {
        self.held.iter_mut().filter(|piece| piece.of == of).for_each(|piece| piece.is_due = true);
    }

    /// The next one that is to be decided again.
    pub(crate) fn leave(&mut self) -> Option<Held> {
        let at = self.held.iter().position(|piece| piece.is_due)?;
        Some(self.held.remove(at).frame)
    }

    /// How many have waited for too long.
    pub(crate) fn expire(&mut self, now: u64) -> usize {
        let before = self.held.len();
        self.held.retain(|piece| now - piece.frame.since <= 1000);
        before - self.held.len()
    }
}
