//! When ports or entries run out: established flows are untouched, flows that nobody answered make room, and all is
//! well again once the pressure ends.
#![allow(clippy::unwrap_used, reason = "test support: a panic is the report")]

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use crate::gateway::{FAB0, Gateway, UP0, World, destination, service, source, tcp, udp};
use flowgate_dataplane::exhaustion::ExhaustedResource;
use flowgate_dataplane::{DropReason, Event, PipelineConfig};
use flowgate_wire::Protocol;

const VIP: &str = "10.96.0.80:80";

fn client(n: usize) -> String {
    format!("192.0.2.{}:{}", 10 + n / 50_000, 1024 + n % 50_000)
}

/// A world with so many source ports and one backend of the web Service.
fn world(ports: u16) -> World {
    let mut world = World::new();
    world.services[0] = service("web", Protocol::Tcp, VIP, 8080, &[11]);
    world.snat_ports = (40_000..40_000 + ports).collect();
    world
}

/// Opens a connection in full; the backend and our source, or none if it gets nowhere.
fn connect(gateway: &mut Gateway, client: &str) -> Option<(String, String)> {
    let sent = gateway.receive(UP0, tcp(client, VIP, "S"));
    let (by, syn) = sent.first()?;
    assert_eq!(*by, FAB0);
    let (backend, snat) = (destination(syn), source(syn));
    gateway.receive(FAB0, tcp(&backend, &snat, "SA"));
    gateway.receive(UP0, tcp(client, VIP, "A"));
    Some((backend, snat))
}

/// Whether both directions of a connection go where they went at first.
fn lives(gateway: &mut Gateway, client: &str, (backend, snat): &(String, String)) -> bool {
    let there = gateway.receive(UP0, tcp(client, VIP, "A"));
    let back = gateway.receive(FAB0, tcp(backend, snat, "A"));
    there.len() == 1
        && back.len() == 1
        && (destination(&there[0].1), source(&there[0].1)) == (backend.clone(), snat.clone())
        && (destination(&back[0].1), source(&back[0].1)) == (client.to_owned(), VIP.to_owned())
}

fn event(gateway: &Gateway, event: Event) -> u64 {
    gateway.worker.state().counters.read().event(event)
}

fn dropped(gateway: &Gateway, reason: DropReason) -> u64 {
    gateway.worker.state().counters.read().dropped(reason)
}

#[test]
fn established_connections_keep_their_ports_and_the_next_one_is_refused() {
    let mut gateway = Gateway::new(&world(10));
    let all: Vec<_> = (0..10).map(|n| (client(n), connect(&mut gateway, &client(n)).unwrap())).collect();
    let ports: HashSet<_> = all.iter().map(|(_, (_, snat))| snat.clone()).collect();
    assert_eq!(ports.len(), 10);
    for n in 10..30 {
        assert_eq!(connect(&mut gateway, &client(n)), None);
    }
    assert_eq!(dropped(&gateway, DropReason::SnatPortsExhausted), 20);
    assert!(all.iter().all(|(client, flow)| lives(&mut gateway, client, flow)));
    let exhaustions = std::mem::take(&mut *gateway.exhaustions.lock().unwrap());
    assert!(exhaustions.iter().all(|s| (s.resource, s.egress) == (ExhaustedResource::SnatPorts, Some(FAB0))));
    assert_eq!(exhaustions.iter().map(|exhaustion| exhaustion.flows).sum::<u64>(), 20);
    assert_eq!(exhaustions.iter().map(|exhaustion| exhaustion.service).collect::<HashSet<_>>().len(), 1);
    // One ends: its port is free for the next.
    let (client_0, (backend, snat)) = &all[0];
    gateway.receive(UP0, tcp(client_0, VIP, "FA"));
    gateway.receive(FAB0, tcp(backend, snat, "FA"));
    let again = connect(&mut gateway, &client(40)).unwrap();
    assert_eq!(&again.1, snat);
    assert_eq!(event(&gateway, Event::SnatPortsReclaimed), 1);
    assert!(all[1..].iter().all(|(client, flow)| lives(&mut gateway, client, flow)));
}

