//! Golden packet cases: packets in, packets out byte for byte, counters exact.
//!
//! Each case tells its story in `golden/`; `INSTA_UPDATE=always cargo test -p flowgate-dataplane` writes
//! them anew. Every sent packet's checksums are judged by etherparse in the story.

#![allow(clippy::unwrap_used, reason = "test support: a panic is the report")]

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::gateway::{
    CLIENT, FAB0, Gateway, UP0, World, destination, neighbour, route, service, source, tcp, udp,
};
use flowgate_dataplane::DropReason;
use flowgate_tables::EmptyAction;
use flowgate_tables::spec::TrafficPolicySpec;
use flowgate_wire::checksum::Sum;
use flowgate_wire::{L4Port, Protocol};

fn golden(name: &str, gateway: &Gateway) {
    assert!(!gateway.story().contains("    up0 < UDP (checksum wrong)"));
    insta::with_settings!({ snapshot_path => "golden", prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!(name, gateway.story());
    });
}

/// Opens a connection and returns what the backend sees: its own address and our source.
fn connect(gateway: &mut Gateway, from: &str, vip: &str) -> (String, String) {
    let sent = gateway.receive(UP0, tcp(from, vip, "S"));
    let (_, syn) = &sent[0];
    let (backend, snat) = (destination(syn), source(syn));
    gateway.receive(FAB0, tcp(&backend, &snat, "SA"));
    gateway.receive(UP0, tcp(from, vip, "A"));
    (backend, snat)
}

#[test]
fn a_tcp_connection_goes_there_and_back_and_ends() {
    let mut gateway = Gateway::new(&World::new());
    let vip = "10.96.0.80:80";
    let (backend, snat) = connect(&mut gateway, CLIENT, vip);
    gateway.receive(FAB0, tcp(&backend, &snat, "A"));
    gateway.receive(UP0, tcp(CLIENT, vip, "FA"));
    gateway.receive(FAB0, tcp(&backend, &snat, "FA"));
    gateway.receive(UP0, tcp(CLIENT, vip, "A"));
    assert_eq!(gateway.flows.views().next().unwrap().tcp_phase.unwrap().name(), "time-wait");
    gateway.wait(Duration::from_secs(31));
    gateway.wait(Duration::from_secs(16));
    assert_eq!(gateway.flows.used_entries(), 0);
    golden("tcp_connection", &gateway);
}

#[test]
fn p801_a_connection_to_a_removed_backend_goes_on_until_the_deadline() {
    let mut world = World::new();
    let mut gateway = Gateway::new(&world);
    let vip = "10.96.0.80:80";
    let (backend, snat) = connect(&mut gateway, CLIENT, vip);
    world.services[0].endpoint_sets[0].retain(|endpoint| format!("{}:8080", endpoint.addr) != backend);
    gateway.publish(&world);
    gateway.wait(Duration::from_millis(100));
    for hour in 1..24 {
        gateway.wait(Duration::from_secs(3600));
        assert_eq!(source(&gateway.receive(FAB0, tcp(&backend, &snat, "A"))[0].1), vip, "hour {hour}");
    }
    gateway.wait(Duration::from_secs(3601));
    gateway.wait(Duration::from_secs(16));
    assert_eq!(gateway.flows.used_entries(), 0);
    let answer = gateway.receive(FAB0, tcp(&backend, &snat, "A"));
    assert_eq!((source(&answer[0].1), answer[0].1[47] & 0x04), (snat, 0x04), "a reset");
}

#[test]
fn a_udp_exchange_goes_there_and_back() {
    let mut gateway = Gateway::new(&World::new());
    let sent = gateway.receive(UP0, udp(CLIENT, "10.96.0.53:53", b"question"));
    let (backend, snat) = (destination(&sent[0].1), source(&sent[0].1));
    let back = gateway.receive(FAB0, udp(&backend, &snat, b"answer"));
    assert_eq!((source(&back[0].1), destination(&back[0].1)), ("10.96.0.53:53".into(), CLIENT.into()));
    golden("udp_exchange", &gateway);
}

