//! Cutting packets up and putting them together again, by hand: an oracle that shares no code with what it judges.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "test support: a panic is the report")]
#![allow(clippy::cast_possible_truncation, reason = "test packets are small")]

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use flowgate_tables::spec::{EndpointSpec, ServiceSpec};
use flowgate_wire::{L4Port, Protocol};

use crate::gateway::{World, neighbour, route, service};

pub(crate) const VIP4: &str = "10.96.0.53:53";
pub(crate) const VIP6: &str = "[2001:db8:96::53]:53";

/// What is cut up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    /// A TCP segment that opens a connection and carries data.
    Syn,
    /// An SCTP packet that opens an association.
    Init,
}

impl Transport {
    fn number(self) -> u8 {
        match self {
            Self::Udp => 17,
            Self::Syn => 6,
            Self::Init => 132,
        }
    }

    pub(crate) fn header_len(self) -> usize {
        match self {
            Self::Udp => 8,
            Self::Syn => 20,
            Self::Init => 20,
        }
    }

    fn build(self, src: SocketAddr, dst: SocketAddr, body: &[u8]) -> Vec<u8> {
        let mut packet = [src.port().to_be_bytes(), dst.port().to_be_bytes()].concat();
        let len = (self.header_len() + body.len()) as u16;
        match self {
            Self::Udp => packet.extend([len.to_be_bytes(), [0, 0]].concat()),
            Self::Syn => packet.extend([0, 0, 3, 232, 0, 0, 0, 0, 0x50, 2, 32, 0, 0, 0, 0, 0]),
            Self::Init => {
                packet.extend([0; 8]);
                packet.extend([1, 0]);
                packet.extend((len - 12).to_be_bytes());
                // The tag that it announces.
                packet.extend([0, 0, 0, 9]);
            }
        }
        packet.extend(body);
        let sum = match self {
            Self::Init => crc32c(&packet).to_le_bytes().to_vec(),
            _ => (!sum(&pseudo(src.ip(), dst.ip(), self.number(), &packet))).to_be_bytes().to_vec(),
        };
        let at = match self {
            Self::Udp => 6,
            Self::Syn => 16,
            Self::Init => 8,
        };
        packet[at..at + sum.len()].copy_from_slice(&sum);
        packet
    }
}

/// The world of `gateway`, with one backend of each family and all three protocols at the VIPs.
pub(crate) fn world() -> World {
    let mut world = World::new();
    world.services[1] = service("dns", Protocol::Udp, VIP4, 5353, &[11]);
    world.services.push(service("dns-tcp", Protocol::Tcp, VIP4, 5353, &[11]));
    world.services.push(service("dns-sctp", Protocol::Sctp, VIP4, 5353, &[11]));
    world.services.push(service("empty-udp", Protocol::Udp, "10.96.0.98:53", 53, &[]));
    for protocol in [Protocol::Udp, Protocol::Tcp, Protocol::Sctp] {
        world.services.push(service6(protocol));
    }
    for (i, own) in ["2001:db8:1::1", "2001:db8:f::1"].into_iter().enumerate() {
        world.interfaces[i].addresses.push(own.parse().unwrap());
    }
    world.routes.extend([route("2001:db8:1::/64", 0, None), route("2001:db8:f::/64", 1, None)]);
    world
        .neighbours
        .extend([neighbour(0, "2001:db8:1::a", Some(10)), neighbour(1, "2001:db8:f::b", Some(11))]);
    world
}

fn service6(protocol: Protocol) -> ServiceSpec {
    let mut service = service(&format!("dns6-{}", protocol.name().to_lowercase()), protocol, VIP4, 5353, &[]);
    service.frontends[0].addr = VIP6.parse::<SocketAddr>().unwrap().ip();
    let backend: Ipv6Addr = "2001:db8:f::b".parse().unwrap();
    service.endpoint_sets[0] =
        vec![EndpointSpec { addr: backend.into(), port: L4Port::new(5353), weight: 1 }];
    service
}

pub(crate) fn client4(port: u16) -> String {
    format!("192.0.2.10:{port}")
}

pub(crate) fn client6(port: u16) -> String {
    format!("[2001:db8:1::a]:{port}")
}

/// A packet and how it is cut.
pub(crate) struct Cut<'a> {
    pub(crate) transport: Transport,
    pub(crate) from: &'a str,
    pub(crate) to: &'a str,
    pub(crate) body: &'a [u8],
    /// In IPv6 an odd one has destination options in what is cut up.
    pub(crate) id: u32,
    /// Bytes in each fragment but the last.
    pub(crate) piece: usize,
}

/// The fragments of a packet.
pub(crate) fn cut(packet: &Cut<'_>) -> Vec<Vec<u8>> {
    let (src, dst): (SocketAddr, SocketAddr) = (packet.from.parse().unwrap(), packet.to.parse().unwrap());
    let mut whole = packet.transport.build(src, dst, packet.body);
    let mut next = packet.transport.number();
    if src.is_ipv6() && packet.id & 1 == 1 {
        whole = [&[next, 0, 1, 4, 0, 0, 0, 0], &whole[..]].concat();
        next = 60;
    }
    let count = whole.len().div_ceil(packet.piece);
    let pieces = whole.chunks(packet.piece).enumerate();
    pieces
        .map(|(i, bytes)| {
            let (offset, more) = ((i * packet.piece) as u16, i + 1 < count);
            match (src.ip(), dst.ip()) {
                (IpAddr::V4(src), IpAddr::V4(dst)) => {
                    let addrs = [src.octets(), dst.octets()].concat();
                    frame4(next, &addrs, (packet.id as u16, offset, more), bytes)
                }
                (IpAddr::V6(src), IpAddr::V6(dst)) => {
                    let addrs = [src.octets(), dst.octets()].concat();
                    frame6(next, &addrs, (packet.id, offset, more), bytes)
                }
                other => panic!("{other:?}"),
            }
        })
        .collect()
}

