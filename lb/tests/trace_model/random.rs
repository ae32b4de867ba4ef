//! Random clusters and machines. Everything in them passes the validation of an API server; now and then two Services claim
//! one address and port, or one NodePort.

mod slices;

use std::net::{IpAddr, Ipv6Addr};

use fastrand::Rng;
use ipnet::IpNet;

use crate::cluster::{Cluster, Node, Port, Service};
use crate::machine::Machine;

pub(crate) const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];
const LABELS: [&str; 2] = ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"];
const NODES: [&str; 3] = ["a", "b", "c"];
const ZONES: [&str; 3] = ["z1", "z2", "z3"];
/// Shared by Services, each with ports of its own.
const SHARED_VIP: [u8; 4] = [192, 0, 2, 250];
/// Claimed by several Services with the same ports.
const CONTESTED: [u8; 4] = [192, 0, 2, 5];

pub(crate) fn one_of<T: Copy>(rng: &mut Rng, list: &[T]) -> T {
    list[rng.usize(..list.len())]
}

/// Once in so many times.
fn rarely(rng: &mut Rng, times: u8) -> bool {
    rng.u8(..times) == 0
}

/// An address of a pod of any node.
pub(crate) fn pod(rng: &mut Rng, ipv4: bool) -> IpAddr {
    let (node, pod) = (rng.u8(1..4), rng.u8(1..7));
    match ipv4 {
        true => [10, 244, node, pod].into(),
        false => Ipv6Addr::new(0xfd00, 0x244, 0, node.into(), 0, 0, 0, pod.into()).into(),
    }
}

pub(crate) fn gateway(rng: &mut Rng) -> Machine {
    Machine { is_gateway: true, ..machine(rng) }
}

pub(crate) fn node(rng: &mut Rng) -> Machine {
    Machine { is_gateway: false, ..machine(rng) }
}

fn machine(rng: &mut Rng) -> Machine {
    let cidr = |text: &str| text.parse::<IpNet>().expect("a range");
    let mut cluster_cidrs = Vec::new();
    for choices in [["10.244.0.0/16", "10.244.1.0/24"], ["fd00:244::/32", "fd00:244:0:1::/64"]] {
        if !rarely(rng, 5) {
            cluster_cidrs.push(cidr(one_of(rng, &choices)));
        }
    }
    if rarely(rng, 4) {
        // Comes second and so does not count, unless it is alone in its family.
        cluster_cidrs.push(cidr("198.51.100.0/24"));
    }
    let lists: [&[&str]; 12] = [
        &[],
        &[],
        &["primary"],
        &["all"],
        &["localhost"],
        &["primary", "localhost"],
        &["192.168.0.0/24"],
        &["192.168.7.0/24", "fd00:a::/64"],
        &["fd00:a::/64"],
        &["0.0.0.0/0", "192.168.7.0/24"],
        &["127.0.0.0/8"],
        &["203.0.113.0/24", "primary"],
    ];
    Machine {
        is_gateway: false,
        name: if rarely(rng, 12) { "nobody" } else { "a" },
        cluster_cidrs,
        detects_pods: !rarely(rng, 4),
        masquerade_all: rarely(rng, 4),
        localhost: rarely(rng, 3),
        nodeport_addresses: one_of(rng, &lists).to_vec(),
        external_ips: one_of(
            rng,
            &[
                None,
                None,
                Some("all"),
                Some("safe"),
                Some("none"),
                Some("192.0.2.0/26,192.168.0.0/24,10.96.0.0/29"),
            ],
        ),
    }
}

pub(crate) fn cluster(rng: &mut Rng) -> Cluster {
    let nodes = nodes(rng);
    let services: Vec<Service> = (0..rng.u8(1..9)).map(|number| service(rng, number, &nodes)).collect();
    let mut cluster = Cluster { nodes, services, ..Cluster::default() };
    let hosts = slices::hosts(rng);
    for service in &cluster.services {
        for _ in 0..rng.u8(..4) {
            let name = format!("slice-{}", cluster.slices.len());
            cluster.slices.push(slices::slice(rng, name, service, &hosts));
        }
        if rarely(rng, 3) {
            cluster.endpoints.push(slices::endpoints(rng, service));
        }
    }
    let ranges = ["10.96.0.0/24", "10.96.0.0/28", "fd00:96::/112"].map(|net| net.parse().expect("a range"));
    cluster.service_cidrs = ranges.into_iter().filter(|_| rng.bool()).collect();
    cluster
}

fn nodes(rng: &mut Rng) -> Vec<Node> {
    let mut nodes = Vec::new();
    for (name, number) in NODES.iter().zip(1..) {
        let mut addresses: Vec<(&'static str, IpAddr)> = vec![
            ("InternalIP", [192, 168, 0, number].into()),
            ("InternalIP", Ipv6Addr::new(0xfd00, 0xa, 0, 0, 0, 0, 0, number.into()).into()),
        ];
        if rng.bool() {
            addresses.push(("InternalIP", [192, 168, 7, number].into()));
        }
        if rng.bool() {
            addresses.push(("ExternalIP", [203, 0, 113, number].into()));
        }
        rng.shuffle(&mut addresses);
        let zone = match rng.u8(..6) {
            0 => None,
            1 => Some(String::new()),
            _ => Some(one_of(rng, &ZONES).to_owned()),
        };
        nodes.push(Node { name: (*name).to_owned(), zone, addresses });
    }
    nodes
}

