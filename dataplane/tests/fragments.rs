//! Random packets of both families, cut up at random and mixed up, through the real worker: what comes out is put
//! together again and must be the translation of the whole. And what attackers make of fragments.
#![allow(clippy::unwrap_used, reason = "test support: a panic is the report")]

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use crate::fragmenting::{
    self, Cut, Transport, VIP4, VIP6, client4, client6, cut, reassemble, transport_is_right, world,
};
use crate::gateway::{self, FAB0, Gateway, UP0};
use flowgate_dataplane::{DropReason, Event};
use flowgate_wire::Protocol;
use proptest::prelude::*;

/// What happens to a fragment on its way to us.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Once,
    Twice,
}

fn transports() -> impl Strategy<Value = Transport> {
    prop_oneof![Just(Transport::Udp), Just(Transport::Syn), Just(Transport::Init)]
}

fn shuffled(count: usize, seed: u64) -> Vec<usize> {
    let mut random = seed | 1;
    let mut order: Vec<usize> = (0..count).collect();
    for i in (1..count).rev() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        order.swap(i, usize::try_from(random % (i as u64 + 1)).unwrap());
    }
    order
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_packet_in_pieces_is_translated_as_the_whole(
        v6 in any::<bool>(), transport in transports(), body in proptest::collection::vec(any::<u8>(), 80..6000),
        piece in 4_usize..180, seed in any::<u64>(), twice in any::<u64>(), port in 1024_u16.., id in any::<u32>(),
    ) {
        // At most as many pieces as may wait.
        let piece = piece.max(body.len() / 8 / 20 + 1) * 8;
        let mut gateway = Gateway::new(&world());
        let client = if v6 { client6(port) } else { client4(port) };
        let vip = if v6 { VIP6 } else { VIP4 };
        let pieces = cut(&Cut { transport, from: &client, to: vip, body: &body, id, piece });
        prop_assume!(pieces.len() > 1);
        let mut sent = Vec::new();
        for i in shuffled(pieces.len(), seed) {
            let fate = if twice >> (i % 64) & 1 == 1 { Fate::Twice } else { Fate::Once };
            sent.extend(gateway.receive(UP0, pieces[i].clone()));
            if matches!(fate, Fate::Twice) && sent.len() < pieces.len() {
                sent.extend(gateway.receive(UP0, pieces[i].clone()));
            }
        }
        prop_assert_eq!(sent.len(), pieces.len(), "{}", gateway.story());
        prop_assert!(sent.iter().all(|(by, _)| *by == FAB0));
        let frames: Vec<_> = sent.into_iter().map(|(_, frame)| frame).collect();
        let whole = reassemble(&frames).unwrap();
        prop_assert!(transport_is_right(&whole), "{}", gateway.story());
        prop_assert_eq!(&whole.payload[transport.header_len()..], &body[..]);
        let (to, target) = if v6 { ("2001:db8:f::b", 5353) } else { ("10.244.0.11", 5353) };
        prop_assert_eq!((whole.dst.to_string(), whole.dst_port()), (to.to_owned(), target));
        let view = gateway.flows.views().next().unwrap();
        prop_assert_eq!(usize::try_from(view.packets[0]).unwrap(), pieces.len());
        prop_assert_eq!(whole.src_port(), view.reply.dst_port.number());
        gateway.wait(Duration::from_millis(1100));
    }
}

/// The pieces of one packet of a client.
fn pieces(transport: Transport, port: u16, id: u32, len: usize) -> Vec<Vec<u8>> {
    let body: Vec<u8> = (0..len).map(|n| u8::try_from(n % 251).unwrap()).collect();
    cut(&Cut { transport, from: &client4(port), to: VIP4, body: &body, id, piece: 480 })
}

fn dropped(gateway: &Gateway, reason: DropReason) -> u64 {
    gateway.worker.state().counters.read().dropped(reason)
}

#[test]
fn clients_that_choose_one_identification_are_told_apart_by_the_backend() {
    let mut gateway = Gateway::new(&world());
    let first: Vec<_> = pieces(Transport::Udp, 2000, 77, 1000);
    let second: Vec<_> = {
        let body = [9; 1000];
        let from = "192.0.2.11:2000";
        cut(&Cut { transport: Transport::Udp, from, to: VIP4, body: &body, id: 77, piece: 480 })
    };
    let mut by_id: BTreeMap<u32, Vec<Vec<u8>>> = BTreeMap::new();
    for (a, b) in first.iter().zip(&second) {
        for frame in [a, b] {
            for (_, frame) in gateway.receive(UP0, frame.clone()) {
                by_id.entry(fragmenting::identification(&frame)).or_default().push(frame);
            }
        }
    }
    assert_eq!(by_id.len(), 2);
    assert!(by_id.values().all(|frames| transport_is_right(&reassemble(frames).unwrap())));
}

#[test]
fn the_answer_of_a_backend_comes_back_in_pieces() {
    let mut gateway = Gateway::new(&world());
    let asked = gateway.receive(UP0, gateway::udp(&client4(2000), VIP4, b"a question"));
    let (backend, snat) = (gateway::destination(&asked[0].1), gateway::source(&asked[0].1));
    let body = [3; 4000];
    let answer =
        cut(&Cut { transport: Transport::Udp, from: &backend, to: &snat, body: &body, id: 5, piece: 1480 });
    let frames: Vec<_> = answer
        .into_iter()
        .rev()
        .flat_map(|frame| gateway.receive(FAB0, frame))
        .map(|(_, frame)| frame)
        .collect();
    let whole = reassemble(&frames).unwrap();
    assert!(transport_is_right(&whole));
    assert_eq!(format!("{}:{}", whole.dst, whole.dst_port()), client4(2000));
    assert_eq!(format!("{}:{}", whole.src, whole.src_port()), VIP4);
}

