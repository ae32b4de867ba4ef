//! Tracks the segments of TCP connections: which count is decided in [`crate::window`], here both entries are read and written.

use flowgate_wire::TcpSegment;

use super::{FlowTable, Found};
use crate::address::FlowAddress;
use crate::entry::{Entry, Side};
use crate::state::{Connection, TcpPhase};
use crate::window::{self, Sent};

/// What became of a packet in the record of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracked {
    /// Its receiver would act on it: what it says is recorded.
    Recorded,
    /// The same, and it shows that a reset of the other direction was not taken.
    ResetRefuted,
    /// Its receiver would not act on it, or it is damaged: nothing was recorded.
    Ignored,
}

impl<A: FlowAddress> FlowTable<A> {
    /// The phase of the connection of `found`.
    pub fn tcp_phase(&self, found: &Found<'_, A>) -> TcpPhase {
        self.phase(found.side(), found.entry)
    }

    /// Records a segment in the direction of `found`, if its receiver would act on it. `is_intact` verifies its checksum, and
    /// is called only for a segment that is more than a step of an open connection, and changes something.
    pub fn track_segment(
        &self,
        found: &Found<'_, A>,
        segment: &TcpSegment,
        is_intact: impl FnOnce() -> bool,
    ) -> Tracked {
        // The same segment is judged alike whichever way it takes through the pipeline.
        if found.record_next(segment) {
            return Tracked::Recorded;
        }
        let Some(peer) = self.peer_of(found.entry) else { return Tracked::Ignored };
        let (own, other) = (sent(found.entry), sent(peer));
        let Some(accepted) = window::judge(found.side(), &own, &other, segment) else {
            return Tracked::Ignored;
        };
        if accepted.changes(&own) && !is_intact() {
            return Tracked::Ignored;
        }
        self.note_handshake(found.side(), own.connection, accepted.own.connection);
        found.entry.set_end(accepted.own.end);
        found.entry.set_acked(accepted.own.acked);
        found.entry.set_connection(accepted.own.connection);
        self.tell_peer(found, accepted.resets, accepted.refutes)
    }

    /// Records in the other direction that this one has reset the connection, or refuted a reset.
    pub(super) fn tell_peer(&self, found: &Found<'_, A>, resets: bool, refutes: bool) -> Tracked {
        // The peer's record belongs to another worker, which may overwrite this store with an older value. The phase is
        // "reset" in any case, by the record of this direction; resets are rare enough for two cores to write one cache line.
        if let Some(peer) = self.peer_of(found.entry).filter(|_| resets || refutes) {
            let before = peer.connection();
            peer.set_connection(if resets { before.with_reset_from_peer() } else { before.without_reset() });
        }
        if refutes { Tracked::ResetRefuted } else { Tracked::Recorded }
    }

    pub(crate) fn phase(&self, side: Side, entry: &Entry<A>) -> TcpPhase {
        let own = entry.connection();
        let other = self.peer_of(entry).map_or_else(Connection::default, Entry::connection);
        match side {
            Side::Original => TcpPhase::of(own, other),
            Side::Reply => TcpPhase::of(other, own),
        }
    }
}

impl<A: FlowAddress> Found<'_, A> {
    /// Records a segment that goes on where its direction stands, as nearly all do. False, and nothing is recorded, for any
    /// other: [`FlowTable::track_segment`] decides about it with both directions at hand.
    #[inline(always)]
    pub fn record_next(&self, segment: &TcpSegment) -> bool {
        let entry = self.entry;
        let (connection, end, acked) = (entry.connection(), entry.end(), entry.acked());
        let goes_on =
            segment.flags.continues() && connection.is_open() && window::is_next(segment, end, acked);
        if !goes_on {
            return false;
        }
        // Stored whether they changed or not: the cache line is written anyway, and a branch would cost more.
        let ahead = segment.end.wrapping_sub(end).cast_signed() > 0;
        let (acked, connection) = window::acknowledged(segment, acked, connection.past_syn());
        entry.set_end(if ahead { segment.end } else { end });
        entry.set_acked(acked);
        entry.set_connection(connection);
        true
    }

    /// Records `len` octets that follow the last segment in a later fragment of its packet.
    pub fn extend_segment(&self, len: u16) {
        if self.entry.connection().is_open() {
            self.entry.set_end(self.entry.end().wrapping_add(len.into()));
        }
    }
}

fn sent<A: FlowAddress>(entry: &Entry<A>) -> Sent {
    Sent { connection: entry.connection(), end: entry.end(), acked: entry.acked() }
}
