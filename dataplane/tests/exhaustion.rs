//! When ports or entries run out: established flows are untouched, flows that nobody answered make room, and all is
//! well again once the pressure ends.
#![allow(clippy::unwrap_used, reason = "test support: a panic is the report")]

mod gateway;

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use flowgate_dataplane::exhaustion::ExhaustedResource;
use flowgate_dataplane::{DropReason, Event};
use flowgate_wire::Protocol;
use gateway::{FAB0, Gateway, UP0, World, destination, service, source, tcp, udp};

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

#[test]
fn unanswered_datagrams_give_their_ports_up_and_answered_ones_do_not() {
    let mut world = world(4);
    world.services[1] = service("dns", Protocol::Udp, "10.96.0.53:53", 5353, &[11]);
    let mut gateway = Gateway::new(&world);
    let asked = gateway.receive(UP0, udp(&client(0), "10.96.0.53:53", b"q"));
    let (backend, snat) = (destination(&asked[0].1), source(&asked[0].1));
    assert_eq!(gateway.receive(FAB0, udp(&backend, &snat, b"a")).len(), 1);
    for n in 1..50 {
        assert_eq!(gateway.receive(UP0, udp(&client(n), "10.96.0.53:53", b"q")).len(), 1);
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
