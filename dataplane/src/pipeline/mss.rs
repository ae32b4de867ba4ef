//! MSS clamping of SYNs and SYN-ACKs, where the operator wants it.

use flowgate_tables::NextHop;
use flowgate_tables::routing::Route;
use flowgate_wire::{Packet, mss};

use super::context::SlowPath;
use super::{Context, Family};
use crate::counters::Event;
use crate::pipeline_config::MssClamp;

/// Lowers the MSS option of a SYN or SYN-ACK, which has been translated and leaves through `next_hop`.
#[cold]
pub(super) fn clamp<A: Family>(
    frame: &mut [u8],
    packet: &Packet<A>,
    next_hop: &NextHop,
    flow_hash: u32,
    slow: &mut SlowPath<'_>,
) {
    let largest = match slow.context.config.mss_clamp {
        MssClamp::Off => return,
        MssClamp::To(bytes) => bytes,
        MssClamp::Auto => segment_size(packet, next_hop, flow_hash, slow.context),
    };
    slow.counters.add(Event::MssClamped, u64::from(mss::clamp(frame, packet, largest)));
}

/// The largest segment that fits into the MTUs of both directions and into a frame. The MSS option limits the segments of the other side, which
/// come back on the way to the sender.
fn segment_size<A: Family>(
    packet: &Packet<A>,
    next_hop: &NextHop,
    flow_hash: u32,
    context: &Context<'_>,
) -> u16 {
    let routing = &context.tables.routing;
    // Where the way back is not resolved yet, the interface's MTU is the best guess.
    let back = match routing.route(packet.tuple.src.into(), flow_hash) {
        Route::Via(id) => routing.next_hop(id).map(|hop| hop.mtu),
        Route::Unknown(neighbour) => {
            routing.interfaces().get(neighbour.egress.index()).map(|interface| interface.spec.mtu)
        }
        Route::None => None,
    };
    let mtu = back.unwrap_or(u16::MAX).min(next_hop.mtu).min(context.config.largest_packet);
    // RFC 6691: the MTU less the fixed IP and TCP headers; senders subtract options themselves.
    mtu.saturating_sub(if A::IS_V4 { 40 } else { 60 })
}
