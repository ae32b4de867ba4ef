//! The XDP program and a worker that follow the same tables, with random frames: what the program redirects must be a worker's,
//! since a redirected frame cannot be given back to the kernel, and what it passes must be nothing that a worker would forward.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use etherparse::{IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv4Options, PacketBuilder};
use fastrand::Rng;
use flowgate_dataplane::device::MemoryDevice;
use flowgate_dataplane::exhaustion::ExhaustionReporter;
use flowgate_dataplane::worker::{Resolver, Shared};
use flowgate_dataplane::{
    Event, PassReason, Pipeline, PipelineConfig, Worker, WorkerConfig, WorkerNumber, WorkerSettings,
};
use flowgate_flow::{AffinityTable, Flows, HashKey, Timeouts};
use flowgate_tables::spec::{
    EndpointSpec, FrontendSpec, InterfaceSpec, NeighbourSpec, RouteHopSpec, RouteSpec, ServiceName,
    ServiceSpec, TrafficPolicySpec, VlanSpec,
};
use flowgate_tables::{
    EmptyAction, InterfaceId, PerSourceClass, PortSet, Routing, ServiceTable, SnatPool, SourceClassifier,
    SourceNat,
};
use flowgate_wire::{L4Port, MacAddr, Protocol};
use flowgate_xsk::steering::{InterfaceConfig, Reason, SetLimits, SteeringConfig, XdpModePolicy};
use nix::mount::{MsFlags, mount};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;

use super::*;

const FRAMES: usize = 20_000;
const STATION: [u8; 6] = [2, 0, 0, 0, 0, 1];
const CLIENTS: [&str; 2] = ["192.0.2.10", "2001:db8:1::10"];
const VLAN_CLIENTS: [&str; 2] = ["198.51.100.10", "2001:db8:3::10"];
const BACKENDS: [&str; 2] = ["192.0.2.11", "2001:db8:1::11"];
const NODE: [&str; 2] = ["192.0.2.1", "2001:db8:1::1"];
const CLUSTER_IPS: [&str; 2] = ["10.96.0.80", "fd00:96::80"];
const BALANCERS: [&str; 2] = ["203.0.113.7", "2001:db8:7::7"];
const UNALLOCATED: [&str; 2] = ["10.96.9.9", "fd00:96::9999"];
const NOBODY: [&str; 2] = ["233.252.0.1", "fe80::1"];

#[test]
fn what_the_program_redirects_is_a_workers_and_what_it_passes_is_not() {
    assert!(geteuid().is_root(), "this test loads an XDP program in a network namespace: run it as root");
    thread::spawn(|| {
        let none = None::<&str>;
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("new namespaces");
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
        mount(Some("tmpfs"), "/mnt", Some("tmpfs"), MsFlags::empty(), none).expect("a private /mnt");
        compare();
    })
    .join()
    .unwrap_or_else(|panic| resume_unwind(panic));
}

fn compare() {
    let mut pair = Pair::new();
    let mut random = Rng::with_seed(1);
    let mut seen: BTreeMap<(&str, String), usize> = BTreeMap::new();
    let mut disputed: BTreeMap<(&str, String), Vec<u8>> = BTreeMap::new();
    for _ in 0..FRAMES {
        let frame = frame(&mut random);
        let (reason, outcome) = pair.decide(&frame);
        let is_right = match reason {
            // Without a socket this is what a redirected frame counts as.
            Reason::PassNoWorker => !outcome.starts_with("pass"),
            // Only the program looks at the station.
            Reason::PassOtherHost => true,
            _ => outcome != "sent" && (frame[..6] != STATION || !is_unserved(&outcome)),
        };
        if !is_right {
            disputed.insert((reason.name(), outcome.clone()), frame);
        }
        *seen.entry((reason.name(), outcome)).or_default() += 1;
    }
    assert!(disputed.is_empty(), "what the program does, what a worker does, a frame: {disputed:02x?}");
    let by = |reason: Reason, outcome: &str| {
        let of = |((name, what), _): &(&(&str, String), &usize)| {
            *name == reason.name() && what.starts_with(outcome)
        };
        seen.iter().filter(of).map(|(_, count)| count).sum::<usize>()
    };
    // The comparison is worth something only if much is forwarded, dropped, and left to the kernel.
    assert!(by(Reason::PassNoWorker, "sent") > FRAMES / 50, "{seen:#?}");
    assert!(by(Reason::PassNoWorker, "drop martian_source") > 100, "{seen:#?}");
    assert!(by(Reason::PassNoWorker, "drop own_source") > 100, "{seen:#?}");
    assert!(by(Reason::PassNoWorker, "drop source_route") > 100, "{seen:#?}");
    for reason in [Reason::PassOtherHost, Reason::PassNotOurs, Reason::PassVlan, Reason::PassMalformed] {
        assert!(by(reason, "") > 20, "{}: {seen:#?}", reason.name());
    }
}

