//! Records the flags of TCP segments and validates resets.

use flowgate_wire::TcpFlags;

use super::{FlowTable, Found};
use crate::address::FlowAddress;
use crate::entry::{Entry, Side};
use crate::state::{TcpPhase, TcpSeen};
use crate::sync::Ordering;

impl<A: FlowAddress> FlowTable<A> {
    /// The phase of the connection of `found`.
    pub fn tcp_phase(&self, found: &Found<'_, A>) -> TcpPhase {
        self.phase(found.side(), found.entry)
    }

    /// Records a reset with this sequence number in the direction of `found`. False, and nothing is recorded, if the
    /// number is outside the window that its receiver would accept.
    pub fn record_reset(&self, found: &Found<'_, A>, sequence: u32) -> bool {
        let Some(peer) = self.peer_of(found.entry) else { return false };
        let seen = |entry: &Entry<A>| TcpSeen::from_bits(entry.tcp_seen.load(Ordering::Relaxed));
        // A reset outside of its receiver's window is ignored by the receiver (RFC 9293 section 3.10.7.4: only the exact next
        // number ends a connection, others in the window are challenged). The window begins at the last acknowledgement. The entry has the upper 16 bits of that number only, so the distance is in units of 64 KiB,
        // and one unit below is accepted too. A reset that answers a SYN has no such number and is always recorded.
        let beyond = ((sequence >> 16) as u16).wrapping_sub(peer.acked()).wrapping_add(1);
        if seen(peer).has_sent_ack() && beyond > RESET_WINDOW + 1 {
            return false;
        }
        found.entry.tcp_seen.store(seen(found.entry).with_reset().to_bits(), Ordering::Relaxed);
        // The peer's record belongs to another worker, which may overwrite this store with an older value. The phase is
        // "reset" in any case, by the store above; resets are rare enough for two cores to write one cache line.
        peer.tcp_seen.store(seen(peer).with_reset_from_peer().to_bits(), Ordering::Relaxed);
        true
    }

    /// Whether the other direction has reset the connection.
    #[inline]
    pub fn is_reset_by_peer(&self, found: &Found<'_, A>) -> bool {
        TcpSeen::from_bits(found.entry.tcp_seen.load(Ordering::Relaxed)).is_reset_by_peer()
    }

    /// Removes the record of a reset that its receiver did not accept: it goes on sending, for example a challenge ACK
    /// (RFC 5961 section 3.2).
    pub fn undo_reset(&self, found: &Found<'_, A>) {
        for entry in [Some(found.entry), self.peer_of(found.entry)].into_iter().flatten() {
            let seen = TcpSeen::from_bits(entry.tcp_seen.load(Ordering::Relaxed));
            entry.tcp_seen.store(seen.without_reset().to_bits(), Ordering::Relaxed);
        }
    }

    pub(crate) fn phase(&self, side: Side, entry: &Entry<A>) -> TcpPhase {
        let seen = |entry: &Entry<A>| TcpSeen::from_bits(entry.tcp_seen.load(Ordering::Relaxed));
        let own = seen(entry);
        let other = self.peer_of(entry).map_or_else(TcpSeen::default, seen);
        match side {
            Side::Original => TcpPhase::of(own, other),
            Side::Reply => TcpPhase::of(other, own),
        }
    }
}

impl<A: FlowAddress> Found<'_, A> {
    /// Records the upper half of the acknowledgement number of a TCP segment of this direction.
    #[inline]
    pub fn record_ack(&self, high: u16) {
        self.entry.record_ack(high);
    }

    /// Records the flags of a TCP segment of this direction.
    #[inline]
    pub fn record_tcp_flags(&self, flags: TcpFlags) {
        let seen = self.entry.tcp_seen.load(Ordering::Relaxed);
        let after = TcpSeen::from_bits(seen).with_flags(flags).to_bits();
        // Most segments add nothing, and a store would make the cache line dirty.
        if after != seen {
            self.entry.tcp_seen.store(after, Ordering::Relaxed);
        }
    }
}

/// Distance of a valid reset from the last acknowledgement, in units of 64 KiB: 16 MiB, which few receive windows exceed.
const RESET_WINDOW: u16 = 256;