#[test]
fn the_connection_unanswered_for_longest_gives_its_port_up() {
    let mut gateway = Gateway::new(&world(3));
    let kept = connect(&mut gateway, &client(0)).unwrap();
    let oldest = source(&gateway.receive(UP0, tcp(&client(1), VIP, "S"))[0].1);
    let younger = source(&gateway.receive(UP0, tcp(&client(2), VIP, "S"))[0].1);
    for n in [3, 4] {
        let expected = if n == 3 { &oldest } else { &younger };
        assert_eq!(&source(&gateway.receive(UP0, tcp(&client(n), VIP, "S"))[0].1), expected);
    }
    assert_eq!(event(&gateway, Event::SnatPortsReclaimed), 2);
    assert!(lives(&mut gateway, &client(0), &kept));
    assert_eq!(gateway.flows.used_entries(), 6);
}

/// SYNs from forged addresses, all of which the backend answers and nobody acknowledges.
fn answered_syn_flood(gateway: &mut Gateway, clients: std::ops::Range<usize>) {
    for n in clients {
        if let [(_, syn), ..] = &gateway.receive(UP0, tcp(&client(n), VIP, "S"))[..] {
            let (backend, snat) = (destination(syn), source(syn));
            assert_eq!(gateway.receive(FAB0, tcp(&backend, &snat, "SA")).len(), 1);
        }
    }
}

#[test]
fn a_flood_of_answered_syns_gives_its_ports_up_and_every_new_connection_gets_one() {
    let mut gateway = Gateway::new(&world(40));
    let mut kept: Vec<_> = (0..10).map(|n| (client(n), connect(&mut gateway, &client(n)).unwrap())).collect();
    for round in 0..20 {
        answered_syn_flood(&mut gateway, 1000 + round * 100..1100 + round * 100);
        let fresh = client(100 + round);
        let flow = connect(&mut gateway, &fresh).expect("a port of the flood");
        kept.push((fresh, flow));
    }
    assert_eq!(dropped(&gateway, DropReason::SnatPortsExhausted), 0);
    assert!(kept.iter().all(|(client, flow)| lives(&mut gateway, client, flow)));
}

#[test]
fn a_flood_of_answered_syns_takes_its_share_of_the_table_and_no_more() {
    let mut gateway = Gateway::with(&world(5000), 1000, 256);
    let kept: Vec<_> = (0..50).map(|n| (client(n), connect(&mut gateway, &client(n)).unwrap())).collect();
    answered_syn_flood(&mut gateway, 1000..6000);
    assert_eq!(gateway.flows.v4.half_open(), 500);
    let during: Vec<_> =
        (100..200).map(|n| (client(n), connect(&mut gateway, &client(n)).expect("room"))).collect();
    assert!(kept.iter().chain(&during).all(|(client, flow)| lives(&mut gateway, client, flow)));
    gateway.wait(Duration::from_secs(61));
    gateway.wait(Duration::from_secs(16));
    assert_eq!((gateway.flows.v4.half_open(), gateway.flows.used_entries()), (0, 300));
}

#[test]
fn datagrams_that_are_answered_once_give_their_ports_up_and_streams_do_not() {
    let mut world = world(4);
    world.services[1] = service("dns", Protocol::Udp, "10.96.0.53:53", 5353, &[11]);
    let mut gateway = Gateway::new(&world);
    // The answer to a question; its source is ours.
    let ask = |gateway: &mut Gateway, client: &str| {
        let asked = gateway.receive(UP0, udp(client, "10.96.0.53:53", b"q"));
        let (backend, snat) = (destination(&asked[0].1), source(&asked[0].1));
        assert_eq!(gateway.receive(FAB0, udp(&backend, &snat, b"a")).len(), 1);
        (backend, snat)
    };
    let stream = ask(&mut gateway, &client(0));
    gateway.wait(Duration::from_millis(2_100));
    let (backend, snat) = ask(&mut gateway, &client(0));
    assert_eq!((&backend, &snat), (&stream.0, &stream.1));
    for n in 1..50 {
        ask(&mut gateway, &client(n));
    }
    assert_eq!(event(&gateway, Event::SnatPortsReclaimed), 46);
    let back = gateway.receive(FAB0, udp(&backend, &snat, b"a"));
    assert_eq!(destination(&back[0].1), client(0));
}

#[test]
fn one_port_serves_every_backend_anew() {
    let mut world = World::new();
    world.snat_ports = [40_000].into_iter().collect();
    let mut gateway = Gateway::new(&world);
    let mut by_backend = BTreeMap::new();
    for n in 0..60 {
        if let Some((backend, snat)) = connect(&mut gateway, &client(n)) {
            assert_eq!(snat, "10.244.0.1:40000");
            assert!(by_backend.insert(backend.clone(), (client(n), (backend, snat))).is_none());
        }
    }
    assert_eq!(by_backend.len(), 3);
    assert!(by_backend.values().all(|(client, flow)| lives(&mut gateway, client, flow)));
}

