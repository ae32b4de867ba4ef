//! Rtnetlink messages to plain values; `None` for those that do not matter here.

use std::net::IpAddr;

use flowgate_wire::MacAddr;
use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{
    BondPortState, InfoBondPort, InfoData, InfoKind, InfoPortData, InfoVlan, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage, State, VlanProtocol,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHopFlags, RoutePreference,
    RouteType, RouteVia,
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) ifindex: u32,
    pub(super) name: String,
    pub(super) mac: MacAddr,
    pub(super) mtu: u16,
    pub(super) up: bool,
    pub(super) kind: Kind,
    /// The kernel's index of the bond, bridge or VRF that it is a port of.
    pub(super) master: Option<u32>,
}

/// The kind of a link, as far as it matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Kind {
    #[default]
    Other,
    /// An IEEE 802.1Q VLAN on another link of this namespace.
    Vlan {
        link: u32,
        id: u16,
    },
    /// A macvlan on another link of this namespace: it has an Ethernet address of its own.
    Macvlan {
        link: u32,
    },
    Bond,
    /// A port of a bond that is a backup and must not send.
    IdleBondPort,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) ifindex: u32,
    pub(super) ip: IpAddr,
    /// An IPv4 address given after another of its subnet, or a temporary IPv6 one (RFC 8981).
    pub(super) is_secondary: bool,
    /// RFC 4862 section 5.5.4: not to be used for new flows.
    pub(super) is_deprecated: bool,
}

/// A route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) prefix: IpNet,
    pub(super) metric: u32,
    /// Higher is better among routes with the same prefix and metric (RFC 4191).
    pub(super) preference: i8,
    /// The next hops, in the kernel's order. Empty if the destinations are unreachable.
    pub(super) hops: Vec<Hop>,
}

/// A next hop of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hop {
    pub(super) ifindex: u32,
    pub(super) via: Option<IpAddr>,
    /// Its share relative to the others.
    pub(super) weight: u16,
    /// The kernel flags it as dead or without carrier.
    pub(super) is_dead: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Neighbour {
    pub(super) ifindex: u32,
    pub(super) ip: IpAddr,
    pub(super) mac: Option<MacAddr>,
    pub(super) state: NeighbourState,
}

pub(super) fn link(message: &LinkMessage) -> Option<Link> {
    let mut link = Link {
        ifindex: message.header.index,
        name: String::new(),
        mac: MacAddr::default(),
        mtu: u16::MAX,
        up: false,
        kind: Kind::Other,
        master: None,
    };
    let mut state = State::Unknown;
    let (mut below, mut is_below_elsewhere, mut infos) = (None, false, [].as_slice());
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes) => link.mac = mac(bytes).unwrap_or_default(),
            LinkAttribute::Mtu(mtu) => link.mtu = u16::try_from(*mtu).unwrap_or(u16::MAX),
            LinkAttribute::OperState(oper) => state = *oper,
            LinkAttribute::Controller(index) => link.master = Some(*index).filter(|&index| index != 0),
            LinkAttribute::Link(index) => below = Some(*index),
            LinkAttribute::LinkNetNsId(_) => is_below_elsewhere = true,
            LinkAttribute::LinkInfo(info) => infos = info,
            _ => {}
        }
    }
    link.kind = kind(infos, below.filter(|_| !is_below_elsewhere));
    // RFC 2863 operational state "unknown": drivers that do not report it still report the carrier (IFF_LOWER_UP).
    let flags = LinkFlags::Up | LinkFlags::LowerUp;
    link.up = message.header.flags.contains(flags) && matches!(state, State::Up | State::Unknown);
    (!link.name.is_empty()).then_some(link)
}

fn kind(infos: &[LinkInfo], below: Option<u32>) -> Kind {
    let mut kind = Kind::Other;
    for info in infos {
        match info {
            LinkInfo::Kind(InfoKind::Bond) => kind = Kind::Bond,
            LinkInfo::Kind(InfoKind::MacVlan) => {
                if let Some(link) = below {
                    kind = Kind::Macvlan { link };
                }
            }
            LinkInfo::Data(InfoData::Vlan(attributes)) => {
                let id = attributes.iter().find_map(|attribute| match attribute {
                    InfoVlan::Id(id) => Some(*id),
                    _ => None,
                });
                // Workers do not know service tags (IEEE 802.1ad).
                let is_service = attributes.contains(&InfoVlan::Protocol(VlanProtocol::Ieee8021Ad));
                if let (Some(link), Some(id), false) = (below, id, is_service) {
                    kind = Kind::Vlan { link, id };
                }
            }
            LinkInfo::PortData(InfoPortData::BondPort(attributes))
                if attributes.contains(&InfoBondPort::BondPortState(BondPortState::Backup)) =>
            {
                kind = Kind::IdleBondPort;
            }
            _ => {}
        }
    }
    kind
}

