//! The network state of the served interfaces.

use std::net::IpAddr;
use std::sync::Arc;

use flowgate_tables::spec::{ForwardingOff, InterfaceSpec, NeighbourSpec, RouteSpec, StationSpec};

/// Links, routes and neighbours of the served interfaces. Parts that did not change are the same `Arc`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetState {
    /// The served interfaces, in the order of the configuration, also those that do not exist; then their
    /// VLANs.
    pub interfaces: Arc<Vec<InterfaceSpec>>,
    /// Routes of the main table through them, and routes without next hops.
    pub routes: Arc<Vec<RouteSpec>>,
    /// Neighbours on them.
    pub neighbours: Arc<Vec<NeighbourSpec>>,
    /// Addresses of all other interfaces, ascending, without loopback and link-local ones.
    pub elsewhere: Arc<Vec<IpAddr>>,
    /// What the kernel does not forward although it comes in by a served interface, ascending.
    pub forwarding_off: Arc<Vec<ForwardingOff>>,
    /// Ethernet addresses of this machine beside those of the interfaces, ascending.
    pub other_stations: Arc<Vec<StationSpec>>,
}
