//! Packets that strangers send: which go no further, by which name they are counted, and which are served although they are odd.

#![allow(clippy::unwrap_used, reason = "test support: a panic is the report")]

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use crate::gateway::{CLIENT, FAB0, Gateway, UP0, World, destination, neighbour, source, tcp, udp};
use etherparse::{IpFragOffset, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, PacketBuilder};
use flowgate_dataplane::{DropReason, Event, PassReason, PipelineConfig, RejectReason, UnservedPorts};
use flowgate_tables::spec::ForwardingOff;
use flowgate_tables::{FrontendKind, InterfaceId, Tables};
use flowgate_wire::checksum::Sum;

const DNS: &str = "10.96.0.53:53";
const WEB: &str = "10.96.0.80:80";
/// A load balancer address whose clients keep theirs, and its backend.
const KEPT: &str = "203.0.113.7:80";
const KEPT_BACKEND: &str = "10.244.0.12:8080";

/// The frame with these bytes in the place of others, and a right header checksum.
fn with(mut frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    let header_len = usize::from(frame[14] & 15) * 4;
    frame[24..26].fill(0);
    let checksum = Sum::ZERO.bytes(&frame[14..14 + header_len]).checksum();
    frame[24..26].copy_from_slice(&checksum.0);
    frame
}

/// The frame with options in its IPv4 header.
fn with_options(frame: &[u8], options: &[u8]) -> Vec<u8> {
    let mut frame = [&frame[..34], options, &frame[34..]].concat();
    frame[14] = 0x45 + u8::try_from(options.len() / 4).unwrap();
    let total_len = u16::try_from(frame.len() - 14).unwrap();
    with(frame, 16, &total_len.to_be_bytes())
}

fn from(src: [u8; 4], frame: Vec<u8>) -> Vec<u8> {
    with(frame, 26, &src)
}

#[test]
fn nothing_comes_from_addresses_that_no_host_has() {
    let mut gateway = Gateway::new(&World::new());
    let martians = [
        [0, 0, 0, 0],
        [0, 1, 2, 3],
        [127, 0, 0, 1],
        [127, 9, 9, 9],
        [224, 0, 0, 5],
        [239, 255, 255, 250],
        [255, 255, 255, 255],
        [192, 0, 2, 255],
        [10, 244, 0, 255],
    ];
    let mut dropped = 0;
    for src in martians {
        let echo = ping(src.into(), [10, 96, 0, 53].into(), b"?", None);
        for frame in [
            from(src, udp(CLIENT, DNS, b"?")),
            from(src, tcp(CLIENT, WEB, "S")),
            from(src, tcp(CLIENT, KEPT, "A")),
            echo,
        ] {
            dropped += 1;
            assert!(gateway.receive(UP0, frame).is_empty(), "{src:?}");
            assert_eq!(gateway.counters().dropped(DropReason::MartianSource), dropped, "{src:?}");
        }
    }
    // Class E is forwarded, as by the kernel.
    let class_e = with(from([240, 0, 0, 1], udp(CLIENT, DNS, b"?")), 40, &[0, 0]);
    assert_eq!(gateway.receive(UP0, class_e).len(), 1);
    for src in [[192, 0, 2, 1], [10, 244, 0, 1]] {
        assert!(gateway.receive(UP0, from(src, udp(CLIENT, DNS, b"?"))).is_empty(), "{src:?}");
    }
    assert_eq!(gateway.counters().dropped(DropReason::OwnSource), 2);
    assert_eq!(gateway.flows.used_entries(), 2);
}

#[test]
fn ipv6_has_martian_sources_too() {
    let mut gateway = Gateway::new(&World::new());
    for src in [0_u128, 1, 0xff02 << 112 | 1, 0xfe80 << 112 | 1, 0xffff_c000_0201] {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([4; 6], [2; 6])
            .ipv6(src.to_be_bytes(), [0x20; 16], 64)
            .udp(4000, 53)
            .write(&mut frame, b"?")
            .unwrap();
        gateway.receive(UP0, frame);
    }
    assert_eq!(gateway.counters().dropped(DropReason::MartianSource), 5);
}

