#![allow(clippy::cast_possible_truncation, reason = "test numbers are small")]

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::thread;

use flowgate_wire::{Address, FiveTuple, L4Port, TcpFlags, TcpSegment, Translation};
use proptest::prelude::*;

use super::*;
use crate::expiry::{Sweep, SweepContext};
use crate::state::TcpPhase;
use crate::timeouts::Timeouts;

mod connections;
mod room;

const KEY: HashKey = HashKey([
    3,
    0x1656_67b1_9e37_79f9,
    0x27d4_eb2f_1656_67c5,
    0x9e37_79b9_7f4a_7c15,
    0xc2b2_ae3d_27d4_eb4f,
    5,
    7,
    11,
    13,
    17,
    19,
]);

fn tuple(protocol: Protocol, client: u32, port: u16) -> FiveTuple<Ipv4Addr> {
    FiveTuple {
        protocol,
        src: (0xc000_0200 + client).into(),
        dst: 0x0a60_0001.into(),
        src_port: L4Port::new(port),
        dst_port: L4Port::new(80),
    }
}

fn reply_tuple(protocol: Protocol, snat_port: u16) -> FiveTuple<Ipv4Addr> {
    FiveTuple {
        protocol,
        src: 0x0af4_000b.into(),
        dst: 0x0af4_0001.into(),
        src_port: L4Port::new(8080),
        dst_port: L4Port::new(snat_port),
    }
}

fn flow(original: FiveTuple<Ipv4Addr>, reply: FiveTuple<Ipv4Addr>, backend: u32) -> NewFlow<Ipv4Addr> {
    let direction = |from: FiveTuple<Ipv4Addr>, to: FiveTuple<Ipv4Addr>| Direction {
        tuple: from,
        translation: Translation::between(&from, &to.reversed()),
        next_hop: NextHopRef::new(backend, 0),
    };
    NewFlow { original: direction(original, reply), reply: direction(reply, original), backend }
}

fn v4(tuple: &FiveTuple<IpAddr>) -> FiveTuple<Ipv4Addr> {
    let addr = |addr| Ipv4Addr::from_ip(addr).expect("all test flows are of IPv4");
    let FiveTuple { protocol, src, dst, src_port, dst_port } = *tuple;
    FiveTuple { protocol, src: addr(src), dst: addr(dst), src_port, dst_port }
}

fn udp(client: u32, port: u16, snat_port: u16) -> NewFlow<Ipv4Addr> {
    flow(tuple(Protocol::Udp, client, port), reply_tuple(Protocol::Udp, snat_port), snat_port.into())
}

/// A segment without payload.
fn segment(flags: TcpFlags, sequence: u32, acknowledgement: u32) -> TcpSegment {
    let occupied = [TcpFlags::SYN, TcpFlags::FIN].into_iter().filter(|flag| flags.intersects(*flag)).count();
    let end = sequence.wrapping_add(occupied as u32);
    TcpSegment { flags, sequence, end, acknowledgement, window: 8192, window_scale: None }
}

/// Two ends of a connection that send in turn and lose nothing.
struct Talk<'a> {
    table: &'a FlowTable<Ipv4Addr>,
    tuples: [FiveTuple<Ipv4Addr>; 2],
    /// The next number of each side.
    next: [u32; 2],
}

impl<'a> Talk<'a> {
    fn new(table: &'a FlowTable<Ipv4Addr>, flow: &NewFlow<Ipv4Addr>) -> Self {
        let tuples = [flow.original.tuple, flow.reply.tuple];
        Self { table, tuples, next: [u32::MAX - 1, 5000] }
    }

