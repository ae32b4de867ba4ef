//! Checksums in full, and whether a packet was translated as it must be.

use std::net::IpAddr;

use flowgate_wire::Protocol;

use super::packet::{Kind, Segment, Tuple, hex, read};
use super::pieces::piece;

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
    match (to.src.ip(), to.dst.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            expected[22] -= 1;
            expected[26..30].copy_from_slice(&src.octets());
            expected[30..34].copy_from_slice(&dst.octets());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            expected[21] -= 1;
            expected[22..38].copy_from_slice(&src.octets());
            expected[38..54].copy_from_slice(&dst.octets());
        }
        _ => return Err("changed its family".into()),
    }
    expected[l4_at..l4_at + 2].copy_from_slice(&to.src.port().to_be_bytes());
    expected[l4_at + 2..l4_at + 4].copy_from_slice(&to.dst.port().to_be_bytes());
    // Checksums are judged apart.
    let l4_field = l4_field(to.protocol, l4_at);
    let mut fields = vec![l4_field.clone()];
    if to.src.is_ipv4() {
        fields.push(24..26);
    }
    for field in fields {
        let bytes = after.get(field.clone()).ok_or("shorter than its headers")?;
        expected[field].copy_from_slice(bytes);
    }
    if expected != after {
        return Err(format!("is not the translation to {to:?}: wanted {}", hex(&expected)));
    }
    if to.src.is_ipv4() && header_error(before, l4_at) != header_error(after, l4_at) {
        return Err("the header checksum is not as right as it was".into());
    }
    let (was, is) = (&before[l4_field.clone()], &after[l4_field]);
    if to.protocol == Protocol::Udp && was == [0, 0] {
        return if is == [0, 0] { Ok(()) } else { Err("RFC 768: no checksum became one".into()) };
    }
    if to.protocol == Protocol::Udp && is == [0, 0] {
        return Err("RFC 768: a checksum became none".into());
    }
    // Whoever cuts up a packet completes its checksum before.
    let left_open = piece(before).is_none() && is_left_open(before, segment);
    let wanted = if left_open { 0 } else { l4_error(before, segment) };
    if l4_error(after, segment) != wanted {
        return Err(format!("the transport checksum is not as right as it was (left open: {left_open})"));
    }
    Ok(())
}

/// Where the transport checksum stands.
pub(crate) fn l4_field(protocol: Protocol, l4_at: usize) -> std::ops::Range<usize> {
    match protocol {
        Protocol::Tcp => l4_at + 16..l4_at + 18,
        Protocol::Udp => l4_at + 6..l4_at + 8,
        Protocol::Sctp => l4_at + 8..l4_at + 12,
    }
}

/// Whether the checksum was left to a device: it holds the sum of the pseudo header, or nothing in SCTP.
fn is_left_open(frame: &[u8], segment: &Segment) -> bool {
    let field = &frame[l4_field(segment.tuple.protocol, segment.l4_at)];
    if segment.tuple.protocol == Protocol::Sctp {
        return *field == [0; 4];
    }
    *field == sum(&pseudo_header(frame, segment)).to_be_bytes()
}

/// Whether the transport checksum is right, left open, or not wanted (RFC 768).
pub(crate) fn is_intact(frame: &[u8], segment: &Segment) -> bool {
    let field = &frame[l4_field(segment.tuple.protocol, segment.l4_at)];
    let is_none = segment.tuple.protocol == Protocol::Udp && *field == [0, 0];
    is_none || is_left_open(frame, segment) || l4_error(frame, segment) == 0
}

/// How far the IPv4 header is from summing up to what it should; zero if it is right.
fn header_error(frame: &[u8], l4_at: usize) -> u16 {
    (!sum(&frame[14..l4_at])) % 0xffff
}

/// How far the transport checksum is from what it should be; zero if it is right.
fn l4_error(frame: &[u8], segment: &Segment) -> u32 {
    let packet = &frame[segment.l4_at..14 + usize::from(segment.ip_len)];
    if segment.tuple.protocol == Protocol::Sctp {
        let field = u32::from_le_bytes([packet[8], packet[9], packet[10], packet[11]]);
        return field ^ sctp_checksum(packet);
    }
    let mut all = pseudo_header(frame, segment);
    all.extend_from_slice(packet);
    u32::from((!sum(&all)) % 0xffff)
}

/// RFC 9293 section 3.1, RFC 8200 section 8.1.
pub(crate) fn pseudo_header(frame: &[u8], segment: &Segment) -> Vec<u8> {
    let len = 14 + usize::from(segment.ip_len) - segment.l4_at;
    let mut bytes = match segment.tuple.src {
        std::net::SocketAddr::V4(_) => frame[26..34].to_vec(),
        std::net::SocketAddr::V6(_) => frame[22..54].to_vec(),
    };
    bytes.extend([0, segment.tuple.protocol.number()]);
    bytes.extend(u16::try_from(len).unwrap().to_be_bytes());
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

/// The CRC32c of an SCTP packet bit by bit, its field taken as zero (RFC 9260 appendix A).
pub(crate) fn sctp_checksum(packet: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for (at, byte) in packet.iter().enumerate() {
        crc ^= if (8..12).contains(&at) { 0 } else { u32::from(*byte) };
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

/// Whether all checksums of a frame are right, the transport's none included.
pub(crate) fn are_right(frame: &[u8]) -> bool {
    let Kind::Segment(segment) = read(frame) else { return false };
    let field = &frame[l4_field(segment.tuple.protocol, segment.l4_at)];
    let none = segment.tuple.protocol == Protocol::Udp && *field == [0, 0];
    let header_is_right =
        segment.tuple.src.is_ipv6() || header_error(frame, 14 + usize::from(frame[14] & 15) * 4) == 0;
    header_is_right && (none || l4_error(frame, &segment) == 0)
}
