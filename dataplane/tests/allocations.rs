//! The packet path allocates nothing: not for an established flow, not for a new one, not when it drops.
#![allow(unsafe_code, reason = "a counting allocator has to be one")]

mod gateway;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use flowgate_dataplane::BURST;
use flowgate_dataplane::{
    Context, Counters, Event, PassReason, Pipeline, PipelineConfig, Process, RxChecksums, Verdict,
    WorkerNumber,
};
use flowgate_flow::{AffinityTable, Flows, HashKey, Tick, Timeouts};
use flowgate_tables::Tables;
use gateway::{World, tcp, udp};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is handed to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(of: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.with(Cell::get);
    of();
    ALLOCATIONS.with(Cell::get) - before
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(5)))), 1);
}

#[test]
fn the_packet_path_allocates_nothing() {
    let tables = World::new().tables(&Tables::empty());
    let flows = Flows::new(10_000, 10_000, HashKey::random()).unwrap();
    let affinity = AffinityTable::new(64);
    let timeouts = Timeouts::default();
    let mut pipeline = Pipeline::new(WorkerNumber { index: 0, count: 1 });
    let mut counters = Counters::default();
    let mut verdicts = [Verdict::Pass(PassReason::NotOurs); BURST];
    let frame = |n: usize| {
        let client = format!("192.0.2.10:{}", 1000 + n);
        match n % 8 {
            0 => tcp(&client, "10.96.0.80:80", "S"),
            1 => tcp(&client, "10.96.0.80:80", "A"),
            2 => tcp(&client, "10.96.0.99:80", "S"),
            3 => udp("192.0.2.66:7", "10.96.0.77:53", b"x"),
            4 => {
                // Fragments: of five packets, first ones and others, in any order.
                let mut fragment = udp(&client, "10.96.0.53:53", b"12345678");
                fragment[19] = u8::try_from(n % 5).unwrap();
                (fragment[20], fragment[21]) = if n % 16 == 4 { (0x20, 0) } else { (0, 2) };
                fragment[39] = 32;
                fragment
            }
            _ => udp(&client, "10.96.0.53:53", b"x"),
        }
    };
    let frames: Vec<Vec<u8>> = (0..BURST).map(frame).collect();
    for round in 0..3 {
        let mut burst = frames.clone();
        let counted = allocations(|| {
            let context = Context {
                now: Tick(round),
                tables: &tables,
                flows: &flows,
                affinity: &affinity,
                timeouts: &timeouts,
                config: &PipelineConfig::default(),
                ingress: &[],
            };
            pipeline.process(&mut burst, RxChecksums::MayBePartial, &context, &mut counters, &mut verdicts);
            pipeline.drain_requests(|_| {});
        });
        assert_eq!(counted, 0, "round {round}");
    }
    assert!(counters.event(Event::FlowsOpened) > 30 && counters.event(Event::FlowHits) > 60);
    assert!(counters.dropped_total() > 20, "{}", counters.dropped_total());
    assert!(counters.event(Event::FragmentsForwarded) > 5);
}
