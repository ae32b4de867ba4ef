//! Control messages through the whole worker: errors about packets of flows in both directions and families, echo
//! requests, errors of our own, and segment sizes.
//!
//! What comes out is compared with what another implementation builds from the addresses that must be in it.

#![allow(clippy::unwrap_used, reason = "test support: a panic is the report")]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::gateway::{FAB0, Gateway, UP0, World, neighbour, route, service};
use etherparse::icmpv4::{DestUnreachableHeader, TimeExceededCode};
use etherparse::{
    IcmpEchoHeader, Icmpv4Type, Icmpv6Type, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, PacketBuilder,
    PacketBuilderStep, icmpv6,
};
use flowgate_dataplane::{DropReason, Event, MssClamp, PassReason, PipelineConfig};
use flowgate_tables::spec::{EndpointSpec, ServiceSpec};
use flowgate_tables::{FrontendKind, InterfaceId, SourceNat};
use flowgate_wire::{L4Port, Protocol};

const CLIENT: &str = "192.0.2.10:1234";
const CLIENT6: &str = "[2001:db8:1::10]:1234";
const VIP: &str = "10.96.0.53:53";
const VIP6: &str = "[fd00:96::53]:53";
const CORE: &str = "198.51.100.99";
const CORE6: &str = "2001:db8:ffff::99";

/// The usual world with IPv6 beside IPv4, and a Service of both that keeps its clients.
fn world() -> World {
    let mut world = World::new();
    world.interfaces[0].addresses.extend([ip("fe80::1"), ip("2001:db8:1::1")]);
    world.interfaces[1].addresses.extend([ip("fe80::2"), ip("fd00:244::1")]);
    world.routes.extend([
        route("2001:db8:1::/64", 0, None),
        route("2001:db8:ffff::/48", 0, Some("2001:db8:1::10")),
        route("fd00:244::/64", 1, None),
    ]);
    world.neighbours.extend([
        neighbour(0, "2001:db8:1::10", Some(10)),
        neighbour(1, "fd00:244::11", Some(11)),
        neighbour(1, "fd00:244::12", Some(12)),
    ]);
    world.services.extend([
        service6("dns6", Protocol::Udp, VIP6, "[fd00:244::11]:5353"),
        service6("web6", Protocol::Tcp, "[fd00:96::80]:80", "[fd00:244::11]:8080"),
        kept("kept-dns", "203.0.113.53:53", "10.244.0.11:5353"),
        kept("kept-dns6", "[fd00:113::53]:53", "[fd00:244::12]:5353"),
    ]);
    world
}

fn service6(name: &str, protocol: Protocol, vip: &str, backend: &str) -> ServiceSpec {
    let (vip, backend) = (at(vip), at(backend));
    let mut spec = service(name, protocol, "10.0.0.1:1", 1, &[]);
    (spec.frontends[0].addr, spec.frontends[0].port) = (vip.ip(), L4Port::new(vip.port()));
    spec.endpoint_sets[0] =
        vec![EndpointSpec { addr: backend.ip(), port: L4Port::new(backend.port()), weight: 1 }];
    spec
}

fn kept(name: &str, vip: &str, backend: &str) -> ServiceSpec {
    let mut spec = service6(name, Protocol::Udp, vip, backend);
    let frontend = &mut spec.frontends[0];
    frontend.kind = FrontendKind::LoadBalancer;
    frontend.policies = frontend
        .policies
        .map(|t| flowgate_tables::spec::TrafficPolicySpec { source_nat: SourceNat::PreserveClient, ..*t });
    spec
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn header(src: IpAddr, dst: IpAddr, hops: u8) -> PacketBuilderStep<IpHeaders> {
    let builder = PacketBuilder::ethernet2([4, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 1]);
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut header = Ipv4Header::new(0, hops, IpNumber::UDP, src.octets(), dst.octets()).unwrap();
            header.dont_fragment = true;
            builder.ip(IpHeaders::Ipv4(header, Ipv4Extensions::default()))
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => builder.ipv6(src.octets(), dst.octets(), hops),
        mixed => panic!("{mixed:?}"),
    }
}