    fn found(&self, side: Side) -> Found<'a, Ipv4Addr> {
        self.table.lookup(&self.tuples[side as usize]).unwrap()
    }

    /// The next segment of a side.
    fn say(&mut self, side: Side, flags: TcpFlags) -> Tracked {
        let (own, other) = (side as usize, 1 - side as usize);
        let acknowledgement = if flags.intersects(TcpFlags::ACK) { self.next[other] } else { 0 };
        let segment = segment(flags, self.next[own], acknowledgement);
        self.next[own] = segment.end;
        self.hear(side, &segment)
    }

    /// Any segment, as it comes from a wire.
    fn hear(&self, side: Side, segment: &TcpSegment) -> Tracked {
        self.table.track_segment(&self.found(side), segment, || true)
    }

    fn open(table: &'a FlowTable<Ipv4Addr>, flow: &NewFlow<Ipv4Addr>) -> Self {
        let mut talk = Self::new(table, flow);
        talk.say(Side::Original, TcpFlags::SYN);
        talk.say(Side::Reply, TcpFlags::SYN.union(TcpFlags::ACK));
        talk.say(Side::Original, TcpFlags::ACK);
        talk
    }

    fn phase(&self) -> TcpPhase {
        self.table.tcp_phase(&self.found(Side::Original))
    }
}

fn at(now: u32, timeouts: &Timeouts, epoch: u8) -> SweepContext<'_> {
    SweepContext { now: Tick(now), timeouts, epoch }
}

#[test]
fn both_directions_are_found_with_their_translations() {
    let table = FlowTable::new(100, KEY).unwrap();
    let flow = udp(1, 1000, 40_000);
    assert!(matches!(table.insert(&flow, Tick(1)), Inserted::New(_)));
    for (direction, side) in [(flow.original, Side::Original), (flow.reply, Side::Reply)] {
        let found = table.lookup(&direction.tuple).unwrap();
        assert_eq!(found.forwarding.translation, direction.translation);
        assert_eq!((found.side(), found.forwarding.backend), (side, 40_000));
    }
    assert!(table.lookup(&flow.original.tuple.reversed()).is_none());
    assert_eq!(table.used_entries(), 2);
}

#[test]
fn a_flow_inserted_after_the_tags_were_compared_is_found_late() {
    let table = FlowTable::new(100, KEY).unwrap();
    let mut in_second_bucket = 0;
    for port in 0..100 {
        let flow = udp(1, 1000 + port, 40_000 + port);
        let tuple = &flow.original.tuple;
        let mut probe = table.probe(tuple);
        table.prefetch(&mut probe);
        assert!(matches!(table.insert(&flow, Tick(1)), Inserted::New(_)));
        assert!(table.find(&probe, tuple).is_none());
        let found = table.find_again(&probe, tuple).unwrap();
        assert_eq!(found.forwarding.backend, flow.backend);
        in_second_bucket += u32::from(found.index.0 / BUCKET_SLOTS != probe.buckets[0]);
    }
    assert!(in_second_bucket > 0, "both buckets were looked into");
}

#[test]
fn the_second_insertion_of_a_tuple_gets_the_first_flow_and_leaves_nothing() {
    let table = FlowTable::new(100, KEY).unwrap();
    table.insert(&udp(1, 1000, 40_000), Tick(1));
    match table.insert(&udp(1, 1000, 40_001), Tick(2)) {
        Inserted::Existing(found) => assert_eq!(found.forwarding.backend, 40_000),
        other => panic!("{other:?}"),
    }
    assert!(matches!(table.insert(&udp(2, 1000, 40_000), Tick(2)), Inserted::ReplyTaken(_)));
    assert_eq!(table.used_entries(), 2);
}

#[test]
fn removing_a_flow_by_either_direction_frees_both() {
    let table = FlowTable::new(100, KEY).unwrap();
    for by_reply in [false, true] {
        let flow = udp(1, 1000, 40_000);
        table.insert(&flow, Tick(1));
        let direction = if by_reply { flow.reply } else { flow.original };
        assert!(table.remove(&table.lookup(&direction.tuple).unwrap()));
        assert_eq!(table.used_entries(), 0);
        assert!(table.lookup(&flow.original.tuple).is_none() && table.lookup(&flow.reply.tuple).is_none());
    }
}

