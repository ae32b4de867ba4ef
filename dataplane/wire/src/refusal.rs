//! Answers to packets that go no further: a TCP reset, an SCTP abort, or an ICMP error. Never decides who deserves one.

use core::net::IpAddr;

use crate::addr::Protocol;
use crate::checksum::{Checksum, Sum};
use crate::datagram::Datagram;
use crate::family::Address;
use crate::parse::{ETHERNET_LEN, Packet, TcpFlags};
use crate::sctp;

/// Room for the longest answer: an ICMPv6 error quotes as much as fits into 1280 bytes (RFC 4443 section 2.4
/// (c)), an ICMP error into 576 (RFC 1812 section 4.3.2.3).
pub const REFUSAL_LEN_MAX: usize = ETHERNET_LEN + 1280;

/// What is wrong with a packet, in the terms of ICMP (RFC 792) and ICMPv6 (RFC 4443).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// Nobody serves the port.
    PortUnreachable,
    /// The way on carries packets of this size in bytes at most (RFC 1191 section 4, RFC 8201).
    TooBig(u16),
    /// Its hops are used up.
    TimeExceeded,
}

/// Writes the refusal of the packet that was parsed from `frame`, as an Ethernet frame back to its sender,
/// and says how long it is. None for a packet that nobody may answer with an error: a reset, or one
/// whose sender is not a single host (RFC 1122 section 3.2.2).
pub fn refuse<A: Address>(
    frame: &[u8],
    packet: &Packet<A>,
    out: &mut [u8; REFUSAL_LEN_MAX],
) -> Option<usize> {
    let initiate_tag = match packet.tuple.protocol {
        Protocol::Sctp => packet.l4(frame).and_then(sctp::initiate_tag),
        Protocol::Tcp | Protocol::Udp => None,
    };
    if packet.tuple.protocol != Protocol::Tcp && initiate_tag.is_none() {
        let datagram = A::datagram(frame).ok()?;
        return report(frame, &datagram, IcmpError::PortUnreachable, datagram.dst, out);
    }
    if !may_be_answered(frame, packet.tuple.src.into()) {
        return None;
    }
    let len = match initiate_tag {
        Some(tag) => {
            let l4_offset = ETHERNET_LEN + A::HEADER_LEN;
            let ports = [packet.tuple.dst_port, packet.tuple.src_port];
            out.get_mut(l4_offset..)?.first_chunk_mut().map(|abort| *abort = sctp::abort(ports, tag))?;
            sctp::ABORT_LEN
        }
        None => reset(frame, packet, out)?,
    };
    answer(frame, packet.tuple.dst, packet.tuple.src, packet.tuple.protocol.number(), len, out)
}

/// Writes the ICMP error that reports `problem` with the packet in `frame` to its sender, as coming from
/// `from`, and says how long the frame is. None for a packet about which no error may be sent: one whose
/// sender is not a single host, that was sent to a group, that is itself an ICMP error, or a fragment that
/// is not the first (RFC 1122 section 3.2.2, RFC 4443 section 2.4 (e)).
pub fn report<A: Address>(
    frame: &[u8],
    datagram: &Datagram<A>,
    problem: IcmpError,
    from: A,
    out: &mut [u8; REFUSAL_LEN_MAX],
) -> Option<usize> {
    let is_later_fragment = datagram.fragment.is_some_and(|part| part.offset != 0);
    let is_error = datagram.protocol == A::ICMP && !is_query::<A>(*datagram.payload(frame).first()?);
    if is_later_fragment || is_error || !may_be_answered(frame, datagram.src.into()) {
        return None;
    }
    let original = frame.get(usize::from(datagram.l3_offset)..)?.get(..usize::from(datagram.ip_len()))?;
    let l4_offset = ETHERNET_LEN + A::HEADER_LEN;
    let largest = if A::IS_V4 { 576 } else { 1280 };
    let quoted = original.len().min(largest - A::HEADER_LEN - ICMP_HEADER_LEN);
    let icmp = out.get_mut(l4_offset..l4_offset + ICMP_HEADER_LEN + quoted)?;
    icmp[..ICMP_HEADER_LEN].copy_from_slice(&icmp_header::<A>(problem));
    icmp[ICMP_HEADER_LEN..].copy_from_slice(&original[..quoted]);
    let len = ICMP_HEADER_LEN + quoted;
    let checksum = icmp_sum(from, datagram.src, u16::try_from(len).ok()?).bytes(icmp).checksum();
    icmp[2..4].copy_from_slice(&checksum.0);
    answer(frame, from, datagram.src, A::ICMP, len, out)
}