pub(super) fn address(message: &AddressMessage) -> Option<Address> {
    let (mut local, mut address, mut long) = (None, None, AddressFlags::empty());
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point link IFA_ADDRESS is the peer's, and IFA_LOCAL our own.
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Flags(flags) => long = *flags,
            _ => {}
        }
    }
    // The header holds the lower eight flags, the attribute IFA_FLAGS all of them.
    let flags = long | AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    // RFC 4862 section 5.4: a tentative address must not be used before duplicate address detection is over.
    if flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed) {
        return None;
    }
    Some(Address {
        ifindex: message.header.index,
        ip: local.or(address)?,
        is_secondary: flags.contains(AddressFlags::Secondary),
        is_deprecated: flags.contains(AddressFlags::Deprecated),
    })
}

pub(super) fn route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    let mut table = u32::from(header.table);
    let mut metric = 0;
    let mut preference = 0;
    let mut destination = None;
    let mut single = RawHop::default();
    let mut hops = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Destination(to) => destination = Some(ip(to)?),
            RouteAttribute::Preference(RoutePreference::High) => preference = 1,
            RouteAttribute::Preference(RoutePreference::Low) => preference = -1,
            RouteAttribute::MultiPath(paths) => {
                let dead = RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown;
                for path in paths {
                    let mut hop = RawHop {
                        ifindex: path.interface_index,
                        // `rtnh_hops` is the weight less one (linux/rtnetlink.h).
                        weight: u16::from(path.hops) + 1,
                        is_dead: path.flags.intersects(dead),
                        ..RawHop::default()
                    };
                    path.attributes.iter().for_each(|attribute| hop.read(attribute));
                    hops.extend(hop.usable());
                }
            }
            other => single.read(other),
        }
    }
    let is_main = table == u32::from(RouteHeader::RT_TABLE_MAIN);
    // Routes for a type of service or for some sources only do not hold for other packets.
    let is_special = header.tos != 0 || header.source_prefix_length != 0;
    if !is_main || is_special || header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    match header.kind {
        RouteType::Unicast if single.ifindex != 0 => {
            single.is_dead = header.flags.intersects(RouteFlags::Dead | RouteFlags::Linkdown);
            hops.extend(single.usable());
        }
        RouteType::Unicast => {}
        RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit | RouteType::Throw => {
            hops.clear()
        }
        _ => return None,
    }
    let everything = match header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        AddressFamily::Inet6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    let prefix = IpNet::new(destination.unwrap_or(everything), header.destination_prefix_length).ok()?;
    Some(Route { prefix, metric, preference, hops })
}

pub(super) fn neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    if message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let (mut ip, mut lladdr) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => ip = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => ip = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLocalAddress(bytes) => lladdr = mac(bytes),
            _ => {}
        }
    }
    // The kernel has entries for groups and broadcasts too, which are no neighbours.
    let ip = ip.filter(|ip| !ip.is_multicast())?;
    if lladdr.is_some_and(|lladdr| lladdr.0[0] & 1 == 1) {
        return None;
    }
    let state = message.header.state;
    // A failed or incomplete entry may still carry the address that no longer answers.
    let valid = !matches!(
        state,
        NeighbourState::Failed | NeighbourState::Incomplete | NeighbourState::None | NeighbourState::Other(_)
    );
    Some(Neighbour { ifindex: message.header.ifindex, ip, mac: lladdr.filter(|_| valid), state })
}

/// A next hop while its attributes are read.
struct RawHop {
    ifindex: u32,
    via: Option<IpAddr>,
    weight: u16,
    is_dead: bool,
    /// A tunnel, or a router that is not reached by IP: plain frames cannot be sent that way.
    is_foreign: bool,
}

impl Default for RawHop {
    fn default() -> Self {
        Self { ifindex: 0, via: None, weight: 1, is_dead: false, is_foreign: false }
    }
}

impl RawHop {
    fn read(&mut self, attribute: &RouteAttribute) {
        match attribute {
            RouteAttribute::Oif(ifindex) => self.ifindex = *ifindex,
            RouteAttribute::Gateway(to) => self.via = ip(to),
            // RFC 8950: a router of the other family.
            RouteAttribute::Via(RouteVia::Inet(v4)) => self.via = Some(IpAddr::V4(*v4)),
            RouteAttribute::Via(RouteVia::Inet6(v6)) => self.via = Some(IpAddr::V6(*v6)),
            RouteAttribute::Via(_) | RouteAttribute::Encap(_) => self.is_foreign = true,
            _ => {}
        }
    }

