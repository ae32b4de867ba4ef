//! The machine that decides: its role, its flags, and what of its place in the cluster they make matter (P305 to P308,
//! P601). Written from the rules; shares nothing with the code under test.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::cluster::{Cluster, Node};

#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) is_gateway: bool,
    pub(crate) name: &'static str,
    pub(crate) cluster_cidrs: Vec<IpNet>,
    pub(crate) detects_pods: bool,
    pub(crate) masquerade_all: bool,
    pub(crate) localhost: bool,
    pub(crate) nodeport_addresses: Vec<&'static str>,
    /// `None`: as the role has it.
    pub(crate) external_ips: Option<&'static str>,
}

impl Machine {
    pub(crate) fn flags(&self) -> Vec<String> {
        let mut flags = vec![
            format!("--role={}", if self.is_gateway { "gateway" } else { "node" }),
            format!("--node-name={}", self.name),
        ];
        flags.extend(self.cluster_cidrs.iter().map(|cidr| format!("--cluster-cidr={cidr}")));
        flags.extend(self.nodeport_addresses.iter().map(|entry| format!("--nodeport-addresses={entry}")));
        flags.extend((!self.detects_pods).then(|| "--detect-local=none".to_owned()));
        flags.extend(self.masquerade_all.then(|| "--masquerade-all".to_owned()));
        flags.extend(self.localhost.then(|| "--localhost-nodeports".to_owned()));
        flags.extend(self.external_ips.map(|which| format!("--external-ips={which}")));
        flags
    }

    /// Which external addresses are served: a word or ranges.
    pub(crate) fn external_ips(&self) -> &'static str {
        self.external_ips.unwrap_or(if self.is_gateway { "safe" } else { "all" })
    }

    /// Ports of its own addresses that no Service gets, as far as packets here have them.
    pub(crate) fn protected_ports(&self) -> [(&'static str, u16); 2] {
        [("TCP", 22), ("TCP", 10_250)]
    }

    fn node<'a>(&self, cluster: &'a Cluster) -> Option<&'a Node> {
        cluster.nodes.iter().find(|node| node.name == self.name)
    }

    /// The zone of its Node; an empty label is none (P210).
    pub(crate) fn zone<'a>(&self, cluster: &'a Cluster) -> Option<&'a str> {
        self.node(cluster)?.zone.as_deref().filter(|zone| !zone.is_empty())
    }

    /// Whether an address is one of its own.
    pub(crate) fn owns(&self, cluster: &Cluster, ip: IpAddr) -> bool {
        let listed = self.node(cluster).is_some_and(|node| node.addresses.iter().any(|(_, own)| *own == ip));
        listed || ip.is_loopback()
    }

    /// The first internal address of a family, or else the first external one (P305).
    pub(crate) fn primary(&self, cluster: &Cluster, ipv4: bool) -> Option<IpAddr> {
        let addresses = &self.node(cluster)?.addresses;
        ["InternalIP", "ExternalIP"].iter().find_map(|wanted| {
            let of_kind = addresses.iter().filter(|(kind, ip)| kind == wanted && ip.is_ipv4() == ipv4);
            of_kind.map(|(_, ip)| *ip).next()
        })
    }

    /// Whether NodePorts are served on an address (P305, P306, X1).
    pub(crate) fn serves_node_ports_on(&self, cluster: &Cluster, ip: IpAddr) -> bool {
        if ip.is_loopback() || !self.owns(cluster, ip) {
            return false;
        }
        let is_primary = self.primary(cluster, ip.is_ipv4()) == Some(ip);
        let list = &self.nodeport_addresses;
        if list.is_empty() {
            return self.is_gateway || is_primary;
        }
        let words_or_own_family = list.iter().filter(|entry| match entry.parse::<IpNet>() {
            Ok(range) => range.addr().is_ipv4() == ip.is_ipv4(),
            Err(_) => true,
        });
        // Ranges of the other family only: everything.
        if words_or_own_family.clone().next().is_none() {
            return true;
        }
        words_or_own_family.into_iter().any(|entry| match *entry {
            "all" => true,
            "primary" => is_primary,
            "localhost" => false,
            range => range.parse::<IpNet>().is_ok_and(|range| range.contains(&ip)),
        })
    }

    /// Whether 127.0.0.1 serves NodePorts (P308, X2).
    pub(crate) fn serves_node_ports_on_localhost(&self) -> bool {
        if self.is_gateway {
            return false;
        }
        let localhost: IpAddr = [127, 0, 0, 1].into();
        let ranges: Vec<IpNet> =
            self.nodeport_addresses.iter().filter_map(|entry| entry.parse().ok()).collect();
        let mut of_family = ranges.iter().filter(|range| range.addr().is_ipv4()).peekable();
        let excluded = of_family.peek().is_some() && !of_family.any(|range| range.contains(&localhost));
        self.nodeport_addresses.contains(&"localhost") || (self.localhost && !excluded)
    }

    /// The range that pods have addresses from: the first of the family (P601).
    pub(crate) fn pod_range(&self, ipv4: bool) -> Option<IpNet> {
        let looks = self.detects_pods && !self.is_gateway;
        self.cluster_cidrs.iter().find(|cidr| looks && cidr.addr().is_ipv4() == ipv4).copied()
    }
}