/// What the checksum of a control message covers besides the message: ICMPv6 has a pseudo header (RFC 4443
/// section 2.3), ICMP has none.
pub fn icmp_sum<A: Address>(src: A, dst: A, len: u16) -> Sum {
    if A::IS_V4 { Sum::ZERO } else { Sum::pseudo_header(src, dst, A::ICMP, len) }
}

fn icmp_header<A: Address>(problem: IcmpError) -> [u8; ICMP_HEADER_LEN] {
    let v4 = A::IS_V4;
    let (kind, code, mtu) = match problem {
        IcmpError::PortUnreachable if v4 => (3, 3, 0),
        IcmpError::TooBig(mtu) if v4 => (3, 4, mtu),
        IcmpError::TimeExceeded if v4 => (11, 0, 0),
        IcmpError::PortUnreachable => (1, 4, 0),
        IcmpError::TooBig(mtu) => (2, 0, mtu),
        IcmpError::TimeExceeded => (3, 0, 0),
    };
    let [high, low] = mtu.to_be_bytes();
    [kind, code, 0, 0, 0, 0, high, low]
}

/// Whether a control message asks something, and so may be answered with an error.
const fn is_query<A: Address>(kind: u8) -> bool {
    // RFC 4443 section 2.1: errors have the high bit clear. RFC 1122 section 3.2.2 lists those of ICMP.
    if A::IS_V4 { !matches!(kind, 3 | 4 | 5 | 11 | 12) } else { kind & 0x80 != 0 }
}

pub(crate) fn may_be_answered(frame: &[u8], sender: IpAddr) -> bool {
    is_single_host(sender) && frame.first().is_some_and(|byte| byte & 1 == 0)
}

/// RFC 9293 section 3.10.7.1: a reset for a segment that no connection has.
fn reset<A: Address>(frame: &[u8], packet: &Packet<A>, out: &mut [u8; REFUSAL_LEN_MAX]) -> Option<usize> {
    let flags = packet.tcp_flags;
    if flags.intersects(TcpFlags::RST) {
        return None;
    }
    let header = packet.l4(frame)?.first_chunk::<20>()?;
    let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let data_offset = u32::from(header[12] >> 4) * 4;
    let occupied = |flag| u32::from(flags.intersects(flag));
    let segment_len =
        u32::from(packet.l4_len) - data_offset + occupied(TcpFlags::SYN) + occupied(TcpFlags::FIN);
    let (sequence, acknowledgement, reply_flags) = if flags.intersects(TcpFlags::ACK) {
        (word(8), 0, TcpFlags::RST)
    } else {
        (0, word(4).wrapping_add(segment_len), TcpFlags::RST.union(TcpFlags::ACK))
    };
    let l4_offset = ETHERNET_LEN + A::HEADER_LEN;
    let tcp = out.get_mut(l4_offset..l4_offset + 20)?;
    tcp[..2].copy_from_slice(&packet.tuple.dst_port.wire());
    tcp[2..4].copy_from_slice(&packet.tuple.src_port.wire());
    tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
    tcp[8..12].copy_from_slice(&acknowledgement.to_be_bytes());
    tcp[12..20].copy_from_slice(&[5 << 4, reply_flags.0, 0, 0, 0, 0, 0, 0]);
    let (src, dst) = (packet.tuple.dst, packet.tuple.src);
    let sum = Sum::pseudo_header(src, dst, Protocol::Tcp.number(), 20).bytes(tcp);
    tcp[16..18].copy_from_slice(&sum.checksum().0);
    Some(20)
}

