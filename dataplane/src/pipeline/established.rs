//! The fast path: packets of an established flow whose next hop is resolved.
//!
//! One straight line without calls, so that everything stays in registers. A packet that is special in any way is left
//! unchanged to [`Router::slow_path`], which starts over.

use flowgate_flow::Found;
use flowgate_tables::{BackendId, InterfaceId};
use flowgate_wire::{Packet, Protocol};

use super::router::{Router, current_next_hop, rewrite};
use super::{Context, Family, Staged};
use crate::burst::RxChecksums;
use crate::counters::{Counters, Event};

impl Router {
    /// Rewrites the packet and returns its egress interface; `None`, with nothing changed, for the slow path.
    #[inline(always)]
    pub(super) fn forward_established<A: Family>(
        frame: &mut [u8],
        staged: &Staged<A>,
        position: usize,
        checksums: RxChecksums,
        context: &Context<'_>,
        counters: &mut Counters,
    ) -> Option<InterfaceId> {
        let Staged { packet, probe } = staged;
        let found = A::table(context.flows).find(probe, &packet.tuple)?;
        let next_hop = current_next_hop(&found, &context.tables.routing)?;
        let ether = next_hop.ether.as_ref()?;
        // Only the reply to a client whose address is preserved keeps its destination.
        if found.forwarding.translation.dst == packet.tuple.dst {
            let backend = BackendId::from_bits(found.forwarding.backend);
            if !context.tables.reverse_paths.is_only(backend, context.ingress_of(position)) {
                return None;
            }
        }
        // Everything that needs more than a comparison goes to the slow path: one branch that is almost never taken.
        // Tracking is last, since it records the packet.
        let is_special = packet.ttl <= 1 || packet.ip_len() > next_hop.mtu;
        if is_special || !track_next(frame, &found, packet, context) {
            return None;
        }
        counters.add(Event::FlowHits, 1);
        found.touch(context.now, packet.ip_len());
        rewrite(frame, packet, &found.forwarding.translation, ether, checksums, counters);
        Some(next_hop.egress)
    }
}

/// Records a packet that goes on where its flow stands; false, with nothing recorded, if the slow path must decide whether it
/// belongs to the flow and what it changes.
#[inline(always)]
fn track_next<A: Family>(
    frame: &[u8],
    found: &Found<'_, A>,
    packet: &Packet<A>,
    context: &Context<'_>,
) -> bool {
    match packet.tuple.protocol {
        // The flags first: then the compiler leaves out what only a SYN or FIN has, octets of its own and options.
        Protocol::Tcp => packet.tcp_flags.continues() && found.record_next(&packet.tcp_segment(frame)),
        // P801: UDP has no end of its own, so the removal of the backend and the idle timeout end it.
        Protocol::Udp => {
            let backends = context.tables.services.backends();
            backends.is_current(BackendId::from_bits(found.forwarding.backend))
                && !A::table(context.flows).may_be_expired(found, context.now)
                && !found.may_become_stream(context.now)
        }
        // Its tags are compared with those of the other direction.
        Protocol::Sctp => false,
    }
}
