//! Which addresses a Service may claim at all, whoever else wants them: what is the cluster's, what is the node's own, and
//! what the operator allows.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use flowgate_tables::FrontendKind;
use flowgate_wire::Protocol;
use ipnet::IpNet;

use super::addresses::NodeContext;
use super::services::ServiceInput;
use super::wanted::Wanted;
use super::{CompileConfig, Role};
use crate::model::{ClusterAddress, Desired, Key, ServiceType};

/// Which `externalIPs` are served. Whoever may write a Service may write any address there (CVE-2020-8554).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExternalIps {
    /// Those that are nobody else's: none inside a ServiceCIDR, none that is an address of another Service, none inside the
    /// range of a Node's pods, none of the node's own.
    Safe,
    /// All, as kube-proxy does it, except cluster IPs of other Services.
    All,
    /// None.
    Nowhere,
    /// Those inside these ranges, by the rules of `Safe`; but an own address of the node counts if it is in a range, since
    /// the operator has named it.
    Within(Vec<IpNet>),
}

impl ExternalIps {
    /// What holds unless the operator decides otherwise: a gateway stands before clusters of several tenants, a node is to
    /// do what kube-proxy does.
    pub const fn of_role(role: Role) -> Self {
        match role {
            Role::Gateway => Self::Safe,
            Role::Node => Self::All,
        }
    }
}

impl FromStr for ExternalIps {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "safe" => Ok(Self::Safe),
            "all" => Ok(Self::All),
            "none" => Ok(Self::Nowhere),
            ranges => {
                let range = |text: &str| {
                    let net = text.parse::<IpNet>().ok();
                    let net = net.or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
                    net.map(|net| net.trunc()).ok_or_else(|| {
                        format!("`{text}` is none of safe, all, none, and no range such as 203.0.113.0/24")
                    })
                };
                ranges.split(',').map(|text| range(text.trim())).collect::<Result<_, _>>().map(Self::Within)
            }
        }
    }
}

/// A port on which the node itself may listen: no Service gets it on the node's own addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProtectedPort {
    /// The address; `None` for all of the node's own.
    pub addr: Option<IpAddr>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
}

impl FromStr for ProtectedPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('/').and_then(|(port, protocol)| {
            let port = port.parse::<u16>().ok().filter(|&port| port != 0)?;
            Some(Self { addr: None, protocol: protocol.parse().ok()?, port })
        });
        parsed.ok_or_else(|| format!("`{text}` is no port with a protocol such as 22/tcp"))
    }
}

impl fmt::Display for ProtectedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.port, self.protocol.name().to_ascii_lowercase())
    }
}

/// Why a Service does not get an address or a port, whoever else wants it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Refusal {
    /// It is the cluster IP of this other Service.
    ClusterIp(Key),
    /// It is a load balancer address of this other Service.
    LoadBalancer(Key),
    /// It lies in this range of cluster IPs.
    ServiceCidr(IpNet),
    /// It lies in this range of pod addresses.
    PodRange(IpNet),
    /// It is an address of the node.
    OwnAddress,
    /// No external address is served.
    NoExternalIps,
    /// It lies in none of the ranges for external addresses.
    OutsideRanges,
    /// The node itself listens there.
    Protected,
    /// It is the health check port of this Service.
    HealthCheck(Key),
}

impl Refusal {
    /// What follows for `what` (such as `spec.externalIPs 10.96.0.1`), with the remedy.
    pub(super) fn sentence(&self, what: &str) -> String {
        match self {
            Self::ClusterIp(other) => {
                format!("{what} is not served: it is the cluster IP of {other}; choose another address")
            }
            Self::LoadBalancer(other) => format!(
                "{what} is not served: it is a load balancer address of {other}; choose another address, or set \
                 services.external_ips"
            ),
            Self::ServiceCidr(range) => format!(
                "{what} is not served: it lies in {range}, the range of cluster IPs; choose another address, or set \
                 services.external_ips"
            ),
            Self::PodRange(range) => format!(
                "{what} is not served: it lies in {range}, the range of a Node's pods; choose another address, or set \
                 services.external_ips"
            ),
            Self::OwnAddress => format!(
                "{what} is not served: it is an address of this machine; choose another address, or set \
                 services.external_ips"
            ),
            Self::NoExternalIps => format!("{what} is not served: services.external_ips is none"),
            Self::OutsideRanges => {
                format!(
                    "{what} is not served: it lies in no range of services.external_ips; choose another address"
                )
            }
            Self::Protected => format!(
                "{what} is not served: this machine keeps that port of its own addresses to itself; choose another port, or \
                 take it out of services.protected_ports"
            ),
            Self::HealthCheck(service) => {
                format!("{what} is not served: it is the health check port of {service}; choose another port")
            }
        }
    }
}

/// Judges addresses one by one; ports that several Services claim are another matter (`claims`).
pub(super) struct AddressRules<'a> {
    external_ips: ExternalIps,
    node_context: &'a NodeContext,
    pod_ranges: &'a [IpNet],
    cluster_ips: Holders<'a>,
    load_balancer_ips: Holders<'a>,
    health_ports: HashMap<u16, &'a Key>,
    protected: HashSet<ProtectedPort>,
}

