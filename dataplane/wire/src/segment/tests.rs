use core::net::{Ipv4Addr, Ipv6Addr};

use etherparse::{PacketBuilder, TcpHeader};
use proptest::prelude::*;

use super::*;
use crate::parse::Parsed;

fn packet<A: Address>(frame: &[u8]) -> Packet<A> {
    match A::parse(frame) {
        Ok(Parsed::L4(packet)) => packet,
        other => panic!("{other:?}"),
    }
}

fn tcp(header: TcpHeader, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2([1; 6], [2; 6]).ipv4([192, 0, 2, 1], [10, 0, 0, 1], 64);
    builder.tcp_header(header).write(&mut frame, payload).unwrap();
    frame
}

fn read(frame: &[u8]) -> TcpSegment {
    packet::<Ipv4Addr>(frame).tcp_segment(frame)
}

/// A SYN with these options.
fn scale_of(options: &[u8]) -> Option<u8> {
    let mut header = TcpHeader::new(1000, 80, 7, 512);
    header.syn = true;
    header.set_options_raw(options).unwrap();
    read(&tcp(header, &[])).window_scale
}

#[test]
fn a_segment_has_the_numbers_of_its_header_and_syn_and_fin_occupy_one_each() {
    let mut header = TcpHeader::new(1000, 80, u32::MAX, 512);
    header.acknowledgment_number = 99;
    header.ack = true;
    let segment = read(&tcp(header.clone(), b"hello"));
    assert_eq!((segment.sequence, segment.end, segment.acknowledgement), (u32::MAX, 4, 99));
    assert_eq!((segment.window, segment.window_scale), (512, None));
    header.fin = true;
    assert_eq!(read(&tcp(header.clone(), b"hello")).end, 5);
    header.syn = true;
    assert_eq!(read(&tcp(header, b"")).end, 1);
}

#[test]
fn a_window_scale_is_found_behind_other_options_and_is_at_most_fourteen() {
    assert_eq!(scale_of(&[2, 4, 5, 0xb4, 1, 3, 3, 7]), Some(7));
    assert_eq!(scale_of(&[3, 3, 0, 0]), Some(0));
    assert_eq!(scale_of(&[1, 3, 3, 200]), Some(14));
    for broken in [&[3, 4, 7, 0][..], &[0, 3, 3, 7], &[1, 1, 3, 3], &[8, 0, 3, 3, 7, 0, 0, 0], &[]] {
        assert_eq!(scale_of(broken), None, "{broken:?}");
    }
}

/// An SCTP packet of these chunks: type, flags and value.
fn sctp(tag: u32, chunks: &[(u8, u8, &[u8])]) -> Option<SctpPacket> {
    let mut packet = [&[0x10, 0, 0, 80][..], &tag.to_be_bytes(), &[0; 4]].concat();
    for (kind, flags, value) in chunks {
        packet.extend([*kind, *flags]);
        packet.extend(u16::try_from(4 + value.len()).unwrap().to_be_bytes());
        packet.extend(*value);
        packet.resize(packet.len().next_multiple_of(4), 0);
    }
    sctp::read(&packet)
}

#[test]
fn every_chunk_of_an_sctp_packet_counts() {
    let (syn, ack) = (TcpFlags::SYN, TcpFlags::ACK);
    let read = sctp(0, &[(1, 0, &[0, 0, 0, 9])]).unwrap();
    assert_eq!((read.flags, read.tag, read.initiate_tag), (syn, 0, 9));
    let read = sctp(9, &[(2, 0, &[0, 0, 0, 8])]).unwrap();
    assert_eq!((read.flags, read.initiate_tag), (syn.union(ack), 8));
    // A SACK with a SHUTDOWN behind it, and an ABORT behind an ERROR whose value is padded.
    assert_eq!(sctp(8, &[(3, 0, &[0; 12]), (7, 0, &[0; 4])]).unwrap().flags, TcpFlags::FIN.union(ack));
    let read = sctp(8, &[(9, 0, &[0; 5]), (6, 1, &[])]).unwrap();
    assert_eq!((read.flags, read.is_tag_reflected), (TcpFlags::RST.union(ack), true));
    let read = sctp(8, &[(10, 0, b"cookie"), (0, 0, &[0; 12])]).unwrap();
    assert_eq!((read.flags, read.echoes_cookie, read.is_tag_reflected), (ack, true, false));
    // An INIT with a tag, or that announces none, opens nothing.
    assert_eq!(sctp(1, &[(1, 0, &[0, 0, 0, 9])]).unwrap().flags, ack);
    assert_eq!(sctp(0, &[(1, 0, &[0, 0, 0, 0])]).unwrap().flags, ack);
    // An INIT stands alone: one behind another chunk is none.
    assert_eq!(sctp(8, &[(3, 0, &[0; 12]), (1, 0, &[0, 0, 0, 9])]).unwrap().flags, ack);
    assert_eq!(sctp(8, &[]), None);
}

