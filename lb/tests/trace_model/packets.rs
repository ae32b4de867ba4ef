//! Packets to trace: from every kind of source to every address of a cluster, and to some that nobody has.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use fastrand::Rng;

use crate::cluster::{Cluster, Port};
use crate::random::{PROTOCOLS, one_of, pod};

#[derive(Debug)]
pub(crate) struct Packet {
    /// As Kubernetes writes it.
    pub(crate) protocol: &'static str,
    pub(crate) src: SocketAddr,
    pub(crate) dst: SocketAddr,
}

impl Packet {
    pub(crate) fn line(&self) -> (String, String, String) {
        (self.protocol.to_lowercase(), self.src.to_string(), self.dst.to_string())
    }
}

/// A packet to somewhere in the cluster from somewhere of the same family.
pub(crate) fn packet(rng: &mut Rng, cluster: &Cluster) -> Packet {
    let service = &cluster.services[rng.usize(..cluster.services.len())];
    let port = &service.ports[rng.usize(..service.ports.len())];
    let mut addresses: Vec<IpAddr> = service.cluster_ips.iter().flatten().copied().collect();
    addresses.extend(&service.external_ips);
    addresses.extend(service.ingress.iter().filter_map(|(ip, _)| *ip));
    let node_addresses: Vec<IpAddr> =
        cluster.nodes.iter().flat_map(|node| &node.addresses).map(|(_, ip)| *ip).collect();
    let to_node_port = |rng: &mut Rng| port.node_port.unwrap_or_else(|| rng.u16(1..));
    let dst = match rng.u8(..20) {
        0..10 if !addresses.is_empty() => SocketAddr::new(one_of(rng, &addresses), port_near(rng, port)),
        10..15 => SocketAddr::new(one_of(rng, &node_addresses), to_node_port(rng)),
        15 => SocketAddr::new(one_of(rng, &node_addresses), port_near(rng, port)),
        16 => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), to_node_port(rng)),
        17 => SocketAddr::new([10, 96, 0, rng.u8(..)].into(), port.number),
        18 => SocketAddr::new(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, rng.u16(..40)).into(), port.number),
        _ => {
            let ipv4 = rng.bool();
            SocketAddr::new(pod(rng, ipv4), port_near(rng, port))
        }
    };
    let protocol = if rng.u8(..12) == 0 { one_of(rng, &PROTOCOLS) } else { port.protocol };
    let src = SocketAddr::new(source(rng, cluster, &addresses, dst.is_ipv4()), rng.u16(1024..));
    Packet { protocol, src, dst }
}

fn port_near(rng: &mut Rng, port: &Port) -> u16 {
    match (rng.u8(..12), port.node_port) {
        (0, _) => rng.u16(1..),
        (1, Some(node_port)) => node_port,
        _ => port.number,
    }
}

fn source(rng: &mut Rng, cluster: &Cluster, of_service: &[IpAddr], ipv4: bool) -> IpAddr {
    let mut some = |list: Vec<IpAddr>| -> Option<IpAddr> {
        let list: Vec<IpAddr> = list.into_iter().filter(|ip| ip.is_ipv4() == ipv4).collect();
        (!list.is_empty()).then(|| one_of(rng, &list))
    };
    let node = some(cluster.nodes.iter().flat_map(|node| &node.addresses).map(|(_, ip)| *ip).collect());
    let service = some(of_service.to_vec());
    let endpoint = some(
        cluster
            .slices
            .iter()
            .flat_map(|s| &s.endpoints)
            .filter_map(|e| e.addresses.first().copied())
            .collect(),
    );
    let pod = pod(rng, ipv4);
    let chosen = match rng.u8(..16) {
        0..3 => Some(pod),
        3..6 => endpoint,
        6..10 => node,
        10..12 => service,
        12 => Some(if ipv4 { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() }),
        _ => None,
    };
    chosen.unwrap_or_else(|| match ipv4 {
        true => [198, 51, 100, rng.u8(1..30)].into(),
        false => Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, rng.u16(1..30)).into(),
    })
}
