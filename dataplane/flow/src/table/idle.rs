//! Whether a flow has been idle for longer than its timeout.

use flowgate_wire::Protocol;

use super::udp::is_stream;
use super::{FlowTable, Found};
use crate::address::FlowAddress;
use crate::entry::{EntryIndex, Tick};
use crate::timeouts::Timeouts;

impl<A: FlowAddress> FlowTable<A> {
    /// Whether the flow was idle for longer than its timeout, and only waits for the sweep. Cheap for a flow that was used
    /// recently.
    pub fn is_expired(&self, found: &Found<'_, A>, now: Tick, timeouts: &Timeouts) -> bool {
        self.may_be_expired(found, now) && self.is_entry_expired(found.index, now, timeouts)
    }

    /// Whether this direction was idle for so long that [`is_expired`](Self::is_expired) is worth calling: it reads the
    /// peer's cache line too.
    #[inline]
    pub fn may_be_expired(&self, found: &Found<'_, A>, now: Tick) -> bool {
        now.since(found.entry.last_seen()) > LAZY_EXPIRY_MS
    }

    /// Whether both directions of the flow were idle for longer than the timeout of its phase.
    pub(crate) fn is_entry_expired(&self, index: EntryIndex, now: Tick, timeouts: &Timeouts) -> bool {
        let entry = self.entry(index);
        let Some(identity) = entry.identity() else { return false };
        let idle = now.since(entry.last_seen());
        let Some(peer) = self.peer_of(entry).filter(|peer| peer.peer() == index) else {
            // Half a flow: its insertion is in progress, or its removal left it behind. An insertion takes microseconds, so
            // after a second it is the latter.
            return idle > HALF_FLOW_MS;
        };
        let idle = idle.min(now.since(peer.last_seen()));
        let allowed = match identity.tuple.protocol {
            Protocol::Udp => timeouts.allowed_udp_ms(is_stream(entry)),
            Protocol::Tcp | Protocol::Sctp => timeouts.allowed_ms(self.phase(identity.side, entry)),
        };
        idle > allowed
    }
}

/// As long as the shortest sensible timeout: lookups check expiry only after it.
const LAZY_EXPIRY_MS: u32 = 1_000;

const HALF_FLOW_MS: u32 = 1_000;