#[test]
fn the_table_holds_the_flows_it_was_made_for_within_a_quarter_more_memory() {
    let capacity = 200_000;
    let table = FlowTable::new(capacity, KEY).unwrap();
    for n in 0..capacity {
        let flow = flow(tuple(Protocol::Udp, n / 1000, 1000 + (n % 1000) as u16), reply_tuple_of(n), n);
        assert!(matches!(table.insert(&flow, Tick(1)), Inserted::New(_)), "flow {n}");
        let found = table.lookup(&flow.reply.tuple).unwrap();
        found.touch(Tick(2), 60);
    }
    assert_eq!(table.used_entries(), 2 * capacity as usize, "nobody was evicted");
    let per_flow = table.len_bytes() as f64 / f64::from(capacity);
    assert!(per_flow <= 128.0 * 1.25, "{per_flow} bytes per flow");
}

fn reply_tuple_of(n: u32) -> FiveTuple<Ipv4Addr> {
    FiveTuple {
        src: (0x0af4_0000 + n / 20_000).into(),
        ..reply_tuple(Protocol::Udp, 40_000 + (n % 20_000) as u16)
    }
}

/// A datagram of one direction of a flow.
fn datagram(table: &FlowTable<Ipv4Addr>, tuple: &FiveTuple<Ipv4Addr>, now: u32) {
    let found = table.lookup(tuple).unwrap();
    if found.may_become_stream(Tick(now)) {
        table.record_datagram(&found, Tick(now));
    }
    found.touch(Tick(now), 60);
}

#[test]
fn silent_flows_expire_and_busy_ones_stay() {
    let table = FlowTable::new(100, KEY).unwrap();
    let (silent, busy) = (udp(1, 1, 40_000), udp(2, 2, 40_001));
    table.insert(&silent, Tick(0));
    table.insert(&busy, Tick(0));
    let mut sweep = Sweep::new(&table, 0, 1);
    let timeouts = Timeouts::default();
    let step = |sweep: &mut Sweep, now| sweep.step(&table, u32::MAX, at(now, &timeouts, 0), |_, _| false);
    datagram(&table, &busy.reply.tuple, 1_000);
    datagram(&table, &busy.reply.tuple, 29_000);
    assert_eq!(step(&mut sweep, 30_000), 0);
    assert_eq!(step(&mut sweep, 30_001), 1);
    assert!(table.lookup(&silent.original.tuple).is_none());
    // A stream: 120 seconds from the last packet of either direction.
    assert_eq!(step(&mut sweep, 149_000), 0);
    assert_eq!(step(&mut sweep, 149_001), 1);
    assert_eq!(table.used_entries(), 0);
}

/// As netfilter's `nf_conntrack_udp_packet` decides it.
#[test]
fn a_stream_is_udp_in_both_directions_that_goes_on_for_longer_than_two_seconds() {
    let flow = udp(1, 1, 40_000);
    let [client, server] = [flow.original.tuple, flow.reply.tuple];
    for (datagrams, is_stream) in [
        (vec![(client, 30_000)], false),
        (vec![(server, 10), (client, 1_000), (server, 2_000)], false),
        (vec![(server, 10), (client, 2_016)], true),
        (vec![(server, 10), (server, 2_016)], true),
        // The answer comes late: what follows it counts.
        (vec![(client, 9_000), (server, 9_001)], false),
        (vec![(client, 9_000), (server, 9_001), (client, 9_002)], true),
    ] {
        let table = FlowTable::new(100, KEY).unwrap();
        table.insert(&flow, Tick(0));
        datagrams.iter().for_each(|(tuple, now)| datagram(&table, tuple, *now));
        assert_eq!(table.flows().next().unwrap().is_stream, is_stream, "{datagrams:?}");
        let last = datagrams.last().unwrap().1;
        for tuple in [client, server] {
            let found = table.lookup(&tuple).unwrap();
            assert_eq!(table.evictable_idle_ms(&found, Tick(last)).is_none(), is_stream, "{datagrams:?}");
            assert_eq!(table.is_expired(&found, Tick(last + 31_000), &Timeouts::default()), !is_stream);
        }
    }
}