impl<'a> AddressRules<'a> {
    pub(super) fn new(input: ServiceInput<'a>, pod_ranges: &'a [IpNet]) -> Self {
        let ServiceInput { desired, node_context, config } = input;
        let (mut cluster_ips, mut load_balancer_ips) = (Holders::default(), Holders::default());
        let mut health_ports = HashMap::new();
        for (key, stored) in desired.services() {
            let service = &*stored.object;
            if service.service_type == ServiceType::ExternalName {
                continue;
            }
            if let ClusterAddress::Assigned(ips) = &service.cluster {
                ips.iter().for_each(|&ip| cluster_ips.add(ip, key));
            }
            // Whether or not they are captured here: a proxy that has one (P314) must get its traffic.
            service.ingress.iter().for_each(|ingress| load_balancer_ips.add(ingress.ip, key));
            if let Some(port) = service.health_check_port() {
                health_ports.entry(port).or_insert(key);
            }
        }
        Self {
            external_ips: in_force(config),
            node_context,
            pod_ranges,
            cluster_ips,
            load_balancer_ips,
            health_ports,
            protected: config.protected_ports.iter().copied().collect(),
        }
    }

    /// Why the Service `key` does not get what it wants, if so.
    pub(super) fn refusal(&self, key: &Key, wanted: &Wanted, protocol: Protocol) -> Option<Refusal> {
        match wanted.kind {
            FrontendKind::ClusterIp => None,
            FrontendKind::LoadBalancer => {
                self.cluster_ip(key, wanted.addr).or_else(|| self.own_port(wanted, protocol))
            }
            FrontendKind::ExternalIp => {
                self.external_ip(key, wanted.addr).or_else(|| self.own_port(wanted, protocol))
            }
            FrontendKind::NodePort => self.own_port(wanted, protocol),
        }
    }

    fn external_ip(&self, key: &Key, addr: IpAddr) -> Option<Refusal> {
        let own = |addr: &IpAddr| self.node_context.is_own(*addr);
        let of_another = || {
            let in_cidr = || self.node_context.service_cidrs.iter().find(|net| net.contains(&addr)).copied();
            let in_pods = || self.pod_ranges.iter().find(|net| net.contains(&addr)).copied();
            let holder = self.load_balancer_ips.another(addr, key).cloned();
            holder
                .map(Refusal::LoadBalancer)
                .or_else(|| in_cidr().map(Refusal::ServiceCidr))
                .or_else(|| in_pods().map(Refusal::PodRange))
        };
        match &self.external_ips {
            ExternalIps::Nowhere => Some(Refusal::NoExternalIps),
            ExternalIps::All => self.cluster_ip(key, addr),
            ExternalIps::Safe if own(&addr) => Some(Refusal::OwnAddress),
            ExternalIps::Within(ranges) if !ranges.iter().any(|net| net.contains(&addr)) => {
                Some(Refusal::OutsideRanges)
            }
            ExternalIps::Safe | ExternalIps::Within(_) => self.cluster_ip(key, addr).or_else(of_another),
        }
    }

    fn cluster_ip(&self, key: &Key, addr: IpAddr) -> Option<Refusal> {
        self.cluster_ips.another(addr, key).cloned().map(Refusal::ClusterIp)
    }

    /// The port lists and not the sockets that happen to be open decide: what is served must not depend on whether sshd or
    /// the kubelet started before Flowgate, and `flowgate trace` must know it without this machine.
    fn own_port(&self, wanted: &Wanted, protocol: Protocol) -> Option<Refusal> {
        let Wanted { addr, port, .. } = *wanted;
        if !self.node_context.is_of_host(addr) {
            return None;
        }
        // A health check port takes no NodePort from another Service: probes matter less than traffic, and the API server
        // allots both kinds from one range without a clash.
        if protocol == Protocol::Tcp
            && wanted.kind != FrontendKind::NodePort
            && let Some(service) = self.health_ports.get(&port)
        {
            return Some(Refusal::HealthCheck((*service).clone()));
        }
        let listed = |addr| self.protected.contains(&ProtectedPort { addr, protocol, port });
        (listed(None) || listed(Some(addr))).then_some(Refusal::Protected)
    }
}

fn in_force(config: &CompileConfig) -> ExternalIps {
    config.external_ips.clone().unwrap_or_else(|| ExternalIps::of_role(config.role))
}

/// The ranges of the pods of all Nodes, joined where they adjoin; none if external addresses may be anybody's.
pub(super) fn pod_ranges(desired: &Desired, config: &CompileConfig) -> Vec<IpNet> {
    match in_force(config) {
        ExternalIps::All | ExternalIps::Nowhere => Vec::new(),
        ExternalIps::Safe | ExternalIps::Within(_) => {
            let all = desired.nodes().values().flat_map(|stored| &stored.object.pod_cidrs);
            // A range that is every address tells nothing.
            IpNet::aggregate(&all.filter(|net| net.prefix_len() > 0).copied().collect())
        }
    }
}

/// Addresses and the Services that have them: the first two, so that one other than a given Service is found.
#[derive(Debug, Default)]
struct Holders<'a>(HashMap<IpAddr, (&'a Key, Option<&'a Key>)>);

impl<'a> Holders<'a> {
    fn add(&mut self, addr: IpAddr, key: &'a Key) {
        let (first, second) = self.0.entry(addr).or_insert((key, None));
        if *first != key && second.is_none() {
            *second = Some(key);
        }
    }

    /// A Service other than `key` that has the address.
    fn another(&self, addr: IpAddr, key: &Key) -> Option<&'a Key> {
        let (first, second) = *self.0.get(&addr)?;
        if first == key { second } else { Some(first) }
    }
}
