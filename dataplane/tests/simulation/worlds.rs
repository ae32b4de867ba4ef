//! Random tables, and random changes of them.

use std::net::IpAddr;
use std::time::Duration;

use fastrand::Rng;
use flowgate_dataplane::PipelineConfig;
use flowgate_flow::{HashKey, Timeouts};
use flowgate_tables::spec::{
    EndpointSpec, FrontendSpec, InterfaceSpec, NeighbourSpec, RouteHopSpec, ServiceName, ServiceSpec,
    TrafficPolicySpec,
};
use flowgate_tables::{EmptyAction, FrontendKind, PerSourceClass, SourceNat};
use flowgate_wire::{L4Port, MacAddr, Protocol};

use super::network::{Net, addr};
use super::test_bed::Setup;
use crate::model::world::{World, neighbour, route};

/// What a run begins with.
pub(crate) fn setup(random: &mut Rng) -> Setup {
    let seconds = |random: &mut Rng, most| Duration::from_millis(random.u64(1_000..most));
    let timeouts = Timeouts {
        tcp_opening: seconds(random, 8_000),
        tcp_established: seconds(random, 90_000),
        tcp_half_closed: seconds(random, 30_000),
        tcp_time_wait: seconds(random, 5_000),
        tcp_reset: seconds(random, 3_000),
        udp_unanswered: seconds(random, 4_000),
        udp_answered: seconds(random, 20_000),
        drain: if random.bool() { Some(seconds(random, 20_000)) } else { None },
    };
    let wrap = 1 << 32;
    let age_ms = if random.bool() { 1 } else { wrap - random.u64(..10_000) };
    Setup {
        world: world(random),
        timeouts,
        config: PipelineConfig {
            reset_unknown: random.bool(),
            echo_vips: random.bool(),
            ..PipelineConfig::default()
        },
        capacity_flows: if random.u8(..4) == 0 { 1 } else { 256 },
        workers: random.usize(1..3),
        age_ms,
        key: HashKey(std::array::from_fn(|_| random.u64(..))),
    }
}

/// Two interfaces, clients on one, some of them behind routers, backends on the other.
fn world(random: &mut Rng) -> World {
    let few = random.bool();
    let ports = if few { random.u16(1..12) } else { 200 };
    let mut world = World {
        services: Vec::new(),
        interfaces: vec![
            interface("up0", 1, Net::Clients, random),
            interface("fab0", 2, Net::Servers, random),
        ],
        routes: vec![
            route("192.0.2.0/24", 0, None),
            route("10.244.0.0/24", 1, None),
            route("198.51.100.0/24", 0, Some("192.0.2.254")),
            route("2001:db8:1::/64", 0, None),
            route("2001:db8:3::/64", 1, None),
            route("2001:db8:2::/64", 0, Some("2001:db8:1::fe")),
        ],
        neighbours: vec![],
        snat_ports: (40_000..40_000 + ports).collect(),
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap(), "2001:db8:4::/112".parse().unwrap()],
    };
    for v4 in [true, false] {
        for router in [253, 254] {
            world.neighbours.push(neighbour(0, addr(v4, Net::Clients, router), Some(router)));
        }
        let clients = (10..14).map(|host| (0, addr(v4, Net::Clients, host), host));
        let backends = (11..17).map(|host| (1, addr(v4, Net::Servers, host), host));
        for (interface, addr, host) in clients.chain(backends) {
            match random.u8(..12) {
                0 => {}
                1 => world.neighbours.push(unresolved(interface, addr, random)),
                _ => world.neighbours.push(neighbour(interface, addr, Some(host))),
            }
        }
    }
    for number in 0..random.u8(1..5) {
        world.services.push(service(number, random));
    }
    world
}

fn interface(name: &str, host: u8, net: Net, random: &mut Rng) -> InterfaceSpec {
    let mut addresses = vec![addr(true, net, 1), addr(false, net, 1)];
    if random.u8(..4) == 0 {
        addresses.push(addr(random.bool(), net, 2));
    }
    InterfaceSpec {
        name: name.into(),
        ifindex: u32::from(host),
        mac: MacAddr([2, 0, 0, 0, 0, host]),
        mtu: if random.u8(..4) == 0 { 1400 } else { 1500 },
        up: true,
        addresses,
        vlan: None,
    }
}