fn udp(src: SocketAddr, dst: SocketAddr, hops: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    header(src.ip(), dst.ip(), hops).udp(src.port(), dst.port()).write(&mut frame, payload).unwrap();
    frame
}

fn tcp(src: SocketAddr, dst: SocketAddr, hops: u8, flags: &str, payload: &[u8]) -> Vec<u8> {
    let mut builder = header(src.ip(), dst.ip(), hops).tcp(src.port(), dst.port(), 1000, 8192);
    for flag in flags.chars() {
        builder = if flag == 'S' { builder.syn() } else { builder.ack(1001) };
    }
    if flags.contains('S') {
        builder = builder.options(&[etherparse::TcpOptionElement::MaximumSegmentSize(1460)]).unwrap();
    }
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Unreachable,
    TooBig(u16),
    TimeExceeded,
}

const KINDS: [Kind; 3] = [Kind::Unreachable, Kind::TooBig(1400), Kind::TimeExceeded];

/// An error about the packet of `original`, of which `quoted` bytes are there.
fn error([src, dst]: [IpAddr; 2], hops: u8, kind: Kind, original: &[u8], quoted: usize) -> Vec<u8> {
    let quote = &original[14..(14 + quoted).min(original.len())];
    let builder = header(src, dst, hops);
    let mut frame = Vec::new();
    if src.is_ipv4() {
        let kind = match kind {
            Kind::Unreachable => Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port),
            Kind::TooBig(next_hop_mtu) => {
                Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded {
                    next_hop_mtu,
                })
            }
            Kind::TimeExceeded => Icmpv4Type::TimeExceeded(TimeExceededCode::TtlExceededInTransit),
        };
        builder.icmpv4(kind).write(&mut frame, quote).unwrap();
    } else {
        let kind = match kind {
            Kind::Unreachable => Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Port),
            Kind::TooBig(mtu) => Icmpv6Type::PacketTooBig { mtu: u32::from(mtu) },
            Kind::TimeExceeded => Icmpv6Type::TimeExceeded(icmpv6::TimeExceededCode::HopLimitExceeded),
        };
        builder.icmpv6(kind).write(&mut frame, quote).unwrap();
    }
    frame
}

/// Source and destination of a frame with ports.
fn ends(frame: &[u8]) -> (SocketAddr, SocketAddr) {
    let sliced = etherparse::SlicedPacket::from_ethernet(frame).unwrap();
    let (src, dst) = match sliced.net.unwrap() {
        etherparse::NetSlice::Ipv4(ip) => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into())
        }
        etherparse::NetSlice::Ipv6(ip) => {
            (IpAddr::V6(ip.header().source_addr()), IpAddr::V6(ip.header().destination_addr()))
        }
        other => panic!("{other:?}"),
    };
    let (src_port, dst_port) = match sliced.transport.unwrap() {
        etherparse::TransportSlice::Udp(udp) => (udp.source_port(), udp.destination_port()),
        etherparse::TransportSlice::Tcp(tcp) => (tcp.source_port(), tcp.destination_port()),
        other => panic!("{other:?}"),
    };
    (SocketAddr::new(src, src_port), SocketAddr::new(dst, dst_port))
}

/// A flow: the client, the VIP, and what stands for both behind the gateway.
#[derive(Clone, Copy, Debug)]
struct Known {
    client: SocketAddr,
    vip: SocketAddr,
    seen: SocketAddr,
    backend: SocketAddr,
}

fn open(gateway: &mut Gateway, client: &str, vip: &str) -> Known {
    let (client, vip) = (at(client), at(vip));
    let sent = gateway.receive(UP0, udp(client, vip, 64, b"question"));
    let (seen, backend) = ends(&sent[0].1);
    Known { client, vip, seen, backend }
}

/// The one frame that comes out, by `egress`, without its Ethernet addresses.
fn comes_out(gateway: &mut Gateway, by: InterfaceId, frame: Vec<u8>, egress: InterfaceId) -> Vec<u8> {
    let sent = gateway.receive(by, frame);
    assert_eq!(sent.len(), 1, "{}", gateway.story());
    assert_eq!(sent[0].0, egress);
    sent[0].1[12..].to_vec()
}

