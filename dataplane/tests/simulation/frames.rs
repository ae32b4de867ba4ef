//! Frames as hosts of the simulated network send them: right most of the time.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    IcmpEchoHeader, Icmpv4Type, Icmpv6Type, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions,
    Ipv6FlowLabel, Ipv6Header, Ipv6RawExtHeader, PacketBuilder, icmpv4, icmpv6,
};
use fastrand::Rng;
use flowgate_wire::Protocol;

use crate::model::checksums::{l4_field, pseudo_header, sctp_checksum, sum};
use crate::model::packet::{Flags, Kind, read};

/// What a host sends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet {
    pub(crate) protocol: Protocol,
    pub(crate) src: SocketAddr,
    pub(crate) dst: SocketAddr,
    pub(crate) flags: Flags,
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    pub(crate) payload_len: usize,
}

/// The frame of a packet.
pub(crate) fn frame(packet: &Packet, random: &mut Rng) -> Vec<u8> {
    let ttl = if random.u8(..50) == 0 { random.u8(0..3) } else { random.u8(2..=255) };
    let (ip, host) = match (packet.src.ip(), packet.dst.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut ip = Ipv4Header::new(0, ttl, IpNumber::UDP, src.octets(), dst.octets()).unwrap();
            ip.identification = random.u16(..);
            ip.dont_fragment = random.bool();
            if random.u8(..40) == 0 {
                // No operation, no operation, no operation, end of options (RFC 791 section 3.1).
                ip.options = [1, 1, 1, 0].into();
            }
            (IpHeaders::Ipv4(ip, Ipv4Extensions::default()), src.octets()[3])
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let ip = Ipv6Header {
                traffic_class: random.u8(..),
                flow_label: Ipv6FlowLabel::try_new(random.u32(..1 << 20)).unwrap(),
                hop_limit: ttl,
                source: src.octets(),
                destination: dst.octets(),
                ..Ipv6Header::default()
            };
            let mut extensions = Ipv6Extensions::default();
            if random.u8(..20) == 0 {
                // Six bytes of padding (RFC 8200 section 4.2).
                let options = Ipv6RawExtHeader::new_raw(IpNumber::UDP, &[1, 4, 0, 0, 0, 0]).unwrap();
                extensions.hop_by_hop_options = Some(options);
            }
            (IpHeaders::Ipv6(ip, extensions), src.octets()[15])
        }
        _ => panic!("two families"),
    };
    let builder = PacketBuilder::ethernet2([4, 0, 0, 0, 0, host], [2, 0, 0, 0, 0, 1]).ip(ip);
    let payload = vec![random.u8(..); packet.payload_len];
    let mut frame = Vec::new();
    let (src, dst) = (packet.src.port(), packet.dst.port());
    match packet.protocol {
        Protocol::Tcp => {
            let window = if random.bool() { random.u16(..) } else { u16::MAX };
            let mut tcp = etherparse::TcpHeader::new(src, dst, packet.sequence, window);
            if packet.flags.syn && random.u8(..3) > 0 {
                let scale = etherparse::TcpOptionElement::WindowScale(random.u8(..16));
                tcp.set_options(&[etherparse::TcpOptionElement::Noop, scale]).unwrap();
            }
            let Flags { syn, ack, fin, rst } = packet.flags;
            (tcp.syn, tcp.ack, tcp.fin, tcp.rst) = (syn, ack, fin, rst);
            tcp.acknowledgment_number = packet.acknowledgement;
            builder.tcp_header(tcp).write(&mut frame, &payload).unwrap();
        }
        Protocol::Udp => builder.udp(src, dst).write(&mut frame, &payload).unwrap(),
        Protocol::Sctp => builder.write(&mut frame, IpNumber::SCTP, &sctp(packet, &payload, random)).unwrap(),
    }
    spoil(&mut frame, random);
    frame
}

/// The frame of a control message from `src` to `dst`: an error about the packet in `about`, as much of it as
/// the sender cares to quote, or now and then an echo request.
pub(crate) fn control(about: &[u8], src: IpAddr, dst: IpAddr, random: &mut Rng) -> Vec<u8> {
    let Kind::Segment(segment) = read(about) else { panic!("errors are about packets") };
    let ip_len = usize::from(segment.ip_len);
    let least = (segment.l4_at - 14 + 8).min(ip_len);
    let quoted =
        if random.bool() { ip_len.min(600) } else { random.usize(least..=ip_len.min(600).max(least)) };
    let quote = &about[14..14 + quoted];
    let ttl = if random.u8(..30) == 0 { 1 } else { random.u8(2..) };
    let echo = random.u8(..8) == 0;
    let builder = PacketBuilder::ethernet2([4, 0, 0, 0, 0, 77], [2, 0, 0, 0, 0, 1]);
    let mut frame = Vec::new();
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let kind = match random.u8(..3) {
                _ if echo => {
                    Icmpv4Type::EchoRequest(IcmpEchoHeader { id: random.u16(..), seq: random.u16(..) })
                }
                0 => Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Port),
                1 => {
                    let next_hop_mtu = random.u16(576..1500);
                    let needed = icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu };
                    Icmpv4Type::DestinationUnreachable(needed)
                }
                _ => Icmpv4Type::TimeExceeded(icmpv4::TimeExceededCode::TtlExceededInTransit),
            };
            builder.ipv4(src.octets(), dst.octets(), ttl).icmpv4(kind).write(&mut frame, quote).unwrap();
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let kind = match random.u8(..3) {
                _ if echo => {
                    Icmpv6Type::EchoRequest(IcmpEchoHeader { id: random.u16(..), seq: random.u16(..) })
                }
                0 => Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Port),
                1 => Icmpv6Type::PacketTooBig { mtu: random.u32(1280..1500) },
                _ => Icmpv6Type::TimeExceeded(icmpv6::TimeExceededCode::HopLimitExceeded),
            };
            builder.ipv6(src.octets(), dst.octets(), ttl).icmpv6(kind).write(&mut frame, quote).unwrap();
        }
        _ => panic!("two families"),
    }
    if random.u8(..20) == 0 {
        let at = frame.len() - 1;
        frame[at] ^= 0x10;
    }
    frame
}