/// The Service of this number: its addresses are its own.
fn service(number: u8, random: &mut Rng) -> ServiceSpec {
    let protocol = [Protocol::Tcp, Protocol::Tcp, Protocol::Udp, Protocol::Sctp][random.usize(..4)];
    let v4 = random.bool();
    let policy = |random: &mut Rng| TrafficPolicySpec {
        endpoint_set: random.usize(..2),
        source_nat: if random.u8(..3) == 0 { SourceNat::PreserveClient } else { SourceNat::Always },
        when_empty: if random.bool() { EmptyAction::Reject } else { EmptyAction::Drop },
    };
    let frontend = |addr: IpAddr, port, kind, random: &mut Rng| {
        let (outside, pod, node) = (policy(random), policy(random), policy(random));
        let ranges =
            if v4 { ["192.0.2.8/30", "198.51.100.0/24"] } else { ["2001:db8:1::8/126", "2001:db8:2::/64"] };
        let allowed = (random.u8(..6) == 0).then(|| ranges.map(|net| net.parse().unwrap()).to_vec().into());
        FrontendSpec {
            addr,
            port: L4Port::new(port),
            kind,
            policies: PerSourceClass { outside, pod, node },
            allowed,
        }
    };
    let mut frontends =
        vec![frontend(addr(v4, Net::Cluster, 50 + number), 80, FrontendKind::ClusterIp, random)];
    if random.bool() {
        let node_port = 30_000 + u16::from(number);
        frontends.push(frontend(addr(v4, Net::Clients, 1), node_port, FrontendKind::NodePort, random));
    }
    if random.bool() {
        frontends.push(frontend(addr(v4, Net::Public, number), 443, FrontendKind::LoadBalancer, random));
    }
    let endpoint_sets = vec![endpoints(v4, random), endpoints(v4, random)];
    ServiceSpec {
        name: ServiceName { namespace: "sim".into(), name: format!("service-{number}"), port: String::new() },
        protocol,
        frontends,
        serving: vec![],
        endpoint_sets,
        affinity: (random.u8(..3) == 0).then(|| Duration::from_millis(random.u64(100..20_000))),
    }
}

fn endpoints(v4: bool, random: &mut Rng) -> Vec<EndpointSpec> {
    let endpoint =
        |host| EndpointSpec { addr: addr(v4, Net::Servers, host), port: L4Port::new(8080), weight: 1 };
    if random.u8(..8) == 0 {
        return vec![];
    }
    let few = random.bool();
    (11..17).filter(|_| random.u8(..6) < if few { 1 } else { 4 }).map(endpoint).collect()
}

/// The tables after something has changed.
pub(crate) fn changed(world: &World, random: &mut Rng) -> World {
    let mut world = world.clone();
    match random.u8(..12) {
        0..4 => change_endpoints(&mut world, random),
        4 if world.services.len() > 1 => {
            world.services.remove(random.usize(..world.services.len()));
        }
        5 => {
            let number = random.u8(..6);
            let service = service(number, random);
            world.services.retain(|other| other.name != service.name);
            world.services.push(service);
        }
        6 | 7 => change_neighbour(&mut world, random),
        8 => change_route(&mut world, random),
        9 => {
            let interface = &mut world.interfaces[random.usize(..2)];
            interface.up = !interface.up || random.bool();
        }
        10 => world.interfaces[random.usize(..2)].mtu = random.u16(1000..1501),
        _ => {
            let first = random.u16(40_000..40_050);
            world.snat_ports = (first..first + random.u16(..30)).collect();
        }
    }
    world
}

fn change_endpoints(world: &mut World, random: &mut Rng) {
    let Some(at) = random.choice(0..world.services.len()) else { return };
    let service = &mut world.services[at];
    let before: Vec<_> = service.endpoint_sets.iter().flatten().map(|e| (e.addr, e.port)).collect();
    let v4 = service.frontends[0].addr.is_ipv4();
    service.endpoint_sets[random.usize(..2)] = endpoints(v4, random);
    // Some of those that are not chosen any more still answer.
    service.serving = if random.bool() { before } else { vec![] };
}

/// A neighbour that the kernel asks for still, or that did not answer.
fn unresolved(interface: usize, addr: IpAddr, random: &mut Rng) -> NeighbourSpec {
    NeighbourSpec { has_failed: random.bool(), ..neighbour(interface, addr, None) }
}

fn change_neighbour(world: &mut World, random: &mut Rng) {
    let v4 = random.bool();
    let router = random.u8(253..255);
    let (interface, addr, host) = match random.u8(..5) {
        0 => (0, addr(v4, Net::Clients, router), router - if random.bool() { 100 } else { 0 }),
        1 | 2 => (0, addr(v4, Net::Clients, random.u8(10..14)), random.u8(10..14)),
        _ => (1, addr(v4, Net::Servers, random.u8(11..17)), random.u8(11..17)),
    };
    world.neighbours.retain(|other| other.addr != addr);
    match random.u8(..4) {
        0 => {}
        1 => world.neighbours.push(unresolved(interface, addr, random)),
        _ => world.neighbours.push(neighbour(interface, addr, Some(host))),
    }
}

fn change_route(world: &mut World, random: &mut Rng) {
    let v4 = random.bool();
    let [far, half, all] = if v4 {
        ["198.51.100.0/24", "198.51.100.0/25", "0.0.0.0/0"]
    } else {
        ["2001:db8:2::/64", "2001:db8:2::/65", "::/0"]
    };
    let via = |host| RouteHopSpec { interface: 0, via: Some(addr(v4, Net::Clients, host)), weight: 1 };
    let mut changed = route([far, half, all][random.usize(..3)], random.usize(..2), None);
    changed.metric = random.u32(..3);
    match random.u8(..5) {
        // Nobody can be reached.
        0 => changed.hops.clear(),
        // Two routers, one of them now and then stronger.
        1 | 2 => changed.hops = vec![via(253), RouteHopSpec { weight: random.u16(1..4), ..via(254) }],
        3 => changed.hops = vec![via(random.u8(253..255))],
        _ => {
            world.routes.retain(|route| route.prefix != changed.prefix);
            return;
        }
    }
    world.routes.push(changed);
}