#[test]
fn source_routes_and_broken_options_are_dropped_and_other_options_forwarded_also_in_a_flow() {
    let mut gateway = Gateway::new(&World::new());
    let datagram = udp(CLIENT, DNS, b"?");
    for _ in 0..2 {
        for route in [[131, 7, 4, 10, 0, 0, 1, 0], [137, 7, 8, 10, 0, 0, 1, 0], [1, 131, 7, 4, 10, 0, 0, 1]] {
            assert!(gateway.receive(UP0, with_options(&datagram, &route)).is_empty());
        }
        for broken in [[7, 9, 4, 0], [222, 1, 0, 0], [148, 2, 0, 0]] {
            assert!(gateway.receive(UP0, with_options(&datagram, &broken)).is_empty());
        }
        for fine in [[1, 1, 1, 0], [148, 4, 0, 0], [7, 3, 4, 0]] {
            assert_eq!(gateway.receive(UP0, with_options(&datagram, &fine)).len(), 1, "{fine:?}");
        }
    }
    let counters = gateway.counters();
    assert_eq!(counters.dropped(DropReason::SourceRoute), 6);
    assert_eq!(counters.dropped(DropReason::BrokenOptions), 6);
}

#[test]
fn a_datagram_with_udp_options_goes_there_and_back_with_a_right_checksum() {
    let mut gateway = Gateway::new(&World::new());
    // RFC 9868 section 7: the checksum covers the datagram and not the four bytes behind it.
    let with_udp_options = |frame: Vec<u8>| {
        let mut frame = [&frame[..], &[0xff, 0xfb, 0, 0]].concat();
        let total_len = u16::try_from(frame.len() - 14).unwrap();
        frame[38] = 0;
        with(frame, 16, &total_len.to_be_bytes())
    };
    let sent = gateway.receive(UP0, with_udp_options(udp(CLIENT, DNS, b"data")));
    let (backend, snat) = (destination(&sent[0].1), source(&sent[0].1));
    assert_right_udp(&sent[0].1);
    assert!(sent[0].1.ends_with(&[0xff, 0xfb, 0, 0]));
    let back = gateway.receive(FAB0, with_udp_options(udp(&backend, &snat, b"answer")));
    assert_right_udp(&back[0].1);
    assert_eq!(destination(&back[0].1), CLIENT);
}

fn assert_right_udp(frame: &[u8]) {
    let len = u16::from_be_bytes([frame[38], frame[39]]);
    let sum = Sum::ZERO.bytes(&frame[26..34]).protocol(17, len).bytes(&frame[34..34 + usize::from(len)]);
    assert_eq!(sum.fold(), u16::MAX, "the checksum of the datagram");
}

#[test]
fn a_client_may_send_from_port_zero_and_gets_its_answer() {
    let mut gateway = Gateway::new(&World::new());
    let sent = gateway.receive(UP0, udp("192.0.2.10:0", DNS, b"?"));
    let (backend, snat) = (destination(&sent[0].1), source(&sent[0].1));
    assert_ne!(snat, "10.244.0.1:0");
    let back = gateway.receive(FAB0, udp(&backend, &snat, b"!"));
    assert_eq!(destination(&back[0].1), "192.0.2.10:0");
    assert_right_udp(&back[0].1);
}

/// Type and code of an ICMP error, and to whom it goes.
fn error_of(frame: &[u8]) -> (u8, u8, Ipv4Addr) {
    assert_eq!(frame[23], 1, "an ICMP message");
    (frame[34], frame[35], Ipv4Addr::new(frame[30], frame[31], frame[32], frame[33]))
}

#[test]
fn a_sender_is_told_that_no_route_leads_to_the_backend() {
    let mut world = World::new();
    world.routes.retain(|route| route.prefix.to_string() != "10.244.0.0/24");
    let mut gateway = Gateway::new(&world);
    for frame in [udp(CLIENT, DNS, b"?"), tcp(CLIENT, WEB, "S")] {
        let sent = gateway.receive(UP0, frame);
        assert_eq!((sent.len(), sent[0].0, error_of(&sent[0].1)), (1, UP0, (3, 0, [192, 0, 2, 10].into())));
    }
    assert_eq!(gateway.counters().dropped(DropReason::NoRoute), 2);
    let told = (0..300).filter(|_| !gateway.receive(UP0, udp(CLIENT, DNS, b"?")).is_empty()).count();
    // A hundred at once and one for each of the milliseconds that a packet takes here.
    assert!((98..=300).contains(&told), "{told}");
    assert_eq!(gateway.counters().event(Event::ErrorsSent), told as u64 + 2);
}