/// What would circle between the kernel and a router if it was passed.
fn is_unserved(outcome: &str) -> bool {
    ["drop unserved_port", "drop unallocated_cluster_ip"].contains(&outcome)
}

/// The program, and a worker that has the same tables.
struct Pair {
    steering: Steering,
    ifindex: u32,
    worker: Worker<MemoryDevice, Pipeline>,
    started: Instant,
    turns: u64,
}

impl Pair {
    fn new() -> Self {
        ip("link add up0 type veth peer name far");
        ip("link set up0 up");
        let ifindex = if_nametoindex("up0").expect("it was made just now");
        let tables = tables(ifindex);
        let interface = InterfaceConfig { name: "up0".into(), mode: XdpModePolicy::Auto };
        let config = SteeringConfig {
            interfaces: vec![interface],
            pin_dir: "/mnt/bpf/flowgate".into(),
            limits: SetLimits::default(),
            log_dir: "/mnt".into(),
        };
        let mut steering = Steering::attach(&config).expect("the program is attached");
        steering.add_new(&steering_set(&tables)).expect("the maps take it");
        let mut publisher = Publisher::new();
        publisher.publish(tables);
        let number = WorkerNumber { index: 0, count: 1 };
        let settings = WorkerSettings {
            idle_before_sleep: Duration::ZERO,
            timeouts: Timeouts::default(),
            pipeline: PipelineConfig::default(),
        };
        #[expect(clippy::disallowed_methods, reason = "only differences matter")]
        let started = Instant::now();
        let shared = Shared {
            flows: Arc::new(Flows::new(1 << 16, 1 << 16, HashKey([1; 11])).expect("they fit")),
            affinity: Arc::new(AffinityTable::new(64)),
            resolver: Resolver::new(|_| true),
            exhaustion: ExhaustionReporter::default(),
            started,
        };
        let config = WorkerConfig { number, core: None, settings };
        let device = MemoryDevice::new(2, 256);
        let worker = Worker::new(config, shared, publisher.reader(), device, Pipeline::new(number));
        Self { steering, ifindex, worker, started, turns: 0 }
    }

    /// What the program counts a frame as, and what a worker makes of it.
    fn decide(&mut self, frame: &[u8]) -> (Reason, String) {
        let before = self.steering.counters().expect("they are read");
        self.steering.probe(self.ifindex, frame).expect("a test run");
        let after = self.steering.counters().expect("they are read");
        let counted = before.iter().zip(&after).find(|(before, after)| before != after);
        let (_, (reason, _)) = counted.expect("every frame is counted");
        (*reason, self.forward(frame))
    }

    fn forward(&mut self, frame: &[u8]) -> String {
        self.turns += 1;
        let before = self.worker.state().counters.read();
        self.worker.device().deliver(InterfaceId(0), frame.to_vec());
        self.worker.poll_once(self.started + Duration::from_millis(self.turns));
        let sent = self.worker.device().take_sent(InterfaceId(0)).len();
        let after = self.worker.state().counters.read();
        if let Some(reason) = PassReason::ALL.iter().find(|of| before.passed(**of) < after.passed(**of)) {
            return format!("pass {}", reason.name());
        }
        let dropped = flowgate_dataplane::DropReason::ALL.iter();
        if let Some(reason) = dropped.copied().find(|of| before.dropped(*of) < after.dropped(*of)) {
            return format!("drop {}", reason.name());
        }
        let answers = [Event::RejectsSent, Event::ErrorsSent];
        if answers.iter().any(|event| before.event(*event) < after.event(*event)) {
            return "answered".into();
        }
        if sent > 0 { "sent".into() } else { "held".into() }
    }
}

