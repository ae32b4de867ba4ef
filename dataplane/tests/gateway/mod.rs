//! A gateway in memory: the real worker loop over a device without a kernel. Packets go in and come out
//! by the public door, and what happened is rendered as text.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "test support: a panic is the report")]

#[path = "../model/world.rs"]
mod world;

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam::queue::ArrayQueue;
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use flowgate_dataplane::device::MemoryDevice;
use flowgate_dataplane::exhaustion::{Exhaustion, ExhaustionReporter};
use flowgate_dataplane::worker::{Resolver, Shared};
use flowgate_dataplane::{
    Counters, DropReason, Event, PassReason, Pipeline, PipelineConfig, RejectReason, Worker, WorkerConfig,
    WorkerNumber, WorkerSettings,
};
use flowgate_flow::{AffinityTable, Flows, HashKey, Timeouts};
use flowgate_tables::spec::{
    EndpointSpec, FrontendSpec, InterfaceSpec, NeighbourSpec, ServiceName, ServiceSpec, TrafficPolicySpec,
};
use flowgate_tables::{EmptyAction, FrontendKind, InterfaceId, PerSourceClass, Publisher, SourceNat, Tables};
use flowgate_wire::{L4Port, MacAddr, Protocol};

pub(crate) use world::{World, route};

pub(crate) const UP0: InterfaceId = InterfaceId(0);
pub(crate) const FAB0: InterfaceId = InterfaceId(1);
pub(crate) const CLIENT: &str = "192.0.2.10:1234";

impl World {
    /// Two interfaces, a client and a router on one, backends 10.244.0.11 to .13 on the other; a web
    /// Service (ClusterIP, NodePort), a DNS Service, one without endpoints and one that keeps clients.
    pub(crate) fn new() -> Self {
        let mut web = service("web", Protocol::Tcp, "10.96.0.80:80", 8080, &[11, 12, 13]);
        web.frontends.push(FrontendSpec {
            addr: ip("192.0.2.1"),
            port: L4Port::new(30_380),
            kind: FrontendKind::NodePort,
            ..web.frontends[0].clone()
        });
        let mut kept = service("kept", Protocol::Tcp, "203.0.113.7:80", 8080, &[12]);
        kept.frontends[0].kind = FrontendKind::LoadBalancer;
        let policies = kept.frontends[0].policies;
        kept.frontends[0].policies =
            policies.map(|t| TrafficPolicySpec { source_nat: SourceNat::PreserveClient, ..*t });
        Self {
            services: vec![
                web,
                service("dns", Protocol::Udp, "10.96.0.53:53", 5353, &[11, 12]),
                service("empty", Protocol::Tcp, "10.96.0.99:80", 80, &[]),
                kept,
            ],
            interfaces: vec![interface("up0", 1, "192.0.2.1"), interface("fab0", 2, "10.244.0.1")],
            routes: vec![
                route("192.0.2.0/24", 0, None),
                route("10.244.0.0/24", 1, None),
                route("198.51.100.0/24", 0, Some("192.0.2.254")),
            ],
            neighbours: vec![
                neighbour(0, "192.0.2.10", Some(10)),
                neighbour(0, "192.0.2.254", Some(254)),
                neighbour(1, "10.244.0.11", Some(11)),
                neighbour(1, "10.244.0.12", Some(12)),
                neighbour(1, "10.244.0.13", Some(13)),
            ],
            snat_ports: (40_000..=40_099).collect(),
            service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
        }
    }
}

pub(crate) struct Gateway {
    pub(crate) worker: Worker<MemoryDevice, Pipeline>,
    pub(crate) flows: Arc<Flows>,
    /// What the worker told of Services whose flows were refused.
    pub(crate) exhaustions: Arc<Mutex<Vec<Exhaustion>>>,
    resolve: Arc<ArrayQueue<flowgate_tables::routing::NeighbourKey>>,
    publisher: Publisher,
    started: Instant,
    now: Duration,
    counted: Counters,
    story: String,
}

impl Gateway {
    pub(crate) fn new(world: &World) -> Self {
        Self::with(world, 1000, 256)
    }

    pub(crate) fn with_config(world: &World, config: PipelineConfig) -> Self {
        Self::build(world, 1000, 256, config)
    }

    pub(crate) fn with(world: &World, capacity: u32, tx_ring_len: usize) -> Self {
        Self::build(world, capacity, tx_ring_len, PipelineConfig::default())
    }