#[test]
fn a_packet_whose_pieces_overlap_ends() {
    let mut gateway = Gateway::new(&world());
    let mut parts = pieces(Transport::Udp, 2000, 1, 2000);
    // Teardrop: the second begins within the first.
    fragmenting::set_offset(&mut parts[1], 400, true);
    assert_eq!(gateway.receive(UP0, parts[0].clone()).len(), 1);
    assert!(parts[1..].iter().all(|part| gateway.receive(UP0, part.clone()).is_empty()));
    assert_eq!(dropped(&gateway, DropReason::FragmentOverlap), parts.len() as u64 - 1);
}

#[test]
fn headers_in_pieces_end() {
    let mut gateway = Gateway::new(&world());
    let whole = pieces(Transport::Syn, 2000, 1, 100);
    let [mut first, mut second] = [whole[0].clone(), whole[0].clone()];
    fragmenting::shorten(&mut first, 16);
    fragmenting::set_offset(&mut first, 0, true);
    fragmenting::set_offset(&mut second, 8, false);
    assert!(gateway.receive(UP0, first).is_empty());
    assert!(gateway.receive(UP0, second).is_empty());
    assert_eq!(dropped(&gateway, DropReason::FragmentTiny), 2);
}

#[test]
fn a_fragment_waits_a_second_for_its_first() {
    let mut gateway = Gateway::new(&world());
    let parts = pieces(Transport::Udp, 2000, 1, 900);
    assert!(gateway.receive(UP0, parts[1].clone()).is_empty());
    gateway.wait(Duration::from_millis(900));
    assert_eq!(dropped(&gateway, DropReason::FragmentNoFirst), 0);
    gateway.wait(Duration::from_millis(200));
    assert_eq!(dropped(&gateway, DropReason::FragmentNoFirst), 1);
    assert_eq!(gateway.receive(UP0, parts[0].clone()).len(), 1, "it is gone, and the first cannot know");
}

#[test]
fn pieces_of_what_is_refused_are_refused_once_and_quote_the_first() {
    let mut gateway = Gateway::new(&world());
    let body = [1; 1500];
    let to = "10.96.0.98:53";
    let parts =
        cut(&Cut { transport: Transport::Udp, from: &client4(7), to, body: &body, id: 3, piece: 480 });
    let sent: Vec<_> = parts.iter().flat_map(|part| gateway.receive(UP0, part.clone())).collect();
    assert_eq!(sent.len(), 1, "{}", gateway.story());
    let (by, error) = &sent[0];
    assert_eq!((*by, error[23], &error[34..36]), (UP0, 1, &[3, 3][..]));
    assert_eq!(error[42..], parts[0][14..error.len() - 28]);
    assert_eq!(dropped(&gateway, DropReason::FragmentNoFirst), parts.len() as u64 - 1);
}

#[test]
fn floods_of_fragments_are_bounded_and_harm_no_flow() {
    let mut gateway = Gateway::new(&world());
    let vip = "10.96.0.80:80";
    let syn = gateway.receive(UP0, gateway::tcp(&client4(5000), vip, "S"));
    let (backend, snat) = (gateway::destination(&syn[0].1), gateway::source(&syn[0].1));
    gateway.receive(FAB0, gateway::tcp(&backend, &snat, "SA"));
    gateway.receive(UP0, gateway::tcp(&client4(5000), vip, "A"));
    for n in 0..5000_u32 {
        let parts = pieces(Transport::Udp, 2000, n, 1400);
        // Firsts without others, and others without firsts.
        gateway.worker.device().deliver(UP0, parts[usize::from(n % 3 != 0)].clone());
        if n % 32 == 0 {
            gateway.wait(Duration::ZERO);
        }
        if n % 500 == 0 {
            assert_eq!(
                gateway
                    .receive(UP0, gateway::tcp(&client4(5000), vip, "A"))
                    .iter()
                    .filter(|(_, frame)| frame[23] == 6)
                    .count(),
                1
            );
            assert_eq!(
                gateway
                    .receive(FAB0, gateway::tcp(&backend, &snat, "A"))
                    .iter()
                    .filter(|(_, frame)| frame[23] == 6)
                    .count(),
                1
            );
        }
    }
    assert!(dropped(&gateway, DropReason::FragmentExcess) > 0);
    gateway.wait(Duration::ZERO);
    // Packets in pieces get through in the midst of it.
    let parts = pieces(Transport::Udp, 2001, 9_999, 1400);
    let sent: usize = parts.iter().map(|part| gateway.receive(UP0, part.clone()).len()).sum();
    assert_eq!(sent, parts.len());
    gateway.wait(Duration::from_millis(1100));
    let again = pieces(Transport::Udp, 2002, 10_000, 1400);
    let sent: usize = again.iter().rev().map(|part| gateway.receive(UP0, part.clone()).len()).sum();
    assert_eq!(sent, again.len(), "there is room to wait again");
}

#[test]
fn fragments_that_leave_carry_one_identification_a_packet_and_never_one_twice() {
    let mut gateway = Gateway::new(&world());
    let mut seen = HashSet::new();
    for n in 0..300 {
        let parts = pieces(Transport::Udp, 2000, n, 900);
        let ids: HashSet<u32> = parts
            .iter()
            .flat_map(|part| gateway.receive(UP0, part.clone()))
            .map(|(_, frame)| fragmenting::identification(&frame))
            .collect();
        assert_eq!(ids.len(), 1);
        assert!(seen.insert(*ids.iter().next().unwrap()));
    }
    let counters = gateway.worker.state().counters.read();
    assert_eq!(counters.event(Event::FragmentsForwarded), 600);
    assert!(gateway.flows.views().all(|view| view.original.protocol == Protocol::Udp));
}
