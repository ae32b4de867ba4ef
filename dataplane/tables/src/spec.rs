//! What control asks for: plain values with names in place of indices. Never holds a table.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use flowgate_wire::{L4Port, MacAddr, Protocol};
use ipnet::IpNet;

use crate::source::PerSourceClass;

/// Names one port of one Service for people: `namespace/name:port`, without the colon for an unnamed port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub name: String,
    /// Name of the port; empty for an unnamed one.
    pub port: String,
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)?;
        if !self.port.is_empty() {
            write!(f, ":{}", self.port)?;
        }
        Ok(())
    }
}

/// Where a frontend comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FrontendKind {
    /// `spec.clusterIPs`.
    ClusterIp,
    /// `spec.ports[].nodePort` on an address of the node.
    NodePort,
    /// `spec.externalIPs`.
    ExternalIp,
    /// `status.loadBalancer.ingress[].ip`.
    LoadBalancer,
}

impl FrontendKind {
    /// The name used in output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::ExternalIp => "ExternalIP",
            Self::LoadBalancer => "LoadBalancer",
        }
    }
}

/// Whether the backend sees the client's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceNat {
    /// The source is replaced by an address and port of ours, so that replies come back here.
    Always,
    /// The client's address is kept; replies must be routed through us. A backend that is its own client
    /// is never kept: it would answer itself (P605).
    PreserveClient,
}

impl SourceNat {
    /// Whether the source of a flow from `client` to `backend` is replaced.
    #[inline]
    pub fn applies(self, client: IpAddr, backend: IpAddr) -> bool {
        self == Self::Always || client == backend
    }
}

/// What happens to a new flow when no backend may be chosen (P206, P501).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EmptyAction {
    /// No endpoint is usable anywhere.
    Reject,
    /// Endpoints exist, but none that this policy may use.
    Drop,
}

/// One port of one Service with everything that leads to it and everything that serves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSpec {
    /// Its name; with the protocol unique among all.
    pub name: ServiceName,
    /// Its protocol.
    pub protocol: Protocol,
    /// The addresses and ports that clients aim at.
    pub frontends: Vec<FrontendSpec>,
    /// The sets of endpoints that frontends choose from; a policy names one by position.
    pub endpoint_sets: Vec<Vec<EndpointSpec>>,
    /// All endpoints that still answer: their flows go on, whether or not a set has them (P803).
    pub serving: Vec<(IpAddr, L4Port)>,
    /// How long after its last connection a client stays with its backend; none to place each connection
    /// by itself (P701).
    pub affinity: Option<Duration>,
}

/// One address and port that clients aim at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontendSpec {
    /// The VIP, or an address of the node for a NodePort.
    pub addr: IpAddr,
    /// The port clients aim at.
    pub port: L4Port,
    /// Where it comes from.
    pub kind: FrontendKind,
    /// How new flows are treated, by who sends them.
    pub policies: PerSourceClass<TrafficPolicySpec>,
    /// Who may reach it; none for everybody (P401).
    pub allowed: Option<Arc<[IpNet]>>,
}

/// How new flows to a frontend are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TrafficPolicySpec {
    /// Position in [`ServiceSpec::endpoint_sets`].
    pub endpoint_set: usize,
    /// Whether the client's address is replaced.
    pub source_nat: SourceNat,
    /// What happens to a new flow when the set is empty.
    pub when_empty: EmptyAction,
}

/// One endpoint that may be chosen.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointSpec {
    /// Its address.
    pub addr: IpAddr,
    /// Its port.
    pub port: L4Port,
    /// Its share of the new flows, relative to the others of its set; at least 1.
    pub weight: u16,
}

/// One network interface that workers serve. The devices come first, in the order of the configuration;
/// VLAN interfaces follow them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceSpec {
    /// Kernel name.
    pub name: String,
    /// Kernel index; 0 while the interface does not exist.
    pub ifindex: u32,
    /// Ethernet address.
    pub mac: MacAddr,
    /// Largest IP packet that it carries, in bytes.
    pub mtu: u16,
    /// Whether it is up and has a carrier.
    pub up: bool,
    /// Its own addresses, the primary one of each family first.
    pub addresses: Vec<IpAddr>,
    /// For an interface that is a VLAN of a device: which one. None for a device.
    pub vlan: Option<VlanSpec>,
}

/// The VLAN that an interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VlanSpec {
    /// Position of the device whose frames carry the tag.
    pub parent: usize,
    /// The VLAN identifier, 12 bits (IEEE 802.1Q section 9.6).
    pub id: u16,
}

/// One route through the interfaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteSpec {
    /// Destinations it covers.
    pub prefix: IpNet,
    /// The ways it may take. Without one, the destinations cannot be reached, even if a shorter prefix
    /// covers them.
    pub hops: Vec<RouteHopSpec>,
    /// Lower wins among routes with the same prefix.
    pub metric: u32,
}

/// One way of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteHopSpec {
    /// Position of the interface.
    pub interface: usize,
    /// The router, or none for destinations on the link. A router of the other family is asked for by that
    /// family (RFC 5549).
    pub via: Option<IpAddr>,
    /// Its share of the flows, relative to the other ways; at least 1.
    pub weight: u16,
}

/// One neighbour that the kernel knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeighbourSpec {
    /// Position of the interface.
    pub interface: usize,
    /// Its address on the link.
    pub addr: IpAddr,
    /// Its Ethernet address, if resolved.
    pub mac: Option<MacAddr>,
}

/// Where translated flows get their source from.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct SnatSpec {
    /// Addresses for every interface. A family without any uses each interface's own primary address.
    pub addresses: Vec<IpAddr>,
    /// Ports that may be used as source.
    pub ports: crate::snat::PortSet,
}
