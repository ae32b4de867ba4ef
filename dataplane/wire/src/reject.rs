//! Rejects packets: writes the TCP reset, SCTP abort or ICMP error that is sent back. Which packets are rejected is
//! decided elsewhere.

use core::net::IpAddr;

use crate::addr::Protocol;
use crate::checksum::Sum;
use crate::datagram::{self, Datagram};
use crate::family::Address;
use crate::header::{ethernet, icmp, icmpv4, icmpv6, ipv4, ipv6, ports, short, tcp};
use crate::parse::{Packet, TcpFlags};
use crate::sctp;

/// Room for the longest frame that is written here: an ICMPv6 error that quotes as much as fits into the minimum MTU.
pub const REJECT_LEN_MAX: usize = ethernet::LEN + ipv6::MIN_MTU;

/// Why a packet cannot be delivered, in the terms of ICMP (RFC 792) and ICMPv6 (RFC 4443).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// Nobody serves the port.
    PortUnreachable,
    /// It exceeds this MTU, in bytes (RFC 1191 section 4, RFC 8201).
    TooBig(u16),
    /// Its TTL or hop limit is used up.
    TimeExceeded,
    /// No route leads to its destination.
    NoRoute,
    /// The last router, or the host itself, does not answer on its link.
    HostUnreachable,
}

/// Rejects the packet that was parsed from `frame`: TCP with a reset, an SCTP INIT with an ABORT, everything else with
/// "port unreachable". Writes a frame back to its sender and returns the length of it; `None` for a reset, or a packet
/// that no error may be sent about (see [`write_icmp_error`]).
pub fn reject<A: Address>(frame: &[u8], packet: &Packet<A>, out: &mut [u8; REJECT_LEN_MAX]) -> Option<usize> {
    let initiate_tag = match packet.tuple.protocol {
        Protocol::Sctp => packet.l4(frame).and_then(sctp::initiate_tag),
        Protocol::Tcp | Protocol::Udp => None,
    };
    // An SCTP packet other than an INIT has no tag that an ABORT could carry: a wrong one would be discarded, and a right
    // one would end an association that may live on another path.
    if packet.tuple.protocol != Protocol::Tcp && initiate_tag.is_none() {
        let datagram = A::datagram(frame).ok()?;
        return write_icmp_error(frame, &datagram, IcmpError::PortUnreachable, datagram.dst, out);
    }
    if !may_be_answered(frame, packet.tuple.src.into()) {
        return None;
    }
    let len = match initiate_tag {
        Some(tag) => {
            let l4_offset = ethernet::LEN + A::HEADER_LEN;
            let ports = [packet.tuple.dst_port, packet.tuple.src_port];
            out.get_mut(l4_offset..)?.first_chunk_mut().map(|abort| *abort = sctp::abort(ports, tag))?;
            sctp::ABORT_LEN
        }
        None => write_reset(frame, packet, out)?,
    };
    let pair = [packet.tuple.dst, packet.tuple.src];
    write_headers(frame, pair, packet.tuple.protocol.number(), len, out)
}

/// Writes an ICMP error about the packet in `frame` to its sender, with the source address `from`, and returns the length
/// of the frame. `None` for a packet that no error may be sent about: one whose sender is not a single host, that was
/// sent to a group, that is itself an ICMP error, or that is a later fragment (RFC 1122 section 3.2.2, RFC 4443 section
/// 2.4 (e)).
pub fn write_icmp_error<A: Address>(
    frame: &[u8],
    datagram: &Datagram<A>,
    error: IcmpError,
    from: A,
    out: &mut [u8; REJECT_LEN_MAX],
) -> Option<usize> {
    let is_later_fragment = datagram.fragment.is_some_and(|part| part.offset != 0);
    let is_error = datagram.protocol == A::ICMP && is_icmp_error::<A>(*datagram.payload(frame).first()?);
    if is_later_fragment || is_error || !may_be_answered(frame, datagram.src.into()) {
        return None;
    }
    let original = frame.get(usize::from(datagram.l3_offset)..)?.get(..usize::from(datagram.ip_len()))?;
    let l4_offset = ethernet::LEN + A::HEADER_LEN;
    // As much of the packet as fits, and no more: the error itself must not need a path MTU (RFC 1812 section 4.3.2.3,
    // RFC 4443 section 2.4 (c)).
    let len_max = if A::IS_V4 { ipv4::ICMP_ERROR_LEN_MAX } else { ipv6::MIN_MTU };
    let quoted = original.len().min(len_max - A::HEADER_LEN - icmp::LEN);
    let message = out.get_mut(l4_offset..l4_offset + icmp::LEN + quoted)?;
    message[..icmp::LEN].copy_from_slice(&icmp_header::<A>(error));
    message[icmp::LEN..].copy_from_slice(&original[..quoted]);
    let len = icmp::LEN + quoted;
    let sum = icmp_pseudo_header(from, datagram.src, u16::try_from(len).ok()?);
    let checksum = sum.bytes(message).checksum();
    message[icmp::CHECKSUM..icmp::CHECKSUM + 2].copy_from_slice(&checksum.0);
    write_headers(frame, [from, datagram.src], A::ICMP, len, out)
}