fn service(rng: &mut Rng, number: u8, nodes: &[Node]) -> Service {
    let (v4, v6): (IpAddr, IpAddr) = (
        [10, 96, 0, 10 + number].into(),
        Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 10 + u16::from(number)).into(),
    );
    let cluster_ips = match rng.u8(..10) {
        0 => None,
        1 | 2 => Some(vec![v6]),
        3 | 4 => Some(vec![v4, v6]),
        5 => Some(vec![v6, v4]),
        _ => Some(vec![v4]),
    };
    let kind = match rng.u8(..12) {
        0 => "ExternalName",
        1..4 => "ClusterIP",
        4..7 => "NodePort",
        _ => "LoadBalancer",
    };
    let (external_ips, ingress, has_common_address) = outside_addresses(rng, number, nodes);
    Service {
        namespace: one_of(rng, &["default", "prod"]).to_owned(),
        name: format!("svc-{number}"),
        kind,
        label: rarely(rng, 15).then(|| one_of(rng, &LABELS)),
        cluster_ips,
        internal_local: rarely(rng, 3),
        external_local: rng.bool(),
        external_ips,
        ingress,
        ranges: ranges(rng),
        ports: ports(rng, number, kind, has_common_address),
        affinity: rarely(rng, 4),
        selector: !rarely(rng, 3),
    }
}

/// An address of each family for one Service.
fn own_address(number: u8, kind: u8) -> [IpAddr; 2] {
    let last = 10 * number + kind;
    [[192, 0, 2, last].into(), Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, last.into()).into()]
}

type Ingress = (Option<IpAddr>, Option<&'static str>);

/// External IPs, load balancer addresses, and whether one of them may also be another Service's.
fn outside_addresses(rng: &mut Rng, number: u8, nodes: &[Node]) -> (Vec<IpAddr>, Vec<Ingress>, bool) {
    let own = |kind: u8| own_address(number, kind);
    let mut external_ips: Vec<IpAddr> = own(1).into_iter().filter(|_| rarely(rng, 2)).collect();
    let mut ingress: Vec<Ingress> = Vec::new();
    for kind in [2, 3] {
        for ip in own(kind) {
            if rng.bool() {
                ingress.push((Some(ip), one_of(rng, &[None, None, Some("VIP"), Some("Proxy")])));
            }
        }
    }
    if rarely(rng, 6) {
        ingress.push((None, None));
    }
    if rarely(rng, 6) {
        // The same address both ways.
        external_ips.extend(own(2));
    }
    let common = rarely(rng, 3);
    if common {
        let address = nodes[rng.usize(..nodes.len())].addresses[0].1;
        match rng.u8(..3) {
            0 => external_ips.push(address),
            1 => ingress.push((Some(address), Some("VIP"))),
            _ => ingress.push((Some(SHARED_VIP.into()), None)),
        }
    }
    if rarely(rng, 4) {
        // Somebody else's: a cluster IP, a free address of their range, a load balancer's address, or one more common one.
        let claimed: IpAddr = match rng.u8(..4) {
            0 => [10, 96, 0, 10 + rng.u8(..8)].into(),
            1 => [10, 96, 0, rng.u8(..10)].into(),
            2 => own_address(rng.u8(..8), 2)[0],
            _ => CONTESTED.into(),
        };
        if rng.bool() { external_ips.push(claimed) } else { ingress.push((Some(claimed), None)) }
    }
    (external_ips, ingress, common)
}

fn ranges(rng: &mut Rng) -> Vec<IpNet> {
    let lists: [&[&str]; 10] = [
        &[],
        &[],
        &["192.168.0.0/24", "fd00:a::/64"],
        &["192.168.0.0/24", "fd00:a::/64"],
        &["198.51.100.0/28"],
        &["198.51.100.0/28", "2001:db8:51::/125"],
        &["2001:db8:51::/64"],
        &["10.244.0.0/16", "192.168.0.0/24"],
        &["198.51.100.0/28", "0.0.0.0/0"],
        &["203.0.113.0/24", "::/0"],
    ];
    one_of(rng, &lists).iter().map(|net| net.parse().expect("a range")).collect()
}

fn ports(rng: &mut Rng, service: u8, kind: &str, has_common_address: bool) -> Vec<Port> {
    let count = rng.u16(1..5);
    let first = u16::from(service) * 8;
    let may_have = kind == "NodePort" || kind == "LoadBalancer";
    (0..count)
        .map(|n| {
            // Two protocols on one number now and then, and never one protocol twice.
            let protocol = PROTOCOLS[usize::from(n) % 3];
            let number = match rng.u8(..24) {
                // A port of the machine's own, or another Service's NodePort.
                0 if has_common_address && n == 0 => one_of(rng, &[22, 10_250]),
                1 if has_common_address && n < 3 => 30_000 + 8 * rng.u16(..8),
                _ => {
                    let first = if has_common_address { 2000 + first } else { 80 };
                    first + n / 3 + u16::from(rarely(rng, 2)) * 4
                }
            };
            Port {
                name: if count == 1 { String::new() } else { format!("p{n}") },
                protocol,
                number,
                node_port: (may_have && !rarely(rng, 4)).then(|| match rng.u8(..16) {
                    // Two of one number now and then.
                    0 => 30_000 + 8 * rng.u16(..8) + n / 3,
                    _ => 30_000 + first + n / 3,
                }),
            }
        })
        .collect()
}