#[test]
fn a_node_port_leads_to_the_same_backends() {
    let mut gateway = Gateway::new(&World::new());
    connect(&mut gateway, CLIENT, "192.0.2.1:30380");
    golden("node_port", &gateway);
}

#[test]
fn a_routed_client_is_answered_by_its_router() {
    let mut gateway = Gateway::new(&World::new());
    connect(&mut gateway, "198.51.100.7:5000", "10.96.0.80:80");
    golden("routed_client", &gateway);
}

#[test]
fn a_client_that_is_kept_is_seen_by_the_backend() {
    let mut gateway = Gateway::new(&World::new());
    let (_, seen) = connect(&mut gateway, CLIENT, "203.0.113.7:80");
    assert_eq!(seen, CLIENT);
    // What else such a backend sends is routed as it is.
    gateway.receive(FAB0, tcp("10.244.0.12:8080", "198.51.100.7:6000", "SA"));
    gateway.receive(FAB0, tcp("10.244.0.12:8080", "203.0.113.99:6000", "SA"));
    gateway.receive(FAB0, tcp("10.244.0.12:9090", "198.51.100.7:6000", "SA"));
    golden("client_kept", &gateway);
}

#[test]
fn a_kept_client_may_go_on_to_its_backend_directly_from_the_same_port() {
    let mut gateway = Gateway::new(&World::new());
    let (backend, _) = connect(&mut gateway, CLIENT, "203.0.113.7:80");
    gateway.receive(UP0, tcp(CLIENT, "203.0.113.7:80", "FA"));
    gateway.receive(FAB0, tcp(&backend, CLIENT, "FA"));
    gateway.receive(UP0, tcp(CLIENT, "203.0.113.7:80", "A"));
    // Its SYN to the backend itself is not seen here, only the answer.
    for flags in ["SA", "A"] {
        let sent = gateway.receive(FAB0, tcp(&backend, CLIENT, flags));
        assert_eq!((source(&sent[0].1), destination(&sent[0].1)), (backend.clone(), CLIENT.to_owned()));
    }
    golden("kept_then_direct", &gateway);
}

#[test]
fn p501_p502_p504_without_endpoints_clients_are_refused_at_once() {
    let mut world = World::new();
    world.services.push(service("empty-udp", Protocol::Udp, "10.96.0.98:53", 53, &[]));
    let mut gateway = Gateway::new(&world);
    gateway.receive(UP0, tcp(CLIENT, "10.96.0.99:80", "S"));
    gateway.receive(UP0, udp(CLIENT, "10.96.0.98:53", b""));
    // P504: nothing remembers the refusal.
    world.services[2] = service("empty", Protocol::Tcp, "10.96.0.99:80", 80, &[11]);
    gateway.publish(&world);
    gateway.receive(UP0, tcp(CLIENT, "10.96.0.99:80", "S"));
    golden("refused", &gateway);
}

#[test]
fn p505_p506_a_port_that_no_service_has_is_refused_and_an_unused_cluster_ip_is_silent() {
    let mut gateway = Gateway::new(&World::new());
    gateway.receive(UP0, tcp(CLIENT, "10.96.0.80:81", "S"));
    gateway.receive(UP0, udp(CLIENT, "10.96.0.80:80", b"another protocol"));
    gateway.receive(UP0, tcp(CLIENT, "10.96.0.81:80", "S"));
    gateway.receive(UP0, tcp(CLIENT, "203.0.113.7:81", "S"));
    golden("unserved", &gateway);
}

#[test]
fn p302_endpoints_that_the_policy_excludes_make_it_silent() {
    let mut world = World::new();
    let policies = world.services[2].frontends[0].policies;
    world.services[2].frontends[0].policies =
        policies.map(|t| TrafficPolicySpec { when_empty: EmptyAction::Drop, ..*t });
    let mut gateway = Gateway::new(&world);
    gateway.receive(UP0, tcp(CLIENT, "10.96.0.99:80", "S"));
    golden("policy_drop", &gateway);
}

