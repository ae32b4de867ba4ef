//! Services.

use std::net::IpAddr;
use std::time::Duration;

use flowgate_wire::Protocol;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// `spec.type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceType {
    /// Reached by its cluster IP.
    #[default]
    ClusterIp,
    /// Also by a port of every node.
    NodePort,
    /// Also by an address that a load balancer controller wrote into its status.
    LoadBalancer,
    /// A DNS alias; never served (P106).
    ExternalName,
}

/// `spec.clusterIPs`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClusterAddress {
    /// `None`: DNS answers with the endpoints; never served (P105).
    Headless,
    /// Not assigned yet; never served (P105).
    Unassigned,
    /// At most one per address family.
    Assigned(Vec<IpAddr>),
}

/// `status.loadBalancer.ingress[].ipMode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum IngressMode {
    /// Traffic arrives with the address as destination (P313).
    #[default]
    Vip,
    /// A proxy in front terminates the connections: the address must not be served here (P314).
    Proxy,
}

/// One address in `status.loadBalancer.ingress`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ingress {
    /// The address.
    pub ip: IpAddr,
    /// How traffic to it arrives.
    pub mode: IngressMode,
}

/// `spec.ports[].targetPort`. For display only: endpoints are matched by port name (P114).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TargetPort {
    /// A port number.
    Number(u16),
    /// The name of a container port.
    Name(String),
}

/// One of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// Its name; empty for the only port of a Service.
    pub name: String,
    /// Its protocol.
    #[serde(with = "super::protocol")]
    pub protocol: Protocol,
    /// The port that clients connect to; never 0.
    pub port: u16,
    /// Where the pods listen.
    pub target_port: TargetPort,
    /// The port on every node, if there is one.
    pub node_port: Option<u16>,
    /// The application protocol; carried, not used (P108).
    pub app_protocol: Option<String>,
}

/// `spec.internalTrafficPolicy` or `spec.externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrafficPolicy {
    /// All endpoints.
    #[default]
    Cluster,
    /// Those of this node only.
    Local,
}

/// `spec.sessionAffinity`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Affinity {
    /// A backend is selected for each connection on its own.
    #[default]
    None,
    /// A client stays with its backend until idle for this long.
    ClientIp(Duration),
}

/// A label that excludes an object from being served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExcludedBy {
    /// `service.kubernetes.io/service-proxy-name` on a Service: another proxy serves it (P102).
    ServiceProxyName,
    /// `service.kubernetes.io/headless` on a slice: its Service has no cluster IP (P103).
    Headless,
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// `spec.type`.
    pub service_type: ServiceType,
    /// `spec.clusterIPs`.
    pub cluster: ClusterAddress,
    /// `spec.externalName`, for type `ExternalName`.
    pub external_name: Option<String>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress` with an address; entries with only a host name are left out (P313).
    pub ingress: Vec<Ingress>,
    /// `spec.ports`.
    pub ports: Vec<ServicePort>,
    /// Whether it has a selector, so that a controller writes its slices; manual Endpoints count only without one
    /// (P118).
    pub has_selector: bool,
    /// `spec.internalTrafficPolicy`.
    pub internal_policy: TrafficPolicy,
    /// `spec.externalTrafficPolicy`.
    pub external_policy: TrafficPolicy,
    /// `spec.sessionAffinity`.
    pub affinity: Affinity,
    /// `spec.loadBalancerSourceRanges`.
    pub source_ranges: Vec<IpNet>,
    /// `spec.healthCheckNodePort`.
    pub health_check_node_port: Option<u16>,
    /// The label that excludes it from being served, if it has one.
    #[serde(rename = "hidden_by")] // As in files that were saved under the name before.
    pub excluded_by: Option<ExcludedBy>,
    /// `metadata.creationTimestamp`, in seconds of Unix time; `None` in most manifests. Decides between Services that want
    /// the same.
    #[serde(default)] // Not in files that earlier versions saved.
    pub created_s: Option<i64>,
}

impl Service {
    /// A key that sorts the elder Service first; one of unknown age is the newest.
    pub fn age_order(&self) -> i64 {
        self.created_s.unwrap_or(i64::MAX)
    }

    /// P323: its health check port, if one is to be open.
    pub fn health_check_port(&self) -> Option<u16> {
        let has = self.service_type == ServiceType::LoadBalancer
            && self.external_policy == TrafficPolicy::Local
            && self.excluded_by.is_none()
            && matches!(self.cluster, ClusterAddress::Assigned(_));
        self.health_check_node_port.filter(|&port| has && port != 0)
    }
}

/// What kind of address it is, if no packet can be sent to one machine by it.
pub(crate) fn unreachable_kind(ip: IpAddr) -> Option<&'static str> {
    match ip {
        _ if ip.is_unspecified() => Some("the unspecified address"),
        _ if ip.is_loopback() => Some("a loopback address"),
        _ if ip.is_multicast() => Some("a multicast address"),
        IpAddr::V4(v4) if v4.is_broadcast() => Some("the broadcast address"),
        _ => None,
    }
}
