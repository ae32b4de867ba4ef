//! Objects and network state to tables. Pure: no clock, no file, no kernel; the same input gives the same tables, and
//! parts that did not change are shared with the generation before.

mod address_rules;
mod addresses;
mod budget;
mod claims;
mod endpoints;
mod incremental;
mod net;
mod net_budget;
mod ourselves;
mod policy;
mod service_compiler;
mod services;
mod wanted;

use std::sync::Arc;

use flowgate_tables::spec::SnatSpec;
use flowgate_tables::{Budgets, SourceClassifier, Tables};

pub use self::address_rules::{ExternalIps, ProtectedPort};
pub(crate) use self::addresses::listed;
pub use self::addresses::{LocalPods, NodePortAddress};
pub use self::incremental::Compiler;
pub(crate) use self::incremental::{CompiledServices, NetworkPart, ServicePart, assemble};
pub use self::net::unresolved_next_hops;
pub use self::policy::Role;

use crate::model::{Desired, NetState};
use crate::report::Report;

/// The operator's decisions about compiling.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct CompileConfig {
    /// Whether this machine is a node of the cluster.
    pub role: Role,
    /// The name of this machine's Node object; decides which endpoints are local (P202).
    pub node_name: String,
    /// Source addresses and ports of translated flows.
    pub snat: SnatSpec,
    /// On which of the node's addresses NodePorts are served. Empty: on all by a gateway, on the primary
    /// ones by a node (P305, P306).
    pub nodeport_addresses: Vec<NodePortAddress>,
    /// Whether a node serves NodePorts on 127.0.0.1, unless `nodeport_addresses` excludes it (P308).
    pub localhost_nodeports: bool,
    /// How a node recognises its pods (P601).
    pub local_pods: LocalPods,
    /// Whether a node masquerades everything to cluster IPs (P603).
    pub masquerade_all: bool,
    /// Where the node's addresses are read.
    pub node_addresses: NodeAddresses,
    /// What all objects together, one Service and one namespace may ask for.
    pub budgets: Budgets,
    /// Which external addresses are served; `None`: as [`ExternalIps::of_role`] has it.
    pub external_ips: Option<ExternalIps>,
    /// Ports of the node's own addresses that no Service gets.
    pub protected_ports: Vec<ProtectedPort>,
}

/// Where the node's own addresses are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum NodeAddresses {
    /// On the served interfaces.
    #[default]
    Interfaces,
    /// In `status.addresses` of the Node object: for checks that open no device.
    NodeObject,
}

/// Compiles everything. What is wrong is reported and left out; the rest is built.
///
/// Parts that equal those of `previous` are shared with it; if all do, the generation's number stays the same.
pub fn compile(
    desired: &Desired,
    net: &NetState,
    config: &CompileConfig,
    previous: &Tables,
) -> (Tables, Report) {
    let (net, unfit) = net_budget::fitting(net, &config.budgets);
    let node_context = addresses::NodeContext::new(desired, &net, config);
    let mut memo = services::ServiceMemo::default();
    let input = services::ServiceInput { desired, node_context: &node_context, config };
    let (services, mut entries) = services::compile(input, &mut memo, &previous.services);
    entries.extend(unfit);
    let (routing, more) = net::compile_routing(&net, &previous.routing);
    entries.extend(more);
    let (snat, more) = net::compile_snat(&net, &node_context, config, &previous.snat);
    entries.extend(more);
    entries.extend(services::snat_overlaps(desired, &services, &snat));
    let sources = compile_sources(&node_context, &previous.sources);
    let reverse_paths = Arc::default();
    let next = Tables { generation: 0, services, routing, snat, sources, reverse_paths };
    (next_generation(previous, next), Report { entries })
}

/// Which sources are pods of this node or the node itself (P319, P320, P603); `previous` itself if that did not change.
fn compile_sources(
    node_context: &addresses::NodeContext,
    previous: &Arc<SourceClassifier>,
) -> Arc<SourceClassifier> {
    // Also those on interfaces that are not served: packets from them or to them come in by the served ones nevertheless.
    let node = node_context.own.iter().chain(node_context.elsewhere.iter()).copied();
    let sources = SourceClassifier::new(node_context.pods.clone(), node);
    if sources == **previous { Arc::clone(previous) } else { Arc::new(sources) }
}

/// Numbers `next`: one more than `previous`, or the same if all its parts are those of `previous`.
fn next_generation(previous: &Tables, mut next: Tables) -> Tables {
    let same = Arc::ptr_eq(&previous.services, &next.services)
        && Arc::ptr_eq(&previous.routing, &next.routing)
        && Arc::ptr_eq(&previous.snat, &next.snat)
        && Arc::ptr_eq(&previous.sources, &next.sources);
    next.generation = previous.generation + u64::from(!same);
    next.with_reverse_paths(previous)
}