    fn build(world: &World, capacity: u32, tx_ring_len: usize, config: PipelineConfig) -> Self {
        let flows = Arc::new(Flows::new(capacity, capacity, KEY).unwrap());
        let resolve = Arc::new(ArrayQueue::new(16));
        #[expect(clippy::disallowed_methods, reason = "only differences matter")]
        let started = Instant::now();
        let mut publisher = Publisher::new();
        publisher.publish(world.tables(&Tables::empty()));
        let config = WorkerConfig {
            number: WorkerNumber { index: 0, count: 1 },
            core: None,
            settings: WorkerSettings {
                idle_before_sleep: Duration::ZERO,
                timeouts: Timeouts::default(),
                pipeline: config,
            },
        };
        let asked = Arc::clone(&resolve);
        let resolver = Resolver::new(move |neighbour| asked.push(neighbour).is_ok());
        let affinity = Arc::new(AffinityTable::new(64));
        let exhaustions = Arc::new(Mutex::new(Vec::new()));
        let reported = Arc::clone(&exhaustions);
        let reporter = ExhaustionReporter::new(move |exhaustion| {
            reported.lock().unwrap().push(exhaustion);
            true
        });
        let shared = Shared { flows: Arc::clone(&flows), affinity, resolver, exhaustion: reporter, started };
        let device = MemoryDevice::new(2, tx_ring_len);
        let pipeline = Pipeline::new(config.number);
        let worker = Worker::new(config, shared, publisher.reader(), device, pipeline);
        Self {
            worker,
            flows,
            exhaustions,
            resolve,
            publisher,
            started,
            now: Duration::from_millis(1),
            counted: Counters::default(),
            story: String::new(),
        }
    }

    pub(crate) fn publish(&mut self, world: &World) {
        let tables = world.tables(&self.publisher.current());
        self.publisher.publish(tables);
        writeln!(self.story, "== generation {} ==", self.publisher.current().generation).unwrap();
    }

    /// Publishes tables that do not follow from a description alone.
    pub(crate) fn publish_tables(&mut self, tables: Tables) {
        self.publisher.publish(tables);
    }

    /// Lets time pass without a packet. Returns what was sent.
    pub(crate) fn wait(&mut self, time: Duration) -> Vec<(InterfaceId, Vec<u8>)> {
        self.now += time;
        writeln!(self.story, "-- {} s --", time.as_secs_f64()).unwrap();
        self.turn()
    }

    /// A packet arrives; what is sent and counted goes into the story. Returns what was sent.
    pub(crate) fn receive(&mut self, by: InterfaceId, frame: Vec<u8>) -> Vec<(InterfaceId, Vec<u8>)> {
        writeln!(self.story, "{} > {}", name(by), describe(&frame)).unwrap();
        self.worker.device().deliver(by, frame);
        self.turn()
    }

    fn turn(&mut self) -> Vec<(InterfaceId, Vec<u8>)> {
        self.now += Duration::from_millis(1);
        self.worker.poll_once(self.started + self.now);
        let mut sent = Vec::new();
        for interface in [UP0, FAB0] {
            for frame in self.worker.device().take_sent(interface) {
                writeln!(self.story, "    {} < {}", name(interface), describe(&frame.0)).unwrap();
                sent.push((interface, frame.0));
            }
        }
        while let Some(neighbour) = self.resolve.pop() {
            writeln!(self.story, "    who has {} on {}?", neighbour.addr, name(neighbour.egress)).unwrap();
        }
        let counters = self.worker.state().counters.read();
        for event in Event::ALL.iter().filter(|event| !ROUTINE.contains(event)) {
            self.tell(event.name(), counters.event(*event) - self.counted.event(*event));
        }
        for reason in DropReason::ALL {
            let n = counters.dropped(*reason) - self.counted.dropped(*reason);
            self.tell(&format!("drop {}", reason.name()), n);
        }
        for reason in RejectReason::ALL {
            let n = counters.rejected(*reason) - self.counted.rejected(*reason);
            self.tell(&format!("reject {}", reason.name()), n);
        }
        for reason in PassReason::ALL {
            let n = counters.passed(*reason) - self.counted.passed(*reason);
            self.tell(&format!("pass {}", reason.name()), n);
        }
        self.counted = counters;
        sent
    }

    fn tell(&mut self, what: &str, count: u64) {
        if count > 0 {
            writeln!(self.story, "    + {count} {what}").unwrap();
        }
    }

    /// All that happened, for a snapshot.
    pub(crate) fn counters(&self) -> Counters {
        self.worker.state().counters.read()
    }

    pub(crate) fn story(&self) -> &str {
        &self.story
    }
}

/// A TCP segment of a connection whose ends both begin with number 1000.
pub(crate) fn tcp(from: &str, to: &str, flags: &str) -> Vec<u8> {
    let (src, src_port) = split(from);
    let (dst, dst_port) = split(to);
    let sequence = if flags.contains('S') { 1000 } else { 1001 };
    let mut builder = PacketBuilder::ethernet2([4, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 1])
        .ipv4(src.octets(), dst.octets(), 64)
        .tcp(src_port, dst_port, sequence, 8192);
    for flag in flags.chars() {
        builder = match flag {
            'S' => builder.syn(),
            'A' => builder.ack(1001),
            'F' => builder.fin(),
            'R' => builder.rst(),
            other => panic!("flag {other}"),
        };
    }
    let mut frame = Vec::new();
    builder.write(&mut frame, if flags == "A" { b"data".as_slice() } else { b"" }).unwrap();
    frame
}

