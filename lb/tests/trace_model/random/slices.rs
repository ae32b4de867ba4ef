//! Random endpoints, slices and objects of the old API. Two objects contradict each other about an address only
//! where a rule defines which one counts.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use fastrand::Rng;

use super::{LABELS, NODES, PROTOCOLS, ZONES, one_of, pod, rarely};
use crate::cluster::{Endpoint, Endpoints, Service, Slice, SlicePort};

/// What is true of each address that is an endpoint somewhere: as it is, and as it would be in the slice of a pod of the
/// same address that ends.
pub(super) fn hosts(rng: &mut Rng) -> BTreeMap<IpAddr, [Endpoint; 2]> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for ipv4 in [true, false] {
        addresses.extend((0..10).map(|_| pod(rng, ipv4)));
    }
    // Nodes, a host outside, a cluster IP, a load balancer's address, and an address of the gateway.
    let others: [IpAddr; 7] = [
        [192, 168, 0, 1].into(),
        [192, 168, 0, 2].into(),
        [198, 51, 100, 20].into(),
        [10, 96, 0, 11].into(),
        [192, 0, 2, 12].into(),
        [203, 0, 113, 1].into(),
        Ipv6Addr::new(0xfd00, 0xa, 0, 0, 0, 0, 0, 1).into(),
    ];
    addresses.extend(others);
    let (unready, hints) = (one_of(rng, &[2, 4, 200]), one_of(rng, &[0_u8, 1, 20]));
    let mut hosts = BTreeMap::new();
    for ip in addresses {
        let mut maybe = |may: &[Option<bool>]| one_of(rng, may);
        let serving = [None, Some(true), Some(false)];
        let ending = Endpoint {
            addresses: vec![ip],
            ready: maybe(&[Some(false), Some(false), Some(true)]),
            serving: maybe(&serving),
            terminating: Some(true),
            ..Endpoint::default()
        };
        let mut steady = Endpoint {
            addresses: vec![ip],
            ready: maybe(&[None, Some(true)]),
            serving: maybe(&serving),
            terminating: maybe(&[None, Some(false)]),
            ..Endpoint::default()
        };
        if rarely(rng, unready) {
            steady.ready = Some(false);
        }
        let node = (!rarely(rng, 6)).then(|| one_of(rng, &NODES).to_owned());
        let has_hints = hints > 0 && (hints == 20 || !rarely(rng, 6));
        let zones: Vec<String> =
            ZONES.iter().filter(|_| has_hints && rng.bool()).map(ToString::to_string).collect();
        let nodes: Vec<String> =
            NODES.iter().filter(|_| has_hints && rng.bool()).map(ToString::to_string).collect();
        let placed = |endpoint: Endpoint| {
            let (node, zones, nodes) = (node.clone(), zones.clone(), nodes.clone());
            Endpoint { node, zones, nodes, ..endpoint }
        };
        hosts.insert(ip, [placed(steady), placed(ending)]);
    }
    hosts
}

pub(super) fn slice(
    rng: &mut Rng,
    name: String,
    service: &Service,
    hosts: &BTreeMap<IpAddr, [Endpoint; 2]>,
) -> Slice {
    let family = match rng.u8(..12) {
        0 => "FQDN",
        1..5 => "IPv6",
        _ => "IPv4",
    };
    let of_family: Vec<&[Endpoint; 2]> =
        hosts.iter().filter(|(ip, _)| ip.is_ipv4() == (family == "IPv4")).map(|(_, host)| host).collect();
    let ends = one_of(rng, &[2_u8, 4, 50, 50]);
    let mut endpoints: Vec<Endpoint> = (0..rng.u8(..5))
        .map(|_| {
            let host = of_family[rng.usize(..of_family.len())];
            host[usize::from(rarely(rng, ends))].clone()
        })
        .collect();
    if rarely(rng, 5) {
        // Only the first address counts, and without one there is no endpoint.
        endpoints.push(Endpoint::default());
        for endpoint in &mut endpoints {
            if let [first] = endpoint.addresses[..] {
                endpoint.addresses.push(pod(rng, first.is_ipv4()));
            }
        }
    }
    Slice {
        namespace: if rarely(rng, 15) { "elsewhere".to_owned() } else { service.namespace.clone() },
        name,
        service: match rng.u8(..15) {
            0 => None,
            1 => Some(String::new()),
            _ => Some(service.name.clone()),
        },
        label: rarely(rng, 15).then(|| one_of(rng, &LABELS)),
        family,
        ports: slice_ports(rng, service),
        endpoints,
    }
}

fn slice_ports(rng: &mut Rng, service: &Service) -> Vec<SlicePort> {
    let mut ports = Vec::new();
    for (port, n) in service.ports.iter().zip(0_u16..) {
        let right = SlicePort {
            name: port.name.clone(),
            protocol: (port.protocol != "TCP" || rng.bool()).then_some(port.protocol),
            number: Some(match rng.u8(..12) {
                0 => port.node_port.unwrap_or(port.number),
                1 => port.number,
                _ => 8080 + n % 2 + u16::from(rarely(rng, 4)),
            }),
        };
        match rng.u8(..14) {
            0 => {}
            1 => ports.push(SlicePort { number: one_of(rng, &[None, Some(0)]), ..right }),
            2 => ports.push(SlicePort { protocol: Some(one_of(rng, &PROTOCOLS)), ..right }),
            3 => ports.push(SlicePort { name: format!("other-{n}"), ..right }),
            _ => ports.push(right),
        }
    }
    ports
}

pub(super) fn endpoints(rng: &mut Rng, service: &Service) -> Endpoints {
    let mut list = |count: u8| -> Vec<(IpAddr, Option<String>)> {
        // Addresses of their own: what two objects say of one address is not settled.
        let address = |n: u8, base: u8| -> (IpAddr, Option<String>) {
            ([10, 244, 9, base + n].into(), (n > 0).then(|| NODES[usize::from(n) % 3].to_owned()))
        };
        let base = rng.u8(..200);
        (0..count).map(|n| address(n, base)).collect()
    };
    let (mut ready, mut unready) = (list(3), list(2));
    unready.retain(|(ip, _)| ready.iter().all(|(other, _)| other != ip));
    ready.truncate(rng.usize(..4));
    let ports = service
        .ports
        .iter()
        .map(|port| SlicePort {
            name: port.name.clone(),
            protocol: Some(port.protocol),
            number: Some(8080 + u16::from(rng.bool())),
        })
        .collect();
    Endpoints {
        namespace: service.namespace.clone(),
        name: service.name.clone(),
        skip: rarely(rng, 4),
        ready,
        unready,
        ports,
    }
}
