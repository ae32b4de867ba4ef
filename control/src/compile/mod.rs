//! Objects and network state to tables. Pure: no clock, no file, no kernel; the same input gives the same
//! tables, and what did not change is shared with the generation before.

mod addresses;
mod endpoints;
mod incremental;
mod net;
mod policy;
mod services;

use std::sync::Arc;

use flowgate_tables::Tables;
use flowgate_tables::spec::SnatSpec;
use ipnet::IpNet;

pub use self::incremental::Compiler;
pub use self::net::unresolved_next_hops;
pub use self::policy::Role;

use crate::model::{Desired, NetState};
use crate::report::Report;

/// What the operator decided.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Settings {
    /// What this machine is to the cluster.
    pub role: Role,
    /// The name of this machine's Node object; decides which endpoints are local (P202).
    pub node_name: String,
    /// Where translated flows get their source from.
    pub snat: SnatSpec,
    /// NodePorts are served on the node's addresses in these ranges; on all of them when there is no range
    /// of the address's family (P306).
    pub nodeport_addresses: Vec<IpNet>,
    /// Where the node's addresses are found.
    pub node_addresses: NodeAddresses,
}

/// Where the node's own addresses are found.
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
/// Parts that come out as they were in `previous` are its parts; when all do, so is the generation.
pub fn compile(
    desired: &Desired,
    net: &NetState,
    settings: &Settings,
    previous: &Tables,
) -> (Tables, Report) {
    let addresses = addresses::node_addresses(desired, net, settings);
    let (services, mut entries) = services::compile(desired, &addresses, settings, &previous.services);
    let (routing, more) = net::compile_routing(net, &previous.routing);
    entries.extend(more);
    let (snat, more) = net::compile_snat(net, settings, &previous.snat);
    entries.extend(more);
    entries.extend(services::snat_overlaps(desired, &services, &snat));
    (next_generation(previous, Tables { generation: 0, services, routing, snat }), Report { entries })
}

/// Numbers `next`: as `previous` if all its parts are those of `previous`.
fn next_generation(previous: &Tables, mut next: Tables) -> Tables {
    let same = Arc::ptr_eq(&previous.services, &next.services)
        && Arc::ptr_eq(&previous.routing, &next.routing)
        && Arc::ptr_eq(&previous.snat, &next.snat);
    next.generation = previous.generation + u64::from(!same);
    next
}
