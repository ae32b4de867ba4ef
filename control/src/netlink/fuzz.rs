//! Fuzz target: messages that no kernel sends become plain values or nothing.
//!
//! Messages are built from the bytes of an input, one attribute after another. Parsing of the socket's bytes is left to
//! the library: only the kernel writes them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flowgate_fuzz::{Feature, Rng, Target, feature};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHop, RouteNextHopFlags, RouteType,
    RouteVia,
};

use super::kernel_state::KernelState;
use super::message;
use crate::model::NetState;

#[test]
fn whatever_the_kernel_says_becomes_plain_values_or_nothing() {
    let some = |random: &mut Rng| (0..random.usize(..400)).map(|_| random.u8(..)).collect();
    Target::new("netlink", env!("CARGO_MANIFEST_DIR")).run(some, check);
}

/// The bytes of an input, one choice after another; zeros when they are used up.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn word(&mut self) -> u32 {
        u32::from_be_bytes(std::array::from_fn(|_| self.byte()))
    }

    fn bytes(&mut self) -> Vec<u8> {
        (0..self.byte() % 10).map(|_| self.byte()).collect()
    }

    /// The index of an interface: mostly one of a few.
    fn ifindex(&mut self) -> u32 {
        let small = self.byte();
        if small == 255 { self.word() } else { u32::from(small % 6) }
    }

    fn ip(&mut self) -> IpAddr {
        match self.byte() % 4 {
            0 => Ipv4Addr::from_bits(self.word()).into(),
            1 => Ipv4Addr::new(10, 0, 0, self.byte()).into(),
            2 => Ipv6Addr::from_bits(u128::from(self.word()) << 96 | u128::from(self.word())).into(),
            _ => Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, u16::from(self.byte())).into(),
        }
    }

    fn family(&mut self) -> AddressFamily {
        [AddressFamily::Inet, AddressFamily::Inet6, AddressFamily::Bridge, AddressFamily::Unspec]
            [usize::from(self.byte() % 4)]
    }
}

fn route_address(ip: IpAddr) -> RouteAddress {
    match ip {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    }
}

fn link(choices: &mut Choices<'_>) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = choices.ifindex();
    link.header.flags = LinkFlags::from_bits_retain(choices.word());
    for _ in 0..choices.byte() % 8 {
        let attribute = match choices.byte() % 8 {
            0 => LinkAttribute::IfName(["up0", "fab0", "up0.7", ""][usize::from(choices.byte() % 4)].into()),
            1 => LinkAttribute::Address(choices.bytes()),
            2 => LinkAttribute::Mtu(choices.word()),
            3 => LinkAttribute::OperState(State::from(choices.byte())),
            4 => LinkAttribute::Controller(choices.ifindex()),
            5 => LinkAttribute::Link(choices.ifindex()),
            6 => LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bond)]),
            _ => {
                let id = InfoVlan::Id(u16::from(choices.byte()) << choices.byte().min(8));
                LinkAttribute::LinkInfo(vec![LinkInfo::Data(InfoData::Vlan(vec![id]))])
            }
        };
        link.attributes.push(attribute);
    }
    link
}

fn address(choices: &mut Choices<'_>) -> AddressMessage {
    let mut address = AddressMessage::default();
    address.header.index = choices.ifindex();
    address.header.family = choices.family();
    address.header.prefix_len = choices.byte();
    for _ in 0..choices.byte() % 4 {
        address.attributes.push(match choices.byte() % 3 {
            0 => AddressAttribute::Local(choices.ip()),
            1 => AddressAttribute::Address(choices.ip()),
            _ => AddressAttribute::Flags(AddressFlags::from_bits_retain(choices.word())),
        });
    }
    address
}

fn route(choices: &mut Choices<'_>) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = choices.family();
    route.header.table = if choices.byte() < 200 { 254 } else { choices.byte() };
    route.header.kind = RouteType::from(choices.byte() % 12);
    route.header.destination_prefix_length = choices.byte() % 140;
    route.header.source_prefix_length = choices.byte() / 200;
    route.header.flags = RouteFlags::from_bits_retain(choices.word() & 0xff);
    for _ in 0..choices.byte() % 8 {
        let attribute = hop_attribute(choices);
        route.attributes.push(attribute);
    }
    if choices.byte().is_multiple_of(3) {
        let hops = (0..choices.byte() % 5).map(|_| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = choices.ifindex();
            hop.hops = choices.byte();
            hop.flags = RouteNextHopFlags::from_bits_retain(choices.byte());
            hop.attributes = (0..choices.byte() % 3).map(|_| hop_attribute(choices)).collect();
            hop
        });
        let hops = hops.collect();
        route.attributes.push(RouteAttribute::MultiPath(hops));
    }
    route
}

