//! Chooses the neighbours that an interface is probed with.

use std::cmp::Reverse;
use std::net::IpAddr;

use flowgate_tables::routing::Route;
use flowgate_tables::{InterfaceId, Routing};

use super::probe::{TARGETS_MAX, Target};

/// The targets on a device and its VLANs, at most [`TARGETS_MAX`]: neighbours whose Ethernet address is known. First those
/// with the largest MTU, since a VLAN with a smaller one proves nothing for the others; then routers. Each `round` has other
/// targets, if there are more.
pub(super) fn of(routing: &Routing, device: InterfaceId, mtu: u32, round: usize) -> Vec<Target> {
    let mut routers = Vec::new();
    for everything in [IpAddr::from([0; 4]), IpAddr::from([0; 16])] {
        if let Route::Via(id) = routing.route(everything, 0) {
            routers.push(id);
        }
    }
    let mut hops: Vec<_> =
        routing.next_hops().filter(|(_, hop)| routing.device(hop.egress).0 == device).collect();
    hops.sort_by_key(|(id, hop)| (Reverse(hop.mtu), !routers.contains(id), hop.addr.is_ipv6(), *id));
    let mut found: Vec<Target> = hops
        .into_iter()
        .filter_map(|(_, hop)| {
            let spec = &routing.interfaces().get(hop.egress.index())?.spec;
            Some(Target {
                ether: hop.ether?,
                vlan: routing.device(hop.egress).1,
                own: own_address(&spec.addresses, hop.addr)?,
                addr: hop.addr,
                mtu: hop.mtu.min(u16::try_from(mtu).unwrap_or(u16::MAX)),
            })
        })
        .collect();
    if found.len() > TARGETS_MAX {
        let others = round * TARGETS_MAX % found.len();
        found.rotate_left(others);
        found.truncate(TARGETS_MAX);
    }
    found
}

/// The interface's address with the longest prefix in common with the neighbour: most likely it is on the same link, so that
/// the reply comes back by this interface.
fn own_address(own: &[IpAddr], neighbour: IpAddr) -> Option<IpAddr> {
    let alike = |addr: &&IpAddr| common_bits(**addr, neighbour);
    // The last of equals wins, and the primary address comes first.
    own.iter().rev().filter(|addr| addr.is_ipv4() == neighbour.is_ipv4()).max_by_key(alike).copied()
}

fn common_bits(a: IpAddr, b: IpAddr) -> u32 {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flowgate_tables::spec::{InterfaceSpec, NeighbourSpec, RouteHopSpec, RouteSpec, VlanSpec};
    use flowgate_wire::MacAddr;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn interface(name: &str, addresses: &[&str], vlan: Option<VlanSpec>) -> InterfaceSpec {
        InterfaceSpec {
            name: name.into(),
            ifindex: 1,
            mac: MacAddr([2; 6]),
            mtu: if vlan.is_some() { 1400 } else { 1500 },
            up: true,
            addresses: addresses.iter().map(|addr| ip(addr)).collect(),
            vlan,
        }
    }

    fn neighbour(interface: usize, addr: &str) -> NeighbourSpec {
        NeighbourSpec { interface, addr: ip(addr), mac: Some(MacAddr([4; 6])), has_failed: false }
    }

    #[test]
    fn routers_come_first_and_everybody_is_asked_from_an_address_of_his_link() {
        let interfaces = vec![
            interface("up0", &["192.0.2.1", "10.0.0.1", "2001:db8::1", "fe80::1"], None),
            interface("fab0", &["10.244.0.1"], None),
            interface("fab0.5", &["10.5.0.1"], Some(VlanSpec { parent: 1, id: 5 })),
        ];
        let hops = vec![RouteHopSpec { interface: 0, via: Some(ip("10.0.0.254")), weight: 1 }];
        let routes = [RouteSpec { prefix: "0.0.0.0/0".parse().unwrap(), hops, metric: 0 }];
        let mut neighbours: Vec<_> =
            [(0, "192.0.2.9"), (0, "10.0.0.254"), (0, "fe80::9"), (1, "10.244.0.9"), (2, "10.5.0.9")]
                .map(|(interface, addr)| neighbour(interface, addr))
                .to_vec();
        neighbours.push(NeighbourSpec { mac: None, ..neighbour(1, "10.244.0.7") });
        let routing = Routing::build(&Routing::default(), interfaces, &routes, &neighbours).unwrap();
        let asked = |device, round| -> Vec<_> {
            let targets = of(&routing, InterfaceId(device), 1500, round);
            targets.iter().map(|w| (w.addr.to_string(), w.own.to_string(), w.vlan, w.mtu)).collect()
        };
        let is = |addr: &str, own: &str, vlan, mtu| (addr.to_owned(), own.to_owned(), vlan, mtu);
        assert_eq!(
            asked(0, 0),
            [
                is("10.0.0.254", "10.0.0.1", None, 1500),
                is("192.0.2.9", "192.0.2.1", None, 1500),
                is("fe80::9", "fe80::1", None, 1500)
            ]
        );
        let fabric = [is("10.5.0.9", "10.5.0.1", Some(5), 1400), is("10.244.0.9", "10.244.0.1", None, 1500)];
        let mut found = asked(1, 0);
        found.sort();
        assert_eq!(found, {
            let mut fabric = fabric;
            fabric.sort();
            fabric
        });
    }

    #[test]
    fn each_round_asks_others() {
        let interfaces = vec![interface("up0", &["10.0.0.1"], None)];
        let neighbours: Vec<_> = (2..9).map(|host| neighbour(0, &format!("10.0.0.{host}"))).collect();
        let routing = Routing::build(&Routing::default(), interfaces, &[], &neighbours).unwrap();
        let asked = |round| of(&routing, InterfaceId(0), 1500, round).into_iter().map(|w| w.addr);
        let mut all: Vec<_> = (0..3).flat_map(asked).collect();
        assert_eq!(asked(0).count(), TARGETS_MAX);
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 7);
    }
}
