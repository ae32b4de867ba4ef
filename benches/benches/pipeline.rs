//! The real pipeline over frames in memory: nanoseconds per packet.
//!
//! Only `process` is timed: each burst's 64 frames of random flows are written before the clock starts,
//! as a NIC or the kernel would have.

mod support;

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use flowgate_dataplane::{Event, PassReason, Verdict};
use flowgate_flow::Tick;
use flowgate_tables::InterfaceId;
use flowgate_wire::FiveTuple4;
use support::{BURST, Frame, Gateway, Random, client_tuple, udp_frame};

/// Runs `bursts` bursts of frames made by `next_tuple` and says how long `process` took.
fn timed(gateway: &mut Gateway, bursts: u64, mut next_tuple: impl FnMut() -> FiveTuple4) -> Duration {
    let mut frames: Vec<Frame> = (0..BURST).map(|_| udp_frame(&client_tuple(0))).collect();
    let mut verdicts = [Verdict::Pass(PassReason::NotOurs); BURST];
    let mut spent = Duration::ZERO;
    for _ in 0..bursts {
        for frame in &mut frames {
            write_headers(frame, &next_tuple());
        }
        #[expect(clippy::disallowed_methods, reason = "measuring")]
        let start = Instant::now();
        gateway.process(black_box(&mut frames), Tick(1), &mut verdicts);
        spent += start.elapsed();
        assert_eq!(verdicts[BURST - 1], Verdict::Transmit(InterfaceId(1)));
    }
    spent
}

/// Rewrites addresses, ports and checksums of a template; the payload is all the same.
fn write_headers(frame: &mut Frame, tuple: &FiveTuple4) {
    use flowgate_wire::checksum::Sum;
    let bytes = &mut frame.0;
    bytes[22] = 64;
    bytes[24..26].copy_from_slice(&[0, 0]);
    bytes[26..30].copy_from_slice(&tuple.src.octets());
    bytes[30..34].copy_from_slice(&tuple.dst.octets());
    let ip_checksum = Sum::ZERO.bytes(&bytes[14..34]).checksum();
    bytes[24..26].copy_from_slice(&ip_checksum.0);
    bytes[34..36].copy_from_slice(&tuple.src_port.wire());
    bytes[36..38].copy_from_slice(&tuple.dst_port.wire());
    bytes[40..42].copy_from_slice(&[0, 0]);
    let pseudo = Sum::pseudo_header(tuple.src, tuple.dst, tuple.protocol.number(), 26);
    let checksum = pseudo.bytes(&bytes[34..60]).checksum().or_all_ones();
    bytes[40..42].copy_from_slice(&checksum.0);
}

fn established(c: &mut Criterion) {
    let mut group = c.benchmark_group("established");
    group.throughput(Throughput::Elements(BURST as u64));
    for (name, flows) in [("1k", 1_000), ("100k", 100_000), ("1m", 1_000_000)] {
        let mut gateway = Gateway::new(flows);
        let mut number = 0;
        timed(&mut gateway, u64::from(flows).div_ceil(BURST as u64), || {
            number = (number + 1) % flows;
            client_tuple(number)
        });
        assert_eq!(gateway.counters.event(Event::FlowsOpened), u64::from(flows));
        let mut random = Random(0x5eed);
        group.bench_function(name, |b| {
            b.iter_custom(|bursts| timed(&mut gateway, bursts, || client_tuple(random.below(flows))));
        });
        assert_eq!(gateway.counters.event(Event::FlowsOpened), u64::from(flows), "every packet hit its flow");
    }
    group.finish();
}

fn new_flows(c: &mut Criterion) {
    let mut group = c.benchmark_group("new_flows");
    group.throughput(Throughput::Elements(BURST as u64));
    group.bench_function("udp", |b| {
        b.iter_custom(|bursts| {
            // A fresh table each time and never more flows than it holds, so that none is evicted.
            const FLOWS: u32 = 500_000;
            let per_table = u64::from(FLOWS) / BURST as u64;
            let (mut left, mut spent) = (bursts, Duration::ZERO);
            while left > 0 {
                let mut gateway = Gateway::new(FLOWS);
                let mut number = 0;
                let run = left.min(per_table);
                spent += timed(&mut gateway, run, || {
                    number += 1;
                    client_tuple(number)
                });
                assert_eq!(gateway.counters.event(Event::FlowsOpened), run * BURST as u64);
                left -= run;
            }
            spent
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(4));
    targets = established, new_flows
}
criterion_main!(benches);
