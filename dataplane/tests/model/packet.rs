//! Frames as the model reads and judges them: etherparse for the headers, sums in full for the checksums.

use std::net::{IpAddr, SocketAddr};

use etherparse::{EtherType, IpNumber, NetSlice, SlicedPacket, TransportSlice};
use flowgate_wire::Protocol;

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

/// A TCP or UDP packet that is no fragment.
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

/// TCP flags that matter to whoever stands in the middle.
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
    NotIpv4,
    NotL4,
    Fragment,
    Malformed,
}

/// Reads a frame.
pub(crate) fn read(frame: &[u8]) -> Kind {
    let ether_type = frame.get(12..14).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    match ether_type {
        Some(number) if number != EtherType::IPV4.0 => return Kind::NotIpv4,
        Some(_) => {}
        None => return Kind::Malformed,
    }
    let Ok(sliced) = SlicedPacket::from_ethernet(frame) else { return Kind::Malformed };
    let Some(NetSlice::Ipv4(ip)) = &sliced.net else { return Kind::Malformed };
    let header = ip.header();
    if header.is_fragmenting_payload() {
        return Kind::Fragment;
    }
    if ![IpNumber::TCP, IpNumber::UDP].contains(&header.protocol()) {
        return Kind::NotL4;
    }
    let (src, dst) = (IpAddr::V4(header.source_addr()), IpAddr::V4(header.destination_addr()));
    let l4_at = 14 + usize::from(header.ihl()) * 4;
    let (protocol, ports, flags, numbers, payload_len) = match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let flags = Flags { syn: tcp.syn(), ack: tcp.ack(), fin: tcp.fin(), rst: tcp.rst() };
            let numbers = (tcp.sequence_number(), tcp.acknowledgment_number());
            let ports = (tcp.source_port(), tcp.destination_port());
            (Protocol::Tcp, ports, flags, numbers, tcp.payload().len())
        }
        Some(TransportSlice::Udp(udp)) => {
            if usize::from(udp.length()) != usize::from(header.total_len()) - usize::from(header.ihl()) * 4 {
                return Kind::Malformed;
            }
            let ports = (udp.source_port(), udp.destination_port());
            (Protocol::Udp, ports, Flags::default(), (0, 0), udp.payload().len())
        }
        _ => return Kind::Malformed,
    };
    // A flow has ports: zero is none (RFC 6335 section 6).
    if ports.0 == 0 || ports.1 == 0 {
        return Kind::Malformed;
    }
    Kind::Segment(Segment {
        tuple: Tuple { protocol, src: SocketAddr::new(src, ports.0), dst: SocketAddr::new(dst, ports.1) },
        ttl: header.ttl(),
        ip_len: header.total_len(),
        l4_at,
        flags,
        sequence: numbers.0,
        acknowledgement: numbers.1,
        payload_len: u32::try_from(payload_len).unwrap(),
    })
}

/// Says what is wrong with `after` as the translation of `before` to `to`, sent with this Ethernet header.
pub(crate) fn judge_translation(
    before: &[u8],
    after: &[u8],
    segment: &Segment,
    to: &Tuple,
    ether: &[u8; 12],
) -> Result<(), String> {
    let l4_at = segment.l4_at;
    let mut expected = before.to_vec();
    expected[..12].copy_from_slice(ether);
    expected[22] -= 1;
    write_addr(&mut expected[26..], to.src.ip());
    write_addr(&mut expected[30..], to.dst.ip());
    expected[l4_at..l4_at + 2].copy_from_slice(&to.src.port().to_be_bytes());
    expected[l4_at + 2..l4_at + 4].copy_from_slice(&to.dst.port().to_be_bytes());
    let l4_checksum = l4_at + if to.protocol == Protocol::Tcp { 16 } else { 6 };
    // Checksums are judged apart.
    for at in [24, l4_checksum] {
        let bytes = after.get(at..at + 2).ok_or("shorter than its headers")?;
        expected[at..at + 2].copy_from_slice(bytes);
    }
    if expected != after {
        return Err(format!("is not the translation to {to:?}: wanted {}", hex(&expected)));
    }
    if header_error(before, l4_at) != header_error(after, l4_at) {
        return Err("the header checksum is not as right as it was".into());
    }
    let (was, is) = (&before[l4_checksum..l4_checksum + 2], &after[l4_checksum..l4_checksum + 2]);
    let ip_end = 14 + usize::from(segment.ip_len);
    if to.protocol == Protocol::Udp && was == [0, 0] {
        return if is == [0, 0] { Ok(()) } else { Err("RFC 768: no checksum became one".into()) };
    }
    if to.protocol == Protocol::Udp && is == [0, 0] {
        return Err("RFC 768: a checksum became none".into());
    }
    let left_open = sum(&pseudo_header(before, l4_at, ip_end)) == u16::from_be_bytes([was[0], was[1]]);
    let wanted = if left_open { 0 } else { l4_error(before, l4_at, ip_end) };
    if l4_error(after, l4_at, ip_end) != wanted {
        return Err(format!("the transport checksum is not as right as it was (left open: {left_open})"));
    }
    Ok(())
}

fn write_addr(out: &mut [u8], addr: IpAddr) {
    match addr {
        IpAddr::V4(v4) => out[..4].copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => out[..16].copy_from_slice(&v6.octets()),
    }
}

/// How far the header is from summing up to what it should; zero if it is right.
fn header_error(frame: &[u8], l4_at: usize) -> u16 {
    (!sum(&frame[14..l4_at])) % 0xffff
}

fn l4_error(frame: &[u8], l4_at: usize, ip_end: usize) -> u16 {
    let mut all = pseudo_header(frame, l4_at, ip_end);
    all.extend_from_slice(&frame[l4_at..ip_end]);
    (!sum(&all)) % 0xffff
}

/// RFC 9293 section 3.1.
fn pseudo_header(frame: &[u8], l4_at: usize, ip_end: usize) -> Vec<u8> {
    let mut bytes = frame[26..34].to_vec();
    let len = u16::try_from(ip_end - l4_at).unwrap();
    bytes.extend([0, frame[23]]);
    bytes.extend(len.to_be_bytes());
    bytes
}

/// The one's complement sum of big-endian words (RFC 1071), folded.
pub(crate) fn sum(bytes: &[u8]) -> u16 {
    let mut total: u32 = 0;
    for pair in bytes.chunks(2) {
        total += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
        total = (total & 0xffff) + (total >> 16);
    }
    u16::try_from(total).unwrap()
}

/// Whether both checksums of a frame are right, the transport's none included.
pub(crate) fn checksums_are_right(frame: &[u8]) -> bool {
    let Kind::Segment(segment) = read(frame) else { return false };
    let none = segment.tuple.protocol == Protocol::Udp && frame[segment.l4_at + 6..][..2] == [0, 0];
    let l4 = l4_error(frame, segment.l4_at, 14 + usize::from(segment.ip_len));
    header_error(frame, segment.l4_at) == 0 && (none || l4 == 0)
}

/// A frame in hexadecimal.
pub(crate) fn hex(frame: &[u8]) -> String {
    frame.iter().map(|byte| format!("{byte:02x}")).collect()
}
