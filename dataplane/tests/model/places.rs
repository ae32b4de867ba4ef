//! Where a packet goes next, by a walk over all routes.

use std::net::IpAddr;

use flowgate_tables::InterfaceId;
use flowgate_tables::spec::{RouteHopSpec, RouteSpec};

use super::world::World;

/// Somebody on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Neighbour {
    pub(crate) egress: InterfaceId,
    pub(crate) addr: IpAddr,
}

/// One way to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// By this interface, in a frame with these Ethernet addresses, in packets of at most `mtu` bytes.
    Open { egress: InterfaceId, ether: [u8; 12], mtu: u16 },
    /// By a neighbour whose Ethernet address is not known.
    NeighbourKey(Neighbour),
}

/// The hops that packets to `dst` may take; none when there is no route.
pub(crate) fn hops(world: &World, dst: IpAddr) -> Vec<RouteHopSpec> {
    let covering = || world.routes.iter().enumerate().filter(|(_, route)| route.prefix.contains(&dst));
    let Some(longest) = covering().map(|(_, route)| route.prefix.prefix_len()).max() else { return vec![] };
    // The cheapest that can be taken, or that says that nobody can be reached; of equals the later one.
    let leads = |route: &RouteSpec| route.hops.is_empty() || !usable(world, route).is_empty();
    let best = covering()
        .filter(|(_, route)| route.prefix.prefix_len() == longest && leads(route))
        .max_by_key(|(i, route)| (std::cmp::Reverse(route.metric), *i));
    best.map(|(_, route)| usable(world, route)).unwrap_or_default()
}

/// The hops of a route by interfaces that are up; of those, the ones whose router answers, if any does.
fn usable(world: &World, route: &RouteSpec) -> Vec<RouteHopSpec> {
    let up: Vec<_> = route.hops.iter().filter(|hop| world.interfaces[hop.interface].up).copied().collect();
    let answers = |hop: &&RouteHopSpec| match hop.via {
        Some(via) => mac(world, hop.interface, via).is_some(),
        None => true,
    };
    let answering: Vec<_> = up.iter().filter(answers).copied().collect();
    if answering.is_empty() { up } else { answering }
}

/// The way that a hop is for packets to `dst`.
pub(crate) fn way(world: &World, hop: &RouteHopSpec, dst: IpAddr) -> Way {
    let egress = InterfaceId(u8::try_from(hop.interface).unwrap());
    let addr = hop.via.unwrap_or(dst);
    let interface = &world.interfaces[hop.interface];
    match mac(world, hop.interface, addr) {
        Some(mac) => {
            let mut ether = [0; 12];
            ether[..6].copy_from_slice(&mac);
            ether[6..].copy_from_slice(&interface.mac.0);
            Way::Open { egress, ether, mtu: interface.mtu }
        }
        None => Way::NeighbourKey(Neighbour { egress, addr }),
    }
}

/// Whether the kernel asked for a neighbour in vain.
pub(crate) fn has_failed(world: &World, Neighbour { egress, addr }: Neighbour) -> bool {
    let known = world.neighbours.iter().rfind(|n| n.interface == egress.index() && n.addr == addr);
    known.is_some_and(|spec| spec.has_failed)
}

fn mac(world: &World, interface: usize, addr: IpAddr) -> Option<[u8; 6]> {
    let known = world.neighbours.iter().rfind(|n| n.interface == interface && n.addr == addr)?;
    known.mac.map(|mac| mac.0).filter(|_| world.interfaces[interface].up)
}

/// The addresses of one family that flows leaving by this interface may have as their source.
pub(crate) fn snat_addresses(world: &World, egress: InterfaceId, family_of: IpAddr) -> Vec<IpAddr> {
    let own = &world.interfaces[egress.index()].addresses;
    own.iter().copied().filter(|addr| addr.is_ipv4() == family_of.is_ipv4()).collect()
}

/// The source ports of one worker: an even share of all, in order.
pub(crate) fn worker_ports(all: &[u16], worker: usize, worker_count: usize) -> &[u16] {
    &all[all.len() * worker / worker_count..all.len() * (worker + 1) / worker_count]
}
