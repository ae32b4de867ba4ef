//! The answers to packets that nobody serves, built anew by etherparse.

use std::net::IpAddr;

use etherparse::{Icmpv4Type, PacketBuilder, TcpHeader, icmpv4::DestUnreachableHeader};
use flowgate_wire::Protocol;

use super::packet::{Kind, Segment, read};

/// How many ICMP errors one worker may send: a hundred at once, one a millisecond on average
/// (RFC 1812 section 4.3.2.8).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowance {
    tokens: u64,
    filled: u64,
}

impl Default for Allowance {
    fn default() -> Self {
        Self { tokens: 100, filled: 0 }
    }
}

impl Allowance {
    fn take(&mut self, now: u64) -> bool {
        self.tokens = (self.tokens + now - self.filled).min(100);
        self.filled = now;
        let taken = self.tokens > 0;
        self.tokens -= u64::from(taken);
        taken
    }
}

/// The answer to a refused frame; none when it gets none.
pub(crate) fn refusal(frame: &[u8], allowance: &mut Allowance, now: u64) -> Option<Vec<u8>> {
    let Kind::Segment(segment) = read(frame) else { return None };
    if segment.tuple.protocol != Protocol::Tcp && !allowance.take(now) {
        return None;
    }
    // RFC 1122 section 3.2.2: never about a group, a broadcast or nobody.
    let IpAddr::V4(src) = segment.tuple.src.ip() else { return None };
    if frame[0] & 1 == 1
        || src.is_multicast()
        || src.is_loopback()
        || src.is_unspecified()
        || src.octets()[0] >= 240
    {
        return None;
    }
    let mut to = [0; 6];
    to.copy_from_slice(&frame[6..12]);
    let mut from = [0; 6];
    from.copy_from_slice(&frame[..6]);
    let IpAddr::V4(dst) = segment.tuple.dst.ip() else { return None };
    let builder = PacketBuilder::ethernet2(from, to).ipv4(dst.octets(), src.octets(), 64);
    let mut out = Vec::new();
    if segment.tuple.protocol == Protocol::Tcp {
        builder.tcp_header(reset(&segment)?).write(&mut out, &[]).unwrap();
    } else {
        // RFC 1812 section 4.3.2.3: as much as fits into 576 bytes.
        let quoted = &frame[14..14 + usize::from(segment.ip_len).min(576 - 28)];
        let port_unreachable = Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port);
        builder.icmpv4(port_unreachable).write(&mut out, quoted).unwrap();
    }
    Some(out)
}

/// RFC 9293 section 3.10.7.1.
fn reset(segment: &Segment) -> Option<TcpHeader> {
    let flags = segment.flags;
    if flags.rst {
        return None;
    }
    let ports = (segment.tuple.dst.port(), segment.tuple.src.port());
    let mut header = TcpHeader::new(ports.0, ports.1, 0, 0);
    header.rst = true;
    if flags.ack {
        header.sequence_number = segment.acknowledgement;
    } else {
        let len = segment.payload_len + u32::from(flags.syn) + u32::from(flags.fin);
        header.ack = true;
        header.acknowledgment_number = segment.sequence.wrapping_add(len);
    }
    Some(header)
}
