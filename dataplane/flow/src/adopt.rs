//! Adoption: takes over the flows that an earlier process left in a persistent table.
//!
//! The process may have died between any two stores. What it left half written, half inserted or half removed is
//! cleared. Numbers of next hops and backends meant something to it alone: next hops are looked up again by the next
//! packet, and the caller finds the backends by their addresses. A flow is restored only if both entries agree in
//! everything, so that no packet is translated by damaged memory.

use flowgate_wire::{FiveTuple, Translation};

use crate::address::FlowAddress;
use crate::arch::prefetch;
use crate::entry::{EntryIndex, NextHopRef, Side, Tick};
use crate::table::{FlowTable, entry_index};
use crate::tags::BUCKET_SLOTS;

/// A flow that is taken over.
#[derive(Clone, Copy, Debug)]
pub struct RestoredFlow<A> {
    /// The tuple of packets from the client.
    pub original: FiveTuple<A>,
    /// The tuple of packets from the backend.
    pub reply: FiveTuple<A>,
    /// When either direction last carried a packet.
    pub last_seen: Tick,
}

/// Result of an adoption.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// Flows that were restored.
    pub flows: usize,
    /// Entries that belonged to no whole flow and were freed.
    pub cleared: usize,
}

impl<A: FlowAddress> FlowTable<A> {
    /// Takes over the flows in the table; `backend_of` gives the backend of each. The caller must be the table's only
    /// user: adoption runs before workers start.
    pub fn adopt(&self, mut backend_of: impl FnMut(&RestoredFlow<A>) -> u32) -> Adopted {
        let mut adopted = Adopted::default();
        // First pass: entries that no lookup finds. The second can then rely on the peer of an entry being where its
        // index leads, in a slot whose tag agrees.
        for index in self.used_indices() {
            if !self.is_in_place(index) {
                self.clear_unchecked(index);
                adopted.cleared += 1;
            }
        }
        for index in self.used_indices().inspect(|index| self.fetch_next(*index)) {
            // A half whose other half was just cleared is no whole flow either and is cleared when its turn comes.
            let Some(flow) = self.whole_flow(index) else {
                self.clear_unchecked(index);
                adopted.cleared += 1;
                continue;
            };
            let entry = self.entry(index);
            entry.set_next_hop(NextHopRef::NONE);
            if entry.side() == Side::Original {
                let backend = backend_of(&flow);
                entry.set_backend(backend);
                self.entry(entry.peer()).set_backend(backend);
                adopted.flows += 1;
            }
        }
        // These counters are outside the shared memory and start at zero.
        self.recount();
        adopted
    }

    fn used_indices(&self) -> impl Iterator<Item = EntryIndex> {
        (0..self.bucket_count())
            .flat_map(move |bucket| self.used_slots(bucket).map(move |slot| entry_index(bucket, slot)))
    }

    /// Prefetches the peer of the entry some slots ahead: peers are at random places, and waiting for each would take
    /// most of the time of an adoption.
    fn fetch_next(&self, index: EntryIndex) {
        let ahead = self.entries().get(index.0 as usize + FETCH_AHEAD_SLOTS);
        if let Some(peer) = ahead.and_then(|entry| self.peer_of(entry)) {
            prefetch(peer);
        }
    }

    /// Whether the entry is readable and a lookup of its tuple finds it and not another.
    fn is_in_place(&self, index: EntryIndex) -> bool {
        let Some(identity) = self.entry(index).identity() else { return false };
        self.lookup(&identity.tuple).is_some_and(|found| found.index() == index)
    }

    /// The flow of this entry; `None` if the other direction is missing or belongs to another flow.
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
        // Translations follow from the tuples, so they are computed and compared: each entry confirms the other.
        let agree = other.peer == index
            && original.tuple.protocol == reply.tuple.protocol
            && original.translation == Translation::between(&original.tuple, &reply.tuple.reversed())
            && reply.translation == Translation::between(&reply.tuple, &original.tuple.reversed());
        let last_seen = entry.last_seen().later(peer.last_seen());
        agree.then_some(RestoredFlow { original: original.tuple, reply: reply.tuple, last_seen })
    }

    /// Frees a slot without checking its content; the caller must be the only user.
    fn clear_unchecked(&self, index: EntryIndex) {
        self.entry(index).lock_unchecked();
        self.free(index);
    }
}

/// Far enough for memory to respond in time, near enough for the line to be in the cache still.
const FETCH_AHEAD_SLOTS: usize = 24;

#[cfg(test)]
mod tests;