/// Writes the headers of an answer of `payload_len` bytes from `src` to `dst` that goes back by the link
/// that `frame` came by; the length of the whole.
fn answer<A: Address>(
    frame: &[u8],
    src: A,
    dst: A,
    protocol: u8,
    payload_len: usize,
    out: &mut [u8; REFUSAL_LEN_MAX],
) -> Option<usize> {
    out[..6].copy_from_slice(frame.get(6..12)?);
    out[6..12].copy_from_slice(frame.get(..6)?);
    out[12..14].copy_from_slice(&A::ETHERTYPE);
    let header = out.get_mut(ETHERNET_LEN..ETHERNET_LEN + A::HEADER_LEN)?;
    if A::IS_V4 {
        let [high, low] = u16::try_from(A::HEADER_LEN + payload_len).ok()?.to_be_bytes();
        header[..12].copy_from_slice(&[0x45, 0, high, low, 0, 0, DONT_FRAGMENT, 0, HOPS, protocol, 0, 0]);
        header[12..20].fill(0);
        let Checksum(checksum) = Sum::ZERO.bytes(header).checksum();
        header[10..12].copy_from_slice(&checksum);
    } else {
        let [high, low] = u16::try_from(payload_len).ok()?.to_be_bytes();
        header[..8].copy_from_slice(&[0x60, 0, 0, 0, high, low, protocol, HOPS]);
    }
    A::write_pair(header, [src, dst])?;
    Some(ETHERNET_LEN + A::HEADER_LEN + payload_len)
}

/// RFC 1122 section 3.2.1.3 and RFC 4291 section 2: what can be the address of one host.
fn is_single_host(addr: IpAddr) -> bool {
    let class_e = matches!(addr, IpAddr::V4(v4) if v4.octets()[0] >= 240);
    !(addr.is_unspecified() || addr.is_multicast() || addr.is_loopback() || class_e)
}

const ICMP_HEADER_LEN: usize = 8;
pub(crate) const HOPS: u8 = 64;
const DONT_FRAGMENT: u8 = 0x40;

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::Ipv4Addr;

    use crate::parse::Parsed;
    use etherparse::{Icmpv4Type, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

    const CLIENT: [u8; 4] = [192, 0, 2, 9];
    const VIP: [u8; 4] = [10, 96, 0, 1];

    fn refused(frame: &[u8]) -> Option<Vec<u8>> {
        let Ok(Parsed::L4(packet)) = Ipv4Addr::parse(frame) else { panic!("not a packet") };
        let mut out = [0; REFUSAL_LEN_MAX];
        refuse(frame, &packet, &mut out).map(|len| out[..len].to_vec())
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
        let bytes = refused(&segment(|tcp| tcp.syn = true, b"early")).unwrap();
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
        let answer = tcp_answer(&refused(&late).unwrap());
        assert!(answer.rst && !answer.ack);
        assert_eq!(answer.sequence_number, 77);
        assert_eq!(refused(&segment(|tcp| tcp.rst = true, b"")), None);
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
            let bytes = refused(&frame).unwrap();
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
        let bytes = refused(&association(&init)).unwrap();
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
            let bytes = refused(&association(chunk)).unwrap();
            assert_eq!((bytes[23], &bytes[34..36]), (1, &[3, 3][..]), "ICMP port unreachable");
        }
    }

    #[test]
    fn nobody_answers_a_group_or_a_broadcast() {
        let with_source = |source: [u8; 4]| {
            let mut frame = segment(|tcp| tcp.syn = true, b"");
            frame[26..30].copy_from_slice(&source);
            refused(&frame)
        };
        for source in [[224, 0, 0, 1], [255, 255, 255, 255], [0, 0, 0, 0], [127, 0, 0, 1]] {
            assert_eq!(with_source(source), None, "{source:?}");
        }
        let mut to_all = segment(|tcp| tcp.syn = true, b"");
        to_all[0] = 0xff;
        assert_eq!(refused(&to_all), None);
    }
}