#[test]
fn flows_of_a_condemned_backend_are_swept_at_once() {
    let table = FlowTable::new(100, KEY).unwrap();
    table.insert(&udp(1, 1, 40_000), Tick(0));
    table.insert(&udp(2, 1, 40_001), Tick(0));
    let mut sweep = Sweep::new(&table, 0, 1);
    let removed =
        sweep.step(&table, u32::MAX, at(1, &Timeouts::default(), 0), |_, backend| backend == 40_000);
    assert_eq!(removed, 1);
    assert!(table.lookup(&udp(2, 1, 40_001).reply.tuple).is_some());
}

#[test]
fn the_sweep_forgets_next_hops_of_other_epochs_and_keeps_current_ones() {
    let table = FlowTable::new(100, KEY).unwrap();
    table.insert(&udp(1, 1, 40_000), Tick(0));
    table.insert(&udp(2, 1, 40_001), Tick(0));
    let tuples = [udp(1, 1, 40_000), udp(2, 1, 40_001)].map(|flow| flow.original.tuple);
    let [old, new] = [NextHopRef::new(5, 7), NextHopRef::new(5, 8)];
    table.lookup(&tuples[0]).unwrap().set_next_hop(old);
    table.lookup(&tuples[1]).unwrap().set_next_hop(new);
    let mut sweep = Sweep::new(&table, 0, 1);
    sweep.step(&table, u32::MAX, at(1, &Timeouts::default(), 8), |_, _| false);
    let stored = tuples.map(|tuple| table.lookup(&tuple).unwrap().forwarding.next_hop);
    assert_eq!(stored, [NextHopRef::NONE, new]);
}

#[test]
fn shares_of_the_sweep_cover_the_table_once() {
    let table = FlowTable::<Ipv4Addr>::new(1000, KEY).unwrap();
    let total: u32 = (0..7).map(|worker| Sweep::new(&table, worker, 7).len()).sum();
    assert_eq!(total, table.bucket_count());
}

#[test]
fn workers_that_race_for_one_flow_agree_on_the_winner() {
    let table = Arc::new(FlowTable::new(10_000, KEY).unwrap());
    let workers: Vec<_> = (0..4_u16)
        .map(|worker| {
            let table = Arc::clone(&table);
            thread::spawn(move || {
                (0..2_000_u32)
                    .map(|n| match table.insert(&udp(n, 1, 40_000 + worker * 2_000 + n as u16), Tick(1)) {
                        Inserted::New(found) | Inserted::Existing(found) => found.forwarding.backend,
                        other => panic!("{other:?}"),
                    })
                    .collect::<Vec<_>>()
            })
        })
        .collect();
    let winners: Vec<_> = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
    assert!(winners.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(table.used_entries(), 4_000, "losers leave nothing behind");
}

/// Readers run while one writer inserts and removes: whatever is found must be whole. Every field of a
/// flow follows from its number, so a mixture of two flows would show.
#[test]
fn no_torn_entry_is_ever_found() {
    let table = Arc::new(FlowTable::new(64, KEY).unwrap());
    let stop = Arc::new(AtomicBool::new(false));
    let hits = Arc::new(AtomicU32::new(0));
    let numbered =
        |n: u16| flow(tuple(Protocol::Udp, n.into(), n + 1), reply_tuple(Protocol::Udp, n + 1), n.into());
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (table, stop, hits) = (Arc::clone(&table), Arc::clone(&stop), Arc::clone(&hits));
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    for n in 0..200 {
                        let flow = numbered(n);
                        for direction in [flow.original, flow.reply] {
                            if let Some(found) = table.lookup(&direction.tuple) {
                                assert_eq!(found.forwarding.translation, direction.translation);
                                assert_eq!(found.forwarding.next_hop, direction.next_hop);
                                hits.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    }
                }
            })
        })
        .collect();
    let writers: Vec<_> = (0..2_u16)
        .map(|half| {
            let table = Arc::clone(&table);
            thread::spawn(move || {
                for round in 0..20_000_u32 {
                    let n = half * 100 + (round.wrapping_mul(2_654_435_761) >> 16) as u16 % 100;
                    match table.lookup(&numbered(n).original.tuple) {
                        Some(found) => drop(table.remove(&found)),
                        None => drop(table.insert(&numbered(n), Tick(round))),
                    }
                }
            })
        })
        .collect();
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    while hits.load(Ordering::Relaxed) == 0 {
        thread::yield_now();
    }
    stop.store(true, Ordering::Relaxed);
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    for view in table.flows().collect::<Vec<_>>() {
        assert!(table.remove(&table.lookup(&v4(&view.original)).unwrap()));
    }
    let mut sweep = Sweep::new(&table, 0, 1);
    sweep.step(&table, u32::MAX, at(30_000_000, &Timeouts::default(), 0), |_, _| true);
    assert_eq!(table.used_entries(), 0, "every slot is free again");
}

