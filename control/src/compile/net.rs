//! Network state to routing tables and the SNAT pool.

use std::net::IpAddr;
use std::sync::Arc;

use flowgate_tables::routing::{NeighbourKey, Route};
use flowgate_tables::spec::{InterfaceSpec, RouteSpec};
use flowgate_tables::{Routing, SnatPool, Tables};
use ipnet::IpNet;

use super::CompileConfig;
use super::addresses::NodeContext;
use super::net_budget::fit_snat_addresses;
use crate::model::NetState;
use crate::report::{Entry, ObjectRef, Severity};

/// Builds the routing tables; `previous` itself if nothing changed, or if they cannot be built.
pub(super) fn compile_routing(net: &NetState, previous: &Arc<Routing>) -> (Arc<Routing>, Vec<Entry>) {
    let built = Routing::build(previous, net.interfaces.to_vec(), &net.routes, &net.neighbours);
    let mut entries = Vec::new();
    for interface in net.interfaces.iter().filter(|interface| interface.ifindex == 0) {
        entries.push(finding(
            Severity::Error,
            interface,
            "does not exist: nothing is received or sent by it",
        ));
    }
    match built {
        Ok(routing) => {
            let routing = routing.with_forwarding_off(&net.forwarding_off);
            let routing = routing.with_other_stations(&net.other_stations);
            let unchanged = routing.epoch() == previous.epoch()
                && routing.forwarding_off() == previous.forwarding_off()
                && routing.other_stations() == previous.other_stations()
                && routing.interfaces() == previous.interfaces()
                && routing.next_hops().eq(previous.next_hops());
            (if unchanged { Arc::clone(previous) } else { Arc::new(routing) }, entries)
        }
        Err(error) => {
            let reason = format!("{error}: the last routes stay in force");
            entries.push(Entry { severity: Severity::Error, place: None, object: None, reason });
            (Arc::clone(previous), entries)
        }
    }
}

/// Builds the SNAT pool: for each family the configured addresses, else the primary address of each interface.
pub(super) fn compile_snat(
    net: &NetState,
    node_context: &NodeContext,
    config: &CompileConfig,
    previous: &Arc<SnatPool>,
) -> (Arc<SnatPool>, Vec<Entry>) {
    let mut entries = Vec::new();
    let mut by_interface = Vec::with_capacity(net.interfaces.len());
    for (position, interface) in net.interfaces.iter().enumerate() {
        let mut addresses = config.snat.addresses.clone();
        for is_family in [IpAddr::is_ipv4, IpAddr::is_ipv6] {
            if !addresses.iter().any(is_family) {
                addresses.extend(primary(interface, is_family));
            }
        }
        if interface.ifindex != 0 && !addresses.iter().any(IpAddr::is_ipv4) {
            let reason = "has no IPv4 address: IPv4 flows that leave by it cannot be translated";
            entries.push(finding(Severity::Warning, interface, reason));
        }
        if !addresses.iter().any(is_global_v6) && routes_v6(net, position) {
            let reason =
                "has no global IPv6 address: IPv6 flows that leave by it get no answer from beyond the link";
            entries.push(finding(Severity::Warning, interface, reason));
        }
        by_interface.push(addresses);
    }
    // The primary address may change; replies to the flows of the last one still arrive and must be recognised.
    let own = net.interfaces.iter().flat_map(|interface| &interface.addresses).chain(&node_context.own);
    let own = own.filter(|addr| !is_configured_family(addr, config));
    let mut reply_only: Vec<IpAddr> = own.chain(&config.snat.addresses).copied().collect();
    reply_only.sort_unstable();
    reply_only.dedup();
    entries.extend(fit_snat_addresses(&mut by_interface, &mut reply_only, &config.budgets));
    let pool = SnatPool::new(&by_interface, &config.snat.ports).with_reply_addresses(reply_only);
    (if pool == **previous { Arc::clone(previous) } else { Arc::new(pool) }, entries)
}

/// The next hops of all backends that are not resolved, each once.
pub fn unresolved_next_hops(tables: &Tables) -> Vec<NeighbourKey> {
    let mut unresolved: Vec<NeighbourKey> = Vec::new();
    for backend in tables.services.backends().iter() {
        match tables.routing.route(backend.addr, 0) {
            Route::Unknown(neighbour) => unresolved.push(neighbour),
            Route::Via(id) => {
                let hop = tables.routing.next_hop(id).filter(|hop| hop.ether.is_none());
                unresolved.extend(hop.map(|hop| NeighbourKey { egress: hop.egress, addr: hop.addr }));
            }
            Route::None => {}
        }
    }
    unresolved.sort_unstable();
    unresolved.dedup();
    unresolved
}

/// Whether packets from a range can arrive by a served interface: not if the kernel routes the whole range elsewhere, since
/// then nothing can be sent back to it either. Without any route to it this is not known, and assumed.
pub(super) fn may_arrive_from(net: &NetState, range: &IpNet) -> bool {
    let within = |route: &&RouteSpec| range.contains(&route.prefix) && route.prefix != *range;
    if net.routes.iter().filter(within).any(|route| !route.hops.is_empty()) {
        return true;
    }
    let around = net.routes.iter().filter(|route| route.prefix.contains(range));
    let longest = around.clone().map(|route| route.prefix.prefix_len()).max();
    let mut best = around.filter(|route| Some(route.prefix.prefix_len()) == longest);
    longest.is_none() || best.any(|route| !route.hops.is_empty())
}

/// Whether SNAT addresses are configured for the address's family; then no others are used.
fn is_configured_family(addr: &IpAddr, config: &CompileConfig) -> bool {
    config.snat.addresses.iter().any(|configured| configured.is_ipv4() == addr.is_ipv4())
}

/// The first address of a family. Link-local ones are listed last, so one is taken only if there is no other.
fn primary(interface: &InterfaceSpec, is_family: fn(&IpAddr) -> bool) -> Option<IpAddr> {
    interface.addresses.iter().find(|&addr| is_family(addr)).copied()
}

const fn is_global_v6(addr: &IpAddr) -> bool {
    matches!(addr, IpAddr::V6(v6) if !v6.is_unicast_link_local())
}

/// Whether IPv6 routes beyond the link lead through an interface.
fn routes_v6(net: &NetState, interface: usize) -> bool {
    let leads = |route: &RouteSpec| {
        matches!(route.prefix, IpNet::V6(prefix) if !prefix.addr().is_unicast_link_local())
            && route.hops.iter().any(|hop| hop.interface == interface)
    };
    net.routes.iter().any(leads)
}

pub(super) fn finding(severity: Severity, interface: &InterfaceSpec, reason: &str) -> Entry {
    let object = ObjectRef::new("Interface", "", &interface.name);
    Entry { severity, place: None, object: Some(object), reason: reason.to_owned() }
}