    fn usable(self) -> Option<Hop> {
        let Self { ifindex, via, weight, is_dead, is_foreign } = self;
        (!is_foreign).then_some(Hop { ifindex, via, weight, is_dead })
    }
}

const fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn mac(bytes: &[u8]) -> Option<MacAddr> {
    bytes.try_into().ok().map(MacAddr)
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::route::RouteNextHop;

    use super::*;

    fn link_of(attributes: Vec<LinkAttribute>) -> Link {
        let mut message = LinkMessage::default();
        message.header.index = 9;
        message.attributes = attributes;
        message.attributes.push(LinkAttribute::IfName("x".into()));
        link(&message).unwrap()
    }

    #[test]
    fn a_vlan_is_one_of_a_link_of_this_namespace_with_a_customer_tag() {
        let vlan = |protocol| {
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vlan),
                LinkInfo::Data(InfoData::Vlan(vec![InfoVlan::Protocol(protocol), InfoVlan::Id(7)])),
            ])
        };
        let customer = || vlan(VlanProtocol::Ieee8021Q);
        let below = || LinkAttribute::Link(5);
        assert_eq!(link_of(vec![below(), customer()]).kind, Kind::Vlan { link: 5, id: 7 });
        assert_eq!(link_of(vec![below(), vlan(VlanProtocol::Ieee8021Ad)]).kind, Kind::Other);
        let elsewhere = LinkAttribute::LinkNetNsId(0);
        assert_eq!(link_of(vec![below(), elsewhere, customer()]).kind, Kind::Other);
    }

    #[test]
    fn a_port_of_a_bond_tells_whether_it_sends() {
        let port = |state| {
            let data = InfoPortData::BondPort(vec![InfoBondPort::BondPortState(state)]);
            link_of(vec![
                LinkAttribute::Controller(3),
                LinkAttribute::LinkInfo(vec![LinkInfo::PortData(data)]),
            ])
        };
        assert_eq!(
            (port(BondPortState::Active).kind, port(BondPortState::Active).master),
            (Kind::Other, Some(3))
        );
        assert_eq!(port(BondPortState::Backup).kind, Kind::IdleBondPort);
        let bond = LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bond)]);
        assert_eq!(link_of(vec![bond]).kind, Kind::Bond);
    }

    fn route_message(kind: RouteType, attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet6;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.kind = kind;
        message.attributes = attributes;
        message
    }

    #[test]
    fn routes_of_other_tables_types_or_for_some_sources_are_not_ours() {
        let plain = || route_message(RouteType::Unicast, vec![RouteAttribute::Oif(9)]);
        let hop = Hop { ifindex: 9, via: None, weight: 1, is_dead: false };
        let default = "::/0".parse().unwrap();
        assert_eq!(
            route(&plain()),
            Some(Route { prefix: default, metric: 0, preference: 0, hops: vec![hop] })
        );
        let mut other = plain();
        other.attributes.push(RouteAttribute::Table(100));
        assert_eq!(route(&other), None);
        for change in [
            |message: &mut RouteMessage| message.header.source_prefix_length = 64,
            |message: &mut RouteMessage| message.header.tos = 8,
            |message: &mut RouteMessage| message.header.kind = RouteType::Local,
            |message: &mut RouteMessage| message.header.flags = RouteFlags::Cloned,
        ] {
            let mut message = plain();
            change(&mut message);
            assert_eq!(route(&message), None, "{message:?}");
        }
    }

    #[test]
    fn a_route_to_nowhere_has_no_way_though_the_kernel_names_lo() {
        for kind in [RouteType::BlackHole, RouteType::Unreachable, RouteType::Prohibit, RouteType::Throw] {
            assert_eq!(route(&route_message(kind, vec![RouteAttribute::Oif(1)])).unwrap().hops, []);
        }
    }

    #[test]
    fn a_way_without_carrier_is_told_dead_and_a_tunnel_is_none() {
        let mut dead = RouteNextHop::default();
        dead.interface_index = 9;
        dead.hops = 4;
        dead.flags = RouteNextHopFlags::Linkdown;
        let mut tunnel = RouteNextHop::default();
        tunnel.attributes.push(RouteAttribute::Encap(vec![]));
        let message = route_message(RouteType::Unicast, vec![RouteAttribute::MultiPath(vec![dead, tunnel])]);
        let hop = Hop { ifindex: 9, via: None, weight: 5, is_dead: true };
        assert_eq!(route(&message).unwrap().hops, [hop]);
    }

    #[test]
    fn a_group_is_no_neighbour() {
        let of = |ip: [u8; 4]| {
            let mut message = NeighbourMessage::default();
            message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(ip.into())));
            neighbour(&message)
        };
        assert!(of([224, 0, 0, 1]).is_none() && of([10, 0, 0, 1]).is_some());
    }
}
