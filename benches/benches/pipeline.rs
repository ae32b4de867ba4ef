//! The real pipeline over frames in memory: nanoseconds per packet.
//!
//! Only `process` is timed: the 64 frames of a burst are written before the clock starts, as a NIC or the kernel would
//! do.

mod support;

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use flowgate_dataplane::{Event, PassReason, Verdict};
use flowgate_flow::Tick;
use flowgate_tables::InterfaceId;
use flowgate_wire::checksum::Sum;
use flowgate_wire::{Address, FiveTuple, FiveTuple4, FiveTuple6, Parsed, Protocol, TcpFlags};

use support::{
    BURST, Family, Frame, Gateway, Random, client_tuple, tcp_frame, tuple_v6, udp_frame, udp_frame_v6,
};

/// Runs `bursts` bursts of frames, each written by `write`; returns the time spent in `process`.
fn timed<const N: usize>(
    gateway: &mut Gateway,
    bursts: u64,
    template: &Frame<N>,
    mut write: impl FnMut(&mut Frame<N>),
) -> Duration {
    let mut frames: Vec<Frame<N>> = vec![template.clone(); BURST];
    let mut verdicts = [Verdict::Pass(PassReason::NotOurs); BURST];
    let mut spent = Duration::ZERO;
    for _ in 0..bursts {
        for frame in &mut frames {
            write(frame);
        }
        #[expect(clippy::disallowed_methods, reason = "measuring")]
        let start = Instant::now();
        gateway.process(black_box(&mut frames), Tick(1), &mut verdicts);
        spent += start.elapsed();
        assert_eq!(verdicts[BURST - 1], Verdict::Transmit(InterfaceId(1)));
    }
    spent
}

/// Writes addresses, ports and checksums into a template; the payload does not change.
fn write_headers(frame: &mut Frame<60>, tuple: &FiveTuple4) {
    let bytes = &mut frame.0;
    bytes[22] = 64;
    bytes[24..26].copy_from_slice(&[0, 0]);
    bytes[26..30].copy_from_slice(&tuple.src.octets());
    bytes[30..34].copy_from_slice(&tuple.dst.octets());
    let ip_checksum = Sum::ZERO.bytes(&bytes[14..34]).checksum();
    bytes[24..26].copy_from_slice(&ip_checksum.0);
    write_udp(&mut bytes[34..], tuple);
}

/// [`write_headers`] over IPv6.
fn write_headers_v6(frame: &mut Frame<80>, tuple: &FiveTuple6) {
    let bytes = &mut frame.0;
    bytes[21] = 64;
    bytes[22..38].copy_from_slice(&tuple.src.octets());
    bytes[38..54].copy_from_slice(&tuple.dst.octets());
    write_udp(&mut bytes[54..], tuple);
}

fn write_udp<A: Address>(udp: &mut [u8], tuple: &FiveTuple<A>) {
    udp[..2].copy_from_slice(&tuple.src_port.wire());
    udp[2..4].copy_from_slice(&tuple.dst_port.wire());
    udp[6..8].copy_from_slice(&[0, 0]);
    let pseudo = Sum::pseudo_header(tuple.src, tuple.dst, tuple.protocol.number(), 26);
    let checksum = pseudo.bytes(udp).checksum().or_all_ones();
    udp[6..8].copy_from_slice(&checksum.0);
}

/// Packets of known flows, drawn at random, each written by `write` from the number of its flow.
fn established_of<const N: usize>(
    c: &mut Criterion,
    group: &str,
    family: Family,
    template: &Frame<N>,
    write: impl Fn(&mut Frame<N>, u32),
) {
    let mut group = c.benchmark_group(group);
    group.throughput(Throughput::Elements(BURST as u64));
    for (name, flows) in [("1k", 1_000), ("100k", 100_000), ("1m", 1_000_000)] {
        let mut gateway = Gateway::new(family, flows);
        let mut number = 0;
        timed(&mut gateway, u64::from(flows).div_ceil(BURST as u64), template, |frame| {
            number = (number + 1) % flows;
            write(frame, number);
        });
        assert_eq!(gateway.counters.event(Event::FlowsOpened), u64::from(flows));
        let mut random = Random(0x5eed);
        group.bench_function(name, |b| {
            b.iter_custom(|bursts| {
                timed(&mut gateway, bursts, template, |frame| write(frame, random.below(flows)))
            });
        });
        assert_eq!(gateway.counters.event(Event::FlowsOpened), u64::from(flows), "every packet hit its flow");
    }
    group.finish();
}

