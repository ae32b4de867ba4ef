//! Frames as the model reads them: by etherparse, except for SCTP, which it does not know.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    EtherType, IpNumber, IpPayloadSlice, NetSlice, SlicedPacket, TcpOptionElement, TcpSlice, TransportSlice,
};
use flowgate_wire::Protocol;

use super::checksums::is_intact;
use super::control::{Control, message};

/// Protocol, source and destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Tuple {
    pub(crate) protocol: Protocol,
    pub(crate) src: SocketAddr,
    pub(crate) dst: SocketAddr,
}

impl Tuple {
    pub(crate) fn reversed(self) -> Self {
        Self { protocol: self.protocol, src: self.dst, dst: self.src }
    }
}

/// A packet with ports that is no fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) tuple: Tuple,
    pub(crate) ttl: u8,
    /// Bytes of the IP packet.
    pub(crate) ip_len: u16,
    /// Where the transport header begins.
    pub(crate) l4_at: usize,
    pub(crate) flags: Flags,
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    pub(crate) payload_len: u32,
    /// The window of a TCP segment as it stands there, and the scale that a SYN offers.
    pub(crate) window: u16,
    pub(crate) scale: Option<u8>,
    pub(crate) tags: Tags,
    /// Whether its checksum is right, or left for a device to complete.
    pub(crate) is_intact: bool,
}

impl Segment {
    /// A datagram of which nothing else matters.
    pub(crate) fn datagram(tuple: Tuple, ttl: u8, ip_len: u16, l4_at: usize) -> Self {
        Self {
            tuple,
            ttl,
            ip_len,
            l4_at,
            flags: Flags::default(),
            sequence: 0,
            acknowledgement: 0,
            payload_len: 0,
            window: 0,
            scale: None,
            tags: Tags::default(),
            // Nobody can tell from a part.
            is_intact: true,
        }
    }
}

/// What an SCTP packet says of tags (RFC 9260 section 8.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tags {
    /// The tag that it carries.
    pub(crate) carried: u32,
    /// The tag that it announces, if it is an INIT or its answer.
    pub(crate) announced: u32,
    /// Whether its sender has no association and returns the tag of what it received.
    pub(crate) reflected: bool,
    /// Whether it echoes a cookie.
    pub(crate) cookie: bool,
    /// Whether it is the answer to a SHUTDOWN ACK.
    pub(crate) completes: bool,
}

/// TCP flags that matter to whoever stands in the middle, and what chunks of SCTP come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags {
    pub(crate) syn: bool,
    pub(crate) ack: bool,
    pub(crate) fin: bool,
    pub(crate) rst: bool,
}

impl Flags {
    /// RFC 9293 section 3.10.7.4: only a SYN alone asks for a connection.
    pub(crate) fn opens(self) -> bool {
        self.syn && !self.ack && !self.fin && !self.rst
    }
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Segment(Segment),
    Control(Control),
    NotIp,
    NotL4,
    Fragment,
    Malformed,
}

/// Reads a frame.
pub(crate) fn read(frame: &[u8]) -> Kind {
    let ether_type = frame.get(12..14).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    match ether_type {
        Some(number) if ![EtherType::IPV4.0, EtherType::IPV6.0].contains(&number) => return Kind::NotIp,
        Some(_) => {}
        None => return Kind::Malformed,
    }
    let Ok(sliced) = SlicedPacket::from_ethernet(frame) else { return Kind::Malformed };
    let (src, dst, ttl, ip_len, payload): (IpAddr, IpAddr, u8, u16, &IpPayloadSlice<'_>) = match &sliced.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header();
            let (src, dst) = (header.source_addr().into(), header.destination_addr().into());
            (src, dst, header.ttl(), header.total_len(), ip.payload())
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header();
            // Etherparse takes a length of zero for that of a jumbogram (RFC 2675), which no link here carries.
            if header.payload_length() == 0 {
                return Kind::Malformed;
            }
            let (src, dst) = (header.source_addr().into(), header.destination_addr().into());
            (src, dst, header.hop_limit(), header.payload_length() + 40, ip.payload())
        }
        _ => return Kind::Malformed,
    };
    if payload.fragmented {
        return Kind::Fragment;
    }
    let transport = match (&sliced.transport, payload.ip_number) {
        (Some(TransportSlice::Tcp(slice)), _) => Some(tcp(slice)),
        (Some(TransportSlice::Udp(udp)), _) => {
            // RFC 768: with its header. Etherparse checks that it does not end beyond the packet; RFC 9868: it may end before.
            if udp.length() < 8 {
                return Kind::Malformed;
            }
            Some(Transport {
                ports: (udp.source_port(), udp.destination_port()),
                payload_len: udp.payload().len(),
                ..Transport::of(Protocol::Udp)
            })
        }
        (None, IpNumber::SCTP) => sctp(payload.payload),
        (_, number) if number == (if src.is_ipv4() { IpNumber::ICMP } else { IpNumber::IPV6_ICMP }) => {
            let at = 14 + usize::from(ip_len) - payload.payload.len();
            let kind = message(frame, at, src.is_ipv4());
            return Kind::Control(Control { src, dst, ttl, ip_len, at, kind });
        }
        _ => return Kind::NotL4,
    };
    let Some(transport) = transport else { return Kind::Malformed };
    let Transport { protocol, ports, .. } = transport;
    let mut segment = Segment {
        tuple: Tuple { protocol, src: SocketAddr::new(src, ports.0), dst: SocketAddr::new(dst, ports.1) },
        ttl,
        ip_len,
        l4_at: 14 + usize::from(ip_len) - payload.payload.len(),
        flags: transport.flags,
        sequence: transport.numbers.0,
        acknowledgement: transport.numbers.1,
        payload_len: u32::try_from(transport.payload_len).unwrap(),
        window: transport.window,
        scale: transport.scale,
        tags: transport.tags,
        is_intact: false,
    };
    segment.is_intact = is_intact(frame, &segment);
    Kind::Segment(segment)
}

