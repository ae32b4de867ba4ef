//! Eviction: which flows make room for others.
//!
//! An entry may be in the 64 slots of two buckets. When all are used, the flow among them makes room whose client has been
//! silent for longest, if it is closing, half open or (UDP) no stream. If there is none, an idle established flow of the client
//! with the most flows gives way to those of other clients; flows of clients with fewer never do. If there is none of these
//! either, the insertion returns [`Inserted::Full`](super::Inserted::Full). Half-open connections are counted, so that the share of the
//! table which a SYN flood gets can be limited.

use flowgate_wire::Protocol;

use super::udp::is_stream;
use super::{FlowTable, Found, Probe, entry_index};
use crate::address::FlowAddress;
use crate::entry::{Entry, Identity, Side, Tick};
use crate::state::Connection;
use crate::sync::Ordering;

impl<A: FlowAddress> FlowTable<A> {
    /// For how many milliseconds the client of an evictable flow has been silent; `None` if the flow must not be evicted: it
    /// is established, or is being inserted or removed.
    pub fn evictable_idle_ms(&self, found: &Found<'_, A>, now: Tick) -> Option<u32> {
        let identity = found.entry.identity()?;
        self.evictable_ms(found.entry, &identity, now)
    }

    /// The number of connections whose handshake the client has not completed. Exact but for those that are being inserted
    /// or removed.
    pub fn half_open(&self) -> u32 {
        self.half_open.load(Ordering::Relaxed)
    }

    /// Counts the half-open connections and the flows of each client in an adopted table.
    pub(crate) fn recount(&self) {
        self.shares.flows.clear();
        self.shares.ports.clear();
        let mut half_open = 0;
        for bucket in 0..self.bucket_count() {
            for slot in self.used_slots(bucket) {
                let entry = self.entry(entry_index(bucket, slot));
                let Some(identity) = entry.identity().filter(|identity| identity.side == Side::Original)
                else {
                    continue;
                };
                self.count_adopted(&identity);
                half_open += u32::from(identity.tuple.protocol != Protocol::Udp && Self::is_half_open(entry));
            }
        }
        self.half_open.store(half_open, Ordering::Relaxed);
    }

    /// Evicts the longest idle half-open connection in the buckets of `probe`. False if there is none.
    pub fn evict_half_open(&self, probe: &Probe, now: Tick) -> bool {
        self.evict_oldest(probe.buckets, |entry, identity| {
            let original = self.original_of(entry, identity)?;
            let is_half_open = identity.tuple.protocol != Protocol::Udp && Self::is_half_open(original);
            is_half_open.then(|| now.since(original.last_seen()))
        })
    }

    /// Evicts the flow of `client` in the buckets of `probe` that is evictable and has been idle for longest. False if there is
    /// none.
    pub fn evict_of_client(&self, probe: &Probe, client: A, now: Tick) -> bool {
        self.evict_oldest(probe.buckets, |entry, identity| {
            let is_own = Self::client_of(identity).client() == client.client();
            if is_own { self.evictable_ms(entry, identity, now) } else { None }
        })
    }

    /// Whether the connection of this original direction is half open. The client's first acknowledgement is recorded only
    /// once it completes the handshake.
    pub(super) fn is_half_open(original: &Entry<A>) -> bool {
        !original.connection().has_sent_ack()
    }

    /// To be called when what this direction of a connection has sent is about to change: with its acknowledgement of the
    /// backend's SYN the client completes the handshake (RFC 9293 section 3.5).
    pub(super) fn note_handshake(&self, side: Side, before: Connection, after: Connection) {
        if side == Side::Original && !before.has_sent_ack() && after.has_sent_ack() {
            self.decrement_half_open();
        }
    }

    pub(super) fn decrement_half_open(&self) {
        // Saturating: a race that decrements twice must not wrap to 2^32 - 1, which would reject every new connection.
        let less = |count: u32| Some(count.saturating_sub(1));
        let _ = self.half_open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// Evicts for a flow of `client` the longest idle evictable flow in these buckets; if there is none, an idle one of the
    /// table's largest user.
    pub(super) fn evict_from(&self, buckets: [u32; 2], client: A, now: Tick) -> bool {
        self.evict_oldest(buckets, |entry, identity| self.evictable_ms(entry, identity, now))
            || self.evict_of_largest_user(buckets, client, now)
    }

    /// Evicts the longest idle flow in these buckets of a client that has as many flows as any, about, and more than `client`.
    fn evict_of_largest_user(&self, buckets: [u32; 2], client: A, now: Tick) -> bool {
        let largest = self.shares.flows.largest();
        // An eighth less, since counts are a little too large. Where all clients have few flows none of them is to blame.
        // Two more than the newcomer, whose own flow may not be counted yet.
        let least =
            (largest - largest / 8).max(self.capacity_flows / LARGE_USER).max(self.flows_of(client) + 2);
        if largest < least {
            return false;
        }
        self.evict_oldest(buckets, |entry, identity| {
            let peer = self.peer_of(entry)?;
            let idle = now.since(entry.last_seen()).min(now.since(peer.last_seen()));
            let gives_way = idle >= IDLE_MS && self.flows_of(Self::client_of(identity)) >= least;
            gives_way.then_some(idle)
        })
    }

    /// Evicts the flow in these buckets with the longest time that `idle_ms` gives; `None` is for flows that stay.
    fn evict_oldest(
        &self,
        buckets: [u32; 2],
        idle_ms: impl Fn(&Entry<A>, &Identity<A>) -> Option<u32>,
    ) -> bool {
        let slots = buckets
            .into_iter()
            .flat_map(|bucket| self.used_slots(bucket).map(move |slot| entry_index(bucket, slot)));
        // All 64 entries are read, which only an insertion into full buckets pays for.
        let victim = slots
            .filter_map(|index| {
                let entry = self.entry(index);
                let identity = entry.identity()?;
                Some((idle_ms(entry, &identity)?, index, identity))
            })
            .max_by_key(|(idle, ..)| *idle);
        victim.is_some_and(|(_, index, identity)| self.remove_flow(index, &identity))
    }

    fn evictable_ms(&self, entry: &Entry<A>, identity: &Identity<A>, now: Tick) -> Option<u32> {
        let original = self.original_of(entry, identity)?;
        let may_go = if identity.tuple.protocol == Protocol::Udp {
            // UDP has no phases: a stream counts as established.
            !is_stream(entry)
        } else {
            let phase = self.phase(identity.side, entry);
            phase.is_closing() || phase.is_half_open()
        };
        // The client's silence: backends repeat their answers to forged packets.
        may_go.then(|| now.since(original.last_seen()))
    }

    /// The original direction of the flow of an entry; `None` if the entry has no peer: the insertion is in progress, and the
    /// other half could not be removed with this one.
    fn original_of<'a>(&'a self, entry: &'a Entry<A>, identity: &Identity<A>) -> Option<&'a Entry<A>> {
        let peer = self.peer_of(entry)?;
        Some(if identity.side == Side::Original { entry } else { peer })
    }
}

/// A flow that has been idle for so long may give way if it is the largest user's, the longest idle of 64 slots first.
const IDLE_MS: u32 = 1_000;

/// The largest user has at least this part of the table.
const LARGE_USER: u32 = 128;
