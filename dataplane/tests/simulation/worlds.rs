//! Random tables, and random changes of them.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use fastrand::Rng;
use flowgate_flow::{HashKey, Timeouts};
use flowgate_tables::spec::{
    EndpointSpec, FrontendSpec, InterfaceSpec, ServiceName, ServiceSpec, TreatmentSpec,
};
use flowgate_tables::{BySource, EmptyAction, FrontendKind, SourceNat};
use flowgate_wire::{L4Port, MacAddr, Protocol};

use super::rig::Setup;
use crate::gateway::{World, neighbour, route};

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
    };
    let wrap = 1 << 32;
    let age_ms = if random.bool() { 1 } else { wrap - random.u64(..10_000) };
    Setup {
        world: world(random),
        timeouts,
        capacity_flows: if random.u8(..4) == 0 { 1 } else { 256 },
        workers: random.usize(1..3),
        age_ms,
        key: HashKey(
            [1, 2, 3, 4, 5].map(|odd: u64| odd.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ random.u64(..)),
        ),
    }
}

/// Two interfaces, clients on one, some of them behind a router, backends on the other.
fn world(random: &mut Rng) -> World {
    let few = random.bool();
    let ports = if few { random.u16(1..12) } else { 200 };
    let mut world = World {
        services: Vec::new(),
        interfaces: vec![
            interface("up0", 1, [192, 0, 2, 1], random),
            interface("fab0", 2, [10, 244, 0, 1], random),
        ],
        routes: vec![
            route("192.0.2.0/24", 0, None),
            route("10.244.0.0/24", 1, None),
            route("198.51.100.0/24", 0, Some("192.0.2.254")),
        ],
        neighbours: vec![neighbour(0, "192.0.2.254", Some(254)), neighbour(0, "192.0.2.253", Some(253))],
        snat_ports: (40_000..40_000 + ports).collect(),
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
    };
    let clients = (10..14).map(|host| (0, format!("192.0.2.{host}"), host));
    let backends = (11..17).map(|host| (1, format!("10.244.0.{host}"), host));
    for (interface, addr, host) in clients.chain(backends) {
        match random.u8(..12) {
            0 => {}
            1 => world.neighbours.push(neighbour(interface, &addr, None)),
            _ => world.neighbours.push(neighbour(interface, &addr, Some(host))),
        }
    }
    for number in 0..random.u8(1..5) {
        world.services.push(service(number, random));
    }
    world
}

fn interface(name: &str, host: u8, addr: [u8; 4], random: &mut Rng) -> InterfaceSpec {
    InterfaceSpec {
        name: name.into(),
        ifindex: u32::from(host),
        mac: MacAddr([2, 0, 0, 0, 0, host]),
        mtu: if random.u8(..4) == 0 { 1400 } else { 1500 },
        up: true,
        addresses: vec![IpAddr::from(addr)],
    }
}

/// The Service of this number: its addresses are its own.
fn service(number: u8, random: &mut Rng) -> ServiceSpec {
    let protocol = if random.u8(..3) == 0 { Protocol::Udp } else { Protocol::Tcp };
    let treatment = |random: &mut Rng| TreatmentSpec {
        endpoint_set: random.usize(..2),
        source_nat: if random.u8(..3) == 0 { SourceNat::KeepClient } else { SourceNat::Always },
        when_empty: if random.bool() { EmptyAction::Reject } else { EmptyAction::Drop },
    };
    let frontend = |addr: [u8; 4], port, kind, random: &mut Rng| {
        let (outside, pod, node) = (treatment(random), treatment(random), treatment(random));
        let ranges: [&str; 2] = ["192.0.2.8/30", "198.51.100.0/24"];
        let allowed = (random.u8(..6) == 0).then(|| ranges.map(|net| net.parse().unwrap()).to_vec().into());
        FrontendSpec {
            addr: IpAddr::from(addr),
            port: L4Port::new(port),
            kind,
            treatments: BySource { outside, pod, node },
            allowed,
        }
    };
    let mut frontends = vec![frontend([10, 96, 0, 50 + number], 80, FrontendKind::ClusterIp, random)];
    if random.bool() {
        let node_port = 30_000 + u16::from(number);
        frontends.push(frontend([192, 0, 2, 1], node_port, FrontendKind::NodePort, random));
    }
    if random.bool() {
        frontends.push(frontend([203, 0, 113, number], 443, FrontendKind::LoadBalancer, random));
    }
    let endpoint_sets = vec![endpoints(random), endpoints(random)];
    ServiceSpec {
        name: ServiceName { namespace: "sim".into(), name: format!("service-{number}"), port: String::new() },
        protocol,
        frontends,
        serving: vec![],
        endpoint_sets,
        affinity: (random.u8(..3) == 0).then(|| Duration::from_millis(random.u64(100..20_000))),
    }
}

fn endpoints(random: &mut Rng) -> Vec<EndpointSpec> {
    let endpoint = |host| EndpointSpec {
        addr: IpAddr::V4(Ipv4Addr::new(10, 244, 0, host)),
        port: L4Port::new(8080),
        weight: 1,
    };
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
    service.endpoint_sets[random.usize(..2)] = endpoints(random);
    // Some of those that are not chosen any more still answer.
    service.serving = if random.bool() { before } else { vec![] };
}

fn change_neighbour(world: &mut World, random: &mut Rng) {
    let (interface, addr, host) = match random.bool() {
        true => (1, format!("10.244.0.{}", random.u8(11..17)), random.u8(11..17)),
        false => (0, format!("192.0.2.{}", random.u8(10..14)), random.u8(10..14)),
    };
    let wanted: IpAddr = addr.parse().unwrap();
    world.neighbours.retain(|other| other.addr != wanted);
    match random.u8(..4) {
        0 => {}
        1 => world.neighbours.push(neighbour(interface, &addr, None)),
        _ => world.neighbours.push(neighbour(interface, &addr, Some(host))),
    }
}

fn change_route(world: &mut World, random: &mut Rng) {
    match random.u8(..4) {
        0 => world.routes.retain(|route| route.via.is_none()),
        1 => world.routes.push(route("198.51.100.0/24", 0, Some("192.0.2.253"))),
        2 => {
            let mut better = route("198.51.100.0/25", 0, Some("192.0.2.254"));
            better.metric = random.u32(..3);
            world.routes.push(better);
        }
        _ => world.routes.push(route("0.0.0.0/0", random.usize(..2), Some("192.0.2.253"))),
    }
}