#[test]
fn p401_only_allowed_sources_reach_a_load_balancer_address() {
    let mut world = World::new();
    world.services[3].frontends[0].allowed = Some(["192.0.2.0/28".parse().unwrap()].into());
    let mut gateway = Gateway::new(&world);
    gateway.receive(UP0, tcp("192.0.2.66:1234", "203.0.113.7:80", "S"));
    connect(&mut gateway, CLIENT, "203.0.113.7:80");
    golden("source_ranges", &gateway);
}

#[test]
fn p702_p703_a_client_stays_with_its_backend_until_it_was_idle_long_enough() {
    let mut world = World::new();
    world.services[0].affinity = Some(Duration::from_secs(10));
    let mut gateway = Gateway::new(&world);
    let (first, _) = connect(&mut gateway, "192.0.2.10:5000", "10.96.0.80:80");
    for port in 5001..5020 {
        gateway.wait(Duration::from_secs(9));
        let (backend, _) = connect(&mut gateway, &format!("192.0.2.10:{port}"), "192.0.2.1:30380");
        assert_eq!(backend, first, "whatever address it comes by");
    }
    let others: std::collections::HashSet<_> = (6000..6020)
        .map(|port| {
            gateway.wait(Duration::from_secs(11));
            connect(&mut gateway, &format!("192.0.2.10:{port}"), "10.96.0.80:80").0
        })
        .collect();
    assert!(others.len() > 1, "placed anew each time: {others:?}");
}

#[test]
fn p706_datagram_flows_stay_with_the_backend_of_their_client_too() {
    let mut world = World::new();
    world.services[1].affinity = Some(Duration::from_secs(10));
    let mut gateway = Gateway::new(&world);
    let chosen: std::collections::HashSet<_> = (5000..5020)
        .map(|port| {
            let sent = gateway.receive(UP0, udp(&format!("192.0.2.10:{port}"), "10.96.0.53:53", b"query"));
            destination(&sent[0].1)
        })
        .collect();
    assert_eq!(chosen.len(), 1, "each source port is a flow of its own: {chosen:?}");
}

#[test]
fn p704_p705_affinity_holds_only_among_those_that_may_be_chosen() {
    let mut world = World::new();
    world.services[0].affinity = Some(Duration::from_secs(10));
    let mut gateway = Gateway::new(&world);
    let (first, _) = connect(&mut gateway, "192.0.2.10:5000", "10.96.0.80:80");
    let all = world.services[0].endpoint_sets[0].clone();
    let is_first = |e: &flowgate_tables::spec::EndpointSpec| format!("{}:{}", e.addr, e.port) == first;
    world.services[0].endpoint_sets[0].retain(|e| !is_first(e));
    gateway.publish(&world);
    let (second, _) = connect(&mut gateway, "192.0.2.10:5001", "10.96.0.80:80");
    assert_ne!(second, first);
    world.services[0].endpoint_sets[0] = all;
    gateway.publish(&world);
    for port in 5002..5010 {
        let (backend, _) = connect(&mut gateway, &format!("192.0.2.10:{port}"), "10.96.0.80:80");
        assert_eq!(backend, second, "endpoints that come do not disturb it");
    }
}

#[test]
fn p605_a_backend_that_is_its_own_client_sees_an_address_of_ours() {
    let mut gateway = Gateway::new(&World::new());
    let sent = gateway.receive(FAB0, tcp("10.244.0.12:7000", "203.0.113.7:80", "S"));
    assert_eq!(destination(&sent[0].1), "10.244.0.12:8080");
    assert!(source(&sent[0].1).starts_with("10.244.0.1:"), "{}", source(&sent[0].1));
}