#[derive(Clone, Debug)]
enum Operation {
    Insert { client: u32, snat_port: u16 },
    Remove { client: u32 },
    Find { client: u32 },
    Expire { seconds: u32 },
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let client = 0_u32..60;
    let one = prop_oneof![
        4 => (client.clone(), 40_000_u16..40_060).prop_map(|(client, snat_port)| Operation::Insert { client, snat_port }),
        2 => client.clone().prop_map(|client| Operation::Remove { client }),
        3 => client.prop_map(|client| Operation::Find { client }),
        1 => (0_u32..40).prop_map(|seconds| Operation::Expire { seconds }),
    ];
    proptest::collection::vec(one, 0..300)
}

proptest! {
    #[test]
    fn agrees_with_a_hash_map_under_random_operations(operations in operations()) {
        let table = FlowTable::new(200, KEY).unwrap();
        // By client: SNAT port and time of the last packet.
        let mut model: HashMap<u32, (u16, u32)> = HashMap::new();
        let mut now = 0;
        let mut sweep = Sweep::new(&table, 0, 1);
        for operation in operations {
            match operation {
                Operation::Insert { client, snat_port } => {
                    let taken = model.values().any(|(port, _)| *port == snat_port);
                    match table.insert(&udp(client, 9, snat_port), Tick(now)) {
                        Inserted::New(_) => {
                            prop_assert!(!taken && !model.contains_key(&client));
                            model.insert(client, (snat_port, now));
                        }
                        Inserted::Existing(found) => {
                            prop_assert!(!taken);
                            prop_assert_eq!(found.forwarding.backend, u32::from(model[&client].0));
                        }
                        Inserted::ReplyTaken(_) => prop_assert!(taken),
                        Inserted::Full => prop_assert!(false, "200 flows fit"),
                    }
                }
                Operation::Remove { client } => {
                    let found = table.lookup(&tuple(Protocol::Udp, client, 9));
                    prop_assert_eq!(found.is_some(), model.remove(&client).is_some());
                    if let Some(found) = found {
                        prop_assert!(table.remove(&found));
                    }
                }
                Operation::Find { client } => {
                    let found = table.lookup(&tuple(Protocol::Udp, client, 9));
                    prop_assert_eq!(found.map(|f| f.forwarding.backend), model.get(&client).map(|m| u32::from(m.0)));
                    if let Some(found) = found {
                        found.touch(Tick(now), 60);
                        model.entry(client).and_modify(|m| m.1 = now);
                    }
                }
                Operation::Expire { seconds } => {
                    now += seconds * 1000;
                    sweep.step(&table, u32::MAX, at(now, &Timeouts::default(), 0), |_, _| false);
                    model.retain(|_, (_, last_seen)| now - *last_seen <= 30_000);
                }
            }
            prop_assert_eq!(table.used_entries(), 2 * model.len());
        }
        let mut seen: Vec<u32> = table.flows().map(|view| v4(&view.original).src.to_bits() - 0xc000_0200).collect();
        seen.sort_unstable();
        let mut clients: Vec<u32> = model.into_keys().collect();
        clients.sort_unstable();
        prop_assert_eq!(seen, clients);
    }
}

fn tcp(client: u32, port: u16, snat_port: u16) -> NewFlow<Ipv4Addr> {
    flow(tuple(Protocol::Tcp, client, port), reply_tuple(Protocol::Tcp, snat_port), snat_port.into())
}
