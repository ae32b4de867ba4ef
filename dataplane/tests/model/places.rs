//! Where a packet goes next, by a walk over all routes.

use std::net::IpAddr;

use flowgate_tables::InterfaceId;

use crate::gateway::World;

/// Somebody on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Neighbour {
    pub(crate) egress: InterfaceId,
    pub(crate) addr: IpAddr,
}

/// The way to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// By this interface, in a frame with these Ethernet addresses, in packets of at most `mtu` bytes.
    Open { egress: InterfaceId, ether: [u8; 12], mtu: u16 },
    /// By a neighbour whose Ethernet address is not known, or whose interface is down.
    Unresolved(Neighbour),
    /// No route.
    None,
}

/// The way to `dst`: the longest prefix, then the lowest metric.
pub(crate) fn way(world: &World, dst: IpAddr) -> Way {
    let best = world
        .routes
        .iter()
        .enumerate()
        .filter(|(_, route)| route.prefix.contains(&dst))
        // Of two routes alike in everything the later one replaced the former.
        .max_by_key(|(i, route)| (route.prefix.prefix_len(), std::cmp::Reverse(route.metric), *i));
    let Some((_, route)) = best else { return Way::None };
    let egress = InterfaceId(u8::try_from(route.interface).unwrap());
    let addr = route.via.unwrap_or(dst);
    let interface = &world.interfaces[route.interface];
    let known = world.neighbours.iter().rfind(|n| n.interface == route.interface && n.addr == addr);
    match known.and_then(|neighbour| neighbour.mac).filter(|_| interface.up) {
        Some(mac) => {
            let mut ether = [0; 12];
            ether[..6].copy_from_slice(&mac.0);
            ether[6..].copy_from_slice(&interface.mac.0);
            Way::Open { egress, ether, mtu: interface.mtu }
        }
        None => Way::Unresolved(Neighbour { egress, addr }),
    }
}

/// The addresses that flows leaving by this interface may have as their source.
pub(crate) fn snat_addresses(world: &World, egress: InterfaceId, family_of: IpAddr) -> Vec<IpAddr> {
    let own = &world.interfaces[egress.index()].addresses;
    own.iter().copied().find(|addr| addr.is_ipv4() == family_of.is_ipv4()).into_iter().collect()
}

/// The source ports of one worker: an even share of all, in order.
pub(crate) fn worker_ports(all: &[u16], worker: usize, worker_count: usize) -> &[u16] {
    &all[all.len() * worker / worker_count..all.len() * (worker + 1) / worker_count]
}