#[test]
fn a_kept_client_that_reaches_one_backend_by_two_addresses_from_one_port_has_two_flows() {
    let mut world = World::new();
    let mut twin = world.services[3].clone();
    (twin.name.name, twin.frontends[0].addr) = ("twin".into(), "203.0.113.8".parse().unwrap());
    world.services.push(twin);
    let mut gateway = Gateway::new(&world);
    connect(&mut gateway, CLIENT, "203.0.113.7:80");
    let (_, seen) = connect(&mut gateway, CLIENT, "203.0.113.8:80");
    assert!(seen.starts_with("192.0.2.10:") && seen != CLIENT, "{seen}");
    golden("kept_twice", &gateway);
}

#[test]
fn what_belongs_to_no_flow_is_dropped_and_named() {
    let mut gateway = Gateway::new(&World::new());
    gateway.receive(UP0, tcp(CLIENT, "10.96.0.80:80", "A"));
    gateway.receive(UP0, tcp(CLIENT, "10.96.0.80:80", "R"));
    gateway.receive(UP0, tcp(CLIENT, "10.96.0.80:80", "SA"));
    gateway.receive(FAB0, udp("10.244.0.11:5353", "10.244.0.1:40001", b"late"));
    golden("no_flow", &gateway);
}

#[test]
fn what_is_not_ours_is_named() {
    let mut gateway = Gateway::new(&World::new());
    gateway.receive(UP0, udp(CLIENT, "10.96.0.77:53", b"no such service"));
    gateway.receive(UP0, tcp(CLIENT, "10.96.0.53:53", "S"));
    gateway.receive(UP0, vec![0; 60]);
    let mut fragment = udp(CLIENT, "10.96.0.53:53", b"fragment");
    fragment[20] = 0x20;
    fragment[23] = 50;
    gateway.receive(UP0, fragment);
    let mut icmp = udp(CLIENT, "10.96.0.53:53", b"echo");
    icmp[23] = 1;
    gateway.receive(UP0, icmp);
    golden("not_ours", &gateway);
}

#[test]
fn what_cannot_be_forwarded_is_dropped_and_named() {
    let mut world = World::new();
    world.services.push(service("lost", Protocol::Udp, "10.96.0.54:53", 53, &[]));
    world.services[4].endpoint_sets[0].push(flowgate_tables::spec::EndpointSpec {
        addr: "172.16.0.1".parse().unwrap(),
        port: L4Port::new(53),
        weight: 1,
    });
    world.services.push(service("silent", Protocol::Udp, "10.96.0.55:53", 53, &[99]));
    let mut gateway = Gateway::new(&world);
    gateway.receive(UP0, tcp(CLIENT, "10.96.0.99:80", "S"));
    gateway.receive(UP0, udp(CLIENT, "10.96.0.54:53", b"no route"));
    gateway.receive(UP0, udp(CLIENT, "10.96.0.55:53", b"no neighbour"));
    let mut last_hop = udp(CLIENT, "10.96.0.53:53", b"ttl");
    last_hop[22] = 1;
    gateway.receive(UP0, last_hop);
    gateway.receive(UP0, udp(CLIENT, "10.96.0.53:53", &[0; 1473]));
    gateway.receive(UP0, udp(CLIENT, "10.96.0.53:53", &[0; 1472]));
    let mut lying = udp(CLIENT, "10.96.0.53:53", b"length");
    lying[17] = 200;
    gateway.receive(UP0, lying);
    golden("not_forwardable", &gateway);
}

#[test]
fn a_client_that_is_not_resolved_is_asked_for_by_the_first_reply() {
    let mut gateway = Gateway::new(&World::new());
    let sent = gateway.receive(UP0, udp("192.0.2.66:9", "10.96.0.53:53", b"question"));
    let (backend, snat) = (destination(&sent[0].1), source(&sent[0].1));
    gateway.receive(FAB0, udp(&backend, &snat, b"answer"));
    let mut world = World::new();
    world.neighbours.push(neighbour(0, "192.0.2.66", Some(66)));
    gateway.publish(&world);
    gateway.receive(FAB0, udp(&backend, &snat, b"answer again"));
    golden("unresolved_client", &gateway);
}

