//! Whether a UDP flow is a stream: datagrams in both directions for longer than two seconds.
//!
//! One forged datagram that a backend answers looks like the question of a resolver. Only a flow that goes on after its first
//! answer is treated as established, as netfilter does it (net/netfilter/nf_conntrack_proto_udp.c, `stream_ts`). What was seen
//! is recorded in both entries of the flow, on the slow path only.

use super::{FlowTable, Found};
use crate::address::FlowAddress;
use crate::entry::{Entry, Side, Tick};

impl<A: FlowAddress> FlowTable<A> {
    /// Records a datagram of `found`, if [`Found::may_become_stream`]; to be called before it is counted.
    pub fn record_datagram(&self, found: &Found<'_, A>, now: Tick) {
        let bits = if found.entry.udp_bits() & ANSWERED != 0 && is_old_enough(found.entry, now) {
            STREAM
        } else if found.side() == Side::Reply {
            ANSWERED
        } else {
            return;
        };
        found.entry.add_udp_bits(bits);
        if let Some(peer) = self.peer_of(found.entry) {
            peer.add_udp_bits(bits);
        }
    }
}

impl<A: FlowAddress> Found<'_, A> {
    /// Whether a datagram of this direction at `now` is to be recorded by [`FlowTable::record_datagram`]: at most two of a flow
    /// are, its first answer and the first datagram after two seconds. Cheap: it reads this direction's entry only.
    #[inline(always)]
    pub fn may_become_stream(&self, now: Tick) -> bool {
        let bits = self.entry.udp_bits();
        bits & STREAM == 0
            && if bits & ANSWERED != 0 { is_old_enough(self.entry, now) } else { self.side() == Side::Reply }
    }
}

/// Whether the UDP flow of an entry is a stream.
pub(super) fn is_stream<A: FlowAddress>(entry: &Entry<A>) -> bool {
    entry.udp_bits() & STREAM != 0
}

#[inline(always)]
fn is_old_enough<A: FlowAddress>(entry: &Entry<A>, now: Tick) -> bool {
    now.since(entry.opened()) > STREAM_MS
}

/// The backend has replied.
const ANSWERED: u16 = 1;

/// The flow is a stream.
const STREAM: u16 = 2;

/// A datagram of an answered flow that is older makes it a stream.
const STREAM_MS: u32 = 2_000;
