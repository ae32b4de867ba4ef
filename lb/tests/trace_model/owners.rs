//! Whose an address and port is: which of all that claim it, and whether one may claim it at all. Written from the rules;
//! shares nothing with the code under test.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::cluster::{Cluster, Port, Service};
use crate::endpoints::{cluster_ip, is_served};
use crate::machine::Machine;

/// How a packet names a Service port, the first of several ways first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    ClusterIp,
    LoadBalancer,
    ExternalIp,
    NodePort,
    /// A NodePort on 127.0.0.1.
    Localhost,
}

/// Who has an address and port: cluster IPs first, then what the address itself names, then NodePorts; of equals the first
/// by name, since nothing is remembered and all are of one age.
pub(crate) fn owner<'a>(
    cluster: &'a Cluster,
    machine: &Machine,
    protocol: &str,
    dst: SocketAddr,
) -> Option<(&'a Service, &'a Port, Way)> {
    let mut all: Vec<(&Service, &Port, Way)> = Vec::new();
    for service in cluster.services.iter().filter(|service| is_served(service, dst.is_ipv4())) {
        for port in service.ports.iter().filter(|port| port.protocol == protocol) {
            all.extend(way(cluster, machine, service, port, dst).map(|way| (service, port, way)));
        }
    }
    let rank = |way: Way| match way {
        Way::ClusterIp => 0,
        Way::LoadBalancer | Way::ExternalIp => 1,
        Way::NodePort | Way::Localhost => 2,
    };
    all.into_iter().min_by_key(|(service, port, way)| {
        (rank(*way), service.namespace.clone(), service.name.clone(), port.name.clone())
    })
}

/// P313, P314
pub(crate) fn virtual_ips(service: &Service) -> Vec<IpAddr> {
    let captured = service.ingress.iter().filter(|(_, mode)| mode.is_none_or(|mode| mode == "VIP"));
    captured.filter_map(|(ip, _)| *ip).collect()
}

/// Whose an endpoint is.
#[derive(Clone, Copy)]
pub(crate) struct EndpointOf<'a> {
    pub(crate) service: &'a Service,
    /// Whether it runs on a Node.
    pub(crate) is_pod: bool,
}

/// Whether an endpoint is this machine: a cluster IP, what is a Service's, or an address of a gateway. Another Service's
/// external IP does not make it one, if it is a pod.
pub(crate) fn leads_back(
    cluster: &Cluster,
    machine: &Machine,
    protocol: &str,
    endpoint: SocketAddr,
    of: EndpointOf<'_>,
) -> bool {
    let is_same =
        |other: &Service| (&other.namespace, &other.name) == (&of.service.namespace, &of.service.name);
    let is_way =
        |(service, _, way): (&Service, &Port, Way)| way != Way::ExternalIp || is_same(service) || !of.is_pod;
    let is_cluster_ip = cluster.services.iter().any(|service| {
        is_served(service, endpoint.is_ipv4())
            && cluster_ip(service, endpoint.is_ipv4()) == Some(endpoint.ip())
    });
    is_cluster_ip
        || owner(cluster, machine, protocol, endpoint).is_some_and(is_way)
        || machine.is_gateway && machine.owns(cluster, endpoint.ip())
}

/// P301, P304 to P308, P313, P315
fn way(cluster: &Cluster, machine: &Machine, service: &Service, port: &Port, dst: SocketAddr) -> Option<Way> {
    let ip = dst.ip();
    let is_protected = machine.owns(cluster, ip)
        && !ip.is_loopback()
        && machine.protected_ports().contains(&(port.protocol, dst.port()));
    if dst.port() == port.number {
        if cluster_ip(service, ip.is_ipv4()) == Some(ip) {
            return Some(Way::ClusterIp);
        }
        let is_free = !is_protected && !others(cluster, service).any(|other| is_held(other, ip));
        if virtual_ips(service).contains(&ip) && is_free {
            return Some(Way::LoadBalancer);
        }
        if service.external_ips.contains(&ip) && is_free && may_claim(cluster, machine, service, ip) {
            return Some(Way::ExternalIp);
        }
    }
    if port.node_port != Some(dst.port()) || is_protected || !has_node_port(cluster, machine, service, port) {
        return None;
    }
    if machine.serves_node_ports_on(cluster, ip) {
        return Some(Way::NodePort);
    }
    (ip == IpAddr::from([127, 0, 0, 1]) && machine.serves_node_ports_on_localhost()).then_some(Way::Localhost)
}

/// Whether an external address may be claimed, as far as others and this machine are concerned.
fn may_claim(cluster: &Cluster, machine: &Machine, service: &Service, ip: IpAddr) -> bool {
    let foreign = cluster.service_cidrs.iter().any(|net| net.contains(&ip))
        || others(cluster, service).any(|other| other.ingress.iter().any(|(addr, _)| *addr == Some(ip)));
    match machine.external_ips() {
        "all" => true,
        "none" => false,
        "safe" => !foreign && !machine.owns(cluster, ip),
        ranges => {
            let mut ranges = ranges.split(',').map(|range| range.parse::<IpNet>().expect("a range"));
            !foreign && ranges.any(|range| range.contains(&ip))
        }
    }
}

/// All Services with addresses but this one, also those that are not served here.
fn others<'a>(cluster: &'a Cluster, service: &Service) -> impl Iterator<Item = &'a Service> {
    let (namespace, name) = (service.namespace.clone(), service.name.clone());
    let services = cluster.services.iter().filter(|other| other.kind != "ExternalName");
    services.filter(move |other| (&other.namespace, &other.name) != (&namespace, &name))
}

/// Whether the address is a cluster IP of the Service.
fn is_held(service: &Service, ip: IpAddr) -> bool {
    service.cluster_ips.iter().flatten().any(|held| *held == ip)
}

/// Whether the port is the first by name that has its NodePort, in whichever family that is served.
fn has_node_port(cluster: &Cluster, machine: &Machine, service: &Service, port: &Port) -> bool {
    let families = [true, false].map(|ipv4| {
        let mut addresses = cluster.nodes.iter().flat_map(|node| &node.addresses).map(|(_, ip)| *ip);
        let has_address =
            addresses.any(|ip| ip.is_ipv4() == ipv4 && machine.serves_node_ports_on(cluster, ip));
        (ipv4, has_address || ipv4 && machine.serves_node_ports_on_localhost())
    });
    let is_reached = |s: &Service| families.iter().any(|(ipv4, has)| *has && is_served(s, *ipv4));
    let served = cluster.services.iter().filter(|s| is_reached(s));
    let all = served.flat_map(|s| s.ports.iter().map(move |p| (s, p)));
    let claimants = all.filter(|(_, p)| (p.node_port, p.protocol) == (port.node_port, port.protocol));
    let name = |s: &Service, p: &Port| (s.namespace.clone(), s.name.clone(), p.name.clone());
    claimants.map(|(s, p)| name(s, p)).min() == Some(name(service, port))
}