fn count(gateway: &Gateway, event: Event) -> u64 {
    gateway.worker.state().counters.read().event(event)
}

fn dropped(gateway: &Gateway, reason: DropReason) -> u64 {
    gateway.worker.state().counters.read().dropped(reason)
}

fn with(config: PipelineConfig, world: &World) -> Gateway {
    Gateway::with_config(world, config)
}

#[test]
fn an_error_from_behind_reaches_the_client_with_the_packet_that_it_sent() {
    for (client, vip) in
        [(CLIENT, VIP), (CLIENT6, VIP6), (CLIENT, "203.0.113.53:53"), (CLIENT6, "[fd00:113::53]:53")]
    {
        let mut gateway = Gateway::new(&world());
        let Known { client, vip, seen, backend } = open(&mut gateway, client, vip);
        for kind in KINDS {
            for (router, quoted) in [(backend.ip(), 1000), (backend.ip(), 48)] {
                let was = udp(seen, backend, 61, b"question");
                let original = udp(client, vip, 61, b"question");
                let error_in = error([router, seen.ip()], 60, kind, &was, quoted);
                let out = comes_out(&mut gateway, FAB0, error_in, UP0);
                assert_eq!(
                    out,
                    error([vip.ip(), client.ip()], 59, kind, &original, quoted)[12..],
                    "{kind:?}"
                );
            }
        }
        assert_eq!(count(&gateway, Event::IcmpErrorsTranslated), 6);
    }
}

#[test]
fn an_error_from_before_reaches_the_backend_with_the_packet_that_it_sent() {
    for (client, vip, router) in [(CLIENT, VIP, CORE), (CLIENT6, VIP6, CORE6)] {
        let mut gateway = Gateway::new(&world());
        let Known { client, vip, seen, backend } = open(&mut gateway, client, vip);
        for kind in KINDS {
            let was = udp(vip, client, 61, b"answer");
            let original = udp(backend, seen, 61, b"answer");
            let error_in = error([ip(router), vip.ip()], 60, kind, &was, 1000);
            let out = comes_out(&mut gateway, UP0, error_in, FAB0);
            assert_eq!(out, error([seen.ip(), backend.ip()], 59, kind, &original, 1000)[12..], "{kind:?}");
        }
    }
}

#[test]
fn a_backend_that_sees_its_clients_sees_their_routers_too() {
    for (client, vip, router) in [(CLIENT, "203.0.113.53:53", CORE), (CLIENT6, "[fd00:113::53]:53", CORE6)] {
        let mut gateway = Gateway::new(&world());
        let Known { client, vip, seen, backend } = open(&mut gateway, client, vip);
        assert_eq!(seen, client);
        let was = udp(vip, client, 61, b"answer");
        let original = udp(backend, client, 61, b"answer");
        let error_in = error([ip(router), vip.ip()], 60, Kind::TooBig(1400), &was, 1000);
        let out = comes_out(&mut gateway, UP0, error_in, FAB0);
        assert_eq!(out, error([ip(router), backend.ip()], 59, Kind::TooBig(1400), &original, 1000)[12..]);
    }
}

#[test]
fn errors_about_a_connection_carry_its_checksum_as_far_as_they_quote_it() {
    let mut gateway = Gateway::new(&world());
    for (client, vip) in [(CLIENT, "10.96.0.80:80"), (CLIENT6, "[fd00:96::80]:80")] {
        let (client, vip) = (at(client), at(vip));
        let sent = gateway.receive(UP0, tcp(client, vip, 64, "S", b""));
        let (seen, backend) = ends(&sent[0].1);
        let header_len = if client.is_ipv4() { 20 } else { 40 };
        for l4_len in [8, 12, 18, 20, 100] {
            let (was, original) =
                (tcp(seen, backend, 9, "A", &[7; 300]), tcp(client, vip, 9, "A", &[7; 300]));
            let quoted = header_len + l4_len;
            let out = comes_out(
                &mut gateway,
                FAB0,
                error([backend.ip(), seen.ip()], 64, Kind::TooBig(1280), &was, quoted),
                UP0,
            );
            let wanted = error([vip.ip(), client.ip()], 63, Kind::TooBig(1280), &original, quoted);
            assert_eq!(out, wanted[12..], "{l4_len}");
        }
    }
}