/// An SCTP packet, padded as chunks are (RFC 9260 section 3.2): its sequence number is the tag that it carries, its
/// acknowledgement number the one that it announces.
fn sctp(packet: &Packet, payload: &[u8], random: &mut Rng) -> Vec<u8> {
    let chunk = match packet.flags {
        Flags { rst: true, .. } => 6,
        Flags { syn: true, ack: false, .. } => 1,
        Flags { syn: true, .. } => 2,
        Flags { fin: true, .. } => [7, 8, 14][random.usize(..3)],
        _ => [0, 3, 4, 5, 10, 11][random.usize(..6)],
    };
    let mut bytes = Vec::new();
    bytes.extend(packet.src.port().to_be_bytes());
    bytes.extend(packet.dst.port().to_be_bytes());
    bytes.extend(packet.sequence.to_be_bytes());
    bytes.extend([0; 4]);
    if chunk > 2 && random.u8(..10) == 0 {
        // A HEARTBEAT with five bytes before it.
        bytes.extend([4, 0, 0, 9, 1, 2, 3, 4, 5, 0, 0, 0]);
    }
    let announced = if packet.flags.syn { packet.acknowledgement.to_be_bytes().to_vec() } else { vec![] };
    bytes.extend([chunk, u8::from(random.u8(..10) == 0)]);
    bytes.extend(u16::try_from(4 + announced.len() + payload.len()).unwrap().to_be_bytes());
    bytes.extend(announced);
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    let checksum = sctp_checksum(&bytes);
    bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// A datagram in fragments, as a host or a router cuts it up (RFC 791 section 3.2, RFC 8200 section 4.5); none for what is
/// not to be cut. Now and then two of them overlap.
pub(crate) fn cut(frame: &[u8], random: &mut Rng) -> Option<Vec<Vec<u8>>> {
    let Kind::Segment(segment) = read(frame) else { return None };
    let v4 = segment.tuple.src.is_ipv4();
    let is_plain = frame[if v4 { 14 } else { 20 }] == if v4 { 0x45 } else { 17 };
    let field = l4_field(Protocol::Udp, segment.l4_at);
    let is_left_open = frame.get(field) == Some(&sum(&pseudo_header(frame, &segment)).to_be_bytes());
    if segment.tuple.protocol != Protocol::Udp || segment.ttl <= 1 || !is_plain || is_left_open {
        return None;
    }
    let body = &frame[segment.l4_at..14 + usize::from(segment.ip_len)];
    let piece_len = 8 * random.usize(1 + body.len() / 48..=1 + body.len() / 16);
    if piece_len >= body.len() {
        return None;
    }
    let id: u32 = random.u32(..);
    let last = (body.len() - 1) / piece_len;
    let overlapping = (random.u8(..10) == 0).then(|| random.usize(1..=last));
    let piece = |number: usize| {
        let back = if overlapping == Some(number) && number * piece_len > 8 { 8 } else { 0 };
        let start = number * piece_len - back;
        let bytes = &body[start..body.len().min((number + 1) * piece_len)];
        let (start, more) = (u16::try_from(start).unwrap(), number < last);
        let mut out = frame[..if v4 { 34 } else { 54 }].to_vec();
        if v4 {
            out[16..18].copy_from_slice(&u16::try_from(20 + bytes.len()).unwrap().to_be_bytes());
            out[18..20].copy_from_slice(&id.to_be_bytes()[2..]);
            out[20..22].copy_from_slice(&((start / 8) | (u16::from(more) << 13)).to_be_bytes());
            out[24..26].fill(0);
            let checksum = !sum(&out[14..34]);
            out[24..26].copy_from_slice(&checksum.to_be_bytes());
        } else {
            out[18..20].copy_from_slice(&u16::try_from(8 + bytes.len()).unwrap().to_be_bytes());
            out[20] = 44;
            out.extend([17, 0]);
            out.extend((start | u16::from(more)).to_be_bytes());
            out.extend(id.to_be_bytes());
        }
        out.extend_from_slice(bytes);
        out
    };
    Some((0..=last).map(piece).collect())
}

/// What links and careless hosts do to a frame.
fn spoil(frame: &mut Vec<u8>, random: &mut Rng) {
    let Kind::Segment(segment) = read(frame) else { return };
    let field = l4_field(segment.tuple.protocol, segment.l4_at);
    match random.u8(..30) {
        0 => frame[field.start] ^= 1 << random.u8(..8),
        1 if segment.tuple.src.is_ipv4() => frame[24] ^= 1 << random.u8(..8),
        2 if segment.tuple.protocol == Protocol::Udp => frame[field].fill(0),
        3 | 4 if segment.tuple.protocol == Protocol::Sctp => frame[field].fill(0),
        // Left to a device that does not exist, as a virtual interface does.
        3 | 4 => {
            let sum = sum(&pseudo_header(frame, &segment));
            frame[field].copy_from_slice(&sum.to_be_bytes());
        }
        5 if segment.tuple.protocol == Protocol::Udp => {
            frame[segment.l4_at + 8..].iter_mut().for_each(|byte| *byte ^= random.u8(..));
        }
        _ => {}
    }
    if frame.len() < 60 && random.bool() {
        // IEEE 802.3: padded to the least length.
        frame.resize(60, random.u8(..));
    }
}
