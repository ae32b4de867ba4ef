//! The desired state, as control describes it: plain values, with names and positions in place of numbers.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use flowgate_wire::{L4Port, MacAddr, Protocol};
use ipnet::IpNet;

use crate::source::PerSourceClass;

/// Name of one port of one Service: `namespace/name:port`, without the colon for an unnamed port.
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

/// The field of a Service that a frontend comes from.
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

/// Whether the source of a flow is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceNat {
    /// The source is replaced by an address and port of the gateway, so that replies come back (full NAT).
    Always,
    /// The client's address is preserved (DNAT only); replies must be routed through the gateway.
    PreserveClient,
}

impl SourceNat {
    /// Whether the source of a flow from `client` to `backend` is replaced.
    #[inline]
    pub fn applies(self, client: IpAddr, backend: IpAddr) -> bool {
        // P605: a backend that is its own client would reply to itself without passing the gateway.
        self == Self::Always || client == backend
    }
}

/// What happens to a new flow without a backend (P206, P501).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EmptyAction {
    /// Rejected: no endpoint is usable anywhere.
    Reject,
    /// Dropped: endpoints exist, but none that this policy may use.
    Drop,
}

/// One port of one Service, with its frontends and endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSpec {
    /// Its name; with the protocol unique among all.
    pub name: ServiceName,
    /// Its protocol.
    pub protocol: Protocol,
    /// The addresses and ports that clients send to.
    pub frontends: Vec<FrontendSpec>,
    /// Endpoint sets; a traffic policy refers to one by position.
    pub endpoint_sets: Vec<Vec<EndpointSpec>>,
    /// All endpoints that still serve: their flows go on, whether or not they are in a set (P803).
    pub serving: Vec<(IpAddr, L4Port)>,
    /// Timeout of session affinity; `None` for a Service without it (P701).
    pub affinity: Option<Duration>,
}

/// One address and port that clients send to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontendSpec {
    /// The VIP, or an address of the node for a NodePort.
    pub addr: IpAddr,
    /// The port.
    pub port: L4Port,
    /// Where it comes from.
    pub kind: FrontendKind,
    /// The traffic policy for each class of sources.
    pub policies: PerSourceClass<TrafficPolicySpec>,
    /// Client ranges that may reach it (P401); `None`: all.
    pub allowed: Option<Arc<[IpNet]>>,
}

/// What happens to new flows to a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TrafficPolicySpec {
    /// Position in [`ServiceSpec::endpoint_sets`].
    pub endpoint_set: usize,
    /// Whether the source of a flow is replaced.
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
    /// Its share of new flows, relative to the others of its set; at least 1.
    pub weight: u16,
}

/// One network interface that workers serve. Devices come first, in the order of the configuration, then VLANs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceSpec {
    /// Kernel name.
    pub name: String,
    /// Kernel index; 0 while the interface does not exist.
    pub ifindex: u32,
    /// Ethernet address.
    pub mac: MacAddr,
    /// MTU: largest IP packet, in bytes.
    pub mtu: u16,
    /// Whether it is up and has a carrier.
    pub up: bool,
    /// Its own addresses, the primary one of each family first.
    pub addresses: Vec<IpAddr>,
    /// Device and identifier of a VLAN interface; `None` for a device.
    pub vlan: Option<VlanSpec>,
}

/// A VLAN of a device.
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
    /// Its paths. Without one the destinations are unreachable, even if a shorter prefix covers them.
    pub hops: Vec<RouteHopSpec>,
    /// Lower wins among routes with the same prefix.
    pub metric: u32,
}

/// One path of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteHopSpec {
    /// Position of the interface.
    pub interface: usize,
    /// The router; `None` for destinations on the link. It may be of the other family (RFC 5549).
    pub via: Option<IpAddr>,
    /// Its share of the flows, relative to the other paths; at least 1.
    pub weight: u16,
}

/// An interface whose packets of one family the kernel does not forward (`forwarding` in Documentation/networking/ip-sysctl.rst).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ForwardingOff {
    /// Position of the interface by which the packets come in.
    pub interface: usize,
    /// IPv4, or else IPv6.
    pub v4: bool,
}

/// An Ethernet address to which frames are this machine's, beside that of the interface: that of the port of a bond, or of a
/// macvlan on it, as a virtual router has (RFC 9568).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StationSpec {
    /// Position of the interface by which the frames come in.
    pub interface: usize,
    /// The address.
    pub mac: MacAddr,
}

/// One entry of the kernel's neighbour table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeighbourSpec {
    /// Position of the interface.
    pub interface: usize,
    /// Its address on the link.
    pub addr: IpAddr,
    /// Its Ethernet address; `None` while it is not resolved.
    pub mac: Option<MacAddr>,
    /// The kernel asked for it and nobody answered (`NUD_FAILED`).
    pub has_failed: bool,
}

/// Source addresses and ports for translated flows.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct SnatSpec {
    /// Addresses for every interface. A family without one uses each interface's own primary address.
    pub addresses: Vec<IpAddr>,
    /// Source ports.
    pub ports: crate::snat::PortSet,
}
