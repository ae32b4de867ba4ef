//! Frames as the model reads them: by etherparse, except for SCTP, which it does not know.

use std::net::{IpAddr, SocketAddr};

use etherparse::{EtherType, IpNumber, IpPayloadSlice, NetSlice, SlicedPacket, TransportSlice};
use flowgate_wire::Protocol;

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
        (Some(TransportSlice::Tcp(tcp)), _) => Some(Transport {
            protocol: Protocol::Tcp,
            ports: (tcp.source_port(), tcp.destination_port()),
            flags: Flags { syn: tcp.syn(), ack: tcp.ack(), fin: tcp.fin(), rst: tcp.rst() },
            numbers: (tcp.sequence_number(), tcp.acknowledgment_number()),
            payload_len: tcp.payload().len(),
        }),
        (Some(TransportSlice::Udp(udp)), _) => {
            if usize::from(udp.length()) != payload.payload.len() {
                return Kind::Malformed;
            }
            Some(Transport {
                protocol: Protocol::Udp,
                ports: (udp.source_port(), udp.destination_port()),
                flags: Flags::default(),
                numbers: (0, 0),
                payload_len: udp.payload().len(),
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
    let Some(Transport { protocol, ports, flags, numbers, payload_len }) = transport else {
        return Kind::Malformed;
    };
    // A flow has ports: zero is none (RFC 6335 section 6).
    if ports.0 == 0 || ports.1 == 0 {
        return Kind::Malformed;
    }
    Kind::Segment(Segment {
        tuple: Tuple { protocol, src: SocketAddr::new(src, ports.0), dst: SocketAddr::new(dst, ports.1) },
        ttl,
        ip_len,
        l4_at: 14 + usize::from(ip_len) - payload.payload.len(),
        flags,
        sequence: numbers.0,
        acknowledgement: numbers.1,
        payload_len: u32::try_from(payload_len).unwrap(),
    })
}

/// What a transport header says.
struct Transport {
    protocol: Protocol,
    ports: (u16, u16),
    flags: Flags,
    numbers: (u32, u32),
    payload_len: usize,
}

/// The common header and the first chunk (RFC 9260 section 3).
fn sctp(bytes: &[u8]) -> Option<Transport> {
    if bytes.len() < 16 {
        return None;
    }
    let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let flags = match bytes[12] {
        // INIT
        1 => Flags { syn: true, ..Flags::default() },
        // INIT ACK
        2 => Flags { syn: true, ack: true, ..Flags::default() },
        // ABORT
        6 => Flags { rst: true, ack: true, ..Flags::default() },
        // SHUTDOWN, SHUTDOWN ACK, SHUTDOWN COMPLETE
        7 | 8 | 14 => Flags { fin: true, ack: true, ..Flags::default() },
        _ => Flags { ack: true, ..Flags::default() },
    };
    Some(Transport {
        protocol: Protocol::Sctp,
        ports: (port(0), port(2)),
        flags,
        numbers: (0, 0),
        payload_len: bytes.len() - 16,
    })
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
