//! The first packet of a flow, step by step as D1 to D6. Slow and plain: every packet is compared with every Service.
//! Written from the rules; shares nothing with the code under test.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::cluster::{Cluster, Port, Service};
use crate::endpoints::{PortEndpoints, cluster_ip, is_served};
use crate::machine::Machine;
use crate::owners::{Way, owner, virtual_ips};
use crate::packets::Packet;

/// What must become of a packet.
#[derive(Debug)]
pub(crate) struct Expected {
    pub(crate) verdict: &'static str,
    pub(crate) service: Option<String>,
    pub(crate) candidates: BTreeSet<SocketAddr>,
    /// Whether the source is replaced whoever is chosen; a hairpin comes on top (P605).
    pub(crate) masquerade: bool,
}

pub(crate) fn decide(cluster: &Cluster, machine: &Machine, packet: &Packet) -> Expected {
    let ipv4 = packet.dst.is_ipv4();
    // D2
    let Some((service, port, way)) = owner(cluster, machine, packet.protocol, packet.dst) else {
        return silent(unmatched(cluster, machine, packet.dst.ip()), None);
    };
    // D1
    if way == Way::LoadBalancer && !is_allowed(cluster, machine, service, packet.src.ip()) {
        return silent("drop", Some(name(service, port)));
    }
    // P308: what comes to 127.0.0.0/8 from elsewhere is dropped.
    if way == Way::Localhost && !machine.owns(cluster, packet.src.ip()) {
        return silent("drop", Some(name(service, port)));
    }
    // Nobody but us could have sent it.
    if !matches!(way, Way::NodePort | Way::Localhost) && packet.src.ip() == packet.dst.ip() {
        return silent("drop", Some(name(service, port)));
    }
    let (local_only, masquerade) = policy(cluster, machine, service, way, packet.src.ip());
    // D4
    let endpoints = PortEndpoints::new(cluster, machine, service, port, ipv4);
    let set = if local_only { endpoints.local_set() } else { endpoints.cluster_set() };
    if set.is_empty() {
        return silent(if endpoints.any_usable() { "drop" } else { "reject" }, Some(name(service, port)));
    }
    // D5 narrows nothing: the flow is the first.
    Expected {
        verdict: "forward",
        service: Some(name(service, port)),
        candidates: set.into_iter().collect(),
        masquerade,
    }
}

fn silent(verdict: &'static str, service: Option<String>) -> Expected {
    Expected { verdict, service, candidates: BTreeSet::new(), masquerade: false }
}

fn name(service: &Service, port: &Port) -> String {
    let colon = if port.name.is_empty() { "" } else { ":" };
    format!("{}/{}{colon}{}", service.namespace, service.name, port.name)
}

/// P401
fn is_allowed(cluster: &Cluster, machine: &Machine, service: &Service, source: IpAddr) -> bool {
    let ipv4 = source.is_ipv4();
    let ranges: Vec<&IpNet> = service.ranges.iter().filter(|net| net.addr().is_ipv4() == ipv4).collect();
    let contain = |ip: IpAddr| ranges.iter().any(|net| net.contains(&ip));
    ranges.is_empty()
        || ranges.iter().any(|net| net.prefix_len() == 0)
        || contain(source)
        || (machine.primary(cluster, ipv4).is_some_and(contain) && virtual_ips(service).contains(&source))
}

/// P307, P316, P505, P506
fn unmatched(cluster: &Cluster, machine: &Machine, ip: IpAddr) -> &'static str {
    let is_cluster_ip = |service: &&Service| {
        is_served(service, ip.is_ipv4()) && cluster_ip(service, ip.is_ipv4()) == Some(ip)
    };
    if machine.owns(cluster, ip) {
        "local"
    } else if cluster.services.iter().any(|service| is_cluster_ip(&service)) {
        "reject"
    } else if cluster.service_cidrs.iter().any(|net| net.contains(&ip)) {
        "drop"
    } else {
        "pass"
    }
}

/// D3 and D6: whether only local endpoints count, and whether the source is replaced.
fn policy(cluster: &Cluster, machine: &Machine, service: &Service, way: Way, source: IpAddr) -> (bool, bool) {
    if machine.is_gateway {
        // All endpoints count; only policy Local for the outside keeps the client.
        return (false, way == Way::ClusterIp || !service.external_local);
    }
    let range = machine.pod_range(source.is_ipv4());
    let is_pod = range.is_some_and(|range| range.contains(&source));
    match way {
        // P308
        Way::Localhost => (false, true),
        // P302, P303, P603, P604
        Way::ClusterIp => (service.internal_local, machine.masquerade_all || (range.is_some() && !is_pod)),
        // P317
        _ if !service.external_local => (false, true),
        // P319, P321
        _ if is_pod => (false, false),
        // P320
        _ if machine.owns(cluster, source) => (false, true),
        // P318
        _ => (true, false),
    }
}
