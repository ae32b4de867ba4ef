//! Single frames through parser, translation and refusal, without a gateway.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use flowgate_fuzz::{Feature, Rng, feature};
use flowgate_wire::reject::{IcmpError, REJECT_LEN_MAX, reject, write_icmp_error};
use flowgate_wire::{
    Address, EtherAddrs, EtherType, FiveTuple, L4Port, MacAddr, Packet, Parsed, Protocol, Translation,
};

use crate::model::checksums::judge_translation;
use crate::model::packet::{Flags, Kind, Tuple, has_extensions, hex, read};
use crate::simulation::frames::{self, Packet as Sent};
use crate::simulation::network::{Net, addr};

/// A valid frame of either family.
pub(crate) fn frame(random: &mut Rng) -> Vec<u8> {
    let v4 = random.bool();
    let [syn, ack, fin, rst] = std::array::from_fn(|_| random.bool());
    let packet = Sent {
        protocol: [Protocol::Tcp, Protocol::Udp, Protocol::Sctp][random.usize(..3)],
        src: SocketAddr::new(addr(v4, Net::Clients, random.u8(..)), random.u16(1..)),
        dst: SocketAddr::new(addr(v4, Net::Cluster, random.u8(..)), random.u16(1..)),
        flags: Flags { syn, ack, fin, rst },
        sequence: random.u32(..),
        acknowledgement: random.u32(..),
        payload_len: random.usize(..70),
    };
    frames::frame(&packet, random)
}

/// Parses and, if it is a packet of ours, does everything to it that a pipeline may do.
pub(crate) fn check(frame: &[u8]) -> Feature {
    match EtherType::of(frame) {
        Some(EtherType::Ipv4) => check_family::<Ipv4Addr>(frame, Ipv4Addr::new(192, 0, 2, 99)),
        Some(EtherType::Ipv6) => {
            check_family::<Ipv6Addr>(frame, Ipv6Addr::new(0x2001, 0xdb8, 9, 9, 9, 9, 9, 9))
        }
        other => feature(&format!("{other:?}")),
    }
}

fn check_family<A: Address>(frame: &[u8], other: A) -> Feature {
    let datagram = A::datagram(frame);
    if let Ok(datagram) = &datagram {
        assert!(usize::from(datagram.l3_offset) + usize::from(datagram.ip_len()) <= frame.len());
        for problem in [IcmpError::PortUnreachable, IcmpError::TooBig(1280), IcmpError::TimeExceeded] {
            let mut out = [0; REJECT_LEN_MAX];
            if let Some(len) = write_icmp_error(frame, datagram, problem, other, &mut out) {
                let answer = etherparse::SlicedPacket::from_ethernet(&out[..len]);
                assert!(!answer.unwrap().is_ip_payload_fragmented());
            }
        }
    }
    let parsed = A::parse(frame);
    let Ok(Parsed::L4(packet)) = &parsed else { return feature(&format!("{parsed:?} {}", datagram.is_ok())) };
    assert!(usize::from(packet.l4_offset) + usize::from(packet.l4_len) <= frame.len());
    agrees(frame, packet);
    let mut out = [0; REJECT_LEN_MAX];
    let refused = reject(frame, packet, &mut out);
    if packet.ttl > 2 {
        there_and_back(frame, packet, other);
    }
    let options = packet.l4_offset - packet.l3_offset;
    feature(&format!(
        "{} {} {} {refused:?} {options}",
        packet.tuple.protocol, packet.tcp_flags.0, packet.l4_len
    ))
}

/// Another implementation must read the same.
fn agrees<A: Address>(frame: &[u8], packet: &Packet<A>) {
    let Kind::Segment(read) = read(frame) else {
        assert!(has_extensions(frame), "only we take {}", hex(frame));
        return;
    };
    assert_eq!(read.tuple, plain(&packet.tuple));
    assert_eq!((read.ttl, read.ip_len, read.l4_at), (packet.ttl, packet.ip_len(), packet.l4_offset.into()));
}

/// A packet that is translated and then translated back is the same but for its hops.
fn there_and_back<A: Address>(frame: &[u8], packet: &Packet<A>, other: A) {
    let to = FiveTuple { src: other, src_port: L4Port::new(40_000), ..packet.tuple };
    let ether = EtherAddrs::new(MacAddr([4; 6]), MacAddr([2; 6]));
    let mut there = frame.to_vec();
    Translation::between(&packet.tuple, &to).apply(&mut there, packet, &ether);
    let Kind::Segment(segment) = read(frame) else { return };
    if let Err(what) = judge_translation(frame, &there, &segment, &plain(&to), &ether.0) {
        // A checksum that was left open stays so here: completing it is the pipeline's.
        assert!(what.contains("left open: true"), "{what}");
    }
    let Ok(Parsed::L4(moved)) = A::parse(&there) else { panic!("translated into what is no packet") };
    assert_eq!(moved.tuple, to);
    let mut back = there.clone();
    Translation::between(&to, &packet.tuple).apply(&mut back, &moved, &ether);
    let Ok(Parsed::L4(again)) = A::parse(&back) else { panic!("translated back into what is no packet") };
    assert_eq!((again.tuple, again.ttl), (packet.tuple, packet.ttl - 2));
    let payload = usize::from(packet.l4_offset) + 20;
    assert_eq!(frame.get(payload..), back.get(payload..));
}

fn plain<A: Address>(tuple: &FiveTuple<A>) -> Tuple {
    Tuple {
        protocol: tuple.protocol,
        src: SocketAddr::new(tuple.src.into(), tuple.src_port.number()),
        dst: SocketAddr::new(tuple.dst.into(), tuple.dst_port.number()),
    }
}