#[test]
fn an_error_changes_nothing_of_its_flow() {
    let mut gateway = Gateway::new(&world());
    let Known { seen, backend, .. } = open(&mut gateway, CLIENT, VIP);
    let before = gateway.flows.views().next().unwrap();
    gateway.wait(Duration::from_secs(5));
    gateway.receive(
        FAB0,
        error([backend.ip(), seen.ip()], 64, Kind::Unreachable, &udp(seen, backend, 9, b"x"), 100),
    );
    let after = gateway.flows.views().next().unwrap();
    assert_eq!(count(&gateway, Event::IcmpErrorsTranslated), 1);
    assert_eq!(
        (before.last_seen, before.packets, before.answered),
        (after.last_seen, after.packets, after.answered)
    );
}

#[test]
fn errors_about_nothing_of_ours_go_nowhere() {
    let mut gateway = Gateway::new(&world());
    let Known { vip, seen, backend, .. } = open(&mut gateway, CLIENT, VIP);
    let was = udp(seen, backend, 9, b"question");
    // Of a flow that nobody knows.
    let other = SocketAddr::new(seen.ip(), 40_099);
    gateway.receive(
        FAB0,
        error([backend.ip(), seen.ip()], 64, Kind::Unreachable, &udp(other, backend, 9, b""), 100),
    );
    assert_eq!(dropped(&gateway, DropReason::NoFlow), 1);
    // Sent to somebody else than the sender of the packet.
    gateway.receive(FAB0, error([backend.ip(), vip.ip()], 64, Kind::Unreachable, &was, 100));
    // At its last hop: no error about an error.
    gateway.receive(FAB0, error([backend.ip(), seen.ip()], 1, Kind::Unreachable, &was, 100));
    assert_eq!(dropped(&gateway, DropReason::TtlExpired), 1);
    assert_eq!(count(&gateway, Event::ErrorsSent), 0);
    // Too short to tell.
    gateway.receive(FAB0, error([backend.ip(), seen.ip()], 64, Kind::Unreachable, &was, 23));
    let mut truncated = error([backend.ip(), seen.ip()], 64, Kind::Unreachable, &was, 100);
    truncated.truncate(60);
    gateway.receive(FAB0, truncated);
    assert_eq!(dropped(&gateway, DropReason::Malformed), 1);
    assert_eq!(count(&gateway, Event::IcmpErrorsTranslated), 0);
}

#[test]
fn an_error_about_what_a_backend_does_besides_is_routed_as_it_is() {
    let mut gateway = Gateway::new(&world());
    // A kept backend answers a client that reached it directly.
    let (client, backend) = (at("192.0.2.10:9999"), at("10.244.0.11:5353"));
    let was = udp(client, backend, 9, b"direct");
    let out = comes_out(
        &mut gateway,
        FAB0,
        error([backend.ip(), client.ip()], 64, Kind::Unreachable, &was, 100),
        UP0,
    );
    assert_eq!(out, error([backend.ip(), client.ip()], 63, Kind::Unreachable, &was, 100)[12..]);
    assert_eq!((count(&gateway, Event::Routed), count(&gateway, Event::IcmpErrorsTranslated)), (1, 0));
}

#[test]
fn an_error_about_what_a_backend_does_besides_goes_only_where_the_kernel_would_send_it() {
    for (by, client, reason) in [
        (UP0, "192.0.2.10:9999", DropReason::WrongInterface),
        (FAB0, "192.0.2.255:9999", DropReason::NotForwarded),
        (FAB0, "224.0.0.5:9999", DropReason::NotForwarded),
        (FAB0, "255.255.255.255:9999", DropReason::NotForwarded),
    ] {
        let mut gateway = Gateway::new(&world());
        let (client, backend) = (at(client), at("10.244.0.11:5353"));
        let was = udp(client, backend, 9, b"direct");
        let error_in = error([backend.ip(), client.ip()], 64, Kind::Unreachable, &was, 100);
        assert!(gateway.receive(by, error_in).is_empty(), "{client}");
        assert_eq!(gateway.counters().dropped(reason), 1, "{client}: {}", gateway.story());
    }
}

