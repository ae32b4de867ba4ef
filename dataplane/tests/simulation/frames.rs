//! Frames as hosts of the simulated network send them: right most of the time.

use std::net::{IpAddr, SocketAddr};

use etherparse::PacketBuilder;
use fastrand::Rng;
use flowgate_wire::Protocol;

use crate::model::packet::{Flags, sum};

/// What a host sends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet {
    pub(crate) protocol: Protocol,
    pub(crate) src: SocketAddr,
    pub(crate) dst: SocketAddr,
    pub(crate) flags: Flags,
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    pub(crate) payload_len: usize,
}

/// The frame of a packet.
pub(crate) fn frame(packet: &Packet, random: &mut Rng) -> Vec<u8> {
    let (IpAddr::V4(src), IpAddr::V4(dst)) = (packet.src.ip(), packet.dst.ip()) else {
        panic!("one family, and that is IPv4")
    };
    let ttl = if random.u8(..50) == 0 { random.u8(0..3) } else { random.u8(2..=255) };
    let mut ip =
        etherparse::Ipv4Header::new(0, ttl, etherparse::IpNumber::UDP, src.octets(), dst.octets()).unwrap();
    ip.identification = random.u16(..);
    ip.dont_fragment = random.bool();
    if random.u8(..40) == 0 {
        // No operation, no operation, no operation, end of options (RFC 791 section 3.1).
        ip.options = [1, 1, 1, 0].into();
    }
    let builder = PacketBuilder::ethernet2([4, 0, 0, 0, 0, src.octets()[3]], [2, 0, 0, 0, 0, 1])
        .ip(etherparse::IpHeaders::Ipv4(ip, etherparse::Ipv4Extensions::default()));
    let payload = vec![random.u8(..); packet.payload_len];
    let mut frame = Vec::new();
    let (src, dst) = (packet.src.port(), packet.dst.port());
    if packet.protocol == Protocol::Tcp {
        let mut tcp = etherparse::TcpHeader::new(src, dst, packet.sequence, random.u16(..));
        let Flags { syn, ack, fin, rst } = packet.flags;
        (tcp.syn, tcp.ack, tcp.fin, tcp.rst) = (syn, ack, fin, rst);
        tcp.acknowledgment_number = packet.acknowledgement;
        builder.tcp_header(tcp).write(&mut frame, &payload).unwrap();
    } else {
        builder.udp(src, dst).write(&mut frame, &payload).unwrap();
    }
    spoil(&mut frame, packet.protocol, random);
    frame
}

/// What links and careless hosts do to a frame.
fn spoil(frame: &mut Vec<u8>, protocol: Protocol, random: &mut Rng) {
    let l4_at = 14 + usize::from(frame[14] & 15) * 4;
    let at = l4_at + if protocol == Protocol::Tcp { 16 } else { 6 };
    match random.u8(..30) {
        0 => frame[at] ^= 1 << random.u8(..8),
        1 => frame[24] ^= 1 << random.u8(..8),
        2 if protocol == Protocol::Udp => frame[at..at + 2].fill(0),
        3 | 4 => leave_open(frame, l4_at, at),
        5 => frame[l4_at + 8..].iter_mut().for_each(|byte| *byte ^= random.u8(..)),
        _ => {}
    }
    if frame.len() < 60 && random.bool() {
        // IEEE 802.3: padded to the least length.
        frame.resize(60, random.u8(..));
    }
}

/// Leaves the transport checksum to a device that does not exist, as a virtual interface does.
fn leave_open(frame: &mut [u8], l4_at: usize, at: usize) {
    let mut pseudo = frame[26..34].to_vec();
    pseudo.extend([0, frame[23]]);
    pseudo.extend(u16::try_from(frame.len() - l4_at).unwrap().to_be_bytes());
    frame[at..at + 2].copy_from_slice(&sum(&pseudo).to_be_bytes());
}