/// The pseudo header that an ICMPv6 checksum covers (RFC 4443 section 2.3); ICMP has none.
pub fn icmp_pseudo_header<A: Address>(src: A, dst: A, len: u16) -> Sum {
    if A::IS_V4 { Sum::ZERO } else { Sum::pseudo_header(src, dst, A::ICMP, len) }
}

fn icmp_header<A: Address>(error: IcmpError) -> [u8; icmp::LEN] {
    let v4 = A::IS_V4;
    let (kind, code, mtu) = match error {
        IcmpError::PortUnreachable if v4 => (icmpv4::UNREACHABLE, icmpv4::CODE_PORT_UNREACHABLE, 0),
        IcmpError::TooBig(mtu) if v4 => (icmpv4::UNREACHABLE, icmpv4::CODE_FRAGMENTATION_NEEDED, mtu),
        IcmpError::TimeExceeded if v4 => (icmpv4::TIME_EXCEEDED, 0, 0),
        IcmpError::NoRoute if v4 => (icmpv4::UNREACHABLE, icmpv4::CODE_NET_UNREACHABLE, 0),
        IcmpError::HostUnreachable if v4 => (icmpv4::UNREACHABLE, icmpv4::CODE_HOST_UNREACHABLE, 0),
        IcmpError::PortUnreachable => (icmpv6::UNREACHABLE, icmpv6::CODE_PORT_UNREACHABLE, 0),
        IcmpError::TooBig(mtu) => (icmpv6::PACKET_TOO_BIG, 0, mtu),
        IcmpError::TimeExceeded => (icmpv6::TIME_EXCEEDED, 0, 0),
        IcmpError::NoRoute => (icmpv6::UNREACHABLE, icmpv6::CODE_NO_ROUTE, 0),
        IcmpError::HostUnreachable => (icmpv6::UNREACHABLE, icmpv6::CODE_ADDRESS_UNREACHABLE, 0),
    };
    // The MTU is in the last two bytes for both: all of RFC 1191's field, and the lower half of RFC 4443's.
    let [high, low] = mtu.to_be_bytes();
    [kind, code, 0, 0, 0, 0, high, low]
}

/// Whether a message of this type must not be answered with an error.
const fn is_icmp_error<A: Address>(kind: u8) -> bool {
    if A::IS_V4 {
        // RFC 1122 section 3.2.2 has these five types as errors; all others are queries or replies.
        matches!(
            kind,
            icmpv4::UNREACHABLE
                | icmpv4::SOURCE_QUENCH
                | icmpv4::REDIRECT
                | icmpv4::TIME_EXCEEDED
                | icmpv4::PARAMETER_PROBLEM
        )
    } else {
        // RFC 4443 section 2.1: the high bit tells, for types of the future too.
        kind & icmpv6::INFORMATIONAL_BIT == 0
    }
}

/// Whether a reply to `frame` goes to one host: neither address of the sender is a group's.
pub(crate) fn may_be_answered(frame: &[u8], sender: IpAddr) -> bool {
    // A frame to a group address reaches many hosts, and each of them would answer (RFC 1122 section 3.2.2).
    is_single_host(sender) && frame.first().is_some_and(|byte| byte & ethernet::GROUP_BIT == 0)
}

