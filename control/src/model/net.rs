//! The network state of the served interfaces.

use std::net::IpAddr;
use std::sync::Arc;

use flowgate_tables::spec::{InterfaceSpec, NeighbourSpec, RouteSpec};

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
}