#[test]
fn an_error_waits_for_its_neighbour() {
    let mut world = world();
    let mut gateway = Gateway::new(&world);
    let Known { client, vip, seen, backend } = open(&mut gateway, "192.0.2.66:9", VIP);
    let was = udp(seen, backend, 9, b"question");
    let error_in = error([backend.ip(), seen.ip()], 64, Kind::Unreachable, &was, 100);
    assert!(gateway.receive(FAB0, error_in).is_empty());
    assert_eq!(count(&gateway, Event::Held), 1);
    world.neighbours.push(neighbour(0, "192.0.2.66", Some(66)));
    gateway.publish(&world);
    let out = comes_out(&mut gateway, FAB0, vec![0; 60], UP0);
    let original = udp(client, vip, 9, b"question");
    assert_eq!(out, error([vip.ip(), client.ip()], 63, Kind::Unreachable, &original, 100)[12..]);
}

#[test]
fn a_pod_that_reaches_itself_by_its_service_gets_its_errors() {
    let mut gateway = Gateway::new(&world());
    let (pod, vip) = (at("10.244.0.11:7000"), at("203.0.113.53:53"));
    let sent = gateway.receive(FAB0, udp(pod, vip, 64, b"question"));
    let (seen, backend) = ends(&sent[0].1);
    assert_eq!((seen.ip(), backend.ip()), (ip("10.244.0.1"), pod.ip()));
    let was = udp(seen, backend, 9, b"question");
    let out = comes_out(
        &mut gateway,
        FAB0,
        error([backend.ip(), seen.ip()], 64, Kind::Unreachable, &was, 100),
        FAB0,
    );
    assert_eq!(
        out,
        error([vip.ip(), pod.ip()], 63, Kind::Unreachable, &udp(pod, vip, 9, b"question"), 100)[12..]
    );
}

fn echo(src: IpAddr, dst: IpAddr, hops: u8, reply: bool) -> Vec<u8> {
    let echo = IcmpEchoHeader { id: 77, seq: 3 };
    let builder = header(src, dst, hops);
    let mut frame = Vec::new();
    match (src.is_ipv4(), reply) {
        (true, false) => builder.icmpv4(Icmpv4Type::EchoRequest(echo)).write(&mut frame, b"hello").unwrap(),
        (true, true) => builder.icmpv4(Icmpv4Type::EchoReply(echo)).write(&mut frame, b"hello").unwrap(),
        (false, false) => builder.icmpv6(Icmpv6Type::EchoRequest(echo)).write(&mut frame, b"hello").unwrap(),
        (false, true) => builder.icmpv6(Icmpv6Type::EchoReply(echo)).write(&mut frame, b"hello").unwrap(),
    }
    frame
}

#[test]
fn vips_answer_echo_requests_if_they_are_told_to() {
    let config = PipelineConfig { echo_vips: true, ..PipelineConfig::default() };
    for (client, vip) in [(CLIENT, VIP), (CLIENT6, VIP6)] {
        let (client, vip) = (at(client).ip(), at(vip).ip());
        let mut gateway = with(config, &world());
        let out = comes_out(&mut gateway, UP0, echo(client, vip, 1, false), UP0);
        assert_eq!(out, echo(vip, client, 64, true)[12..]);
        assert_eq!(count(&gateway, Event::EchoesAnswered), 1);
        let mut gateway = Gateway::new(&world());
        assert!(gateway.receive(UP0, echo(client, vip, 1, false)).is_empty());
    }
    let mut gateway = with(config, &world());
    for other in ["192.0.2.1", "10.96.0.54", "10.244.0.11"] {
        assert!(gateway.receive(UP0, echo(at(CLIENT).ip(), ip(other), 64, false)).is_empty(), "{other}");
    }
    let passed = gateway.worker.state().counters.read().passed(PassReason::NotOurs);
    assert_eq!((count(&gateway, Event::EchoesAnswered), passed), (0, 2));
    let unallocated = gateway.counters().dropped(DropReason::UnallocatedClusterIp);
    assert_eq!(unallocated, 1, "a free address for cluster IPs is nobody's");
}