#[test]
fn a_list_of_chunks_with_a_length_of_zero_ends() {
    let mut packet = vec![0; 12];
    packet.extend([0, 0, 0, 0, 6, 0, 0, 4]);
    assert_eq!(sctp::read(&packet).unwrap().flags, TcpFlags::ACK);
}

proptest! {
    /// Any flipped bit of segment or addresses is found, by one's complement or by CRC.
    #[test]
    fn a_damaged_packet_has_a_wrong_checksum(payload in proptest::collection::vec(any::<u8>(), 0..200), bit in 0..8_u8, at in any::<proptest::sample::Index>(), protocol in 0..3_u8) {
        let builder = PacketBuilder::ethernet2([1; 6], [2; 6]).ipv6([1; 16], [2; 16], 64);
        let mut frame = Vec::new();
        match protocol {
            0 => builder.tcp(1000, 80, 7, 512).write(&mut frame, &payload).unwrap(),
            1 => builder.udp(1000, 80).write(&mut frame, &payload).unwrap(),
            _ => {
                let abort = sctp::abort([crate::L4Port::new(1000), crate::L4Port::new(80)], [1, 2, 3, 4]);
                builder.write(&mut frame, etherparse::IpNumber::SCTP, &abort).unwrap();
            }
        }
        let parsed = packet::<Ipv6Addr>(&frame);
        prop_assert_eq!(parsed.checksum_state(&frame), ChecksumState::Right);
        // Not the bytes that say how long the header is, and what else parsing depends on.
        let first = match protocol { 0 => 54 + 14, 1 => 54 + 6, _ => 54 + 4 };
        let at = first + at.index(frame.len() - first);
        frame[at] ^= 1 << bit;
        let damaged = packet::<Ipv6Addr>(&frame);
        let state = damaged.checksum_state(&frame);
        let is_left_open = state == ChecksumState::Partial || state == ChecksumState::Absent;
        prop_assert!(state == ChecksumState::Wrong || is_left_open, "{:?}", state);
    }
}

#[test]
fn checksums_that_were_left_open_are_told_from_wrong_ones() {
    let mut header = TcpHeader::new(1000, 80, 7, 512);
    header.rst = true;
    let mut frame = tcp(header, &[]);
    let parsed = packet::<Ipv4Addr>(&frame);
    let pseudo = Sum::pseudo_header(parsed.tuple.src, parsed.tuple.dst, 6, parsed.l4_len).fold();
    frame[50..52].copy_from_slice(&pseudo.to_ne_bytes());
    assert_eq!(packet::<Ipv4Addr>(&frame).checksum_state(&frame), ChecksumState::Partial);
    frame[50..52].copy_from_slice(&[0x12, 0x34]);
    assert_eq!(packet::<Ipv4Addr>(&frame).checksum_state(&frame), ChecksumState::Wrong);
    let mut datagram = Vec::new();
    let builder = PacketBuilder::ethernet2([1; 6], [2; 6]).ipv4([192, 0, 2, 1], [10, 0, 0, 1], 64);
    builder.udp(1000, 53).write(&mut datagram, b"question").unwrap();
    datagram[40..42].copy_from_slice(&[0, 0]);
    assert_eq!(packet::<Ipv4Addr>(&datagram).checksum_state(&datagram), ChecksumState::Absent);
    let mut init = [&[0x10, 0, 0, 80][..], &[0; 8], &[1, 0, 0, 8, 0, 0, 0, 9]].concat();
    assert_eq!(sctp::checksum_state(&init), ChecksumState::Partial);
    init[8] = 1;
    assert_eq!(sctp::checksum_state(&init), ChecksumState::Wrong);
}