fn hop_attribute(choices: &mut Choices<'_>) -> RouteAttribute {
    match choices.byte() % 6 {
        0 => RouteAttribute::Destination(route_address(choices.ip())),
        1 => RouteAttribute::Oif(choices.ifindex()),
        2 => RouteAttribute::Gateway(route_address(choices.ip())),
        3 => RouteAttribute::Priority(choices.word()),
        4 => RouteAttribute::Table(choices.word()),
        _ => match choices.ip() {
            IpAddr::V4(v4) => RouteAttribute::Via(RouteVia::Inet(v4)),
            IpAddr::V6(v6) => RouteAttribute::Via(RouteVia::Inet6(v6)),
        },
    }
}

fn neighbour(choices: &mut Choices<'_>) -> NeighbourMessage {
    let mut neighbour = NeighbourMessage::default();
    neighbour.header.family = choices.family();
    neighbour.header.ifindex = choices.ifindex();
    neighbour.header.state = NeighbourState::from(u16::from(choices.byte()));
    for _ in 0..choices.byte() % 4 {
        neighbour.attributes.push(match choices.byte() % 2 {
            0 => NeighbourAttribute::Destination(match choices.ip() {
                IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
                IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
            }),
            _ => NeighbourAttribute::LinkLocalAddress(choices.bytes()),
        });
    }
    neighbour
}

/// Applies the messages of an input and computes the state from them.
fn check(bytes: &[u8]) -> Feature {
    let mut choices = Choices(bytes);
    let mut kernel = KernelState::default();
    let mut story = Vec::new();
    while !choices.0.is_empty() && story.len() < MESSAGES_MAX {
        story.push(take(&mut choices, &mut kernel));
    }
    let names = ["up0".to_owned(), "fab0".to_owned()];
    let state = kernel.net_state(&names, &NetState::default());
    let interfaces = state.interfaces.len();
    assert!(interfaces >= names.len(), "each named interface has its place");
    let mut hops = state.routes.iter().flat_map(|route| &route.hops);
    assert!(hops.all(|hop| hop.interface < interfaces && hop.weight > 0));
    assert!(state.neighbours.iter().all(|neighbour| neighbour.interface < interfaces));
    let routing = flowgate_tables::Routing::build(
        &flowgate_tables::Routing::default(),
        state.interfaces.to_vec(),
        &state.routes,
        &state.neighbours,
    );
    assert!(routing.is_ok(), "tables can be built of it: {routing:?}");
    feature(&(story, interfaces, state.routes.len(), state.neighbours.len()))
}

fn take(choices: &mut Choices<'_>, kernel: &mut KernelState) -> String {
    match choices.byte() % 5 {
        0 => {
            let link = message::link(&link(choices));
            let shape = format!("link {:?}", link.as_ref().map(|link| (link.up, link.master.is_some())));
            kernel.links.extend(link);
            shape
        }
        1 => {
            let address = message::address(&address(choices));
            let shape = format!("address {:?}", address.map(|address| address.is_secondary));
            kernel.addresses.extend(address);
            shape
        }
        2 => {
            let route = message::route(&route(choices));
            let shape = format!("route {:?}", route.as_ref().map(|route| route.hops.len()));
            kernel.routes.extend(route);
            shape
        }
        more => {
            let Some(neighbour) = message::neighbour(&neighbour(choices)) else {
                return "no neighbour".into();
            };
            let shape = format!("neighbour {more} {:?} {}", neighbour.state, neighbour.mac.is_some());
            if more == 3 {
                kernel.remove_neighbour(&neighbour);
            }
            kernel.put_neighbour(neighbour);
            shape
        }
    }
}

/// The most messages per input.
const MESSAGES_MAX: usize = 60;
