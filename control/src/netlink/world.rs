//! The kernel's state, whole, and the part of it that matters. Never talks to the kernel.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use flowgate_tables::spec::{InterfaceSpec, NeighbourSpec, RouteHopSpec, RouteSpec};
use flowgate_wire::MacAddr;
use rtnetlink::packet_route::neighbour::NeighbourState;

use super::message::{Address, Link, Neighbour, Route};
use crate::model::NetState;

/// Everything the kernel said.
#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) links: Vec<Link>,
    pub(super) addresses: Vec<Address>,
    pub(super) routes: Vec<Route>,
    neighbours: BTreeMap<(u32, IpAddr), Neighbour>,
}

impl World {
    /// Replaces all neighbours.
    pub(super) fn set_neighbours(&mut self, all: Vec<Neighbour>) {
        self.neighbours = all.into_iter().map(|n| ((n.ifindex, n.ip), n)).collect();
    }

    /// A neighbour is new or different.
    pub(super) fn put_neighbour(&mut self, neighbour: Neighbour) {
        self.neighbours.insert((neighbour.ifindex, neighbour.ip), neighbour);
    }

    /// The kernel forgot a neighbour.
    pub(super) fn remove_neighbour(&mut self, neighbour: &Neighbour) {
        self.neighbours.remove(&(neighbour.ifindex, neighbour.ip));
    }

    /// The neighbour with this address.
    pub(super) fn neighbour(&self, ifindex: u32, ip: IpAddr) -> Option<&Neighbour> {
        self.neighbours.get(&(ifindex, ip))
    }

    /// All neighbours on an interface.
    pub(super) fn neighbours_on(&self, ifindex: u32) -> impl Iterator<Item = &Neighbour> {
        let all = (ifindex, IpAddr::from([0u8; 4]))..;
        self.neighbours.range(all).map(|(_, n)| n).take_while(move |n| n.ifindex == ifindex)
    }

    /// The index of an interface; 0 when there is none.
    pub(super) fn ifindex(&self, name: &str) -> u32 {
        self.links.iter().find(|link| link.name == name).map_or(0, |link| link.ifindex)
    }

    /// What matters for the named interfaces; parts that are as in `previous` are shared with it.
    pub(super) fn state(&self, names: &[String], previous: &NetState) -> NetState {
        let interfaces: Vec<InterfaceSpec> = names.iter().map(|name| self.interface(name)).collect();
        let position: HashMap<u32, usize> = (0..)
            .zip(&interfaces)
            .filter(|(_, interface)| interface.ifindex != 0)
            .map(|(at, interface)| (interface.ifindex, at))
            .collect();
        let mut neighbours = Vec::new();
        for (at, interface) in interfaces.iter().enumerate().filter(|(_, i)| i.ifindex != 0) {
            let specs = self.neighbours_on(interface.ifindex).filter(|n| n.state != NeighbourState::None);
            neighbours.extend(specs.map(|n| NeighbourSpec { interface: at, addr: n.ip, mac: n.mac }));
        }
        NetState {
            routes: share(routes(&self.routes, &position), &previous.routes),
            interfaces: share(interfaces, &previous.interfaces),
            neighbours: share(neighbours, &previous.neighbours),
        }
    }

    fn interface(&self, name: &str) -> InterfaceSpec {
        let Some(link) = self.links.iter().find(|link| link.name == name) else {
            return InterfaceSpec {
                name: name.to_owned(),
                ifindex: 0,
                mac: MacAddr::default(),
                mtu: 0,
                up: false,
                addresses: Vec::new(),
                vlan: None,
            };
        };
        let mut own: Vec<&Address> = self.addresses.iter().filter(|a| a.ifindex == link.ifindex).collect();
        // The sort is stable: the kernel lists primary addresses in the order they were given.
        own.sort_by_key(|a| (a.ip.is_ipv6(), a.is_secondary, is_link_local(a.ip)));
        InterfaceSpec {
            name: link.name.clone(),
            ifindex: link.ifindex,
            mac: link.mac,
            mtu: link.mtu,
            up: link.up,
            addresses: own.into_iter().map(|address| address.ip).collect(),
            vlan: None,
        }
    }
}