/// A UDP datagram.
pub(crate) fn udp(from: &str, to: &str, payload: &[u8]) -> Vec<u8> {
    let (src, src_port) = split(from);
    let (dst, dst_port) = split(to);
    let builder = PacketBuilder::ethernet2([4, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 1])
        .ipv4(src.octets(), dst.octets(), 64)
        .udp(src_port, dst_port);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}

/// The source of a sent packet, as `addr:port`: where a reply must go.
pub(crate) fn source(frame: &[u8]) -> String {
    endpoints(frame).0
}

/// The destination of a sent packet, as `addr:port`.
pub(crate) fn destination(frame: &[u8]) -> String {
    endpoints(frame).1
}

fn endpoints(frame: &[u8]) -> (String, String) {
    let addr = |at: usize| Ipv4Addr::new(frame[at], frame[at + 1], frame[at + 2], frame[at + 3]);
    let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    (format!("{}:{}", addr(26), port(34)), format!("{}:{}", addr(30), port(36)))
}

/// A frame in words and in full, with a verdict on its checksums by an independent implementation.
fn describe(frame: &[u8]) -> String {
    let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
    let Ok(sliced) = SlicedPacket::from_ethernet(frame) else { return format!("(not a packet) {hex}") };
    let Some(NetSlice::Ipv4(ip)) = sliced.net else { return format!("(not IPv4) {hex}") };
    let header = ip.header().to_header();
    let (src, dst) = (Ipv4Addr::from(header.source), Ipv4Addr::from(header.destination));
    let (words, right) = match sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let flags: String = [(tcp.syn(), 'S'), (tcp.ack(), 'A'), (tcp.fin(), 'F'), (tcp.rst(), 'R')]
                .into_iter()
                .filter_map(|(set, letter)| set.then_some(letter))
                .collect();
            let right = tcp.checksum() == tcp.to_header().calc_checksum_ipv4(&header, tcp.payload()).unwrap();
            (format!("TCP {src}:{} -> {dst}:{} {flags}", tcp.source_port(), tcp.destination_port()), right)
        }
        Some(TransportSlice::Udp(udp)) => {
            let calculated = udp.to_header().calc_checksum_ipv4(&header, udp.payload()).unwrap();
            let right = udp.checksum() == 0 || udp.checksum() == calculated;
            (format!("UDP {src}:{} -> {dst}:{}", udp.source_port(), udp.destination_port()), right)
        }
        _ => (format!("IPv4 {src} -> {dst} protocol {}", header.protocol.0), true),
    };
    let right = right && header.header_checksum == header.calc_header_checksum();
    let mark = if right { "" } else { " (checksum wrong)" };
    format!("{words} ttl {}{mark} {hex}", header.time_to_live)
}

pub(crate) fn service(
    name: &str,
    protocol: Protocol,
    vip: &str,
    target_port: u16,
    hosts: &[u8],
) -> ServiceSpec {
    let (addr, port) = split(vip);
    let endpoint = |host: &u8| EndpointSpec {
        addr: IpAddr::V4(Ipv4Addr::new(10, 244, 0, *host)),
        port: L4Port::new(target_port),
        weight: 1,
    };
    ServiceSpec {
        name: ServiceName { namespace: "default".into(), name: name.into(), port: String::new() },
        protocol,
        frontends: vec![FrontendSpec {
            addr: IpAddr::V4(addr),
            port: L4Port::new(port),
            kind: FrontendKind::ClusterIp,
            policies: PerSourceClass::same(TrafficPolicySpec {
                endpoint_set: 0,
                source_nat: SourceNat::Always,
                when_empty: EmptyAction::Reject,
            }),
            allowed: None,
        }],
        endpoint_sets: vec![hosts.iter().map(endpoint).collect()],
        serving: Vec::new(),
        affinity: None,
    }
}

fn interface(name: &str, host: u8, addr: &str) -> InterfaceSpec {
    InterfaceSpec {
        name: name.into(),
        ifindex: u32::from(host),
        mac: MacAddr([2, 0, 0, 0, 0, host]),
        mtu: 1500,
        up: true,
        addresses: vec![ip(addr)],
        vlan: None,
    }
}

pub(crate) fn neighbour(interface: usize, addr: &str, mac: Option<u8>) -> NeighbourSpec {
    world::neighbour(interface, ip(addr), mac)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn split(text: &str) -> (Ipv4Addr, u16) {
    let (addr, port) = text.split_once(':').unwrap();
    (addr.parse().unwrap(), port.parse().unwrap())
}

fn name(interface: InterfaceId) -> &'static str {
    ["up0", "fab0"][interface.index()]
}

/// Counted with every packet: they would drown the rest.
const ROUTINE: &[Event] =
    &[Event::RxPackets, Event::RxBytes, Event::TxPackets, Event::FlowHits, Event::BusyLoops, Event::Sleeps];

/// Fixed, so that source ports are the same in every run.
const KEY: HashKey = HashKey([
    1,
    0x1656_67b1_9e37_79f9,
    3,
    0x9e37_79b9_7f4a_7c15,
    0xc2b2_ae3d_27d4_eb4f,
    5,
    7,
    11,
    13,
    17,
    19,
]);