#[test]
fn what_is_too_big_is_reported_by_an_address_of_the_interface_that_it_came_by() {
    let mut world = world();
    for (client, vip, ours) in
        [(CLIENT, VIP, ["192.0.2.1", "10.244.0.1"]), (CLIENT6, VIP6, ["2001:db8:1::1", "fd00:244::1"])]
    {
        (world.interfaces[0].mtu, world.interfaces[1].mtu) = (1500, 1500);
        let mut gateway = Gateway::new(&world);
        let Known { client, vip, seen, backend } = open(&mut gateway, client, vip);
        // The answer does not fit into the client's link: the backend is told, about what it sent.
        world.interfaces[0].mtu = 1400;
        gateway.publish(&world);
        let answer = udp(backend, seen, 60, &[7; 1400]);
        let quoted = if client.is_ipv4() { 576 - 28 } else { 1280 - 48 };
        let out = comes_out(&mut gateway, FAB0, answer.clone(), FAB0);
        assert_eq!(out, error([ip(ours[1]), backend.ip()], 64, Kind::TooBig(1400), &answer, quoted)[12..]);
        // The question does not fit into the backends' link.
        (world.interfaces[0].mtu, world.interfaces[1].mtu) = (1500, 1300);
        gateway.publish(&world);
        let question = udp(client, vip, 60, &[7; 1400]);
        let out = comes_out(&mut gateway, UP0, question.clone(), UP0);
        assert_eq!(out, error([ip(ours[0]), client.ip()], 64, Kind::TooBig(1300), &question, quoted)[12..]);
        // Used up hops are reported the same way.
        let last = udp(client, vip, 1, b"question");
        let out = comes_out(&mut gateway, UP0, last.clone(), UP0);
        assert_eq!(out, error([ip(ours[0]), client.ip()], 64, Kind::TimeExceeded, &last, quoted)[12..]);
        assert_eq!(count(&gateway, Event::ErrorsSent), 3);
    }
}

#[test]
fn segment_sizes_are_limited_both_ways_to_what_fits_or_to_a_number() {
    let offered = |frame: &[u8]| -> u16 {
        let sliced = etherparse::SlicedPacket::from_ethernet(frame).unwrap();
        let Some(etherparse::TransportSlice::Tcp(tcp)) = sliced.transport else { panic!("not TCP") };
        let right = match sliced.net.unwrap() {
            etherparse::NetSlice::Ipv4(ip) => {
                tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination())
            }
            etherparse::NetSlice::Ipv6(ip) => {
                tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination())
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(tcp.checksum(), right.unwrap());
        match tcp.options_iterator().next().unwrap().unwrap() {
            etherparse::TcpOptionElement::MaximumSegmentSize(size) => size,
            other => panic!("{other:?}"),
        }
    };
    let mut world = world();
    world.interfaces[1].mtu = 1400;
    for (clamp, largest_packet, [v4, v6], lowered) in [
        (MssClamp::Off, 1200, [1460, 1460], 0),
        (MssClamp::Auto, 9000, [1360, 1340], 4),
        // Frames that are shorter than the MTUs.
        (MssClamp::Auto, 1200, [1160, 1140], 4),
        (MssClamp::To(1000), 9000, [1000, 1000], 4),
        (MssClamp::To(9000), 9000, [1460, 1460], 0),
    ] {
        let config = PipelineConfig { mss_clamp: clamp, largest_packet, ..PipelineConfig::default() };
        let mut gateway = with(config, &world);
        for (client, vip, wanted) in [(CLIENT, "10.96.0.80:80", v4), (CLIENT6, "[fd00:96::80]:80", v6)] {
            let (client, vip) = (at(client), at(vip));
            let sent = gateway.receive(UP0, tcp(client, vip, 64, "S", b""));
            let (seen, backend) = ends(&sent[0].1);
            assert_eq!(offered(&sent[0].1), wanted, "{clamp:?} SYN");
            let sent = gateway.receive(FAB0, tcp(backend, seen, 64, "SA", b""));
            assert_eq!(offered(&sent[0].1), wanted, "{clamp:?} SYN-ACK");
        }
        assert_eq!(count(&gateway, Event::MssClamped), lowered);
    }
}