/// Each route by the first of its ways that leads through a served interface.
fn routes(all: &[Route], position: &HashMap<u32, usize>) -> Vec<RouteSpec> {
    let mut specs = Vec::new();
    for Route { prefix, metric, hops } in all {
        let hop = hops.iter().find_map(|hop| Some((*position.get(&hop.ifindex)?, hop.via)));
        if let Some((interface, via)) = hop {
            let hop = RouteHopSpec { interface, via, weight: 1 };
            specs.push(RouteSpec { prefix: *prefix, hops: vec![hop], metric: *metric });
        }
    }
    specs
}

fn share<T: PartialEq>(new: Vec<T>, previous: &Arc<Vec<T>>) -> Arc<Vec<T>> {
    if new == **previous { Arc::clone(previous) } else { Arc::new(new) }
}

const fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::Hop;
    use super::*;

    fn link(ifindex: u32, name: &str) -> Link {
        Link { ifindex, name: name.into(), mac: MacAddr([2; 6]), mtu: 1500, up: true }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn interfaces_come_in_configured_order_with_primary_addresses_first() {
        let address = |ifindex, text, is_secondary| Address { ifindex, ip: ip(text), is_secondary };
        let world = World {
            links: vec![link(1, "lo"), link(7, "fab0"), link(9, "up0")],
            addresses: vec![
                address(9, "fe80::1", false),
                address(9, "10.0.0.2", true),
                address(9, "fd00::1", false),
                address(9, "10.0.0.1", false),
                address(1, "127.0.0.1", false),
            ],
            ..World::default()
        };
        let names = ["up0".to_owned(), "gone".to_owned(), "fab0".to_owned()];
        let state = world.state(&names, &NetState::default());
        let indices: Vec<u32> = state.interfaces.iter().map(|i| i.ifindex).collect();
        assert_eq!(indices, [9, 0, 7]);
        assert_eq!(
            state.interfaces[0].addresses,
            [ip("10.0.0.1"), ip("10.0.0.2"), ip("fd00::1"), ip("fe80::1")]
        );
        assert!(!state.interfaces[1].up);
    }

    #[test]
    fn a_route_takes_its_first_way_through_a_served_interface() {
        let hop = |ifindex, via: &str| Hop { ifindex, via: Some(ip(via)) };
        let route = |prefix: &str, hops: Vec<Hop>| Route { prefix: prefix.parse().unwrap(), metric: 5, hops };
        let world = World {
            links: vec![link(1, "lo"), link(9, "up0")],
            routes: vec![
                route("10.1.0.0/16", vec![hop(1, "10.0.0.8"), hop(9, "10.0.0.9"), hop(9, "10.0.0.10")]),
                route("10.2.0.0/16", vec![hop(1, "10.0.0.8")]),
            ],
            ..World::default()
        };
        let state = world.state(&["up0".to_owned()], &NetState::default());
        let expected = RouteSpec {
            prefix: "10.1.0.0/16".parse().unwrap(),
            hops: vec![RouteHopSpec { interface: 0, via: Some(ip("10.0.0.9")), weight: 1 }],
            metric: 5,
        };
        assert_eq!(*state.routes, [expected]);
    }

    #[test]
    fn a_state_that_stays_shares_its_parts() {
        let mut world = World { links: vec![link(9, "up0")], ..World::default() };
        let neighbour = |host, mac, state| Neighbour { ifindex: 9, ip: ip(host), mac, state };
        world.set_neighbours(vec![neighbour("10.0.0.5", Some(MacAddr([4; 6])), NeighbourState::Reachable)]);
        let names = ["up0".to_owned()];
        let first = world.state(&names, &NetState::default());
        world.put_neighbour(neighbour("10.0.0.5", Some(MacAddr([4; 6])), NeighbourState::Stale));
        let second = world.state(&names, &first);
        assert!(Arc::ptr_eq(&first.neighbours, &second.neighbours), "stale is as good as reachable");
        let failed = neighbour("10.0.0.5", None, NeighbourState::Failed);
        world.put_neighbour(failed);
        let third = world.state(&names, &second);
        assert_eq!(third.neighbours[0].mac, None);
        assert!(Arc::ptr_eq(&second.interfaces, &third.interfaces));
        world.remove_neighbour(&failed);
        assert!(world.state(&names, &third).neighbours.is_empty());
    }
}
