//! Netlink messages to plain values. Never keeps one.

use std::net::IpAddr;

use flowgate_wire::MacAddr;
use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage, State};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHopFlags, RouteType,
};

/// A link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) ifindex: u32,
    pub(super) name: String,
    pub(super) mac: MacAddr,
    pub(super) mtu: u16,
    pub(super) up: bool,
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) ifindex: u32,
    pub(super) ip: IpAddr,
    pub(super) is_secondary: bool,
}

/// A unicast route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) prefix: IpNet,
    pub(super) metric: u32,
    /// The ways it may take, in the kernel's order.
    pub(super) hops: Vec<Hop>,
}

/// One way of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hop {
    pub(super) ifindex: u32,
    pub(super) via: Option<IpAddr>,
}

/// A neighbour as the kernel knows it.
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
    };
    let mut state = State::Unknown;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes) => link.mac = mac(bytes).unwrap_or_default(),
            LinkAttribute::Mtu(mtu) => link.mtu = u16::try_from(*mtu).unwrap_or(u16::MAX),
            LinkAttribute::OperState(oper) => state = *oper,
            _ => {}
        }
    }
    // Drivers that do not report an operational state still report the carrier.
    let flags = LinkFlags::Up | LinkFlags::LowerUp;
    link.up = message.header.flags.contains(flags) && matches!(state, State::Up | State::Unknown);
    (!link.name.is_empty()).then_some(link)
}

pub(super) fn address(message: &AddressMessage) -> Option<Address> {
    let (mut local, mut address, mut long) = (None, None, AddressFlags::empty());
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point link the address is that of the peer.
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Flags(flags) => long = *flags,
            _ => {}
        }
    }
    let flags = long | AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    // RFC 4862: a tentative address is not ours yet.
    if flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed) {
        return None;
    }
    let is_secondary = flags.contains(AddressFlags::Secondary);
    Some(Address { ifindex: message.header.index, ip: local.or(address)?, is_secondary })
}

pub(super) fn route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    let mut table = u32::from(header.table);
    let mut metric = 0;
    let mut destination = None;
    let mut single = RawHop::default();
    let mut hops = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Destination(to) => destination = Some(ip(to)?),
            RouteAttribute::MultiPath(paths) => {
                let dead = RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown;
                for path in paths.iter().filter(|path| !path.flags.intersects(dead)) {
                    let mut hop = RawHop { ifindex: path.interface_index, ..RawHop::default() };
                    path.attributes.iter().for_each(|attribute| hop.read(attribute));
                    hops.extend(hop.usable());
                }
            }
            other => single.read(other),
        }
    }
    let is_main = table == u32::from(RouteHeader::RT_TABLE_MAIN);
    let off = RouteFlags::Cloned | RouteFlags::Dead | RouteFlags::Linkdown;
    if !is_main || header.kind != RouteType::Unicast || header.flags.intersects(off) {
        return None;
    }
    if single.ifindex != 0 {
        hops.extend(single.usable());
    }
    let everything = match header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        AddressFamily::Inet6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    let prefix = IpNet::new(destination.unwrap_or(everything), header.destination_prefix_length).ok()?;
    Some(Route { prefix, metric, hops })
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
    let state = message.header.state;
    // A failed entry may still carry the address that failed.
    let valid = !matches!(
        state,
        NeighbourState::Failed | NeighbourState::Incomplete | NeighbourState::None | NeighbourState::Other(_)
    );
    Some(Neighbour { ifindex: message.header.ifindex, ip: ip?, mac: lladdr.filter(|_| valid), state })
}

/// A way of a route while its attributes are read.
#[derive(Default)]
struct RawHop {
    ifindex: u32,
    via: Option<IpAddr>,
    /// A router of the other family, or a tunnel: nothing that plain frames can take.
    is_foreign: bool,
}

impl RawHop {
    fn read(&mut self, attribute: &RouteAttribute) {
        match attribute {
            RouteAttribute::Oif(ifindex) => self.ifindex = *ifindex,
            RouteAttribute::Gateway(to) => self.via = ip(to),
            RouteAttribute::Via(_) | RouteAttribute::Encap(_) => self.is_foreign = true,
            _ => {}
        }
    }

    fn usable(self) -> Option<Hop> {
        (!self.is_foreign).then_some(Hop { ifindex: self.ifindex, via: self.via })
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
