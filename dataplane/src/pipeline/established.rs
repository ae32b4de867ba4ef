//! The fast path: packets of an established flow whose next hop is resolved.
//!
//! One straight line without calls, so that everything stays in registers. A packet that is special in any way is left
//! unchanged to [`Router::slow_path`], which starts over.

use flowgate_flow::Found;
use flowgate_tables::{BackendId, InterfaceId};
use flowgate_wire::{Packet, Protocol, TcpFlags};

use super::router::{Router, current_next_hop, rewrite, track};
use super::{Context, Family, Staged};
use crate::burst::RxChecksums;
use crate::counters::{Counters, Event};

impl Router {
    /// Rewrites the packet and returns its egress interface; `None`, with nothing changed, for the slow path.
    #[inline(always)]
    pub(super) fn forward_established<A: Family>(
        frame: &mut [u8],
        staged: &Staged<A>,
        checksums: RxChecksums,
        context: &Context<'_>,
        counters: &mut Counters,
    ) -> Option<InterfaceId> {
        let Staged { packet, probe } = staged;
        let found = A::table(context.flows).find(probe, &packet.tuple)?;
        let next_hop = current_next_hop(&found, &context.tables.routing)?;
        let ether = next_hop.ether.as_ref()?;
        // Everything that needs more than a comparison goes to the slow path: one branch that is almost never taken.
        if packet.ttl <= 1 || may_be_superseded(&found, packet, context) || packet.ip_len() > next_hop.mtu {
            return None;
        }
        counters.add(Event::FlowHits, 1);
        track(frame, &found, packet, context);
        rewrite(frame, packet, &found.forwarding.translation, ether, checksums, counters);
        Some(next_hop.egress)
    }
}

/// Whether the slow path must decide if the packet still belongs to the flow. May be true for one that does.
#[inline(always)]
fn may_be_superseded<A: Family>(found: &Found<'_, A>, packet: &Packet<A>, context: &Context<'_>) -> bool {
    let flows = A::table(context.flows);
    if packet.tuple.protocol != Protocol::Udp {
        // SYN and RST change the state of a connection, and after a reset of the peer a packet may refute it. For SCTP the
        // parser sets the same flags for the chunks that correspond.
        let special = TcpFlags::SYN.union(TcpFlags::RST);
        return packet.tcp_flags.intersects(special) || flows.is_reset_by_peer(found);
    }
    // P801: UDP has no end of its own, so the removal of the backend and the idle timeout end it.
    let backends = context.tables.services.backends();
    !backends.is_current(BackendId::from_bits(found.forwarding.backend))
        || flows.may_be_expired(found, context.now)
}