#[test]
fn a_sender_is_told_that_the_backend_does_not_answer_once_the_kernel_gave_up_and_the_packet_waited() {
    let mut world = World::new();
    world.neighbours.retain(|neighbour| neighbour.interface == 0);
    world.neighbours.extend([11, 12, 13].map(|host| neighbour(1, &format!("10.244.0.{host}"), None)));
    let mut gateway = Gateway::new(&world);
    let syn = tcp(CLIENT, WEB, "S");
    assert!(gateway.receive(UP0, syn.clone()).is_empty(), "the kernel asks");
    gateway.wait(Duration::from_secs(3));
    assert_eq!(gateway.counters().dropped(DropReason::NoNeighbour), 0);
    world.neighbours.iter_mut().filter(|spec| spec.interface == 1).for_each(|spec| spec.has_failed = true);
    gateway.publish(&world);
    let told = gateway.wait(Duration::ZERO);
    let [(UP0, told)] = &told[..] else { panic!("{told:?}") };
    // RFC 1812 section 5.2.7.1: type 3, code 1, with the packet as it came.
    assert_eq!((&told[34..36], &told[42..62]), (&[3, 1][..], &syn[14..34]));
    // The backend may be back: an earlier failure is not held against the next packet.
    assert!(gateway.receive(UP0, syn).is_empty());
    gateway.publish(&world);
    assert!(gateway.wait(Duration::ZERO).is_empty(), "it has not waited for long");
    assert_eq!(gateway.wait(Duration::from_secs(4)).len(), 1, "it has");
    let counters = gateway.counters();
    assert_eq!((counters.dropped(DropReason::NoNeighbour), counters.event(Event::ErrorsSent)), (2, 2));
}

#[test]
fn a_packet_to_a_neighbour_of_which_the_kernel_knows_nothing_is_dropped_in_silence() {
    let mut world = World::new();
    world.neighbours.retain(|neighbour| neighbour.interface == 0);
    let mut gateway = Gateway::new(&world);
    gateway.receive(UP0, tcp(CLIENT, WEB, "S"));
    assert!(gateway.wait(Duration::from_secs(4)).is_empty());
    assert_eq!(gateway.counters().dropped(DropReason::NoNeighbour), 1);
}

#[test]
fn what_no_service_has_on_a_vip_is_dropped_or_rejected_or_the_kernels_by_choice() {
    let strangers = || {
        let gre = with(tcp(CLIENT, KEPT, "A"), 23, &[47]);
        let echo = ping([192, 0, 2, 10].into(), [203, 0, 113, 7].into(), b"?", None);
        [
            udp(CLIENT, "203.0.113.7:9", b"?"),
            tcp(CLIENT, "203.0.113.7:81", "S"),
            tcp(CLIENT, "203.0.113.7:81", "A"),
            gre,
            echo,
        ]
    };
    let outcome = |unserved_ports| {
        let config = PipelineConfig { unserved_ports, ..PipelineConfig::default() };
        let mut gateway = Gateway::with_config(&World::new(), config);
        let sent: Vec<usize> = strangers().map(|frame| gateway.receive(UP0, frame).len()).to_vec();
        let counters = gateway.counters();
        let passed = PassReason::ALL.iter().map(|reason| counters.passed(*reason)).sum::<u64>();
        let dropped = counters.dropped(DropReason::UnservedPort);
        (sent, dropped, counters.rejected(RejectReason::UnknownPort), passed)
    };
    assert_eq!(outcome(UnservedPorts::Drop), (vec![0; 5], 5, 0, 0));
    assert_eq!(outcome(UnservedPorts::Reject), (vec![1, 1, 1, 0, 0], 2, 3, 0));
    assert_eq!(outcome(UnservedPorts::Pass), (vec![0; 5], 0, 0, 5));
}