fn established(c: &mut Criterion) {
    let template = udp_frame(&client_tuple(0));
    established_of(c, "established", Family::V4, &template, |frame, flow| {
        write_headers(frame, &client_tuple(flow));
    });
}

/// Segments of open TCP connections. Unlike datagrams they are compared with what their connection has sent before.
fn established_tcp(c: &mut Criterion) {
    let mut group = c.benchmark_group("established_tcp");
    group.throughput(Throughput::Elements(BURST as u64));
    for (name, flows) in [("1k", 1_000), ("100k", 100_000)] {
        let mut gateway = Gateway::new_tcp(flows);
        let mut segments: Vec<Frame<60>> = Vec::new();
        for first in (0..flows).step_by(BURST) {
            let tuples: Vec<_> = (first..flows.min(first + 64)).map(tcp_tuple).collect();
            segments.extend(open(&mut gateway, &tuples));
        }
        let mut random = Random(0x5eed);
        group.bench_function(name, |b| {
            b.iter_custom(|bursts| {
                timed(&mut gateway, bursts, &segments[0], |frame| {
                    frame.0 = segments[random.below(flows) as usize].0;
                })
            });
        });
        assert_eq!(gateway.counters.event(Event::FlowsOpened), u64::from(flows), "every packet hit its flow");
    }
    group.finish();
}

fn tcp_tuple(flow: u32) -> FiveTuple4 {
    FiveTuple { protocol: Protocol::Tcp, ..client_tuple(flow) }
}

/// Opens the connections of a burst; returns a segment of each client.
fn open(gateway: &mut Gateway, tuples: &[FiveTuple4]) -> Vec<Frame<60>> {
    let frames = |flags| -> Vec<_> { tuples.iter().map(|tuple| tcp_frame(tuple, flags)).collect() };
    let mut verdicts = vec![Verdict::Pass(PassReason::NotOurs); tuples.len()];
    let mut syns = frames(TcpFlags::SYN);
    gateway.process(&mut syns, Tick(1), &mut verdicts);
    assert!(verdicts.iter().all(|verdict| *verdict == Verdict::Transmit(InterfaceId(1))));
    let answer = |syn: &Frame<60>| match Ipv4Addr::parse(&syn.0) {
        Ok(Parsed::L4(packet)) => tcp_frame(&packet.tuple.reversed(), TcpFlags::SYN.union(TcpFlags::ACK)),
        other => panic!("not a SYN: {other:?}"),
    };
    let mut answers: Vec<_> = syns.iter().map(answer).collect();
    gateway.process(&mut answers, Tick(1), &mut verdicts);
    let mut segments = frames(TcpFlags::ACK);
    gateway.process(&mut segments, Tick(1), &mut verdicts);
    frames(TcpFlags::ACK)
}

fn established_v6(c: &mut Criterion) {
    let template = udp_frame_v6(&tuple_v6(&client_tuple(0)));
    established_of(c, "established_v6", Family::V6, &template, |frame, flow| {
        write_headers_v6(frame, &tuple_v6(&client_tuple(flow)));
    });
}

fn new_flows(c: &mut Criterion) {
    let mut group = c.benchmark_group("new_flows");
    group.throughput(Throughput::Elements(BURST as u64));
    group.bench_function("udp", |b| {
        b.iter_custom(|bursts| {
            // A new table each time, with at most as many flows as it holds, so that none is evicted.
            const FLOWS: u32 = 500_000;
            let per_table = u64::from(FLOWS) / BURST as u64;
            let (mut left, mut spent) = (bursts, Duration::ZERO);
            while left > 0 {
                let mut gateway = Gateway::new(Family::V4, FLOWS);
                let mut number = 0;
                let run = left.min(per_table);
                spent += timed(&mut gateway, run, &udp_frame(&client_tuple(0)), |frame| {
                    number += 1;
                    write_headers(frame, &client_tuple(number));
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
    targets = established, established_tcp, established_v6, new_flows
}
criterion_main!(benches);
