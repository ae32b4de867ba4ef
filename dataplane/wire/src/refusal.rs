//! Answers to packets that nobody serves: a TCP reset, or an ICMP port unreachable. Never decides who
//! deserves one.

use core::net::Ipv4Addr;

use crate::addr::Protocol;
use crate::checksum::{Checksum, Sum};
use crate::parse::{ETHERNET_LEN, Packet4, TcpFlags};

/// Room for the longest refusal: RFC 1812 section 4.3.2.3 has an ICMP error quote as much as fits into 576
/// bytes.
pub const REFUSAL_LEN_MAX: usize = ETHERNET_LEN + 576;

/// Writes the refusal of the packet that was parsed from `frame`, as an Ethernet frame back to its sender,
/// and says how long it is. None for a packet that nobody may answer with an error: a reset, or one
/// whose sender is not a single host (RFC 1122 section 3.2.2).
pub fn refuse(frame: &[u8], packet: &Packet4, out: &mut [u8; REFUSAL_LEN_MAX]) -> Option<usize> {
    if !is_single_host(packet.tuple.src) || frame.first().is_none_or(|byte| byte & 1 == 1) {
        return None;
    }
    let ip_len = match packet.tuple.protocol {
        Protocol::Tcp => reset(frame, packet, out)?,
        Protocol::Udp | Protocol::Sctp => port_unreachable(frame, packet, out)?,
    };
    out[..6].copy_from_slice(frame.get(6..12)?);
    out[6..12].copy_from_slice(frame.get(..6)?);
    out[12..14].copy_from_slice(&[0x08, 0x00]);
    Some(ETHERNET_LEN + ip_len)
}

/// RFC 9293 section 3.10.7.1: a reset for a segment that no connection has.
fn reset(frame: &[u8], packet: &Packet4, out: &mut [u8; REFUSAL_LEN_MAX]) -> Option<usize> {
    let flags = packet.tcp_flags;
    if flags.intersects(TcpFlags::RST) {
        return None;
    }
    let segment = frame.get(usize::from(packet.l4_offset)..)?.get(..usize::from(packet.l4_len))?;
    let header = segment.first_chunk::<20>()?;
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
    let tcp = &mut out[L4_OFFSET..L4_OFFSET + 20];
    tcp[..2].copy_from_slice(&packet.tuple.dst_port.wire());
    tcp[2..4].copy_from_slice(&packet.tuple.src_port.wire());
    tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
    tcp[8..12].copy_from_slice(&acknowledgement.to_be_bytes());
    tcp[12..20].copy_from_slice(&[5 << 4, reply_flags.0, 0, 0, 0, 0, 0, 0]);
    let sum = Sum::pseudo_header(packet.tuple.dst, packet.tuple.src, Protocol::Tcp, 20).bytes(tcp);
    tcp[16..18].copy_from_slice(&sum.checksum().0);
    Some(ip_header(packet, PROTOCOL_TCP, 20, out))
}

/// RFC 792: destination unreachable, port unreachable.
fn port_unreachable(frame: &[u8], packet: &Packet4, out: &mut [u8; REFUSAL_LEN_MAX]) -> Option<usize> {
    let original = frame.get(usize::from(packet.l3_offset)..)?.get(..usize::from(packet.ip_len()))?;
    let quoted = original.len().min(REFUSAL_LEN_MAX - L4_OFFSET - ICMP_HEADER_LEN);
    let icmp = &mut out[L4_OFFSET..L4_OFFSET + ICMP_HEADER_LEN + quoted];
    icmp[..ICMP_HEADER_LEN].copy_from_slice(&[UNREACHABLE, PORT, 0, 0, 0, 0, 0, 0]);
    icmp[ICMP_HEADER_LEN..].copy_from_slice(&original[..quoted]);
    let checksum = Sum::ZERO.bytes(icmp).checksum();
    icmp[2..4].copy_from_slice(&checksum.0);
    Some(ip_header(packet, PROTOCOL_ICMP, ICMP_HEADER_LEN + quoted, out))
}

/// Writes the header of a packet from where `packet` was going to where it came from; its total length.
fn ip_header(packet: &Packet4, protocol: u8, payload_len: usize, out: &mut [u8; REFUSAL_LEN_MAX]) -> usize {
    let total_len = IP_HEADER_LEN + payload_len;
    let [high, low] = u16::try_from(total_len).expect("at most 576").to_be_bytes();
    let header = &mut out[ETHERNET_LEN..L4_OFFSET];
    header[..12].copy_from_slice(&[0x45, 0, high, low, 0, 0, DONT_FRAGMENT, 0, 64, protocol, 0, 0]);
    header[12..16].copy_from_slice(&packet.tuple.dst.octets());
    header[16..20].copy_from_slice(&packet.tuple.src.octets());
    let Checksum(checksum) = Sum::ZERO.bytes(header).checksum();
    header[10..12].copy_from_slice(&checksum);
    total_len
}

/// RFC 1122 section 3.2.1.3: what can be the address of one host.
const fn is_single_host(addr: Ipv4Addr) -> bool {
    let class_e = addr.octets()[0] >= 240;
    !(addr.is_unspecified() || addr.is_multicast() || addr.is_loopback() || class_e)
}

const IP_HEADER_LEN: usize = 20;
const L4_OFFSET: usize = ETHERNET_LEN + IP_HEADER_LEN;
const ICMP_HEADER_LEN: usize = 8;
const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_TCP: u8 = 6;
const UNREACHABLE: u8 = 3;
const PORT: u8 = 3;
const DONT_FRAGMENT: u8 = 0x40;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::{Parsed, parse};
    use etherparse::{Icmpv4Type, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

    const CLIENT: [u8; 4] = [192, 0, 2, 9];
    const VIP: [u8; 4] = [10, 96, 0, 1];

    fn refused(frame: &[u8]) -> Option<Vec<u8>> {
        let Ok(Parsed::L4(packet)) = parse(frame) else { panic!("not a packet") };
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
