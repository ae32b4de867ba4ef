//! Which packets go no further: the checks of the kernel's input and of its forwarding that packets miss when XDP redirects
//! them.

use std::net::IpAddr;

use flowgate_flow::Found;
use flowgate_tables::UnmatchedDestination;
use flowgate_wire::Malformed;

use super::context::SlowPath;
use super::{Context, Family};
use crate::pipeline_config::UnservedPorts;
use crate::verdict::{DropReason, Verdict};

/// Why nothing is forwarded or answered that comes from this source; `None` if it may be. Only asked where a packet has no
/// established flow: no flow is opened for such a source.
#[cold]
pub(super) fn refused_source<A: Family>(src: A, context: &Context<'_>) -> Option<DropReason> {
    let tables = context.tables;
    // RFC 1122 section 3.2.1.3 (e): a broadcast address of a network is none's either.
    if src.is_martian_source() || tables.routing.is_broadcast(src.into()) {
        return Some(DropReason::MartianSource);
    }
    // What this machine sends does not come in by its interfaces (`fib_validate_source` in net/ipv4/fib_frontend.c).
    tables.sources.is_node(src.into()).then_some(DropReason::OwnSource)
}

/// The verdict on a packet that cannot be parsed.
#[cold]
pub(super) fn drop_malformed(malformed: Malformed) -> Verdict {
    Verdict::Drop(match malformed {
        Malformed::SourceRoute => DropReason::SourceRoute,
        Malformed::Options => DropReason::BrokenOptions,
        _ => DropReason::Malformed,
    })
}

/// Why a packet of no flow is not routed from `src` to `dst`; `None` if the kernel would route it. RFC 3704 section 2.2: what
/// comes by an interface that does not lead to its source is forged.
#[cold]
pub(super) fn not_routed<A: Family>(src: A, dst: A, slow: &SlowPath<'_>) -> Option<DropReason> {
    let routing = &slow.context.tables.routing;
    if !routing.is_reverse_path(src.into(), slow.ingress) {
        return Some(DropReason::WrongInterface);
    }
    // As a source or as a destination, such an address is none of one host beyond the link. RFC 2644 has broadcasts to another
    // link dropped by default.
    let is_one_host = !dst.is_martian_source() && !routing.is_broadcast(dst.into());
    (!is_one_host || !routing.forwards(slow.ingress, A::IS_V4)).then_some(DropReason::NotForwarded)
}

/// Whether this is a reply to a client whose address is preserved, by an interface that does not lead to the backend: anyone
/// who knows the backend's address could send it. Where the source of a flow was replaced, only the backend knows the port.
#[cold]
pub(super) fn is_forged_reply<A: Family>(src: A, dst: A, found: &Found<'_, A>, slow: &SlowPath<'_>) -> bool {
    // Only replies of such flows keep their destination.
    found.forwarding.translation.dst == dst
        && !slow.context.tables.routing.is_reverse_path(src.into(), slow.ingress)
}

/// Why a packet is dropped that no Service has and that is sent to a VIP, or to a free address for cluster IPs; `None` if it
/// is the kernel's business. The kernel has no such address: it would send the packet back to the router that sends it here.
#[cold]
pub(super) fn unserved_vip(dst: IpAddr, context: &Context<'_>) -> Option<DropReason> {
    let tables = context.tables;
    if context.config.unserved_ports == UnservedPorts::Pass || tables.sources.is_node(dst) {
        return None;
    }
    match tables.services.unmatched(dst) {
        Some(UnmatchedDestination::Unallocated) => Some(DropReason::UnallocatedClusterIp),
        Some(UnmatchedDestination::ClusterIp) => Some(DropReason::UnservedPort),
        None => tables.services.is_vip(dst).then_some(DropReason::UnservedPort),
    }
}
