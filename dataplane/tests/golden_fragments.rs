//! Golden cases of fragments: packets in, packets out byte for byte, counters exact. See `golden.rs`.
#![allow(clippy::unwrap_used, reason = "test support: a panic is the report")]

use std::time::Duration;

use crate::fragmenting::{self, Cut, Transport, VIP4, client4, cut, identification, world};
use crate::gateway::{FAB0, Gateway, UP0, destination, neighbour, source};

fn golden(name: &str, gateway: &Gateway) {
    insta::with_settings!({ snapshot_path => "golden", prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!(name, gateway.story());
    });
}

/// A datagram in three fragments.
fn datagram(from: &str, to: &str, id: u32) -> Vec<Vec<u8>> {
    cut(&Cut { transport: Transport::Udp, from, to, body: &[0xa5; 40], id, piece: 24 })
}

#[test]
fn a_question_and_its_answer_in_fragments() {
    let mut gateway = Gateway::new(&world());
    let mut sent = Vec::new();
    for part in datagram(&client4(2000), VIP4, 7) {
        sent.extend(gateway.receive(UP0, part));
    }
    let (backend, snat) = (destination(&sent[0].1), source(&sent[0].1));
    for part in datagram(&backend, &snat, 9) {
        gateway.receive(FAB0, part);
    }
    golden("fragments_exchange", &gateway);
}

#[test]
fn fragments_out_of_order_leave_once_the_first_is_there() {
    let mut gateway = Gateway::new(&world());
    for part in datagram(&client4(2000), VIP4, 7).into_iter().rev() {
        gateway.receive(UP0, part);
    }
    golden("fragments_reversed", &gateway);
}

#[test]
fn a_client_that_is_kept_keeps_its_identification() {
    let mut gateway = Gateway::new(&world());
    let cut = Cut {
        transport: Transport::Syn,
        from: &client4(2000),
        to: "203.0.113.7:80",
        body: &[1; 40],
        id: 7,
        piece: 32,
    };
    for part in fragmenting::cut(&cut) {
        let sent = gateway.receive(UP0, part);
        assert_eq!(identification(&sent[0].1), 7);
    }
    golden("fragments_kept", &gateway);
}

#[test]
fn fragments_wait_with_their_first_for_its_next_hop() {
    let mut world = world();
    world.neighbours.retain(|neighbour| neighbour.addr.to_string() != "10.244.0.11");
    let mut gateway = Gateway::new(&world);
    for part in datagram(&client4(2000), VIP4, 7) {
        gateway.receive(UP0, part);
    }
    world.neighbours.push(neighbour(1, "10.244.0.11", Some(11)));
    gateway.publish(&world);
    gateway.wait(Duration::from_millis(5));
    golden("fragments_held", &gateway);
}

#[test]
fn a_fragment_that_is_too_big_for_its_way_is_reported() {
    let mut world = world();
    world.interfaces[1].mtu = 60;
    let mut gateway = Gateway::new(&world);
    let cut =
        Cut { transport: Transport::Udp, from: &client4(2000), to: VIP4, body: &[1; 120], id: 7, piece: 64 };
    for part in fragmenting::cut(&cut) {
        gateway.receive(UP0, part);
    }
    golden("fragments_too_big", &gateway);
}

#[test]
fn duplicates_and_overlaps_go_no_further() {
    let mut gateway = Gateway::new(&world());
    let parts = datagram(&client4(2000), VIP4, 7);
    gateway.receive(UP0, parts[0].clone());
    gateway.receive(UP0, parts[0].clone());
    let mut overlapping = parts[1].clone();
    fragmenting::set_offset(&mut overlapping, 16, true);
    gateway.receive(UP0, overlapping);
    gateway.receive(UP0, parts[1].clone());
    golden("fragments_overlap", &gateway);
}

#[test]
fn what_follows_a_first_fragment_that_is_not_ours_is_not_ours() {
    let mut gateway = Gateway::new(&world());
    for part in datagram(&client4(2000), "192.0.2.1:9", 7) {
        gateway.receive(UP0, part);
    }
    golden("fragments_not_ours", &gateway);
}
