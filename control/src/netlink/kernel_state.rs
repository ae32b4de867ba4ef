//! The kernel's whole state, and the part of it that concerns the served interfaces.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use flowgate_tables::spec::{ForwardingOff, InterfaceSpec, NeighbourSpec, StationSpec, VlanSpec};
use flowgate_wire::MacAddr;
use rtnetlink::packet_route::neighbour::NeighbourState;

use super::forwarding::Family;
use super::message::{Address, Kind, Link, Neighbour, Route};
use super::routes;
use crate::model::NetState;

/// Links, addresses, routes and neighbours, of all interfaces.
#[derive(Debug, Default)]
pub(super) struct KernelState {
    pub(super) links: Vec<Link>,
    pub(super) addresses: Vec<Address>,
    pub(super) routes: Vec<Route>,
    neighbours: BTreeMap<(u32, IpAddr), Neighbour>,
    /// Kernel's indices of links whose packets are not forwarded, with the family.
    pub(super) forwarding_off: Vec<(u32, Family)>,
}

impl KernelState {
    pub(super) fn set_neighbours(&mut self, all: Vec<Neighbour>) {
        self.neighbours = all.into_iter().map(|n| ((n.ifindex, n.ip), n)).collect();
    }

    pub(super) fn put_neighbour(&mut self, neighbour: Neighbour) {
        self.neighbours.insert((neighbour.ifindex, neighbour.ip), neighbour);
    }

    pub(super) fn remove_neighbour(&mut self, neighbour: &Neighbour) {
        self.neighbours.remove(&(neighbour.ifindex, neighbour.ip));
    }

    pub(super) fn neighbour(&self, ifindex: u32, ip: IpAddr) -> Option<&Neighbour> {
        self.neighbours.get(&(ifindex, ip))
    }

    /// The entries of one family.
    pub(super) fn neighbour_count(&self, v4: bool) -> usize {
        self.neighbours.keys().filter(|(_, ip)| ip.is_ipv4() == v4).count()
    }

    pub(super) fn neighbours_on(&self, ifindex: u32) -> impl Iterator<Item = &Neighbour> {
        // IPv4 sorts before IPv6, so this is the smallest key of the interface.
        let all = (ifindex, IpAddr::from([0u8; 4]))..;
        self.neighbours.range(all).map(|(_, n)| n).take_while(move |n| n.ifindex == ifindex)
    }

    /// The part of the state that concerns the named devices and their VLANs; parts that equal those of `previous` are
    /// shared with it.
    pub(super) fn net_state(&self, names: &[String], previous: &NetState) -> NetState {
        let served = self.served(names);
        let mut positions: HashMap<u32, Vec<usize>> = HashMap::new();
        let mut neighbours = Vec::new();
        for (at, ServedLink { network, .. }) in served.iter().enumerate().filter(|(_, s)| s.network != 0) {
            positions.entry(*network).or_default().push(at);
            // NUD_NONE: an entry that the kernel has just created and not tried to resolve.
            let specs = self.neighbours_on(*network).filter(|n| n.state != NeighbourState::None);
            let spec = |n: &Neighbour| NeighbourSpec {
                interface: at,
                addr: n.ip,
                mac: n.mac,
                has_failed: n.state == NeighbourState::Failed,
            };
            neighbours.extend(specs.map(spec));
        }
        let off = |(ifindex, family): &(u32, Family)| {
            let interfaces = positions.get(ifindex).into_iter().flatten();
            let v4 = *family == Family::V4;
            interfaces.map(move |&interface| ForwardingOff { interface, v4 }).collect::<Vec<_>>()
        };
        let mut forwarding_off: Vec<ForwardingOff> = self.forwarding_off.iter().flat_map(off).collect();
        forwarding_off.sort_unstable();
        let other_stations = self.other_stations(&served);
        let interfaces = served.into_iter().map(|served| served.spec).collect();
        let others = self.addresses.iter().filter(|address| !positions.contains_key(&address.ifindex));
        let mut elsewhere: Vec<IpAddr> = others.map(|address| address.ip).collect();
        // Those of a pod's link come and go with it, and are no way to the node.
        elsewhere.retain(|ip| !ip.is_loopback() && !is_link_local(*ip));
        elsewhere.sort_unstable();
        elsewhere.dedup();
        NetState {
            elsewhere: share(elsewhere, &previous.elsewhere),
            forwarding_off: share(forwarding_off, &previous.forwarding_off),
            other_stations: share(other_stations, &previous.other_stations),
            routes: share(routes::specs(&self.routes, &positions), &previous.routes),
            interfaces: share(interfaces, &previous.interfaces),
            neighbours: share(neighbours, &previous.neighbours),
        }
    }

