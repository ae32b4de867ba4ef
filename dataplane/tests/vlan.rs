//! Frames of VLANs through a worker: the tag comes off, and goes on for the way out.

#![allow(clippy::unwrap_used, reason = "test support: a panic is the report")]

use crate::gateway::{CLIENT, Gateway, UP0, World, destination, neighbour, route, source, tcp, udp};
use flowgate_dataplane::{Event, PassReason};
use flowgate_tables::spec::VlanSpec;

/// The backends are on VLAN 100 of the uplink.
fn world() -> World {
    let mut world = World::new();
    let mut inner = world.interfaces[1].clone();
    inner.name = "up0.100".into();
    inner.vlan = Some(VlanSpec { parent: 0, id: 100 });
    world.interfaces[1].addresses.clear();
    world.interfaces.push(inner);
    world.routes = vec![route("192.0.2.0/24", 0, None), route("10.244.0.0/24", 2, None)];
    world.neighbours = vec![neighbour(0, "192.0.2.10", Some(10))];
    world.neighbours.extend([11, 12, 13].map(|n| neighbour(2, &format!("10.244.0.{n}"), Some(n))));
    world
}

fn tagged(mut frame: Vec<u8>, identifier: u16) -> Vec<u8> {
    let [high, low] = identifier.to_be_bytes();
    frame.splice(12..12, [0x81, 0x00, high, low]);
    frame
}

/// The frame without its tag, which must be this one.
fn untagged(mut frame: Vec<u8>, identifier: u16) -> Vec<u8> {
    let tag: Vec<u8> = frame.drain(12..16).collect();
    assert_eq!(tag, tagged(vec![0; 12], identifier)[12..]);
    frame
}

#[test]
fn a_connection_goes_into_a_vlan_and_back_by_one_device() {
    let mut gateway = Gateway::new(&world());
    let sent = gateway.receive(UP0, tcp(CLIENT, "10.96.0.80:80", "S"));
    let (by, syn) = sent.into_iter().next().unwrap();
    assert_eq!(by, UP0);
    let syn = untagged(syn, 100);
    let (backend, snat) = (destination(&syn), source(&syn));
    assert!(snat.starts_with("10.244.0.1:"), "{snat}");
    let back = gateway.receive(UP0, tagged(tcp(&backend, &snat, "SA"), 100));
    assert_eq!((source(&back[0].1), destination(&back[0].1)), ("10.96.0.80:80".into(), CLIENT.into()));
}

#[test]
fn a_refusal_goes_back_into_the_vlan_it_came_from() {
    let mut gateway = Gateway::new(&world());
    let sent = gateway.receive(UP0, tagged(udp("10.244.0.11:1000", "10.96.0.53:54", b"x"), 100));
    let error = untagged(sent.into_iter().next().unwrap().1, 100);
    assert_eq!((error[23], error[34], error[35]), (1, 3, 3), "ICMP port unreachable");
}

#[test]
fn a_vlan_that_is_not_served_and_a_double_tag_are_not_ours() {
    let mut gateway = Gateway::new(&world());
    let syn = tcp(CLIENT, "10.96.0.80:80", "S");
    assert!(gateway.receive(UP0, tagged(syn.clone(), 101)).is_empty());
    assert!(gateway.receive(UP0, tagged(tagged(syn.clone(), 100), 100)).is_empty());
    assert_eq!(gateway.counters().passed(PassReason::NotIp), 2);
    // A priority alone makes no network of its own.
    assert_eq!(gateway.receive(UP0, tagged(syn, 0x6000)).len(), 1);
    assert_eq!(gateway.counters().event(Event::FlowsOpened), 1);
}
