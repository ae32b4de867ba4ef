//! Frames byte by byte, right ones and wrong ones. Shares no code with the packet path that it tests.

use std::net::{IpAddr, SocketAddr};

use crate::lab::wire::{ICMP, ICMPV6, SCTP, TCP, UDP, checksum, crc32c, low16, transport_checksum};

/// An Ethernet address.
pub(super) type Mac = [u8; 6];

/// What a packet carries.
#[derive(Debug, Clone)]
pub(super) enum Content {
    Tcp(Segment),
    Udp {
        payload_len: usize,
        length: UdpLength,
    },
    Sctp {
        tag: u32,
        chunks: Vec<u8>,
    },
    /// An ICMP or ICMPv6 error about the last packet that its sender received.
    Error(IcmpError),
    /// An ICMP or ICMPv6 echo request.
    Echo {
        payload_len: usize,
    },
}

/// A TCP segment.
#[derive(Debug, Clone, Default)]
pub(super) struct Segment {
    pub(super) flags: u8,
    pub(super) sequence: u32,
    pub(super) acknowledgement: u32,
    pub(super) window: u16,
    /// A multiple of four bytes.
    pub(super) options: Vec<u8>,
    pub(super) payload_len: usize,
    /// The data offset in words, if it is not the right one.
    pub(super) data_offset: Option<u8>,
}

/// The length field of UDP, in relation to what IP carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UdpLength {
    Right,
    /// So many bytes less (RFC 9868: they are options).
    Less(u16),
    More(u16),
}

/// An ICMP error.
#[derive(Debug, Clone)]
pub(super) struct IcmpError {
    pub(super) kind: u8,
    pub(super) code: u8,
    /// The second word of the message: an MTU, or zero.
    pub(super) word: u32,
    /// At most so many bytes of the packet are quoted.
    pub(super) quote_len: usize,
}

/// How a packet is wrapped, and what is wrong with it.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    pub(super) link: Link,
    /// TTL or hop limit.
    pub(super) ttl: u8,
    /// TOS or traffic class.
    pub(super) tos: u8,
    pub(super) dont_fragment: bool,
    /// IPv4 options, a multiple of four bytes.
    pub(super) options: Vec<u8>,
    /// IPv6 extension headers, each with its number; the second byte of each has its length.
    pub(super) extensions: Vec<(u8, Vec<u8>)>,
    /// The source address, if it is not the sender's.
    pub(super) forged: Option<IpAddr>,
    pub(super) header: Header,
    pub(super) checksum: Checksum,
    pub(super) fragments: Option<Fragments>,
    pub(super) source_port: Option<u16>,
    pub(super) destination_port: Option<u16>,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            link: Link::Right,
            ttl: 64,
            tos: 0,
            dont_fragment: true,
            options: Vec::new(),
            extensions: Vec::new(),
            forged: None,
            header: Header::Right,
            checksum: Checksum::Right,
            fragments: None,
            source_port: None,
            destination_port: None,
        }
    }
}

/// The Ethernet header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    Right,
    /// To another station's address, as a switch floods it.
    OtherStation,
    Broadcast,
    Multicast,
    /// A VLAN tag with this identifier (IEEE 802.1Q; zero is a priority tag).
    Tagged(u16),
    /// Bytes behind the packet.
    Padded(usize),
}

/// The IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Header {
    Right,
    WrongChecksum,
    LengthBeyondFrame,
    ShortTotalLength,
    ShortHeaderLength,
    OtherVersion,
    /// The bit of RFC 791 section 3.1 that must be zero.
    ReservedFlag,
}

/// The transport checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Checksum {
    Right,
    Wrong,
    /// Zero: none (RFC 768).
    None,
}

/// How a packet is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fragments {
    /// Payload of each fragment but the last, a multiple of eight.
    pub(super) piece_len: usize,
    pub(super) train: Train,
}

/// In which order fragments arrive, and which of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Train {
    InOrder,
    Reversed,
    /// The last one never arrives.
    Unfinished,
    /// The first one never arrives.
    Headless,
    /// The second one arrives twice.
    Twice,
    /// The second one also covers eight bytes of the first, with other contents.
    Overlapping,
}

/// Who sends a packet to whom, and what goes into it that differs between the two gateways.
pub(super) struct Sending<'a> {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) macs: (Mac, Mac),
    /// Identifies the packet: IPv4 identification, IPv6 flow label, first bytes of a payload.
    pub(super) number: u16,
    /// The last packet that the sender received, from its IP header on.
    pub(super) received: &'a [u8],
}

/// All frames of a packet: more than one if it is cut.
pub(super) fn frames(content: &Content, shape: &Shape, sending: &Sending<'_>) -> Vec<Vec<u8>> {
    let protocol = protocol(content, sending.to.ip());
    let body = body(content, shape, sending);
    let packets = match shape.fragments {
        None => vec![packet(shape, sending, protocol, &Piece { offset: 0, more: false, bytes: &body })],
        Some(fragments) => pieces(fragments, &body)
            .iter()
            .map(|(offset, more, bytes)| {
                packet(shape, sending, protocol, &Piece { offset: *offset, more: *more, bytes })
            })
            .collect(),
    };
    packets.into_iter().map(|packet| ethernet(shape.link, sending, packet)).collect()
}