#[test]
fn a_vip_that_is_an_address_of_the_node_keeps_its_other_ports() {
    let mut world = World::new();
    world.interfaces[0].addresses.push("203.0.113.7".parse().unwrap());
    let mut gateway = Gateway::new(&world);
    gateway.receive(UP0, tcp(CLIENT, "203.0.113.7:22", "S"));
    assert_eq!(gateway.counters().passed(PassReason::NotOurs), 1);
    assert_eq!(gateway.receive(UP0, tcp(CLIENT, KEPT, "S")).len(), 1, "and its Service's port");
}

#[test]
fn what_a_kept_address_backend_sends_is_routed_only_from_its_own_link() {
    let world = World::new();
    let mut gateway = Gateway::new(&world);
    let other = || tcp(KEPT_BACKEND, "198.51.100.7:6000", "SA");
    assert_eq!(gateway.receive(FAB0, other()).len(), 1);
    assert!(gateway.receive(UP0, other()).is_empty(), "from the clients' side");
    assert_eq!(gateway.counters().dropped(DropReason::WrongInterface), 1);
    // Neither to a group nor to all hosts of a link.
    for to in ["224.0.0.5:6000", "255.255.255.255:6000", "192.0.2.255:6000", "127.0.0.1:6000"] {
        gateway.receive(FAB0, tcp(KEPT_BACKEND, to, "SA"));
    }
    assert_eq!(gateway.counters().dropped(DropReason::NotForwarded), 4);
    // Where the kernel does not forward, nor do we.
    let off = ForwardingOff { interface: 1, v4: true };
    let tables = world.tables(&Tables::empty());
    let routing = Arc::new((*tables.routing).clone().with_forwarding_off(&[off]));
    gateway.publish_tables(Tables { routing, ..tables });
    assert!(gateway.receive(FAB0, other()).is_empty());
    assert_eq!(gateway.counters().dropped(DropReason::NotForwarded), 5);
}

#[test]
fn a_reply_to_a_kept_client_counts_only_from_the_backends_link() {
    let mut gateway = Gateway::new(&World::new());
    let sent = gateway.receive(UP0, tcp(CLIENT, KEPT, "S"));
    assert_eq!(source(&sent[0].1), CLIENT);
    assert!(gateway.receive(UP0, tcp(KEPT_BACKEND, CLIENT, "SA")).is_empty(), "forged by a client");
    assert_eq!(gateway.counters().dropped(DropReason::WrongInterface), 1);
    assert_eq!(source(&gateway.receive(FAB0, tcp(KEPT_BACKEND, CLIENT, "SA"))[0].1), KEPT);
    gateway.receive(UP0, tcp(CLIENT, KEPT, "A"));
    for flags in ["RA", "FA", "A"] {
        assert!(gateway.receive(UP0, tcp(KEPT_BACKEND, CLIENT, flags)).is_empty(), "{flags}");
    }
    assert_eq!(gateway.counters().dropped(DropReason::WrongInterface), 4);
    assert_eq!(gateway.flows.views().next().unwrap().tcp_phase.unwrap().name(), "established");
    assert_eq!(gateway.receive(FAB0, tcp(KEPT_BACKEND, CLIENT, "A")).len(), 1);
    // Where a route has several ways, a reply may take any of them.
    let mut world = World::new();
    let mut both = world.routes[1].clone();
    both.hops.push(world.routes[0].hops[0]);
    world.routes[1] = both;
    gateway.publish(&world);
    assert_eq!(gateway.receive(UP0, tcp(KEPT_BACKEND, CLIENT, "A")).len(), 1);
}

/// An echo request; with a fragment offset in units of 8 bytes and "more fragments", the part that `payload` is.
fn ping(src: Ipv4Addr, dst: Ipv4Addr, payload: &[u8], part: Option<(u16, bool)>) -> Vec<u8> {
    let mut ip = Ipv4Header::new(0, 64, IpNumber::ICMP, src.octets(), dst.octets()).unwrap();
    let mut message = payload.to_vec();
    if let Some((offset, more)) = part {
        ip.identification = 7;
        ip.dont_fragment = false;
        ip.more_fragments = more;
        ip.fragment_offset = IpFragOffset::try_new(offset).unwrap();
    } else {
        message = echo_message(payload);
    }
    let builder = PacketBuilder::ethernet2([4, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 1]);
    let mut frame = Vec::new();
    builder
        .ip(IpHeaders::Ipv4(ip, Ipv4Extensions::default()))
        .write(&mut frame, IpNumber::ICMP, &message)
        .unwrap();
    frame
}

