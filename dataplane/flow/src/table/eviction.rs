//! Which flows may end to make room for others.
//!
//! An entry may live in the 64 slots of two buckets. When all are taken, the oldest flow among them that is closing, or
//! that nobody has answered, makes room; an established flow never does. If there is none,
//! [`Inserted::Full`](super::Inserted::Full) says so and the caller counts it. Half-open connections are counted, so that a
//! flood of them can be given a share of the table.

use flowgate_wire::Protocol;

use super::{FlowTable, Found, Probe, entry_index};
use crate::address::FlowAddress;
use crate::entry::{Entry, EntryIndex, Identity, Side, Tick};
use crate::state::{TcpPhase, TcpSeen};
use crate::sync::Ordering;

impl<A: FlowAddress> FlowTable<A> {
    /// For how long a flow that may be ended to make room for another has been silent, in milliseconds; none for one
    /// that may not: it is established, or is being inserted or removed.
    pub fn evictable_idle_ms(&self, found: &Found<'_, A>, now: Tick) -> Option<u32> {
        let identity = found.entry.identity()?;
        self.may_evict(found.entry, &identity).then(|| now.since(found.entry.last_seen()))
    }

    /// Connections that were begun and whose client was not answered with a SYN. Right to within those that are
    /// being inserted or removed.
    pub fn half_open(&self) -> u32 {
        self.half_open.load(Ordering::Relaxed)
    }

    /// Counts the half-open connections anew: another process has left them.
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

    /// Notes that the reply direction `found` carries a SYN: the connection is no longer half open.
    pub fn mark_replied(&self, found: &Found<'_, A>) {
        if found.side() == Side::Reply && !Self::has_sent_syn(found.entry) {
            self.decrement_half_open();
        }
    }

    /// Removes the oldest half-open connection among those that would share their buckets with the tuple of `probe`.
    /// False if there is none.
    pub fn evict_half_open(&self, probe: &Probe, now: Tick) -> bool {
        self.evict_oldest(probe.buckets, now, |entry, identity| {
            let reply = if identity.side == Side::Reply { Some(entry) } else { self.peer_of(entry) };
            let is_linked = self.peer_of(entry).is_some();
            identity.tuple.protocol != Protocol::Udp
                && is_linked
                && reply.is_some_and(|reply| !Self::has_sent_syn(reply))
        })
    }

    pub(super) fn has_sent_syn(entry: &Entry<A>) -> bool {
        TcpSeen::from_bits(entry.tcp_seen.load(Ordering::Relaxed)).has_sent_syn()
    }

    pub(super) fn decrement_half_open(&self) {
        // Never below zero, whatever races: it would lock everybody out.
        let less = |count: u32| Some(count.saturating_sub(1));
        let _ = self.half_open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// Removes the flow that was idle longest among those in these buckets that may be evicted.
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
            // Not linked yet: it is being inserted right now.
            return false;
        };
        let reply = if identity.side == Side::Reply { entry } else { peer };
        if identity.tuple.protocol != Protocol::Udp {
            let phase = self.phase(identity.side, entry);
            phase.is_closing() || phase == TcpPhase::SynSent
        } else {
            reply.counts().0 == 0
        }
    }
}