fn protocol(content: &Content, to: IpAddr) -> u8 {
    match content {
        Content::Tcp(_) => TCP,
        Content::Udp { .. } => UDP,
        Content::Sctp { .. } => SCTP,
        Content::Error(_) | Content::Echo { .. } => {
            if to.is_ipv4() {
                ICMP
            } else {
                ICMPV6
            }
        }
    }
}

/// Transport header and payload.
fn body(content: &Content, shape: &Shape, sending: &Sending<'_>) -> Vec<u8> {
    let ports = [
        shape.source_port.unwrap_or_else(|| sending.from.port()),
        shape.destination_port.unwrap_or_else(|| sending.to.port()),
    ];
    let mut body: Vec<u8> = match content {
        Content::Error(error) => return icmp_error(error, shape, sending),
        Content::Echo { payload_len } => {
            let kind = if sending.to.is_ipv4() { 8 } else { 128 };
            let mut message = vec![kind, 0, 0, 0];
            message.extend(sending.from.port().to_be_bytes());
            message.extend(sending.number.to_be_bytes());
            message.extend(payload(sending.number, *payload_len));
            return with_icmp_checksum(message, shape, sending);
        }
        Content::Tcp(_) | Content::Udp { .. } | Content::Sctp { .. } => {
            ports.iter().flat_map(|port| port.to_be_bytes()).collect()
        }
    };
    let (checksum_at, protocol) = match content {
        Content::Tcp(segment) => {
            let words = 5 + low8(segment.options.len() / 4);
            body.extend(segment.sequence.to_be_bytes());
            body.extend(segment.acknowledgement.to_be_bytes());
            body.extend([segment.data_offset.unwrap_or(words) << 4, segment.flags]);
            body.extend(segment.window.to_be_bytes());
            body.extend([0; 4]);
            body.extend(&segment.options);
            body.extend(payload(sending.number, segment.payload_len));
            (16, TCP)
        }
        Content::Udp { payload_len, length } => {
            let right = low16(8 + payload_len);
            let length = match length {
                UdpLength::Right => right,
                UdpLength::Less(bytes) => right.saturating_sub(*bytes),
                UdpLength::More(bytes) => right + bytes,
            };
            body.extend(length.to_be_bytes());
            body.extend([0; 2]);
            body.extend(payload(sending.number, *payload_len));
            (6, UDP)
        }
        Content::Sctp { tag, chunks } => {
            body.extend(tag.to_be_bytes());
            body.extend([0; 4]);
            body.extend(chunks);
            let wrong = u32::from(shape.checksum == Checksum::Wrong);
            let crc = crc32c(&body) ^ wrong;
            body[8..12].copy_from_slice(&crc.to_le_bytes());
            return body;
        }
        Content::Error(_) | Content::Echo { .. } => return body,
    };
    // UDP options are outside of the checksum (RFC 9868 section 9).
    let covered = match content {
        Content::Udp { length: UdpLength::Less(bytes), .. } => body.len().saturating_sub((*bytes).into()),
        _ => body.len(),
    };
    let source = shape.forged.unwrap_or_else(|| sending.from.ip());
    let sum = transport_checksum((source, sending.to.ip()), protocol, &body[..covered]);
    let sum = match shape.checksum {
        // RFC 768: a sum of zero is sent as ones.
        Checksum::Right if protocol == UDP && sum == 0 => 0xffff,
        Checksum::Right => sum,
        Checksum::Wrong => sum ^ 0x0101,
        Checksum::None => 0,
    };
    body[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
    body
}

/// Bytes that begin with the number of their packet, as far as there is room.
fn payload(number: u16, len: usize) -> Vec<u8> {
    let pattern = number.to_be_bytes().into_iter().chain((2..).map(|place: usize| low8((place * 7) & 0xff)));
    pattern.take(len).collect()
}

fn icmp_error(error: &IcmpError, shape: &Shape, sending: &Sending<'_>) -> Vec<u8> {
    let mut message = vec![error.kind, error.code, 0, 0];
    message.extend(error.word.to_be_bytes());
    message.extend(&sending.received[..error.quote_len.min(sending.received.len())]);
    with_icmp_checksum(message, shape, sending)
}

fn with_icmp_checksum(mut message: Vec<u8>, shape: &Shape, sending: &Sending<'_>) -> Vec<u8> {
    let sum = if sending.to.is_ipv4() {
        checksum(0, &message)
    } else {
        let source = shape.forged.unwrap_or_else(|| sending.from.ip());
        transport_checksum((source, sending.to.ip()), ICMPV6, &message)
    };
    let sum = if shape.checksum == Checksum::Right { sum } else { sum ^ 0x0101 };
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

struct Piece<'a> {
    /// In bytes.
    offset: usize,
    more: bool,
    bytes: &'a [u8],
}

fn pieces(fragments: Fragments, body: &[u8]) -> Vec<(usize, bool, Vec<u8>)> {
    let len = fragments.piece_len;
    let last = body.len().div_ceil(len) - 1;
    let mut all: Vec<_> =
        body.chunks(len).enumerate().map(|(n, bytes)| (n * len, n < last, bytes.to_vec())).collect();
    match fragments.train {
        Train::InOrder => {}
        Train::Reversed => all.reverse(),
        Train::Unfinished => drop(all.pop()),
        Train::Headless => drop(all.remove(0)),
        Train::Twice => all.insert(1, all[1].clone()),
        Train::Overlapping => {
            let (offset, more, bytes) = all[1].clone();
            all[1] = (offset - 8, more, [vec![0xee; 8], bytes].concat());
        }
    }
    all
}

fn packet(shape: &Shape, sending: &Sending<'_>, protocol: u8, piece: &Piece<'_>) -> Vec<u8> {
    let source = shape.forged.unwrap_or_else(|| sending.from.ip());
    let mut packet = match (source, sending.to.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = header_v4(shape, sending.number, protocol, piece);
            header[12..16].copy_from_slice(&source.octets());
            header[16..20].copy_from_slice(&destination.octets());
            if shape.header == Header::ShortHeaderLength {
                header[0] = 0x44;
            }
            if shape.header == Header::OtherVersion {
                header[0] = 0x65;
            }
            let sum = checksum(0, &header) ^ u16::from(shape.header == Header::WrongChecksum);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            header
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut header = header_v6(shape, sending.number, protocol, piece);
            header[8..24].copy_from_slice(&source.octets());
            header[24..40].copy_from_slice(&destination.octets());
            header
        }
        _ => panic!("a packet has one address family"),
    };
    packet.extend_from_slice(piece.bytes);
    packet
}