fn echo_message(data: &[u8]) -> Vec<u8> {
    let mut message = [&[8, 0, 0, 0, 0x12, 0x34, 0, 1], data].concat();
    let checksum = Sum::ZERO.bytes(&message).checksum();
    message[2..4].copy_from_slice(&checksum.0);
    message
}

#[test]
fn a_ping_in_fragments_is_answered_in_fragments_in_whatever_order_they_come() {
    let config = PipelineConfig { echo_vips: true, ..PipelineConfig::default() };
    let data: Vec<u8> = (0..200).collect();
    let message = echo_message(&data);
    let (client, vip) = (Ipv4Addr::new(192, 0, 2, 10), Ipv4Addr::new(10, 96, 0, 80));
    let parts = [(0, 80, true), (80, 160, true), (160, message.len(), false)];
    let frame = |(start, end, more): (usize, usize, bool)| {
        ping(client, vip, &message[start..end], Some((u16::try_from(start / 8).unwrap(), more)))
    };
    for order in [[0, 1, 2], [2, 0, 1], [1, 2, 0]] {
        let mut gateway = Gateway::with_config(&World::new(), config);
        let sent: Vec<_> = order.iter().flat_map(|n| gateway.receive(UP0, frame(parts[*n]))).collect();
        assert_eq!(sent.len(), 3, "{order:?}: {}", gateway.story());
        let mut answer = vec![0; message.len()];
        for (by, frame) in sent {
            assert_eq!(by, UP0);
            assert_eq!((&frame[26..30], &frame[30..34]), (&vip.octets()[..], &client.octets()[..]));
            assert_eq!(Sum::ZERO.bytes(&frame[14..34]).fold(), u16::MAX, "the header checksum");
            let at = usize::from(u16::from_be_bytes([frame[20], frame[21]]) & 0x1fff) * 8;
            let len = usize::from(u16::from_be_bytes([frame[16], frame[17]])) - 20;
            answer[at..at + len].copy_from_slice(&frame[34..34 + len]);
        }
        assert_eq!((answer[0], Sum::ZERO.bytes(&answer).fold()), (0, u16::MAX));
        assert_eq!(answer[4..], message[4..]);
        assert_eq!(gateway.counters().event(Event::EchoesAnswered), 1);
    }
    // Fragments of another message are not reflected.
    let mut gateway = Gateway::with_config(&World::new(), config);
    let mut other = message.clone();
    other[0] = 13;
    assert!(gateway.receive(UP0, ping(client, vip, &other[..80], Some((0, true)))).is_empty());
    assert!(gateway.receive(UP0, frame(parts[1])).is_empty());
}

#[test]
fn a_priority_tag_is_no_vlan() {
    let mut gateway = Gateway::new(&World::new());
    let tagged = |kind: [u8; 2], control: u16, frame: &[u8]| {
        [&frame[..12], &kind, &control.to_be_bytes(), &frame[12..]].concat()
    };
    let whole = tcp(CLIENT, WEB, "S");
    let plain = gateway.receive(UP0, whole.clone());
    for frame in [
        tagged([0x81, 0], 0x6000, &whole),
        tagged([0x88, 0xa8], 0, &whole),
        tagged([0x81, 0], 0, &tagged([0x81, 0], 0x2000, &whole)),
    ] {
        assert_eq!(gateway.receive(UP0, frame), plain, "the same way out, without a tag");
    }
    assert!(gateway.receive(UP0, tagged([0x81, 0], 5, &whole)).is_empty());
    assert_eq!(gateway.counters().passed(PassReason::NotIp), 1);
    assert_eq!(plain[0].0, InterfaceId(1));
}

#[test]
fn a_node_port_is_no_vip() {
    let mut world = World::new();
    world.services[0].frontends.retain(|frontend| frontend.kind == FrontendKind::NodePort);
    let mut gateway = Gateway::new(&world);
    gateway.receive(UP0, tcp(CLIENT, "192.0.2.1:22", "S"));
    assert_eq!(gateway.counters().passed(PassReason::NotOurs), 1);
}
