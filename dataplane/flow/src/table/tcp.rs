//! What the segments of a connection have shown, and which resets are taken. Never removes a flow.

use flowgate_wire::TcpFlags;

use super::{FlowTable, Found};
use crate::address::FlowAddress;
use crate::entry::{Entry, Side};
use crate::state::{TcpPhase, TcpSeen};
use crate::sync::Ordering;

impl<A: FlowAddress> FlowTable<A> {
    /// The phase of the TCP connection that `found` belongs to.
    pub fn tcp_phase(&self, found: &Found<'_, A>) -> TcpPhase {
        self.phase(found.side(), found.entry)
    }

    /// Takes note of a reset with this sequence number in the direction of `found`. False if it cannot be meant
    /// by an endpoint: then nothing is noted.
    ///
    /// An endpoint takes a reset whose number lies in its receive window (RFC 9293 section 3.10.7.4), which begins
    /// where it has acknowledged. Only the upper half of that number is known here, and no window is larger
    /// than 2^30 bytes, but few are larger than [`RESET_WINDOW`]. One that answers a SYN is told by its
    /// acknowledgement, so any will do.
    pub fn record_reset(&self, found: &Found<'_, A>, sequence: u32) -> bool {
        let Some(peer) = self.peer_of(found.entry) else { return false };
        let seen = |entry: &Entry<A>| TcpSeen::from_bits(entry.tcp_seen.load(Ordering::Relaxed));
        let beyond = ((sequence >> 16) as u16).wrapping_sub(peer.acked()).wrapping_add(1);
        if seen(peer).has_sent_ack() && beyond > RESET_WINDOW + 1 {
            return false;
        }
        found.entry.tcp_seen.store(seen(found.entry).with_reset().to_bits(), Ordering::Relaxed);
        // Rare enough for two cores to meet at one line. Its owner may overwrite it: then the phase is that
        // of a reset connection all the same.
        peer.tcp_seen.store(seen(peer).with_reset_from_peer().to_bits(), Ordering::Relaxed);
        true
    }

    /// Whether the other direction has reset the connection that `found` belongs to.
    #[inline]
    pub fn is_reset_by_peer(&self, found: &Found<'_, A>) -> bool {
        TcpSeen::from_bits(found.entry.tcp_seen.load(Ordering::Relaxed)).is_reset_by_peer()
    }

    /// Forgets that the connection was reset, since the one that was to end it goes on: it took the reset for
    /// forged and says so (RFC 5961 section 3.2).
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
    /// Notes the upper half of the acknowledgement number of a TCP segment of this direction.
    #[inline]
    pub fn record_ack(&self, high: u16) {
        self.entry.record_ack(high);
    }

    /// Notes the flags of a TCP segment of this direction.
    #[inline]
    pub fn record_tcp_flags(&self, flags: TcpFlags) {
        let seen = self.entry.tcp_seen.load(Ordering::Relaxed);
        let after = TcpSeen::from_bits(seen).with_flags(flags).to_bits();
        if after != seen {
            self.entry.tcp_seen.store(after, Ordering::Relaxed);
        }
    }
}

/// How far beyond the last acknowledgement a reset may lie, in units of 64 KiB: 16 MiB.
const RESET_WINDOW: u16 = 256;