fn header_v4(shape: &Shape, number: u16, protocol: u8, piece: &Piece<'_>) -> Vec<u8> {
    let header_len = 20 + shape.options.len();
    let mut header = vec![0; 20];
    header[0] = 0x40 | low8(header_len / 4);
    header[1] = shape.tos;
    let len = low16(header_len + piece.bytes.len());
    let len = match shape.header {
        Header::LengthBeyondFrame => len + 40,
        Header::ShortTotalLength => 12,
        _ => len,
    };
    header[2..4].copy_from_slice(&len.to_be_bytes());
    header[4..6].copy_from_slice(&number.to_be_bytes());
    let mut flags = low16(piece.offset / 8) | u16::from(piece.more) << 13;
    if shape.dont_fragment && shape.fragments.is_none() {
        flags |= 1 << 14;
    }
    if shape.header == Header::ReservedFlag {
        flags |= 1 << 15;
    }
    header[6..8].copy_from_slice(&flags.to_be_bytes());
    (header[8], header[9]) = (shape.ttl, protocol);
    header.extend(&shape.options);
    header
}

fn header_v6(shape: &Shape, number: u16, protocol: u8, piece: &Piece<'_>) -> Vec<u8> {
    let mut extensions = shape.extensions.clone();
    if shape.fragments.is_some() {
        let field = low16(piece.offset) | u16::from(piece.more);
        let [high, low] = field.to_be_bytes();
        let [a, b] = number.to_be_bytes();
        extensions.push((44, vec![0, 0, high, low, 0, 0, a, b]));
    }
    let mut header = vec![0; 40];
    header[0] = if shape.header == Header::OtherVersion { 0x40 } else { 0x60 } | shape.tos >> 4;
    header[1] = shape.tos << 4;
    header[2..4].copy_from_slice(&number.to_be_bytes());
    header[7] = shape.ttl;
    let numbers: Vec<_> = extensions.iter().map(|(number, _)| *number).chain([protocol]).collect();
    header[6] = numbers[0];
    for ((_, bytes), next) in extensions.iter().zip(&numbers[1..]) {
        let at = header.len();
        header.extend(bytes);
        header[at] = *next;
    }
    let len = low16(header.len() - 40 + piece.bytes.len());
    let len = match shape.header {
        Header::LengthBeyondFrame => len + 40,
        Header::ShortTotalLength => 2,
        _ => len,
    };
    header[4..6].copy_from_slice(&len.to_be_bytes());
    header
}

fn ethernet(link: Link, sending: &Sending<'_>, packet: Vec<u8>) -> Vec<u8> {
    let (own, far) = sending.macs;
    let far = match link {
        Link::OtherStation => [0x02, 0x99, 0x99, 0x99, 0x99, 0x99],
        Link::Broadcast => [0xff; 6],
        Link::Multicast => [0x01, 0, 0x5e, 1, 2, 3],
        Link::Right | Link::Tagged(_) | Link::Padded(_) => far,
    };
    let mut frame = [far, own].concat();
    if let Link::Tagged(tag) = link {
        frame.extend([0x81, 0]);
        frame.extend(tag.to_be_bytes());
    }
    frame.extend(if sending.to.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] });
    frame.extend(packet);
    if let Link::Padded(bytes) = link {
        frame.extend(vec![0x5a; bytes]);
    }
    frame
}

fn low8(value: usize) -> u8 {
    u8::try_from(value & 0xff).expect("it has eight bits")
}