fn ip(arguments: &str) {
    let output = std::process::Command::new("ip").args(arguments.split_whitespace()).output();
    let output = output.expect("iproute2 is there");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

fn addr(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// One interface with a VLAN, clients and backends on it, and a Service of each kind in both families.
fn tables(ifindex: u32) -> Tables {
    let interface = |name: &str, ifindex, vlan, addresses: &[&str]| InterfaceSpec {
        name: name.into(),
        ifindex,
        mac: MacAddr(STATION),
        mtu: 1500,
        up: true,
        addresses: addresses.iter().map(|text| addr(text)).collect(),
        vlan,
    };
    let vlan = Some(VlanSpec { parent: 0, id: 100 });
    let interfaces = vec![
        interface("up0", ifindex, None, &NODE),
        interface("up0.100", ifindex + 1000, vlan, &["198.51.100.1", "2001:db8:3::1"]),
    ];
    let route = |prefix: &str, interface| RouteSpec {
        prefix: prefix.parse().expect("a prefix"),
        hops: vec![RouteHopSpec { interface, via: None, weight: 1 }],
        metric: 0,
    };
    let routes = [
        route("192.0.2.0/24", 0),
        route("2001:db8:1::/64", 0),
        route("198.51.100.0/24", 1),
        route("2001:db8:3::/64", 1),
    ];
    let neighbour = |interface, host: &&str| NeighbourSpec {
        interface,
        addr: addr(host),
        mac: Some(MacAddr([4, 0, 0, 0, 0, 9])),
        has_failed: false,
    };
    let near = [CLIENTS, BACKENDS].concat();
    let neighbours: Vec<_> = near.iter().map(|host| neighbour(0, host)).collect();
    let far = VLAN_CLIENTS.iter().map(|host| neighbour(1, host));
    let neighbours: Vec<_> = neighbours.into_iter().chain(far).collect();
    let own: Vec<Vec<IpAddr>> = interfaces.iter().map(|interface| interface.addresses.clone()).collect();
    let cidrs = ["10.96.0.0/16", "fd00:96::/112"].map(|cidr| cidr.parse().expect("a prefix"));
    let specs = services().into_iter().map(Arc::new).collect();
    let (services, errors) = ServiceTable::build(&ServiceTable::default(), specs, cidrs.to_vec());
    assert!(errors.is_empty(), "{errors:?}");
    let routing = Routing::build(&Routing::default(), interfaces, &routes, &neighbours).expect("it fits");
    Tables {
        generation: 1,
        services: Arc::new(services),
        routing: Arc::new(routing),
        snat: Arc::new(SnatPool::new(&own, &(40_000..=40_999).collect::<PortSet>())),
        sources: Arc::new(SourceClassifier::new(vec![], own.concat())),
        reverse_paths: Arc::default(),
    }
    .with_reverse_paths(&Tables::empty())
}

fn services() -> Vec<ServiceSpec> {
    let mut all = Vec::new();
    for family in [0, 1] {
        for (protocol, port) in [(Protocol::Tcp, 80), (Protocol::Udp, 53), (Protocol::Sctp, 3868)] {
            let frontend = |kind, vip: &str, port, source_nat| FrontendSpec {
                addr: addr(vip),
                port: L4Port::new(port),
                kind,
                policies: PerSourceClass::same(TrafficPolicySpec {
                    endpoint_set: 0,
                    source_nat,
                    when_empty: EmptyAction::Reject,
                }),
                allowed: None,
            };
            let endpoint = EndpointSpec { addr: addr(BACKENDS[family]), port: L4Port::new(8080), weight: 1 };
            all.push(ServiceSpec {
                name: ServiceName {
                    namespace: "default".into(),
                    name: format!("{protocol:?}-{family}"),
                    port: String::new(),
                },
                protocol,
                frontends: vec![
                    frontend(FrontendKind::ClusterIp, CLUSTER_IPS[family], port, SourceNat::Always),
                    frontend(FrontendKind::LoadBalancer, BALANCERS[family], port, SourceNat::PreserveClient),
                    frontend(FrontendKind::NodePort, NODE[family], 30_000 + port, SourceNat::Always),
                ],
                endpoint_sets: vec![vec![endpoint]],
                serving: Vec::new(),
                affinity: None,
            });
        }
    }
    all
}

/// A frame with one or two things that are odd, or none.
fn frame(random: &mut Rng) -> Vec<u8> {
    let pick = |random: &mut Rng, of: &[[&'static str; 2]], family: usize| {
        addr(of[random.usize(..of.len())][family])
    };
    let family = random.usize(..2);
    let strangers =
        [["127.0.0.1", "::1"], ["224.0.0.5", "ff02::5"], ["0.0.0.0", "::"], ["255.255.255.255", NOBODY[1]]];
    let own = [NODE, CLUSTER_IPS, BALANCERS];
    let source = match random.u8(..10) {
        0 => pick(random, &strangers, family),
        1 => pick(random, &own, family),
        2 => pick(random, &[BACKENDS, VLAN_CLIENTS], family),
        _ => pick(random, &[CLIENTS], family),
    };
    let targets = [CLUSTER_IPS, BALANCERS, NODE, UNALLOCATED, ["203.0.113.99", "2001:db8:99::1"]];
    let target = match random.u8(..10) {
        0..6 => pick(random, &targets[..3], family),
        _ => pick(random, &targets, family),
    };
    let ports = [80, 53, 3868, 30_080, 30_053, 33_868, 40_000, 40_500, 8080, 22, 0, 5000];
    let mut port = || ports[random.usize(..ports.len())];
    let (from, to) = (SocketAddr::new(source, port().max(1)), SocketAddr::new(target, port()));
    let mut frame = packet(from, to, random);
    frame[..6].copy_from_slice(&match random.u8(..20) {
        0 => [2, 9, 9, 9, 9, 9],
        1 => [0xff; 6],
        2 => [0x01, 0, 0x5e, 0, 0, 1],
        _ => STATION,
    });
    let tags: &[[u8; 4]] = match random.u8(..12) {
        0 => &[[0x81, 0, 0, 100]],
        1 => &[[0x81, 0, 0x60, 0]],
        2 => &[[0x88, 0xa8, 0, 0]],
        3 => &[[0x81, 0, 1, 44]],
        4 => &[[0x81, 0, 0, 0], [0x81, 0, 0, 100]],
        _ => &[],
    };
    for tag in tags.iter().rev() {
        frame.splice(12..12, *tag);
    }
    if random.u8(..8) == 0 {
        let at = 12 + random.usize(..frame.len().min(70) - 12);
        frame[at] = random.u8(..);
    }
    if random.u8(..20) == 0 {
        frame.truncate(14 + random.usize(..frame.len() - 14));
    }
    frame
}

fn packet(from: SocketAddr, to: SocketAddr, random: &mut Rng) -> Vec<u8> {
    let protocol =
        [IpNumber::TCP, IpNumber::TCP, IpNumber::UDP, IpNumber::SCTP, IpNumber::ICMP, IpNumber::GRE]
            [random.usize(..6)];
    let ethernet = PacketBuilder::ethernet2([4, 0, 0, 0, 0, 9], STATION);
    let builder = match (from.ip(), to.ip()) {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            let mut header =
                Ipv4Header::new(0, 64, protocol, source.octets(), target.octets()).expect("it is short");
            // Nothing, no operation, a loose source route, one of nonsense, a router alert.
            let options: [&[u8]; 5] =
                [&[], &[1, 1, 1, 1], &[131, 7, 4, 10, 0, 0, 1, 0], &[131, 40, 4, 0], &[148, 4, 0, 0]];
            let chosen = options[random.usize(..12).saturating_sub(7)];
            header.options = Ipv4Options::try_from(chosen).expect("a multiple of four");
            ethernet.ip(IpHeaders::Ipv4(header, Ipv4Extensions::default()))
        }
        (IpAddr::V6(source), IpAddr::V6(target)) => ethernet.ipv6(source.octets(), target.octets(), 64),
        _ => unreachable!("both are of one family"),
    };
    let mut frame = Vec::new();
    let written = match protocol {
        IpNumber::TCP => builder.tcp(from.port(), to.port(), 1, 1000).syn().write(&mut frame, &[]),
        IpNumber::UDP => builder.udp(from.port(), to.port()).write(&mut frame, b"question"),
        IpNumber::ICMP if to.is_ipv4() => builder.icmpv4_echo_request(7, 7).write(&mut frame, b"ping"),
        IpNumber::ICMP => builder.icmpv6_echo_request(7, 7).write(&mut frame, b"ping"),
        other => {
            let mut payload = vec![0; 32];
            payload[..2].copy_from_slice(&from.port().to_be_bytes());
            payload[2..4].copy_from_slice(&to.port().to_be_bytes());
            // An INIT chunk with a tag of its own.
            payload[12..20].copy_from_slice(&[1, 0, 0, 20, 0, 0, 0, 7]);
            builder.write(&mut frame, other, &payload)
        }
    };
    written.expect("a packet");
    // Nothing, a hop-by-hop option, destination options, a route at its end, one that is not.
    let headers: [&[u8]; 5] = [&[], &[0, 0], &[60, 0], &[43, 0], &[43, 1]];
    if let (IpAddr::V6(_), [kind, left]) = (to.ip(), headers[random.usize(..12).saturating_sub(7)]) {
        let next = std::mem::replace(&mut frame[20], *kind);
        let filling = if *kind == 43 { [0, *left, 0, 0, 0, 0] } else { [1, 4, 0, 0, 0, 0] };
        frame.splice(54..54, [&[next, 0][..], &filling].concat());
        frame[19] += 8;
    }
    frame
}