    /// The addresses of ports whose bond has another one, and of macvlans.
    fn other_stations(&self, served: &[ServedLink]) -> Vec<StationSpec> {
        let mut all = Vec::new();
        for (interface, ServedLink { spec, network }) in served.iter().enumerate() {
            let is_own = |link: &&Link| match link.kind {
                Kind::Macvlan { link } => [spec.ifindex, *network].contains(&link),
                _ => link.ifindex == spec.ifindex,
            };
            let macs = self.links.iter().filter(is_own).map(|link| link.mac).filter(|mac| *mac != spec.mac);
            all.extend(macs.map(|mac| StationSpec { interface, mac }));
        }
        all.sort_unstable();
        all.dedup();
        all
    }

    /// For each named device and VLAN, in the order of [`Self::net_state`], the index of the link that has its
    /// addresses, routes and neighbours; 0 for a device that does not exist.
    pub(super) fn networks(&self, names: &[String]) -> Vec<u32> {
        self.served(names).into_iter().map(|served| served.network).collect()
    }

    /// The named devices, then their VLANs by device and identifier.
    fn served(&self, names: &[String]) -> Vec<ServedLink> {
        let mut all: Vec<ServedLink> = names.iter().map(|name| self.device(name)).collect();
        for parent in 0..names.len() {
            let device = &all[parent];
            let (below, is_up) = ([device.spec.ifindex, device.network], device.spec.up);
            let id = |link: &Link| match link.kind {
                Kind::Vlan { link, id } if below.contains(&link) => Some(id),
                _ => None,
            };
            // A VLAN interface that is named itself is served as a device.
            let others = self.links.iter().filter(|link| !names.contains(&link.name));
            let mut vlans: Vec<(u16, &Link)> = others.filter_map(|link| Some((id(link)?, link))).collect();
            // The order must not depend on that of the kernel's list: ids of interfaces follow it.
            vlans.sort_unstable_by_key(|(id, link)| (*id, link.ifindex));
            all.extend(vlans.into_iter().map(|(id, link)| {
                let mut spec = self.spec(link, link);
                // A VLAN of a served device sends by that device's socket.
                spec.up &= is_up;
                spec.vlan = Some(VlanSpec { parent, id });
                ServedLink { spec, network: link.ifindex }
            }));
        }
        all
    }

    fn device(&self, name: &str) -> ServedLink {
        let Some(link) = self.links.iter().find(|link| link.name == name) else {
            let spec = InterfaceSpec {
                name: name.to_owned(),
                ifindex: 0,
                mac: MacAddr::default(),
                mtu: 0,
                up: false,
                addresses: Vec::new(),
                vlan: None,
            };
            return ServedLink { spec, network: 0 };
        };
        let bond = self.links.iter().find(|l| Some(l.ifindex) == link.master && l.kind == Kind::Bond);
        let network = bond.unwrap_or(link);
        ServedLink { spec: self.spec(link, network), network: network.ifindex }
    }

    /// The spec of `link`, with the addresses of `network`: itself or, for a port of a bond, the bond.
    fn spec(&self, link: &Link, network: &Link) -> InterfaceSpec {
        let mut own: Vec<&Address> = self.addresses.iter().filter(|a| a.ifindex == network.ifindex).collect();
        // The sort is stable: the kernel lists primary addresses in the order they were given.
        own.sort_by_key(|a| (a.ip.is_ipv6(), is_link_local(a.ip), a.is_deprecated, a.is_secondary));
        InterfaceSpec {
            name: link.name.clone(),
            ifindex: link.ifindex,
            mac: network.mac,
            mtu: link.mtu.min(network.mtu),
            up: link.up && network.up && link.kind != Kind::IdleBondPort,
            addresses: own.into_iter().map(|address| address.ip).collect(),
            vlan: None,
        }
    }
}

/// A link that workers serve.
struct ServedLink {
    spec: InterfaceSpec,
    /// The kernel's index of the link that has its addresses, routes and neighbours: itself, or its bond.
    network: u32,
}