fn tcp(tcp: &TcpSlice<'_>) -> Transport {
    Transport {
        protocol: Protocol::Tcp,
        ports: (tcp.source_port(), tcp.destination_port()),
        flags: Flags { syn: tcp.syn(), ack: tcp.ack(), fin: tcp.fin(), rst: tcp.rst() },
        numbers: (tcp.sequence_number(), tcp.acknowledgment_number()),
        payload_len: tcp.payload().len(),
        window: tcp.window_size(),
        scale: tcp.options_iterator().find_map(|option| match option {
            Ok(TcpOptionElement::WindowScale(shift)) => Some(shift.min(14)),
            _ => None,
        }),
        tags: Tags::default(),
    }
}

/// What a transport header says.
struct Transport {
    protocol: Protocol,
    ports: (u16, u16),
    flags: Flags,
    numbers: (u32, u32),
    payload_len: usize,
    window: u16,
    scale: Option<u8>,
    tags: Tags,
}

impl Transport {
    fn of(protocol: Protocol) -> Self {
        Self {
            protocol,
            ports: (0, 0),
            flags: Flags::default(),
            numbers: (0, 0),
            payload_len: 0,
            window: 0,
            scale: None,
            tags: Tags::default(),
        }
    }
}

/// The common header and all chunks (RFC 9260 section 3).
fn sctp(bytes: &[u8]) -> Option<Transport> {
    if bytes.len() < 16 {
        return None;
    }
    let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let word = |at: usize| bytes.get(at..at + 4).map_or(0, |b| u32::from_be_bytes(b.try_into().unwrap()));
    let mut tags = Tags { carried: word(4), ..Tags::default() };
    let (mut flags, mut at) = (Flags::default(), 12);
    while at + 4 <= bytes.len() {
        let alone = at == 12 && [1, 2].contains(&bytes[at]);
        match bytes[at] {
            // INIT, which carries no tag (section 8.5.1) and announces one
            1 if alone && tags.carried == 0 && word(16) != 0 => flags.syn = true,
            // INIT ACK
            2 if alone => (flags.syn, flags.ack) = (true, true),
            // ABORT
            6 => (flags.rst, flags.ack) = (true, true),
            // SHUTDOWN, SHUTDOWN ACK, SHUTDOWN COMPLETE
            7 | 8 | 14 => (flags.fin, flags.ack) = (true, true),
            _ => flags.ack = true,
        }
        tags.cookie |= bytes[at] == 10;
        tags.completes |= bytes[at] == 14;
        tags.reflected |= [6, 14].contains(&bytes[at]) && bytes[at + 1] & 1 == 1;
        if alone {
            tags.announced = word(16);
            break;
        }
        match usize::from(port(at + 2)).next_multiple_of(4) {
            0 => break,
            len => at += len,
        }
    }
    let ports = (port(0), port(2));
    Some(Transport { ports, flags, payload_len: bytes.len() - 16, tags, ..Transport::of(Protocol::Sctp) })
}

/// Source and destination of an IP packet, whatever it holds.
pub(crate) fn addresses(frame: &[u8]) -> Option<[IpAddr; 2]> {
    let v4 = |at: usize| frame.get(at..at + 4).map(|b| IpAddr::from(<[u8; 4]>::try_from(b).unwrap()));
    let v6 = |at: usize| frame.get(at..at + 16).map(|b| IpAddr::from(<[u8; 16]>::try_from(b).unwrap()));
    match frame.get(12..14)? {
        [0x08, 0x00] => Some([v4(26)?, v4(30)?]),
        [0x86, 0xdd] => Some([v6(22)?, v6(38)?]),
        _ => None,
    }
}

/// Whether a frame has extension headers of IPv6. Etherparse refuses those that are out of order (RFC 8200
/// section 4.1 only recommends one), or that are too many for it.
pub(crate) fn has_extensions(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[0x86, 0xdd]) && [0, 43, 44, 60].contains(&frame[20])
}

/// A frame in hexadecimal.
pub(crate) fn hex(frame: &[u8]) -> String {
    frame.iter().map(|byte| format!("{byte:02x}")).collect()
}