fn frame4(protocol: u8, addrs: &[u8], (id, offset, more): (u16, u16, bool), bytes: &[u8]) -> Vec<u8> {
    let mut frame = vec![4, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0];
    frame.extend(((20 + bytes.len()) as u16).to_be_bytes());
    frame.extend(id.to_be_bytes());
    frame.extend([0; 2]);
    frame.extend([64, protocol, 0, 0]);
    frame.extend(addrs);
    frame.extend(bytes);
    set_offset(&mut frame, offset, more);
    frame
}

fn frame6(next: u8, addrs: &[u8], (id, offset, more): (u32, u16, bool), bytes: &[u8]) -> Vec<u8> {
    let mut frame = vec![4, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 1, 0x86, 0xdd, 0x60, 0, 0, 0];
    frame.extend(((8 + bytes.len()) as u16).to_be_bytes());
    frame.extend([44, 64]);
    frame.extend(addrs);
    frame.extend([next, 0]);
    frame.extend((offset | u16::from(more)).to_be_bytes());
    frame.extend(id.to_be_bytes());
    frame.extend(bytes);
    frame
}

/// Moves an IPv4 fragment to another place in its packet.
pub(crate) fn set_offset(frame: &mut [u8], offset: u16, more: bool) {
    frame[20..22].copy_from_slice(&((offset / 8) | (u16::from(more) << 13)).to_be_bytes());
    mend_header(frame);
}

/// Cuts the payload of an IPv4 fragment to `len` bytes.
pub(crate) fn shorten(frame: &mut Vec<u8>, len: usize) {
    frame.truncate(34 + len);
    frame[16..18].copy_from_slice(&((20 + len) as u16).to_be_bytes());
    mend_header(frame);
}

fn mend_header(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let checksum = !sum(&frame[14..34]);
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
}

/// The identification of a fragment.
pub(crate) fn identification(frame: &[u8]) -> u32 {
    if frame[12] == 8 {
        u32::from(u16::from_be_bytes([frame[18], frame[19]]))
    } else {
        u32::from_be_bytes(frame[58..62].try_into().unwrap())
    }
}

/// A packet that was put together again.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) protocol: u8,
    /// From the transport header on.
    pub(crate) payload: Vec<u8>,
}

impl Whole {
    pub(crate) fn src_port(&self) -> u16 {
        u16::from_be_bytes([self.payload[0], self.payload[1]])
    }

    pub(crate) fn dst_port(&self) -> u16 {
        u16::from_be_bytes([self.payload[2], self.payload[3]])
    }
}

/// Puts a packet together whose fragments may come in any order. None if something is missing or twice, or does not
/// belong to the others.
pub(crate) fn reassemble(frames: &[Vec<u8>]) -> Option<Whole> {
    let mut parts: Vec<(u16, bool, &[u8])> = Vec::new();
    let v4 = frames[0][12] == 8;
    let (addrs, head) = if v4 { (26..34, 34) } else { (22..54, 62) };
    for frame in frames {
        let same = frame[addrs.clone()] == frames[0][addrs.clone()]
            && identification(frame) == identification(&frames[0])
            && frame[..14] == frames[0][..14];
        let hops = if v4 { frame[22] } else { frame[21] };
        if !same || hops != 63 || (v4 && sum(&frame[14..34]) != 0xffff) {
            return None;
        }
        let field = if v4 { [frame[20], frame[21]] } else { [frame[56], frame[57]] };
        let field = u16::from_be_bytes(field);
        let (offset, more) =
            if v4 { (field << 3, field & 0x2000 != 0) } else { (field & !7, field & 1 == 1) };
        parts.push((offset, more, &frame[head..]));
    }
    parts.sort_unstable_by_key(|part| part.0);
    let mut payload = Vec::new();
    for (i, (offset, more, bytes)) in parts.iter().enumerate() {
        if usize::from(*offset) != payload.len() || *more == (i + 1 == parts.len()) {
            return None;
        }
        payload.extend_from_slice(bytes);
    }
    let ip = |bytes: &[u8]| match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).unwrap()),
        _ => IpAddr::from(<[u8; 16]>::try_from(bytes).unwrap()),
    };
    let (src, dst) = frames[0][addrs.clone()].split_at(addrs.len() / 2);
    let mut protocol = if v4 { frames[0][23] } else { frames[0][54] };
    if protocol == 60 {
        protocol = payload[0];
        payload.drain(..8);
    }
    Some(Whole { src: ip(src), dst: ip(dst), protocol, payload })
}

/// Whether the transport checksum, computed in full, is right.
pub(crate) fn transport_is_right(whole: &Whole) -> bool {
    if whole.protocol != 132 {
        return sum(&pseudo(whole.src, whole.dst, whole.protocol, &whole.payload)) == 0xffff;
    }
    let mut payload = whole.payload.clone();
    let field = u32::from_le_bytes(payload[8..12].try_into().unwrap());
    payload[8..12].fill(0);
    field == crc32c(&payload)
}

fn pseudo(src: IpAddr, dst: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let octets = |addr: IpAddr| match addr {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let len = (payload.len() as u32).to_be_bytes();
    [octets(src), octets(dst), len.to_vec(), vec![0, 0, 0, protocol], payload.to_vec()].concat()
}

fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Bit by bit (RFC 9260 appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32| (crc >> 1) ^ (0x82f6_3b78 * (crc & 1));
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}