#[test]
fn all_source_addresses_are_used_evenly_and_to_the_last_port() {
    let mut world = world(50);
    world.interfaces[1]
        .addresses
        .extend((2..=4).map(|n| format!("10.244.0.{n}").parse::<std::net::IpAddr>().unwrap()));
    let mut gateway = Gateway::new(&world);
    let mut by_address: BTreeMap<String, HashSet<String>> = BTreeMap::new();
    let mut open = |gateway: &mut Gateway, clients: std::ops::Range<usize>| {
        for n in clients {
            if let Some((_, snat)) = connect(gateway, &client(n)) {
                let (addr, port) = snat.split_once(':').unwrap();
                assert!(by_address.entry(addr.into()).or_default().insert(port.into()));
            }
        }
        by_address.values().map(HashSet::len).collect::<Vec<_>>()
    };
    let half = open(&mut gateway, 0..100);
    assert!(half.len() == 4 && half.iter().all(|used| (15..=35).contains(used)), "{half:?}");
    let nearly_all = open(&mut gateway, 100..800);
    assert!(nearly_all.iter().all(|used| *used >= 48), "{nearly_all:?}");
}

#[test]
fn a_flood_of_syns_takes_its_share_and_no_more() {
    let mut gateway = Gateway::with(&world(5000), 1000, 256);
    let kept: Vec<_> = (0..50).map(|n| (client(n), connect(&mut gateway, &client(n)).unwrap())).collect();
    assert_eq!(gateway.flows.v4.half_open(), 0);
    for n in 1000..6000 {
        gateway.receive(UP0, tcp(&client(n), VIP, "S"));
        assert!(gateway.flows.v4.half_open() <= 500);
    }
    assert_eq!(gateway.flows.v4.half_open(), 500);
    let replaced = event(&gateway, Event::HalfOpenReplaced);
    assert_eq!(replaced + dropped(&gateway, DropReason::HalfOpenLimit), 4500);
    assert!(replaced > 4000, "{replaced}");
    assert!(kept.iter().all(|(client, flow)| lives(&mut gateway, client, flow)));
    let during = connect(&mut gateway, &client(7000)).unwrap();
    assert!(lives(&mut gateway, &client(7000), &during));
    // The flood ends.
    gateway.wait(Duration::from_secs(61));
    gateway.wait(Duration::from_secs(16));
    assert_eq!((gateway.flows.v4.half_open(), gateway.flows.used_entries()), (0, 102));
    assert!(kept.iter().all(|(client, flow)| lives(&mut gateway, client, flow)));
}

#[test]
fn a_full_table_keeps_what_is_established_and_takes_new_flows_once_it_can() {
    let mut gateway = Gateway::with(&world(5000), 64, 256);
    let mut kept = Vec::new();
    for n in 0..400 {
        if let Some(flow) = connect(&mut gateway, &client(n)) {
            kept.push((client(n), flow));
        }
    }
    assert!(kept.len() >= 64 && dropped(&gateway, DropReason::FlowTableFull) > 0, "{}", kept.len());
    assert!(kept.iter().all(|(client, flow)| lives(&mut gateway, client, flow)));
    for (client, (backend, snat)) in kept.drain(..32) {
        gateway.receive(UP0, tcp(&client, VIP, "FA"));
        gateway.receive(FAB0, tcp(&backend, &snat, "FA"));
    }
    let begun = (1000..1100).filter(|n| connect(&mut gateway, &client(*n)).is_some()).count();
    assert!(begun >= 30, "{begun}");
    assert!(kept.iter().all(|(client, flow)| lives(&mut gateway, client, flow)));
}

/// A client behind the router, by its number and its port.
fn far_client(host: u8, port: u16) -> String {
    format!("198.51.100.{host}:{port}")
}

/// One client may take half of table and ports.
fn with_shares(world: &World) -> Gateway {
    Gateway::with_config(world, PipelineConfig { per_client_percent: 50, ..PipelineConfig::default() })
}

