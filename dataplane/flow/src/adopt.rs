//! Taking over the flows that a dead process left. Never reads a clock, never knows a Service.
//!
//! The process may have died between any two stores. What it left half written, half inserted or half
//! removed is cleared; next hops and backends had numbers that meant something to it alone, so next hops
//! are looked up again by the next packet, and the caller finds the backends anew. A flow is believed
//! only if its two entries agree in all: whatever else happened to the memory, no packet is translated
//! by a guess.

use flowgate_wire::{FiveTuple, Translation};

use crate::address::FlowAddress;
use crate::arch::prefetch;
use crate::entry::{EntryIndex, NextHopRef, Side, Tick};
use crate::table::{FlowTable, entry_index};
use crate::tags::BUCKET_SLOTS;

/// A flow that was taken over.
#[derive(Clone, Copy, Debug)]
pub struct RestoredFlow<A> {
    /// As the client sends.
    pub original: FiveTuple<A>,
    /// As the backend answers.
    pub reply: FiveTuple<A>,
    /// When either direction last carried a packet.
    pub last_seen: Tick,
}

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// Flows that go on.
    pub flows: usize,
    /// Entries that were no half of a whole flow, and are free now.
    pub cleared: usize,
}

impl<A: FlowAddress> FlowTable<A> {
    /// Takes over what is in the table, asking `backend_of` for the backend of each flow. Nobody else may
    /// use the table meanwhile.
    pub fn adopt(&self, mut backend_of: impl FnMut(&RestoredFlow<A>) -> u32) -> Adopted {
        let mut adopted = Adopted::default();
        // Halves first: a flow is whole only if both can be found by their tuples.
        for index in self.used_indices() {
            if !self.is_in_place(index) {
                self.clear_unchecked(index);
                adopted.cleared += 1;
            }
        }
        for index in self.used_indices().inspect(|index| self.fetch_next(*index)) {
            let Some(kept) = self.whole_flow(index) else {
                self.clear_unchecked(index);
                adopted.cleared += 1;
                continue;
            };
            let entry = self.entry(index);
            entry.set_next_hop(NextHopRef::NONE);
            if entry.side() == Side::Original {
                let backend = backend_of(&kept);
                entry.set_backend(backend);
                self.entry(entry.peer()).set_backend(backend);
                adopted.flows += 1;
            }
        }
        self.recount_half_open();
        adopted
    }

    fn used_indices(&self) -> impl Iterator<Item = EntryIndex> {
        (0..self.bucket_count())
            .flat_map(move |bucket| self.used_slots(bucket).map(move |slot| entry_index(bucket, slot)))
    }

    /// Starts loading what the entry some slots further on is compared with: peers lie anywhere.
    fn fetch_next(&self, index: EntryIndex) {
        let ahead = self.entries().get(index.0 as usize + FETCH_AHEAD_SLOTS);
        if let Some(peer) = ahead.and_then(|entry| self.peer_of(entry)) {
            prefetch(peer);
        }
    }

    /// Whether the entry can be read and is where a lookup of its tuple finds it, and not another.
    fn is_in_place(&self, index: EntryIndex) -> bool {
        let Some(identity) = self.entry(index).identity() else { return false };
        self.lookup(&identity.tuple).is_some_and(|found| found.index() == index)
    }

    /// The flow that this entry is half of; none if the other half is missing or is of another flow.
    fn whole_flow(&self, index: EntryIndex) -> Option<RestoredFlow<A>> {
        let (entry, peer) = (self.entry(index), self.peer_of(self.entry(index))?);
        let (bucket, slot) = (entry.peer().0 / BUCKET_SLOTS, entry.peer().0 % BUCKET_SLOTS);
        if !self.used_slots(bucket).contains(slot) {
            return None;
        }
        let (own, other) = (entry.identity()?, peer.identity()?);
        let (original, reply) = match (own.side, other.side) {
            (Side::Original, Side::Reply) => (own, other),
            (Side::Reply, Side::Original) => (other, own),
            _ => return None,
        };
        let agree = other.peer == index
            && original.tuple.protocol == reply.tuple.protocol
            && original.translation == Translation::between(&original.tuple, &reply.tuple.reversed())
            && reply.translation == Translation::between(&reply.tuple, &original.tuple.reversed());
        let last_seen = entry.last_seen().later(peer.last_seen());
        agree.then_some(RestoredFlow { original: original.tuple, reply: reply.tuple, last_seen })
    }

    /// Frees a slot whatever is in it.
    fn clear_unchecked(&self, index: EntryIndex) {
        self.entry(index).lock_unchecked();
        self.free(index);
    }
}

/// Enough for memory to answer, few enough for the cache to hold.
const FETCH_AHEAD_SLOTS: usize = 24;

#[cfg(test)]
mod tests;