/// Writes the reset for a segment of no connection (RFC 9293 section 3.10.7.1); `None` for a reset.
fn write_reset<A: Address>(
    frame: &[u8],
    packet: &Packet<A>,
    out: &mut [u8; REJECT_LEN_MAX],
) -> Option<usize> {
    let flags = packet.tcp_flags;
    if flags.intersects(TcpFlags::RST) {
        return None;
    }
    let header = packet.l4(frame)?.first_chunk::<{ tcp::LEN }>()?;
    let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let data_offset = u32::from(header[tcp::DATA_OFFSET] >> 4) * 4;
    // SYN and FIN occupy one sequence number each.
    let occupied = |flag| u32::from(flags.intersects(flag));
    let segment_len =
        u32::from(packet.l4_len) - data_offset + occupied(TcpFlags::SYN) + occupied(TcpFlags::FIN);
    // The sender takes the reset only if it fits what it sent: by the number it acknowledged, or by one that
    // acknowledges the whole segment.
    let (sequence, acknowledgement, reply_flags) = if flags.intersects(TcpFlags::ACK) {
        (word(tcp::ACKNOWLEDGEMENT), 0, TcpFlags::RST)
    } else {
        (0, word(tcp::SEQUENCE).wrapping_add(segment_len), TcpFlags::RST.union(TcpFlags::ACK))
    };
    let l4_offset = ethernet::LEN + A::HEADER_LEN;
    let reset = out.get_mut(l4_offset..l4_offset + tcp::LEN)?;
    reset.fill(0);
    reset[ports::SRC..ports::DST].copy_from_slice(&packet.tuple.dst_port.wire());
    reset[ports::DST..ports::LEN].copy_from_slice(&packet.tuple.src_port.wire());
    reset[tcp::SEQUENCE..tcp::ACKNOWLEDGEMENT].copy_from_slice(&sequence.to_be_bytes());
    reset[tcp::ACKNOWLEDGEMENT..tcp::DATA_OFFSET].copy_from_slice(&acknowledgement.to_be_bytes());
    // Five words: no options.
    reset[tcp::DATA_OFFSET] = 5 << 4;
    reset[tcp::FLAGS] = reply_flags.0;
    let (src, dst) = (packet.tuple.dst, packet.tuple.src);
    let sum = Sum::pseudo_header(src, dst, Protocol::Tcp.number(), const { short(tcp::LEN) }).bytes(reset);
    reset[tcp::CHECKSUM..tcp::CHECKSUM + 2].copy_from_slice(&sum.checksum().0);
    Some(tcp::LEN)
}

/// Writes Ethernet and IP header of a packet whose `payload_len` bytes are in `out` already, and returns the length of
/// the frame. It goes back over the link by which `frame` arrived.
fn write_headers<A: Address>(
    frame: &[u8],
    pair: [A; 2],
    protocol: u8,
    payload_len: usize,
    out: &mut [u8; REJECT_LEN_MAX],
) -> Option<usize> {
    let (dst, src) = frame.get(..ethernet::ADDRS_LEN)?.split_at(ethernet::ADDR_LEN);
    let (head, packet) = out.split_at_mut(ethernet::LEN);
    head[..ethernet::ADDR_LEN].copy_from_slice(src);
    head[ethernet::ADDR_LEN..ethernet::ADDRS_LEN].copy_from_slice(dst);
    head[ethernet::ETHERTYPE..].copy_from_slice(&A::ETHERTYPE);
    datagram::write_header(packet, pair, protocol, payload_len)?;
    Some(ethernet::LEN + A::HEADER_LEN + payload_len)
}

