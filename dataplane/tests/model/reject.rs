//! The answers to packets that go no further, built anew by etherparse.

use std::net::IpAddr;

use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder, PacketBuilderStep, TcpHeader, icmpv4, icmpv6};
use etherparse::{IpHeaders, IpNumber, icmpv4::DestUnreachableHeader};
use flowgate_wire::Protocol;
use flowgate_wire::reject::IcmpError;

use super::checksums::sctp_checksum;
use super::packet::Segment;
use super::pieces::segment_of;

/// How many ICMP errors of a kind one worker may send: a hundred at once, one a millisecond on average
/// (RFC 1812 section 4.3.2.8).
#[derive(Clone, Copy, Debug)]
struct TokenBucket {
    tokens: u64,
    filled: u64,
}

impl Default for TokenBucket {
    fn default() -> Self {
        Self { tokens: 100, filled: 0 }
    }
}

impl TokenBucket {
    fn take(&mut self, now: u64) -> bool {
        self.tokens = (self.tokens + now - self.filled).min(100);
        self.filled = now;
        let taken = self.tokens > 0;
        self.tokens -= u64::from(taken);
        taken
    }
}

/// What one worker may send: errors about sizes apart, so that connections find their packet size in a flood, and resets apart.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TokenBuckets {
    errors: TokenBucket,
    too_big: TokenBucket,
    resets: TokenBucket,
}

/// The answer to a frame that nobody serves; none when it gets none.
pub(crate) fn reject(frame: &[u8], buckets: &mut TokenBuckets, now: u64) -> Option<Vec<u8>> {
    let segment = segment_of(frame)?;
    let dst = segment.tuple.dst.ip();
    if segment.tuple.protocol != Protocol::Tcp {
        let taken = buckets.errors.take(now);
        if segment.tuple.protocol == Protocol::Sctp
            && let Some(tag) = initiate_tag(frame, &segment)
        {
            let may = taken && may_be_answered(frame, segment.tuple.src.ip());
            return may.then(|| abort(frame, &segment, tag));
        }
        return taken.then(|| error(frame, &segment, IcmpError::PortUnreachable, dst)).flatten();
    }
    if !buckets.resets.take(now) || !may_be_answered(frame, segment.tuple.src.ip()) {
        return None;
    }
    let mut out = Vec::new();
    headers(frame, dst, segment.tuple.src.ip()).tcp_header(reset(&segment)?).write(&mut out, &[]).unwrap();
    Some(out)
}

/// RFC 9260 sections 3.3.2: the tag that an INIT chunk announces.
fn initiate_tag(frame: &[u8], segment: &Segment) -> Option<[u8; 4]> {
    let ip_end = 14 + usize::from(segment.ip_len);
    let sctp = &frame[segment.l4_at..ip_end];
    (sctp.len() >= 20 && sctp[12] == 1).then(|| sctp[16..20].try_into().unwrap())
}

/// RFC 9260 section 8.4 (3): an ABORT under the tag of the INIT, without the T bit.
fn abort(frame: &[u8], segment: &Segment, tag: [u8; 4]) -> Vec<u8> {
    let (from, to) = (segment.tuple.dst, segment.tuple.src);
    let ports = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    let mut sctp = [&ports[..], &tag, &[0; 4], &[6, 0, 0, 4]].concat();
    let checksum = sctp_checksum(&sctp);
    sctp[8..12].copy_from_slice(&checksum.to_le_bytes());
    let mut out = Vec::new();
    headers(frame, from.ip(), to.ip()).write(&mut out, IpNumber::SCTP, &sctp).unwrap();
    out
}

/// The ICMP error about a frame, from the first of `own` of its family; none when it gets none.
pub(crate) fn icmp_error(
    frame: &[u8],
    problem: IcmpError,
    own: &[IpAddr],
    buckets: &mut TokenBuckets,
    now: u64,
) -> Option<Vec<u8>> {
    let segment = segment_of(frame)?;
    let dst = segment.tuple.dst.ip();
    let from = own.iter().copied().find(|addr| addr.is_ipv4() == dst.is_ipv4()).unwrap_or(dst);
    let kind = match problem {
        IcmpError::TooBig(_) => &mut buckets.too_big,
        _ => &mut buckets.errors,
    };
    kind.take(now).then(|| error(frame, &segment, problem, from)).flatten()
}

fn error(frame: &[u8], segment: &Segment, problem: IcmpError, from: IpAddr) -> Option<Vec<u8>> {
    let to = segment.tuple.src.ip();
    if !may_be_answered(frame, to) {
        return None;
    }
    // RFC 1812 section 4.3.2.3 and RFC 4443 section 2.4: as much as fits.
    let room = if to.is_ipv4() { 576 - 20 - 8 } else { 1280 - 40 - 8 };
    let quoted = &frame[14..14 + usize::from(segment.ip_len).min(room)];
    let builder = headers(frame, from, to);
    let mut out = Vec::new();
    if to.is_ipv4() {
        let kind = match problem {
            IcmpError::PortUnreachable => Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port),
            IcmpError::TooBig(next_hop_mtu) => {
                let needed = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu };
                Icmpv4Type::DestinationUnreachable(needed)
            }
            IcmpError::NoRoute => Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Network),
            IcmpError::HostUnreachable => Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Host),
            IcmpError::TimeExceeded => {
                Icmpv4Type::TimeExceeded(icmpv4::TimeExceededCode::TtlExceededInTransit)
            }
        };
        builder.icmpv4(kind).write(&mut out, quoted).unwrap();
    } else {
        let kind = match problem {
            IcmpError::PortUnreachable => {
                Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Port)
            }
            IcmpError::NoRoute => Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::NoRoute),
            IcmpError::HostUnreachable => {
                Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Address)
            }
            IcmpError::TooBig(mtu) => Icmpv6Type::PacketTooBig { mtu: mtu.into() },
            IcmpError::TimeExceeded => Icmpv6Type::TimeExceeded(icmpv6::TimeExceededCode::HopLimitExceeded),
        };
        builder.icmpv6(kind).write(&mut out, quoted).unwrap();
    }
    Some(out)
}

/// The headers of a packet back by the link that `frame` came by.
fn headers(frame: &[u8], from: IpAddr, to: IpAddr) -> PacketBuilderStep<IpHeaders> {
    let (mut dst, mut src) = ([0; 6], [0; 6]);
    dst.copy_from_slice(&frame[6..12]);
    src.copy_from_slice(&frame[..6]);
    let builder = PacketBuilder::ethernet2(src, dst);
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => builder.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => builder.ipv6(from.octets(), to.octets(), 64),
        _ => panic!("an answer of another family"),
    }
}

/// RFC 1122 section 3.2.2, RFC 4443 section 2.4 (e): never to a group, a broadcast or nobody.
fn may_be_answered(frame: &[u8], sender: IpAddr) -> bool {
    let reserved = matches!(sender, IpAddr::V4(v4) if v4.octets()[0] >= 240);
    let nobody = sender.is_multicast() || sender.is_loopback() || sender.is_unspecified() || reserved;
    frame[0] & 1 == 0 && !nobody
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
