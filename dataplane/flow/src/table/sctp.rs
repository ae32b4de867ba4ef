//! Tracks the packets of SCTP associations by their verification tags (RFC 9260 section 8.5).
//!
//! Each end announces a tag in its INIT or INIT ACK, which all packets of the other end must carry. A packet with another
//! tag is discarded by its receiver, so it changes nothing here. An INIT carries no tag of the other end: whoever sends one into
//! an open association can only propose new tags, which count once a COOKIE ECHO carries the server's (section 5.2).
//!
//! All packets are judged with both entries at hand, other than those of TCP: translating one reads all of it anyway.

use flowgate_wire::{SctpPacket, TcpFlags};

use super::tcp::Tracked;
use super::{FlowTable, Found};
use crate::address::FlowAddress;
use crate::entry::{Entry, Side};

impl<A: FlowAddress> FlowTable<A> {
    /// Records a packet in the direction of `found`, if its receiver would act on it. `is_intact` verifies its checksum, and
    /// is called only for a packet that changes the phase or a tag.
    pub fn track_sctp(
        &self,
        found: &Found<'_, A>,
        packet: &SctpPacket,
        is_intact: impl FnOnce() -> bool,
    ) -> Tracked {
        let Some(peer) = self.peer_of(found.entry) else { return Tracked::Ignored };
        let own = found.entry;
        if packet.flags.intersects(TcpFlags::SYN) {
            return self.track_opening(found, peer, packet, is_intact);
        }
        let (before, other) = (own.connection(), peer.connection());
        if !other.has_sent_syn() && !packet.flags.intersects(TcpFlags::RST.union(TcpFlags::FIN)) {
            // The other direction takes another way: no tag is known to compare with.
            return if before.has_sent_syn() { Tracked::Recorded } else { Tracked::Ignored };
        }
        let confirms = packet.echoes_cookie && packet.tag != peer.end() && packet.tag == peer.acked();
        if !(confirms || is_tag_valid(own, peer, packet)) {
            return Tracked::Ignored;
        }
        // Section 8.5.1 (C): only whoever has sent a SHUTDOWN ACK takes it.
        if packet.completes_shutdown && !other.has_sent_fin() {
            return Tracked::Ignored;
        }
        let resets = packet.flags.intersects(TcpFlags::RST);
        let refutes = !resets && before.is_reset_by_peer();
        let after = if refutes { before.without_reset() } else { before }.with_flags(packet.flags);
        let after = if resets { after.with_reset() } else { after };
        if (confirms || after != before) && !is_intact() {
            return Tracked::Ignored;
        }
        if confirms {
            own.set_end(own.acked());
            peer.set_end(packet.tag);
        }
        self.note_handshake(found.side(), before, after);
        own.set_connection(after);
        self.tell_peer(found, resets, refutes)
    }

    fn track_opening(
        &self,
        found: &Found<'_, A>,
        peer: &Entry<A>,
        packet: &SctpPacket,
        is_intact: impl FnOnce() -> bool,
    ) -> Tracked {
        let own = found.entry;
        let is_answer = packet.flags.intersects(TcpFlags::ACK);
        // RFC 9260 section 8.5.1 (A): the tag of an INIT is zero; that of its answer is the one that it announced.
        let fits = if is_answer {
            packet.tag != 0 && [peer.end(), peer.acked()].contains(&packet.tag)
        } else {
            packet.tag == 0
        };
        // Section 3.3.2: a tag of zero would be that of an INIT.
        if !fits || packet.initiate_tag == 0 || !is_intact() {
            return Tracked::Ignored;
        }
        let before = own.connection();
        let opens = match found.side() {
            Side::Original => !is_answer && !peer.connection().has_sent_syn(),
            Side::Reply => is_answer && !before.has_sent_syn() && packet.tag == peer.end(),
        };
        own.set_acked(packet.initiate_tag);
        if !opens {
            // Only a proposal, as anybody can make one. It does not keep the association alive.
            return Tracked::Ignored;
        }
        own.set_end(packet.initiate_tag);
        own.set_connection(before.with_flags(packet.flags));
        Tracked::Recorded
    }
}

/// Whether the receiver of a packet accepts its tag: it is its own or, from an end that knows no association and returns the
/// tag of what it received, that of its peer (RFC 9260 sections 8.5 and 8.5.1 (B) and (C)).
fn is_tag_valid<A: FlowAddress>(own: &Entry<A>, peer: &Entry<A>, packet: &SctpPacket) -> bool {
    packet.tag != 0 && packet.tag == if packet.is_tag_reflected { own.end() } else { peer.end() }
}
