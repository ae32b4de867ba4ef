//! Micro-benches of parts of the pipeline and of the tables.

mod support;

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use flowgate_flow::HashKey;
use flowgate_tables::maglev::{Maglev, Member};
use flowgate_tables::{Publisher, Tables};
use flowgate_wire::checksum::{Delta, Sum};
use flowgate_wire::{Address, Parsed, Protocol};

use support::{Family, client_tuple, tables, udp_frame};

fn wire(c: &mut Criterion) {
    let frame = udp_frame(&client_tuple(1));
    let mut group = c.benchmark_group("wire");
    group.throughput(Throughput::Elements(1));
    group.bench_function("parse", |b| b.iter(|| Ipv4Addr::parse(black_box(&frame.0))));
    let key = HashKey::random();
    let tuple = client_tuple(7);
    group.bench_function("flow_hash", |b| b.iter(|| key.hash(black_box(&tuple))));
    let Ok(Parsed::L4(packet)) = Ipv4Addr::parse(&frame.0) else { panic!("a valid frame") };
    let delta = Delta::between(Sum::ZERO.addr(tuple.src), Sum::ZERO.addr(tuple.dst));
    group.bench_function("checksum_update", |b| {
        b.iter(|| black_box(packet.l4_checksum).update(black_box(delta)))
    });
    group.finish();
    let mut group = c.benchmark_group("checksum_full");
    let payload = [0x5a_u8; 1480];
    group.throughput(Throughput::Bytes(1480));
    group.bench_function("1480", |b| b.iter(|| Sum::ZERO.bytes(black_box(&payload)).fold()));
    group.finish();
}

fn maglev(c: &mut Criterion) {
    let mut group = c.benchmark_group("maglev");
    for count in [3_usize, 10, 100] {
        let names: Vec<String> = (0..count).map(|n| format!("10.244.{}.{}:8080", n / 256, n % 256)).collect();
        let members: Vec<_> = names.iter().map(|name| Member { name: name.as_bytes(), weight: 1 }).collect();
        group.bench_function(format!("build_{count}"), |b| b.iter(|| Maglev::build(black_box(&members))));
        let table = Maglev::build(&members);
        let mut hash = 0_u32;
        group.bench_function(format!("pick_{count}"), |b| {
            b.iter(|| {
                hash = hash.wrapping_add(0x9e37_79b9);
                table.pick(black_box(hash))
            });
        });
    }
    group.finish();
}

fn publish(c: &mut Criterion) {
    let tables = tables(Family::V4, Protocol::Udp);
    let mut publisher = Publisher::new();
    let mut reader = publisher.reader();
    let mut group = c.benchmark_group("publish");
    group.bench_function("publish_and_read", |b| {
        let mut generation = 0;
        b.iter(|| {
            generation += 1;
            let next = Tables { generation, services: Arc::clone(&tables.services), ..tables.clone() };
            publisher.publish(next);
            black_box(reader.current().generation)
        });
    });
    group.bench_function("read_unchanged", |b| b.iter(|| black_box(reader.current().generation)));
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = wire, maglev, publish
}
criterion_main!(benches);