/// Whether the address can be that of one host (RFC 1122 section 3.2.1.3, RFC 4291 section 2).
fn is_single_host(addr: IpAddr) -> bool {
    // Class E, the limited broadcast address included.
    let is_reserved = matches!(addr, IpAddr::V4(v4) if v4.octets()[0] >= 240);
    !(addr.is_unspecified() || addr.is_multicast() || addr.is_loopback() || is_reserved)
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::Ipv4Addr;

    use crate::parse::Parsed;
    use etherparse::{Icmpv4Type, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

    const CLIENT: [u8; 4] = [192, 0, 2, 9];
    const VIP: [u8; 4] = [10, 96, 0, 1];

    fn rejected(frame: &[u8]) -> Option<Vec<u8>> {
        let Ok(Parsed::L4(packet)) = Ipv4Addr::parse(frame) else { panic!("not a packet") };
        let mut out = [0; REJECT_LEN_MAX];
        reject(frame, &packet, &mut out).map(|len| out[..len].to_vec())
    }

    fn segment(set: impl Fn(&mut etherparse::TcpHeader), payload: &[u8]) -> Vec<u8> {
        let mut tcp = etherparse::TcpHeader::new(4000, 80, 1000, 512);
        set(&mut tcp);
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
            .ipv4(CLIENT, VIP, 64)
            .tcp_header(tcp)
            .write(&mut frame, payload)
            .unwrap();
        frame
    }

    fn tcp_answer(bytes: &[u8]) -> etherparse::TcpHeader {
        let sliced = SlicedPacket::from_ethernet(bytes).unwrap();
        let Some(NetSlice::Ipv4(ip)) = sliced.net else { panic!("not IPv4") };
        let ip = ip.header().to_header();
        assert_eq!((ip.source, ip.destination), (VIP, CLIENT));
        assert_eq!(ip.header_checksum, ip.calc_header_checksum());
        let Some(TransportSlice::Tcp(tcp)) = sliced.transport else { panic!("not TCP") };
        let header = tcp.to_header();
        assert_eq!(header.checksum, header.calc_checksum_ipv4(&ip, &[]).unwrap());
        header
    }

    #[test]
    fn p502_a_syn_is_answered_with_a_reset_that_acknowledges_it() {
        let bytes = rejected(&segment(|tcp| tcp.syn = true, b"early")).unwrap();
        assert_eq!((&bytes[..6], &bytes[6..12]), (&[2, 0, 0, 0, 0, 1][..], &[2, 0, 0, 0, 0, 2][..]));
        let answer = tcp_answer(&bytes);
        assert!(answer.rst && answer.ack);
        assert_eq!((answer.sequence_number, answer.acknowledgment_number), (0, 1000 + 1 + 5));
        assert_eq!((answer.source_port, answer.destination_port), (80, 4000));
    }

    #[test]
    fn a_segment_with_an_acknowledgement_is_reset_at_that_number_and_a_reset_is_not_answered() {
        let late = segment(
            |tcp| {
                tcp.ack = true;
                tcp.acknowledgment_number = 77;
            },
            b"data",
        );
        let answer = tcp_answer(&rejected(&late).unwrap());
        assert!(answer.rst && !answer.ack);
        assert_eq!(answer.sequence_number, 77);
        assert_eq!(rejected(&segment(|tcp| tcp.rst = true, b"")), None);
    }

    #[test]
    fn p502_a_datagram_is_answered_with_port_unreachable_that_quotes_it() {
        for payload_len in [0, 1, 18, 1400] {
            let mut frame = Vec::new();
            PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
                .ipv4(CLIENT, VIP, 64)
                .udp(4000, 53)
                .write(&mut frame, &vec![7; payload_len])
                .unwrap();
            let bytes = rejected(&frame).unwrap();
            let sliced = SlicedPacket::from_ethernet(&bytes).unwrap();
            let Some(NetSlice::Ipv4(ip)) = sliced.net else { panic!("not IPv4") };
            assert!(ip.header().total_len() <= 576);
            assert_eq!(ip.header().to_header().calc_header_checksum(), ip.header().header_checksum());
            let Some(TransportSlice::Icmpv4(icmp)) = sliced.transport else { panic!("not ICMP") };
            assert!(matches!(
                icmp.icmp_type(),
                Icmpv4Type::DestinationUnreachable(etherparse::icmpv4::DestUnreachableHeader::Port)
            ));
            assert_eq!(icmp.header().checksum, icmp.icmp_type().calc_checksum(icmp.payload()));
            let quoted = frame.len().min(14 + 548) - 14;
            assert_eq!(icmp.payload(), &frame[14..14 + quoted]);
        }
    }

    /// An SCTP packet from port 4000 to 80 with one chunk.
    fn association(chunk: &[u8]) -> Vec<u8> {
        let mut sctp = vec![0x0f, 0xa0, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0];
        sctp.extend(chunk);
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
            .ipv4(CLIENT, VIP, 64)
            .write(&mut frame, etherparse::IpNumber::SCTP, &sctp)
            .unwrap();
        frame
    }

    #[test]
    fn p502_an_init_is_answered_with_an_abort_that_has_its_tag() {
        let init = [1, 0, 0, 20, 0xca, 0xfe, 0, 1, 0, 1, 0, 0, 0, 10, 0, 10, 0, 0, 0, 1];
        let bytes = rejected(&association(&init)).unwrap();
        assert_eq!((bytes[23], &bytes[26..30], &bytes[30..34]), (132, &VIP[..], &CLIENT[..]));
        let mut abort = bytes[34..].to_vec();
        assert_eq!(&abort[..8], &[0, 80, 0x0f, 0xa0, 0xca, 0xfe, 0, 1]);
        assert_eq!(&abort[12..], &[6, 0, 0, 4]);
        let checksum: [u8; 4] = abort[8..12].try_into().unwrap();
        abort[8..12].fill(0);
        assert_eq!(u32::from_le_bytes(checksum), crc32c::crc32c(&abort));
    }

    #[test]
    fn packets_of_unknown_associations_are_answered_with_errors_that_end_none() {
        // A heartbeat of an association that has another path, and an INIT that is cut off.
        for chunk in [&[4, 0, 0, 8, 0, 1, 0, 4][..], &[1, 0, 0, 20]] {
            let bytes = rejected(&association(chunk)).unwrap();
            assert_eq!((bytes[23], &bytes[34..36]), (1, &[3, 3][..]), "ICMP port unreachable");
        }
    }

    #[test]
    fn groups_and_broadcasts_get_no_answer() {
        let with_source = |source: [u8; 4]| {
            let mut frame = segment(|tcp| tcp.syn = true, b"");
            frame[26..30].copy_from_slice(&source);
            rejected(&frame)
        };
        for source in [[224, 0, 0, 1], [255, 255, 255, 255], [0, 0, 0, 0], [127, 0, 0, 1]] {
            assert_eq!(with_source(source), None, "{source:?}");
        }
        let mut to_all = segment(|tcp| tcp.syn = true, b"");
        to_all[0] = 0xff;
        assert_eq!(rejected(&to_all), None);
    }
}
