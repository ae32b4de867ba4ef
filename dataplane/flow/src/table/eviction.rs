//! Eviction: which flows make room for others.
//!
//! An entry may be in the 64 slots of two buckets. When all are used, the longest idle flow among them that is closing or
//! unanswered is evicted; an established flow is not. If there is none, the insertion returns
//! [`Inserted::Full`](super::Inserted::Full). Half-open connections are counted, so that the share of the table which a
//! SYN flood gets can be limited.

use flowgate_wire::Protocol;

use super::{FlowTable, Found, Probe, entry_index};
use crate::address::FlowAddress;
use crate::entry::{Entry, EntryIndex, Identity, Side, Tick};
use crate::state::TcpPhase;
use crate::sync::Ordering;

impl<A: FlowAddress> FlowTable<A> {
    /// Idle time in milliseconds of an evictable flow; `None` if it must not be evicted: it is established, or is being
    /// inserted or removed.
    pub fn evictable_idle_ms(&self, found: &Found<'_, A>, now: Tick) -> Option<u32> {
        let identity = found.entry.identity()?;
        self.may_evict(found.entry, &identity).then(|| now.since(found.entry.last_seen()))
    }

    /// The number of connections whose client has sent a SYN and whose backend has not. Exact but for those that are being
    /// inserted or removed.
    pub fn half_open(&self) -> u32 {
        self.half_open.load(Ordering::Relaxed)
    }

    /// Counts the half-open connections of an adopted table.
    pub(crate) fn recount_half_open(&self) {
        let is_half_open = |index: EntryIndex| {
            let entry = self.entry(index);
            let identity = entry.identity().filter(|identity| identity.side == Side::Original)?;
            let reply = self.peer_of(entry)?;
            (identity.tuple.protocol != Protocol::Udp && !Self::has_sent_syn(reply)).then_some(())
        };
        let count = (0..self.bucket_count())
            .flat_map(|bucket| self.used_slots(bucket).map(move |slot| entry_index(bucket, slot)))
            .filter_map(is_half_open)
            .count();
        self.half_open.store(u32::try_from(count).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    /// To be called for a SYN of the backend, before it is recorded: the connection is no longer half open.
    pub fn mark_replied(&self, found: &Found<'_, A>) {
        if found.side() == Side::Reply && !Self::has_sent_syn(found.entry) {
            self.decrement_half_open();
        }
    }

    /// Evicts the longest idle half-open connection in the buckets of `probe`. False if there is none.
    pub fn evict_half_open(&self, probe: &Probe, now: Tick) -> bool {
        self.evict_oldest(probe.buckets, now, |entry, identity| {
            let reply = if identity.side == Side::Reply { Some(entry) } else { self.peer_of(entry) };
            // A reply entry without a peer is in the middle of its insertion.
            let is_linked = self.peer_of(entry).is_some();
            identity.tuple.protocol != Protocol::Udp
                && is_linked
                && reply.is_some_and(|reply| !Self::has_sent_syn(reply))
        })
    }

    pub(super) fn has_sent_syn(entry: &Entry<A>) -> bool {
        entry.connection().has_sent_syn()
    }

    pub(super) fn decrement_half_open(&self) {
        // Saturating: a race that decrements twice must not wrap to 2^32 - 1, which would reject every new connection.
        let less = |count: u32| Some(count.saturating_sub(1));
        let _ = self.half_open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// Evicts the longest idle evictable flow in these buckets.
    pub(super) fn evict_from(&self, buckets: [u32; 2], now: Tick) -> bool {
        self.evict_oldest(buckets, now, |entry, identity| self.may_evict(entry, identity))
    }

    fn evict_oldest(
        &self,
        buckets: [u32; 2],
        now: Tick,
        may_go: impl Fn(&Entry<A>, &Identity<A>) -> bool,
    ) -> bool {
        let slots = buckets
            .into_iter()
            .flat_map(|bucket| self.used_slots(bucket).map(move |slot| entry_index(bucket, slot)));
        // All 64 entries are read, which only an insertion into full buckets pays for.
        let victim = slots
            .filter_map(|index| {
                let entry = self.entry(index);
                let identity = entry.identity()?;
                may_go(entry, &identity).then(|| (now.since(entry.last_seen()), index, identity))
            })
            .max_by_key(|(idle, ..)| *idle);
        victim.is_some_and(|(_, index, identity)| self.remove_flow(index, &identity))
    }

    fn may_evict(&self, entry: &Entry<A>, identity: &Identity<A>) -> bool {
        let Some(peer) = self.peer_of(entry) else {
            // Not linked yet: its insertion is in progress, and the other half could not be removed with it.
            return false;
        };
        let reply = if identity.side == Side::Reply { entry } else { peer };
        if identity.tuple.protocol != Protocol::Udp {
            let phase = self.phase(identity.side, entry);
            phase.is_closing() || phase == TcpPhase::SynSent
        } else {
            // UDP has no phases: a flow that was answered counts as established.
            !reply.has_carried()
        }
    }
}
