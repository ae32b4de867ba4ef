//! Connections through the whole worker: what forged packets change (nothing), and what genuine ones do.
#![allow(clippy::unwrap_used, reason = "test support: a panic is the report")]

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::fragmenting::set_offset;
use crate::gateway::{CLIENT, FAB0, Gateway, UP0, World, destination, service, source, tcp, udp};
use etherparse::{IpNumber, PacketBuilder};
use flowgate_dataplane::{DropReason, Event};
use flowgate_wire::Protocol;

const VIP: &str = "10.96.0.80:80";

fn state(gateway: &Gateway) -> &'static str {
    gateway.flows.views().next().unwrap().tcp_phase.unwrap().name()
}

/// A connection with its backend and our source.
fn connected() -> (Gateway, String, String) {
    let mut gateway = Gateway::new(&World::new());
    let sent = gateway.receive(UP0, tcp(CLIENT, VIP, "S"));
    let (backend, snat) = (destination(&sent[0].1), source(&sent[0].1));
    gateway.receive(FAB0, tcp(&backend, &snat, "SA"));
    gateway.receive(UP0, tcp(CLIENT, VIP, "A"));
    assert_eq!(state(&gateway), "established");
    (gateway, backend, snat)
}

/// The frame with another checksum in its TCP header, or another sequence number and the right checksum.
fn damaged(mut frame: Vec<u8>) -> Vec<u8> {
    frame[50] ^= 0x12;
    frame
}

fn numbered(from: &str, to: &str, flags: &str, sequence: u32) -> Vec<u8> {
    let split = |text: &str| -> (Ipv4Addr, u16) {
        let (addr, port) = text.split_once(':').unwrap();
        (addr.parse().unwrap(), port.parse().unwrap())
    };
    let ((src, src_port), (dst, dst_port)) = (split(from), split(to));
    let mut builder = PacketBuilder::ethernet2([4, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 1])
        .ipv4(src.octets(), dst.octets(), 64)
        .tcp(src_port, dst_port, sequence, 8192);
    for flag in flags.chars() {
        builder = match flag {
            'A' => builder.ack(1001),
            'F' => builder.fin(),
            _ => builder.rst(),
        };
    }
    let mut frame = Vec::new();
    builder.write(&mut frame, &[]).unwrap();
    frame
}

/// A segment in two fragments: nobody on the way can verify its checksum.
fn in_fragments(frame: &[u8], id: u16) -> [Vec<u8>; 2] {
    let piece = |l4: &[u8], offset, more| {
        let mut piece = [&frame[..34], l4].concat();
        let len = u16::try_from(piece.len() - 14).unwrap();
        piece[16..18].copy_from_slice(&len.to_be_bytes());
        piece[18..20].copy_from_slice(&id.to_be_bytes());
        set_offset(&mut piece, offset, more);
        piece
    };
    [piece(&[&frame[34..54], &[0; 4]].concat(), 0, true), piece(&[0; 16], 24, false)]
}

#[test]
fn what_comes_in_fragments_ends_no_connection() {
    let (mut gateway, backend, snat) = connected();
    for (id, flags) in (1..).zip(["R", "RA", "FA"]) {
        for piece in in_fragments(&tcp(CLIENT, VIP, flags), id) {
            assert_eq!(gateway.receive(UP0, piece).len(), 1, "it is forwarded all the same");
        }
        for piece in in_fragments(&tcp(&backend, &snat, flags), id) {
            gateway.receive(FAB0, piece);
        }
        assert_eq!(state(&gateway), "established", "{flags}");
    }
}

#[test]
fn an_idle_connection_outlives_blind_storms_and_wrong_checksums() {
    let (mut gateway, backend, snat) = connected();
    for guess in 0..256_u32 {
        let sequence = (guess << 24) + 500_000;
        for flags in ["R", "RA", "FA", "F"] {
            gateway.receive(UP0, numbered(CLIENT, VIP, flags, sequence));
            gateway.receive(FAB0, numbered(&backend, &snat, flags, sequence));
        }
    }
    // With all numbers right, as from somebody who sees the connection, but damaged on the way.
    for flags in ["R", "FA"] {
        gateway.receive(UP0, damaged(tcp(CLIENT, VIP, flags)));
        gateway.receive(FAB0, damaged(tcp(&backend, &snat, flags)));
    }
    assert_eq!(state(&gateway), "established");
    let counters = gateway.counters();
    assert_eq!(counters.event(Event::ResetsIgnored), 4 * 256 + 2);
    assert_eq!(counters.event(Event::SegmentsIgnored), 4 * 256 + 2);
    // Longer than a connection that is over or half closed would stay.
    for _ in 0..4 {
        gateway.wait(Duration::from_secs(1200));
    }
    assert_eq!(gateway.receive(UP0, tcp(CLIENT, VIP, "A")).len(), 1, "it goes on");
    // The client has sent four octets.
    gateway.receive(UP0, numbered(CLIENT, VIP, "R", 1005));
    assert_eq!(state(&gateway), "reset", "and ends by a genuine reset");
}

