//! The protocol of the flow table under thousands of interleavings of its own atomic operations:
//! `cargo test -p flowgate-flow --features interleave --test interleave`. A seed that fails is in the message.
#![allow(clippy::unwrap_used, reason = "test support: a panic is the report")]

use std::net::Ipv4Addr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

use flowgate_flow::interleave::run;
use flowgate_flow::{
    Direction, FlowTable, HashKey, Inserted, NewFlow, NextHopRef, Sweep, SweepContext, Tick, Timeouts,
};
use flowgate_wire::{FiveTuple, L4Port, Protocol, Translation};

type Table = FlowTable<Ipv4Addr>;
type Body<'a> = Box<dyn FnOnce() + Send + 'a>;

/// A body of a thread.
fn body<'a>(does: impl FnOnce() + Send + 'a) -> Body<'a> {
    Box::new(does)
}

/// Interleavings of each scenario.
const SCHEDULES: u64 = 200;

/// The routing epoch of every flow and sweep.
const EPOCH: u8 = 8;

/// Tries a scenario on a fresh table with each seed.
fn all_schedules(scenario: impl Fn(u64, &Table)) {
    for seed in 0..SCHEDULES {
        let table =
            Table::new(1, HashKey(std::array::from_fn(|i| 0x9e37_79b9_7f4a_7c15 ^ i as u64))).unwrap();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| scenario(seed, &table))) {
            eprintln!("seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

fn original(client: u16) -> FiveTuple<Ipv4Addr> {
    tuple(0x0a00_0001, 0x0a60_0001, client, 80)
}

fn tuple(src: u32, dst: u32, src_port: u16, dst_port: u16) -> FiveTuple<Ipv4Addr> {
    FiveTuple {
        protocol: Protocol::Udp,
        src: src.into(),
        dst: dst.into(),
        src_port: L4Port::new(src_port),
        dst_port: L4Port::new(dst_port),
    }
}

/// The flow of a client, from this source port of ours. What it is translated to follows from both, so that a
/// mixture of two flows is told.
fn flow(client: u16, source: u16) -> NewFlow<Ipv4Addr> {
    let original = original(client);
    let reply = tuple(0x0af4_0000 + u32::from(source), 0x0af4_0001, 8080, source);
    let direction = |from: FiveTuple<Ipv4Addr>, to: FiveTuple<Ipv4Addr>| Direction {
        tuple: from,
        translation: Translation::between(&from, &to.reversed()),
        next_hop: NextHopRef::new(u32::from(source), EPOCH),
    };
    NewFlow {
        original: direction(original, reply),
        reply: direction(reply, original),
        backend: source.into(),
    }
}

/// Whatever is found must be one of `flows`, whole.
fn found_is_whole(table: &Table, flows: &[NewFlow<Ipv4Addr>]) {
    for flow in flows {
        let Some(found) = table.lookup(&flow.original.tuple) else { continue };
        let forwarding = found.forwarding;
        let same = |flow: &&NewFlow<Ipv4Addr>| flow.backend == forwarding.backend;
        let it = flows.iter().find(same).unwrap_or_else(|| panic!("nobody wrote {forwarding:?}"));
        assert_eq!(forwarding.translation, it.original.translation, "torn");
        assert_eq!(forwarding.next_hop, it.original.next_hop, "torn");
    }
}

/// Nothing is left of half a flow, and each view is one flow.
fn settled(table: &Table, flows: usize) {
    assert_eq!(table.used_entries(), 2 * flows);
    assert_eq!(table.flows().count(), flows);
    // All flows are of one client.
    assert_eq!(table.flows_of(original(0).src) as usize, flows, "counts are exact");
}

#[test]
fn of_two_insertions_of_one_tuple_one_wins_and_the_other_is_told() {
    all_schedules(|seed, table| {
        let flows = [flow(1, 40_000), flow(1, 40_001)];
        let (new, existing) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let insert = |flow: NewFlow<Ipv4Addr>| {
            let (new, existing) = (&new, &existing);
            move || match table.insert(&flow, Tick(1)) {
                Inserted::New(found) => {
                    assert_eq!(found.forwarding.backend, flow.backend);
                    new.fetch_add(1, Ordering::Relaxed);
                }
                Inserted::Existing(found) => {
                    assert_ne!(found.forwarding.backend, flow.backend);
                    existing.fetch_add(1, Ordering::Relaxed);
                }
                other => panic!("{other:?}"),
            }
        };
        let reader = || (0..4).for_each(|_| found_is_whole(table, &flows));
        run(seed, vec![body(insert(flows[0])), body(insert(flows[1])), body(reader)]);
        assert_eq!((new.load(Ordering::Relaxed), existing.load(Ordering::Relaxed)), (1, 1));
        settled(table, 1);
    });
}

#[test]
fn of_two_flows_that_want_the_same_answers_one_gets_them() {
    all_schedules(|seed, table| {
        let flows = [flow(1, 40_000), flow(2, 40_000)];
        let taken = AtomicUsize::new(0);
        let insert = |flow: NewFlow<Ipv4Addr>| {
            let taken = &taken;
            move || match table.insert(&flow, Tick(1)) {
                Inserted::New(_) => {}
                Inserted::ReplyTaken(_) => {
                    taken.fetch_add(1, Ordering::Relaxed);
                }
                other => panic!("{other:?}"),
            }
        };
        run(seed, vec![body(insert(flows[0])), body(insert(flows[1]))]);
        assert_eq!(taken.load(Ordering::Relaxed), 1);
        settled(table, 1);
    });
}

#[test]
fn a_flow_that_several_remove_is_removed_once_and_its_slots_are_free_again() {
    all_schedules(|seed, table| {
        let old = flow(1, 40_000);
        table.insert(&old, Tick(1));
        let new = flow(2, 40_001);
        let removed = AtomicUsize::new(0);
        let remove = |tuple: FiveTuple<Ipv4Addr>| {
            let removed = &removed;
            move || {
                if let Some(found) = table.lookup(&tuple) {
                    removed.fetch_add(usize::from(table.remove(&found)), Ordering::Relaxed);
                }
            }
        };
        let insert = || assert!(matches!(table.insert(&new, Tick(2)), Inserted::New(_)));
        let reader = || (0..4).for_each(|_| found_is_whole(table, &[old, new]));
        run(
            seed,
            vec![body(remove(old.original.tuple)), body(remove(old.reply.tuple)), body(insert), body(reader)],
        );
        assert!(removed.load(Ordering::Relaxed) <= 1, "removed twice");
        // A removal that met another one half way may leave one direction for the sweep.
        sweep(table, 10_000);
        sweep(table, 10_000);
        assert!(table.lookup(&new.original.tuple).is_some() && table.lookup(&new.reply.tuple).is_some());
        settled(table, 1);
    });
}

#[test]
fn a_flow_that_is_replaced_is_never_mixed_with_its_successor() {
    all_schedules(|seed, table| {
        let flows = [flow(1, 40_000), flow(1, 40_001)];
        table.insert(&flows[0], Tick(1));
        let replace = || {
            if let Some(found) = table.lookup(&flows[0].original.tuple) {
                table.remove(&found);
            }
            match table.insert(&flows[1], Tick(2)) {
                Inserted::New(_) | Inserted::Existing(_) => {}
                other => panic!("{other:?}"),
            }
        };
        let reader = || (0..6).for_each(|_| found_is_whole(table, &flows));
        run(seed, vec![body(replace), body(reader), body(|| sweep(table, 2))]);
        settled(table, 1);
        found_is_whole(table, &flows);
    });
}

#[test]
fn a_next_hop_that_is_looked_up_during_a_sweep_is_kept() {
    all_schedules(|seed, table| {
        let flow = flow(1, 40_000);
        table.insert(&flow, Tick(1));
        let tuple = flow.original.tuple;
        table.lookup(&tuple).unwrap().set_next_hop(NextHopRef::new(5, EPOCH - 1));
        let look_up = || table.lookup(&tuple).unwrap().set_next_hop(NextHopRef::new(6, EPOCH));
        run(seed, vec![body(look_up), body(|| sweep(table, 2)), body(|| sweep(table, 2))]);
        assert_eq!(table.lookup(&tuple).unwrap().forwarding.next_hop.id(EPOCH), Some(6), "seed {seed}");
    });
}

#[test]
fn a_full_table_gives_each_slot_to_one_flow() {
    // Fewer: the table is filled anew each time.
    for seed in 0..SCHEDULES / 5 {
        let table = Table::new(1, HashKey(std::array::from_fn(|i| 0x51_7c_c1 ^ i as u64))).unwrap();
        let mut client = 0;
        while client < 200 && !matches!(table.insert(&flow(client, 40_000 + client), Tick(1)), Inserted::Full)
        {
            client += 1;
        }
        let flows = [flow(1000, 50_000), flow(1001, 50_001), flow(1002, 50_002)];
        let insert = |flow: NewFlow<Ipv4Addr>| {
            let table = &table;
            move || {
                let _ = table.insert(&flow, Tick(100));
            }
        };
        run(seed, flows.map(|flow| body(insert(flow))).into());
        found_is_whole(&table, &flows);
        sweep(&table, 2_000);
        sweep(&table, 2_000);
        assert_eq!(table.used_entries(), 2 * table.flows().count(), "half a flow is left, seed {seed}");
    }
}

/// A whole sweep at this time, with timeouts that nothing here reaches but halves of flows.
fn sweep(table: &Table, now: u32) {
    let mut sweep = Sweep::new(table, 0, 1);
    let buckets = sweep.len();
    let context = SweepContext { now: Tick(now), timeouts: &Timeouts::default(), epoch: EPOCH };
    sweep.step(table, buckets, context, |_, _| false);
}
