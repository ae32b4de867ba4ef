//! What becomes of a new flow: the rules of Services, for both address families. Never touches packet
//! bytes, a route or the flow table; `flowgate trace` asks it too.
//!
//! The order of the questions is that of D1 to D6: the frontend, who may reach it, which endpoints count
//! for this source, affinity, choice, source address.

use std::net::IpAddr;
use std::time::Duration;

use flowgate_flow::{AffinityTable, Bound, Tick};
use flowgate_tables::service::ServiceKey;
use flowgate_tables::{
    Backend, BackendId, BackendSet, EmptyAction, Frontend, SourceClass, Tables, TrafficPolicy,
    UnmatchedDestination,
};
use flowgate_wire::FiveTuple;

use crate::verdict::{DropReason, RejectReason};

/// What becomes of a new flow.
#[derive(Clone, Copy, Debug)]
pub enum Decision<'a> {
    /// It goes to a backend.
    Forward(Choice<'a>),
    /// Its sender is told that nobody serves it.
    Reject(RejectReason),
    /// It ends silently.
    Drop(DropReason),
    /// Its destination is no Service.
    NotOurs,
}

/// Where a new flow goes.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// What the client aims at.
    pub frontend: &'a Frontend,
    /// How sources such as this one are treated.
    pub treatment: &'a TrafficPolicy,
    /// Who was chosen.
    pub backend: &'a Backend,
    /// Whether the backend sees an address of ours in place of the client's.
    pub source_nat: bool,
    /// What session affinity did, where the Service has it.
    pub bound: Option<Bound>,
}

/// What session affinity needs to know.
#[derive(Clone, Copy, Debug)]
pub struct Placing<'a> {
    /// Who stays with whom.
    pub affinity: &'a AffinityTable,
    /// The time.
    pub now: Tick,
}

/// Decides a new flow by its first packet. Without `placing` each flow is placed by itself, whatever the
/// Service says.
pub fn choose<'a>(
    tables: &'a Tables,
    placing: Option<&Placing<'_>>,
    tuple: &FiveTuple<IpAddr>,
) -> Decision<'a> {
    let services = &*tables.services;
    let key = ServiceKey { protocol: tuple.protocol, addr: tuple.dst, port: tuple.dst_port };
    let Some(frontend) = services.frontend(&key) else {
        return match services.unserved(tuple.dst) {
            // The node's own addresses are its own, whatever a range says.
            Some(_) if tables.sources.class(tuple.dst) == SourceClass::Node => Decision::NotOurs,
            Some(UnmatchedDestination::ClusterIp) => Decision::Reject(RejectReason::UnknownPort),
            Some(UnmatchedDestination::Unallocated) => Decision::Drop(DropReason::UnallocatedClusterIp),
            None => Decision::NotOurs,
        };
    };
    // P402: also when there is nobody behind it.
    if !frontend.admits(tuple.src) {
        return Decision::Drop(DropReason::SourceNotAllowed);
    }
    let treatment = frontend.treatment(tables.sources.class(tuple.src));
    let backends = &*treatment.backends;
    let pick = || backends.pick(maglev_hash(tuple));
    let (chosen, bound) = match (frontend.affinity, placing) {
        (Some(timeout), Some(placing)) => {
            let bound = place(placing, frontend, tuple.src, timeout, backends, pick);
            (bound.backend().map(BackendId::from_bits), Some(bound))
        }
        _ => (pick(), None),
    };
    match chosen.and_then(|id| services.backends().get(id)) {
        Some(backend) => Decision::Forward(Choice {
            frontend,
            treatment,
            backend,
            source_nat: treatment.source_nat.applies(tuple.src, backend.addr),
            bound,
        }),
        None => match treatment.when_empty {
            EmptyAction::Reject => Decision::Reject(RejectReason::NoEndpoint),
            EmptyAction::Drop => Decision::Drop(DropReason::NoBackend),
        },
    }
}

/// P702: one binding for a client and a Service port, by whatever address it comes. P705: only among those
/// that may be chosen.
fn place(
    placing: &Placing<'_>,
    frontend: &Frontend,
    client: IpAddr,
    timeout: Duration,
    backends: &BackendSet,
    pick: impl FnOnce() -> Option<BackendId>,
) -> Bound {
    let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
    placing.affinity.place(
        (client, frontend.service.0),
        placing.now,
        timeout_ms,
        |backend| backends.contains(BackendId::from_bits(backend)),
        || pick().map(BackendId::to_bits),
    )
}

/// The hash that picks a backend: not keyed, so that gateways that share a VIP pick alike.
fn maglev_hash(tuple: &FiveTuple<IpAddr>) -> u32 {
    let addr = |addr: IpAddr| match addr {
        IpAddr::V4(v4) => u64::from(v4.to_bits()),
        IpAddr::V6(v6) => {
            let octets = v6.octets();
            octets.as_chunks::<8>().0.iter().fold(0, |hash, half| splitmix(hash) ^ u64::from_be_bytes(*half))
        }
    };
    let ports = u64::from(tuple.src_port.number()) << 16 | u64::from(tuple.dst_port.number());
    let mut x = addr(tuple.src).rotate_left(32) ^ addr(tuple.dst);
    x = splitmix(x ^ ports << 8 ^ u64::from(tuple.protocol.number()));
    (x >> 32) as u32
}

/// The finisher of SplitMix64 (Steele, Lea, Flood 2014).
const fn splitmix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