#[test]
fn forged_packets_do_not_keep_a_connection_alive() {
    let (mut gateway, backend, snat) = connected();
    gateway.receive(UP0, tcp(CLIENT, VIP, "FA"));
    assert_eq!(state(&gateway), "half-closed");
    for _ in 0..4 {
        gateway.wait(Duration::from_secs(1000));
        gateway.receive(UP0, numbered(CLIENT, VIP, "RA", 1_000_000));
        gateway.receive(FAB0, numbered(&backend, &snat, "FA", 1_000_000));
    }
    gateway.wait(Duration::from_secs(16));
    assert_eq!(gateway.flows.used_entries(), 0, "an hour after its last genuine segment");
}

#[test]
fn a_handshake_that_is_not_acknowledged_stays_half_open() {
    let mut gateway = Gateway::new(&World::new());
    let sent = gateway.receive(UP0, tcp(CLIENT, VIP, "S"));
    let (backend, snat) = (destination(&sent[0].1), source(&sent[0].1));
    gateway.receive(FAB0, tcp(&backend, &snat, "SA"));
    gateway.receive(UP0, numbered(CLIENT, VIP, "A", 77_000_000));
    gateway.receive(UP0, damaged(tcp(CLIENT, VIP, "A")));
    assert_eq!(state(&gateway), "syn-received");
    gateway.receive(UP0, tcp(CLIENT, VIP, "A"));
    assert_eq!(state(&gateway), "established");
}

#[test]
fn a_packet_with_a_wrong_checksum_opens_nothing() {
    let mut gateway = Gateway::new(&World::new());
    assert_eq!(gateway.receive(UP0, damaged(tcp(CLIENT, VIP, "S"))), []);
    let mut datagram = udp(CLIENT, "10.96.0.53:53", b"question");
    datagram[44] ^= 1;
    assert_eq!(gateway.receive(UP0, datagram), []);
    assert_eq!(gateway.counters().dropped(DropReason::BadChecksum), 2);
    assert_eq!(gateway.flows.used_entries(), 0);
    // What a virtual device leaves to be completed is not wrong.
    let mut partial = udp(CLIENT, "10.96.0.53:53", b"question");
    let pseudo = flowgate_wire::checksum::Sum::pseudo_header(
        Ipv4Addr::new(192, 0, 2, 10),
        Ipv4Addr::new(10, 96, 0, 53),
        17,
        16,
    );
    partial[40..42].copy_from_slice(&pseudo.fold().to_ne_bytes());
    assert_eq!(gateway.receive(UP0, partial).len(), 1);
}

/// An SCTP packet with one chunk: type, flags and value. `crc` changes the checksum.
fn sctp(from: &str, to: &str, tag: u32, (kind, flags, value): (u8, u8, &[u8]), crc: u32) -> Vec<u8> {
    let frame = tcp(from, to, "S");
    let (src, dst): ([u8; 4], [u8; 4]) =
        (frame[26..30].try_into().unwrap(), frame[30..34].try_into().unwrap());
    let len = u16::try_from(4 + value.len()).unwrap().to_be_bytes();
    let mut packet = [&frame[34..38], &tag.to_be_bytes(), &[0; 4], &[kind, flags], &len, value].concat();
    let sum = crc32c::crc32c(&packet) ^ crc;
    packet[8..12].copy_from_slice(&sum.to_le_bytes());
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([4, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 1])
        .ipv4(src, dst, 64)
        .write(&mut frame, IpNumber::SCTP, &packet)
        .unwrap();
    frame
}

#[test]
fn an_association_ends_only_by_packets_with_its_tag_and_a_right_checksum() {
    let mut world = World::new();
    world.services.push(service("diameter", Protocol::Sctp, "10.96.0.84:3868", 3868, &[11]));
    let mut gateway = Gateway::new(&world);
    let vip = "10.96.0.84:3868";
    let init = |tag: u8| [&[0, 0, 0, tag][..], &[0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]].concat();
    let sent = gateway.receive(UP0, sctp(CLIENT, vip, 0, (1, 0, &init(0x11)), 0));
    let (backend, snat) = (destination(&sent[0].1), source(&sent[0].1));
    gateway.receive(FAB0, sctp(&backend, &snat, 0x11, (2, 0, &init(0x22)), 0));
    gateway.receive(UP0, sctp(CLIENT, vip, 0x22, (10, 0, b"cookie.."), 0));
    assert_eq!(state(&gateway), "established");
    let (abort, shutdown) = ((6, 0, &[][..]), (7, 0, &[0, 0, 0, 1][..]));
    for chunk in [abort, shutdown] {
        gateway.receive(UP0, sctp(CLIENT, vip, 0xdead_beef, chunk, 0));
        gateway.receive(UP0, sctp(CLIENT, vip, 0x22, chunk, 0xff));
        gateway.receive(FAB0, sctp(&backend, &snat, 0x22, chunk, 0));
        gateway.receive(FAB0, sctp(&backend, &snat, 0x11, chunk, 0xff));
    }
    assert_eq!(state(&gateway), "established");
    assert_eq!(gateway.counters().event(Event::ResetsIgnored), 4);
    gateway.receive(FAB0, sctp(&backend, &snat, 0x11, abort, 0));
    assert_eq!(state(&gateway), "reset");
}