/// `previous` if it equals `new`: equal parts are recognised by pointer later.
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
    use super::*;

    fn link(ifindex: u32, name: &str) -> Link {
        Link {
            ifindex,
            name: name.into(),
            mac: MacAddr([2; 6]),
            mtu: 1500,
            up: true,
            kind: Kind::Other,
            master: None,
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn interfaces_come_in_configured_order_with_primary_addresses_first() {
        let address = |ifindex, text, is_secondary| Address {
            ifindex,
            ip: ip(text),
            is_secondary,
            is_deprecated: text == "fd00::2",
        };
        let kernel = KernelState {
            links: vec![link(1, "lo"), link(7, "fab0"), link(9, "up0")],
            addresses: vec![
                address(9, "fe80::1", false),
                address(9, "10.0.0.2", true),
                address(9, "fd00::2", false),
                address(9, "fd00::3", true),
                address(9, "fd00::1", false),
                address(9, "10.0.0.1", false),
                address(1, "127.0.0.1", false),
            ],
            ..KernelState::default()
        };
        let names = ["up0".to_owned(), "gone".to_owned(), "fab0".to_owned()];
        let state = kernel.net_state(&names, &NetState::default());
        let indices: Vec<u32> = state.interfaces.iter().map(|i| i.ifindex).collect();
        assert_eq!(indices, [9, 0, 7]);
        assert_eq!(
            state.interfaces[0].addresses,
            ["10.0.0.1", "10.0.0.2", "fd00::1", "fd00::3", "fd00::2", "fe80::1"].map(ip)
        );
        assert!(!state.interfaces[1].up);
    }

    #[test]
    fn addresses_of_other_interfaces_are_known_too() {
        let address =
            |ifindex, text| Address { ifindex, ip: ip(text), is_secondary: false, is_deprecated: false };
        let kernel = KernelState {
            links: vec![link(1, "lo"), link(7, "mgmt0"), link(9, "up0")],
            addresses: vec![
                address(1, "127.0.0.1"),
                address(1, "203.0.113.7"),
                address(7, "fe80::7"),
                address(7, "10.9.0.1"),
                address(9, "192.0.2.1"),
            ],
            ..KernelState::default()
        };
        let state = kernel.net_state(&["up0".to_owned()], &NetState::default());
        assert_eq!(*state.elsewhere, ["10.9.0.1", "203.0.113.7"].map(ip));
        assert!(Arc::ptr_eq(&state.elsewhere, &kernel.net_state(&["up0".to_owned()], &state).elsewhere));
    }

    #[test]
    fn vlans_of_served_devices_are_served_after_them() {
        let vlan =
            |ifindex, name, below, id| Link { kind: Kind::Vlan { link: below, id }, ..link(ifindex, name) };
        let address =
            |ifindex, text| Address { ifindex, ip: ip(text), is_secondary: false, is_deprecated: false };
        let kernel = KernelState {
            links: vec![
                vlan(12, "fab0.9", 7, 9),
                vlan(11, "storage", 7, 5),
                vlan(13, "mgmt.5", 3, 5),
                vlan(14, "fab0.7", 7, 7),
                link(7, "fab0"),
                Link { up: false, ..link(9, "up0") },
                vlan(15, "up0.2", 9, 2),
            ],
            addresses: vec![address(11, "10.5.0.1")],
            ..KernelState::default()
        };
        let names = ["up0", "fab0", "fab0.7"].map(str::to_owned);
        let state = kernel.net_state(&names, &NetState::default());
        let seen: Vec<_> =
            state.interfaces.iter().map(|i| (i.name.as_str(), i.vlan.map(|v| (v.parent, v.id)))).collect();
        assert_eq!(
            seen,
            [
                ("up0", None),
                ("fab0", None),
                ("fab0.7", None),
                ("up0.2", Some((0, 2))),
                ("storage", Some((1, 5))),
                ("fab0.9", Some((1, 9))),
            ]
        );
        assert_eq!(state.interfaces[4].addresses, [ip("10.5.0.1")]);
        assert!(!state.interfaces[3].up, "its device is down");
        assert_eq!(kernel.networks(&names), [9, 7, 14, 15, 11, 12]);
    }

    #[test]
    fn ports_of_a_bond_have_its_addresses_routes_and_neighbours() {
        let port =
            |ifindex, name, kind| Link { master: Some(5), mac: MacAddr([7; 6]), kind, ..link(ifindex, name) };
        let mut kernel = KernelState {
            links: vec![
                port(7, "eth0", Kind::Other),
                port(8, "eth1", Kind::IdleBondPort),
                Link { kind: Kind::Bond, ..link(5, "bond0") },
                Link { kind: Kind::Vlan { link: 5, id: 9 }, ..link(6, "bond0.9") },
            ],
            addresses: vec![Address {
                ifindex: 5,
                ip: ip("10.0.0.1"),
                is_secondary: false,
                is_deprecated: false,
            }],
            ..KernelState::default()
        };
        kernel.set_neighbours(vec![Neighbour {
            ifindex: 5,
            ip: ip("10.0.0.5"),
            mac: None,
            state: NeighbourState::Incomplete,
        }]);
        let names = ["eth0".to_owned(), "eth1".to_owned()];
        let state = kernel.net_state(&names, &NetState::default());
        for (at, is_up) in [(0, true), (1, false)] {
            let spec = &state.interfaces[at];
            assert_eq!(
                (&*spec.addresses, spec.mac, spec.up),
                (&[ip("10.0.0.1")][..], MacAddr([2; 6]), is_up)
            );
            assert_eq!(state.neighbours[at].interface, at);
            assert_eq!(state.interfaces[2 + at].vlan, Some(VlanSpec { parent: at, id: 9 }));
            assert_eq!(state.interfaces[2 + at].up, is_up);
        }
        assert_eq!(kernel.networks(&names), [5, 5, 6, 6]);
    }

    #[test]
    fn what_is_not_forwarded_is_known_by_the_positions_of_its_interfaces() {
        let port = |ifindex, name| Link { master: Some(5), ..link(ifindex, name) };
        let kernel = KernelState {
            links: vec![
                port(7, "eth0"),
                port(8, "eth1"),
                Link { kind: Kind::Bond, ..link(5, "bond0") },
                link(9, "up0"),
            ],
            forwarding_off: vec![(9, Family::V6), (5, Family::V4), (3, Family::V4)],
            ..KernelState::default()
        };
        let names = ["up0", "eth0", "eth1"].map(str::to_owned);
        let off: Vec<_> = kernel
            .net_state(&names, &NetState::default())
            .forwarding_off
            .iter()
            .map(|off| (off.interface, off.v4))
            .collect();
        assert_eq!(off, [(0, false), (1, true), (2, true)]);
    }

    #[test]
    fn ports_of_a_bond_and_macvlans_may_have_addresses_of_their_own() {
        let mac = |n| MacAddr([n; 6]);
        let port = |ifindex, name, n| Link { master: Some(5), mac: mac(n), ..link(ifindex, name) };
        let kernel = KernelState {
            links: vec![
                port(7, "eth0", 2),
                port(8, "eth1", 4),
                Link { kind: Kind::Bond, ..link(5, "bond0") },
                Link { kind: Kind::Macvlan { link: 9 }, mac: mac(6), ..link(10, "vrrp.51") },
                Link { kind: Kind::Macvlan { link: 3 }, mac: mac(8), ..link(11, "other") },
                link(9, "up0"),
            ],
            ..KernelState::default()
        };
        let names = ["up0", "eth0", "eth1"].map(str::to_owned);
        let state = kernel.net_state(&names, &NetState::default());
        let expected = [StationSpec { interface: 0, mac: mac(6) }, StationSpec { interface: 2, mac: mac(4) }];
        assert_eq!(*state.other_stations, expected);
    }

    #[test]
    fn a_state_that_stays_shares_its_parts() {
        let mut kernel = KernelState { links: vec![link(9, "up0")], ..KernelState::default() };
        let neighbour = |host, mac, state| Neighbour { ifindex: 9, ip: ip(host), mac, state };
        kernel.set_neighbours(vec![neighbour("10.0.0.5", Some(MacAddr([4; 6])), NeighbourState::Reachable)]);
        let names = ["up0".to_owned()];
        let first = kernel.net_state(&names, &NetState::default());
        kernel.put_neighbour(neighbour("10.0.0.5", Some(MacAddr([4; 6])), NeighbourState::Stale));
        let second = kernel.net_state(&names, &first);
        assert!(Arc::ptr_eq(&first.neighbours, &second.neighbours), "stale is as good as reachable");
        let failed = neighbour("10.0.0.5", None, NeighbourState::Failed);
        kernel.put_neighbour(failed);
        let third = kernel.net_state(&names, &second);
        assert_eq!(third.neighbours[0].mac, None);
        assert!(Arc::ptr_eq(&second.interfaces, &third.interfaces));
        kernel.remove_neighbour(&failed);
        assert!(kernel.net_state(&names, &third).neighbours.is_empty());
    }
}