#[test]
fn packets_wait_for_their_neighbour_but_not_for_ever() {
    let mut world = World::new();
    world.services.push(service("new", Protocol::Tcp, "10.96.0.56:80", 80, &[44]));
    let mut gateway = Gateway::new(&world);
    gateway.receive(UP0, tcp(CLIENT, "10.96.0.56:80", "S"));
    world.neighbours.push(neighbour(1, "10.244.0.44", Some(44)));
    gateway.publish(&world);
    gateway.wait(Duration::ZERO);
    world.neighbours.pop();
    gateway.publish(&world);
    for port in 1..=10 {
        gateway.receive(UP0, tcp(&format!("192.0.2.10:{port}"), "10.96.0.56:80", "S"));
    }
    gateway.wait(Duration::from_millis(3_490));
    gateway.wait(Duration::from_millis(100));
    assert_eq!(gateway.flows.views().count(), 1);
    golden("waiting", &gateway);
}

#[test]
fn a_checksum_that_a_virtual_device_left_open_is_completed() {
    let mut gateway = Gateway::new(&World::new());
    let mut syn = tcp(CLIENT, "10.96.0.80:80", "S");
    let l4_len = u16::try_from(syn.len() - 34).unwrap();
    let pseudo = pseudo_header([192, 0, 2, 10], [10, 96, 0, 80], Protocol::Tcp, l4_len);
    syn[50..52].copy_from_slice(&pseudo.fold().to_ne_bytes());
    gateway.receive(UP0, syn);
    let mut datagram = udp(CLIENT, "10.96.0.53:53", b"odd");
    let l4_len = u16::try_from(datagram.len() - 34).unwrap();
    let pseudo = pseudo_header([192, 0, 2, 10], [10, 96, 0, 53], Protocol::Udp, l4_len);
    datagram[40..42].copy_from_slice(&pseudo.fold().to_ne_bytes());
    gateway.receive(UP0, datagram);
    let mut none = udp("192.0.2.10:77", "10.96.0.53:53", b"no checksum");
    none[40..42].copy_from_slice(&[0, 0]);
    gateway.receive(UP0, none);
    golden("partial_checksum", &gateway);
}

#[test]
fn p503_p801_p805_a_connection_outlives_its_endpoint_and_a_datagram_flow_moves_at_once() {
    let mut world = World::new();
    let mut gateway = Gateway::new(&world);
    let (backend, snat) = connect(&mut gateway, CLIENT, "10.96.0.80:80");
    let sent = gateway.receive(UP0, udp(CLIENT, "10.96.0.53:53", b"one"));
    let first = destination(&sent[0].1);
    let gone = |address: &str| address.rsplit_once(':').unwrap().0.parse::<std::net::IpAddr>().unwrap();
    world.services[0].endpoint_sets[0].retain(|e| e.addr != gone(&backend));
    world.services[1].endpoint_sets[0].retain(|e| e.addr != gone(&first));
    gateway.publish(&world);
    gateway.receive(UP0, tcp(CLIENT, "10.96.0.80:80", "A"));
    gateway.receive(FAB0, tcp(&backend, &snat, "A"));
    let sent = gateway.receive(UP0, udp(CLIENT, "10.96.0.53:53", b"two"));
    assert_ne!(destination(&sent[0].1), first);
    golden("endpoint_removed", &gateway);
}

#[test]
fn flows_follow_routes_and_neighbours() {
    let mut world = World::new();
    let mut gateway = Gateway::new(&world);
    let (backend, snat) = connect(&mut gateway, "198.51.100.7:5000", "10.96.0.80:80");
    world.neighbours[1] = neighbour(0, "192.0.2.254", Some(253));
    gateway.publish(&world);
    gateway.receive(FAB0, tcp(&backend, &snat, "A"));
    world.routes[2] = route("198.51.100.0/24", 0, Some("192.0.2.10"));
    gateway.publish(&world);
    gateway.receive(FAB0, tcp(&backend, &snat, "A"));
    world.routes.remove(2);
    gateway.publish(&world);
    gateway.receive(FAB0, tcp(&backend, &snat, "A"));
    golden("rerouted", &gateway);
}

