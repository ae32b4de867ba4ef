//! Selects the backend of a new flow: the rules of Services, for both address families. A pure function of tables and
//! tuple, without packet bytes, routes or flow table, so that `flowgate trace` uses it too.
//!
//! The steps follow D1 to D6 (control/KUBERNETES.md): the frontend, allowed sources, the endpoints for this class of
//! source, session affinity, the Maglev pick, source NAT.

use std::net::IpAddr;
use std::time::Duration;

use flowgate_flow::{AffinityTable, Binding, Tick};
use flowgate_tables::service::ServiceKey;
use flowgate_tables::{
    Backend, BackendId, BackendSet, EmptyAction, Frontend, FrontendKind, SourceClass, Tables, TrafficPolicy,
    UnmatchedDestination,
};
use flowgate_wire::FiveTuple;
use flowgate_wire::hash::splitmix;

use crate::verdict::{DropReason, RejectReason};

/// What becomes of a new flow.
#[derive(Clone, Copy, Debug)]
pub enum Decision<'a> {
    /// Forward to the selected backend.
    Forward(Selection<'a>),
    /// Reject with a TCP reset or an ICMP error.
    Reject(RejectReason),
    /// Drop silently.
    Drop(DropReason),
    /// No Service has this destination.
    NotOurs,
}

/// The backend of a new flow, and why.
#[derive(Clone, Copy, Debug)]
pub struct Selection<'a> {
    /// The Service port that the client addressed.
    pub frontend: &'a Frontend,
    /// The policy for sources of this class.
    pub policy: &'a TrafficPolicy,
    /// The selected endpoint.
    pub backend: &'a Backend,
    /// Whether the client's address is replaced by one of ours.
    pub source_nat: bool,
    /// The affinity binding; `None` where the Service has no session affinity.
    pub bound: Option<Binding>,
}

/// What session affinity needs.
#[derive(Clone, Copy, Debug)]
pub struct AffinityContext<'a> {
    /// The bindings of clients to backends.
    pub affinity: &'a AffinityTable,
    /// The time of the burst.
    pub now: Tick,
}

/// Decides a new flow by its first packet. Without `affinity` the session affinity of Services is ignored: `flowgate
/// trace` answers for a client without history.
pub fn select_backend<'a>(
    tables: &'a Tables,
    affinity: Option<&AffinityContext<'_>>,
    tuple: &FiveTuple<IpAddr>,
) -> Decision<'a> {
    let services = &*tables.services;
    let key = ServiceKey { protocol: tuple.protocol, addr: tuple.dst, port: tuple.dst_port };
    let Some(frontend) = services.frontend(&key) else {
        return match services.unmatched(tuple.dst) {
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
    if is_own_source(tables, frontend, tuple) {
        return Decision::Drop(DropReason::OwnSource);
    }
    let policy = frontend.policy(tables.sources.class(tuple.src));
    // A closure, since an affinity binding makes the pick unnecessary.
    let backends = &*policy.backends;
    let pick = || backends.pick(maglev_hash(tuple));
    let (chosen, bound) = match (frontend.affinity, affinity) {
        (Some(timeout), Some(affinity)) => {
            let client = (tuple.src, frontend.service.0);
            let bound = affinity.get_or_assign(client, timeout, backends, pick);
            (bound.backend().map(BackendId::from_bits), Some(bound))
        }
        _ => (pick(), None),
    };
    // `None` also for a bound backend that is not in these tables any more.
    match chosen.and_then(|id| services.backends().get(id)) {
        Some(backend) => Decision::Forward(Selection {
            frontend,
            policy,
            backend,
            source_nat: policy.source_nat.applies(tuple.src, backend.addr),
            bound,
        }),
        None => match policy.when_empty {
            EmptyAction::Reject => Decision::Reject(RejectReason::NoEndpoint),
            EmptyAction::Drop => Decision::Drop(DropReason::NoBackend),
        },
    }
}

/// Whether a new flow to a Service comes from ourselves. We open no flows, so what we have sent has come back to us, and
/// translating it once more would make a loop; or somebody forges it.
fn is_own_source(tables: &Tables, frontend: &Frontend, tuple: &FiveTuple<IpAddr>) -> bool {
    // The node may be its own client at a NodePort, whose address is the node's (P320), but a VIP sends nothing.
    tables.snat.is_source(tuple.src, tuple.src_port)
        || tuple.src == tuple.dst && frontend.kind != FrontendKind::NodePort
}

impl AffinityContext<'_> {
    /// P702: one binding per client and Service port, whichever address of the Service the client used. P705: only to a
    /// backend that may be selected now.
    fn get_or_assign(
        &self,
        client: (IpAddr, u32),
        timeout: Duration,
        backends: &BackendSet,
        pick: impl FnOnce() -> Option<BackendId>,
    ) -> Binding {
        let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        self.affinity.get_or_assign(
            client,
            self.now,
            timeout_ms,
            |backend| backends.contains(BackendId::from_bits(backend)),
            || pick().map(BackendId::to_bits),
        )
    }
}

/// The hash that picks a slot of the Maglev table. Not keyed with a secret: gateways that share a VIP must pick the same
/// backend for a flow that moves between them (ECMP).
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