#[test]
fn one_client_has_its_share_of_the_ports_and_others_get_theirs() {
    let mut gateway = with_shares(&world(40));
    let greedy: Vec<_> =
        (0..100).filter_map(|n| connect(&mut gateway, &client(n)).map(|flow| (client(n), flow))).collect();
    assert_eq!(greedy.len(), 20);
    assert_eq!(dropped(&gateway, DropReason::ClientLimit), 80);
    let exhaustions = std::mem::take(&mut *gateway.exhaustions.lock().unwrap());
    assert!(exhaustions.iter().all(|exhaustion| exhaustion.resource == ExhaustedResource::ClientShare));
    let modest: Vec<_> = (0..20)
        .map(|n| (far_client(n, 1024), connect(&mut gateway, &far_client(n, 1024)).expect("a port")))
        .collect();
    assert!(greedy.iter().chain(&modest).all(|(client, flow)| lives(&mut gateway, client, flow)));
}

#[test]
fn a_client_with_its_share_goes_on_with_the_ports_of_its_connections_that_are_over() {
    let mut gateway = with_shares(&world(40));
    for n in 0..200 {
        let (backend, snat) = connect(&mut gateway, &client(n)).expect("a port");
        gateway.receive(UP0, tcp(&client(n), VIP, "FA"));
        gateway.receive(FAB0, tcp(&backend, &snat, "FA"));
    }
    // Nor do SYNs that somebody else forges keep it out.
    for n in 1000..1500 {
        gateway.receive(UP0, tcp(&client(n), VIP, "S"));
    }
    let flow = connect(&mut gateway, &client(2000)).expect("a port");
    assert!(lives(&mut gateway, &client(2000), &flow));
    assert_eq!(dropped(&gateway, DropReason::ClientLimit), 0);
    assert_eq!(gateway.flows.used_entries(), 2 * 20);
}

#[test]
fn one_client_has_its_share_of_the_table_and_others_get_theirs() {
    let mut gateway = with_shares(&world(4000));
    let greedy: Vec<_> =
        (0..900).filter_map(|n| connect(&mut gateway, &client(n)).map(|flow| (client(n), flow))).collect();
    assert_eq!(greedy.len(), 500);
    assert_eq!(dropped(&gateway, DropReason::ClientLimit), 400);
    let modest: Vec<_> = (0..200)
        .map(|n| far_client(n, 1024))
        .map(|client| (client.clone(), connect(&mut gateway, &client).expect("room")))
        .collect();
    // Its ended connections make room for new ones.
    for (client, (backend, snat)) in &greedy[..100] {
        gateway.receive(UP0, tcp(client, VIP, "FA"));
        gateway.receive(FAB0, tcp(backend, snat, "FA"));
    }
    let again = (2000..2200).filter(|n| connect(&mut gateway, &client(*n)).is_some()).count();
    assert!((60..=100).contains(&again), "{again}");
    assert_eq!(event(&gateway, Event::ClientFlowsReplaced), again as u64);
    assert!(greedy[100..].iter().chain(&modest).all(|(client, flow)| lives(&mut gateway, client, flow)));
}

#[test]
fn in_a_full_table_idle_connections_of_the_largest_user_give_way_and_no_others() {
    let mut gateway = Gateway::with(&world(5000), 1000, 256);
    let modest: Vec<_> = (0..200)
        .map(|n| far_client(n, 1024))
        .map(|client| (client.clone(), connect(&mut gateway, &client).unwrap()))
        .collect();
    let mut greedy = Vec::new();
    for n in 0..2000 {
        greedy.extend(connect(&mut gateway, &client(n)).map(|flow| (client(n), flow)));
    }
    assert!(dropped(&gateway, DropReason::FlowTableFull) > 500, "the largest user takes nothing from itself");
    assert!(greedy.iter().chain(&modest).all(|(client, flow)| lives(&mut gateway, client, flow)));

    gateway.wait(Duration::from_secs(3600));
    let busy = greedy.split_off(greedy.len() - 100);
    assert!(busy.iter().all(|(client, flow)| lives(&mut gateway, client, flow)));
    let fresh: Vec<_> = (0..300)
        .map(|n| far_client(201, 1024 + n))
        .map(|client| (client.clone(), connect(&mut gateway, &client).expect("room")))
        .collect();
    assert!(fresh.iter().chain(&modest).chain(&busy).all(|(client, flow)| lives(&mut gateway, client, flow)));
    let left = greedy.iter().filter(|(client, flow)| lives(&mut gateway, client, flow)).count();
    assert!(left < greedy.len(), "nobody made room");
}