#[test]
fn a_syn_after_the_end_starts_anew_and_before_it_does_not() {
    let mut gateway = Gateway::new(&World::new());
    let vip = "10.96.0.80:80";
    let (backend, snat) = connect(&mut gateway, CLIENT, vip);
    gateway.receive(UP0, tcp(CLIENT, vip, "S"));
    gateway.receive(FAB0, tcp(&backend, &snat, "R"));
    gateway.receive(UP0, tcp(CLIENT, vip, "S"));
    golden("syn_reuse", &gateway);
}

#[test]
fn source_ports_serve_each_backend_anew_and_then_run_out() {
    let mut world = World::new();
    world.snat_ports = [40_000, 40_001].into_iter().collect();
    let mut gateway = Gateway::new(&world);
    for port in 1..=8 {
        let question = udp(&format!("192.0.2.10:{port}"), "10.96.0.53:53", b"x");
        for (_, question) in gateway.receive(UP0, question.clone()) {
            gateway.receive(FAB0, udp(&destination(&question), &source(&question), b"y"));
            gateway.wait(Duration::from_millis(2_100));
        }
        // What goes on for longer than two seconds keeps its port.
        gateway.receive(UP0, question);
    }
    let refused = gateway.worker.state().counters.read().dropped(DropReason::SnatPortsExhausted);
    assert_eq!((gateway.flows.used_entries(), refused), (8, 8), "two ports for each of two backends");
    golden("snat_ports", &gateway);
}

#[test]
fn a_new_flow_from_a_source_of_ours_is_dropped_and_the_answer_of_a_known_one_is_not() {
    let mut gateway = Gateway::new(&World::new());
    let vip = "10.96.0.53:53";
    let sent = gateway.receive(UP0, udp(CLIENT, vip, b"question"));
    let (backend, snat) = (destination(&sent[0].1), source(&sent[0].1));
    // What was sent comes back from somewhere, aimed at the VIP again; and somebody forges the VIP itself.
    for (from, to) in
        [(&*snat, vip), (&*snat, "10.96.0.80:80"), ("10.96.0.53:9", vip), ("10.96.0.80:9", "10.96.0.80:80")]
    {
        let frame = if to == vip { udp(from, to, b"again") } else { tcp(from, to, "S") };
        assert_eq!(gateway.receive(UP0, frame), [], "{from} to {to}");
    }
    assert_eq!(gateway.counters().dropped(DropReason::OwnSource), 4);
    assert_eq!(gateway.receive(FAB0, udp(&backend, &snat, b"answer")).len(), 1);
    // The same address with another port is the machine itself, which sends nothing by this way.
    let itself = snat.replace(&snat[snat.rfind(':').unwrap()..], ":9");
    assert_eq!(gateway.receive(UP0, udp(&itself, vip, b"question")), []);
    assert_eq!(gateway.counters().dropped(DropReason::OwnSource), 5);
}

#[test]
fn a_full_transmit_ring_drops_and_counts() {
    let mut gateway = Gateway::with(&World::new(), 1000, 2);
    for port in 1..=3 {
        gateway.worker.device().deliver(FAB0, udp(&format!("192.0.2.10:{port}"), "10.96.0.53:53", b"x"));
    }
    gateway.wait(Duration::ZERO);
    golden("tx_ring_full", &gateway);
}

#[test]
fn two_packets_of_a_new_flow_in_one_burst_are_one_flow() {
    let mut gateway = Gateway::new(&World::new());
    for _ in 0..3 {
        gateway.worker.device().deliver(UP0, udp(CLIENT, "10.96.0.53:53", b"x"));
    }
    gateway.wait(Duration::ZERO);
    assert_eq!(gateway.flows.used_entries(), 2);
    golden("one_burst", &gateway);
}

fn pseudo_header(src: [u8; 4], dst: [u8; 4], protocol: Protocol, l4_len: u16) -> Sum {
    Sum::pseudo_header(Ipv4Addr::from(src), Ipv4Addr::from(dst), protocol.number(), l4_len)
}
