//! How much all objects together, one Service and one namespace may ask for. Control leaves out what does not fit before
//! it builds tables, so that neither tables nor BPF maps can be full when a generation is published.

use crate::id::BackendId;

/// Upper bounds of what is published, in entries. The names of the fields are the keys of the section `[limits]` of the
/// configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// Services that are served.
    pub services: u32,
    /// Frontends of all kinds: an address, port and protocol each.
    pub frontends: u32,
    /// Frontends that are no NodePorts: the map `vips`.
    pub vips: u32,
    /// Addresses of these: the maps `vip_addrs` and `echo_addrs`.
    pub vip_addresses: u32,
    /// Cluster IPs: the map `cluster_ips`.
    pub cluster_ips: u32,
    /// Backends whose replies go to clients with preserved addresses: the map `reply_sources`.
    pub reply_sources: u32,
    /// Backends: an endpoint of one Service port each.
    pub backends: u32,
    /// The machine's own addresses: the maps `own_addrs` and `node_addrs`.
    pub node_addresses: u32,
    /// Addresses at which replies to translated flows arrive: the map `snat_addrs`.
    pub snat_addresses: u32,
    /// Ranges of cluster IPs: the map `service_cidrs`.
    pub service_cidrs: u32,
    /// Frontends of one Service.
    pub service_frontends: u32,
    /// Backends of one Service.
    pub service_endpoints: u32,
    /// Frontends of all Services of one namespace.
    pub namespace_frontends: u32,
    /// Backends of all Services of one namespace.
    pub namespace_endpoints: u32,
}

impl Budgets {
    /// The largest value of a budget: backends have slots, and one of these belongs to [`BackendId::NONE`].
    pub const MAX: u32 = BackendId::SLOTS_MAX - 1;
}

impl Default for Budgets {
    /// Beyond what Kubernetes itself is tested with (10,000 Services, 150,000 pods), and within a few hundred megabytes
    /// if all of it is used.
    fn default() -> Self {
        Self {
            services: 65_536,
            frontends: 524_288,
            vips: 524_288,
            vip_addresses: 262_144,
            cluster_ips: 131_072,
            reply_sources: 1_048_576,
            backends: 2_097_152,
            node_addresses: 4096,
            snat_addresses: 4096,
            service_cidrs: 1024,
            service_frontends: 131_072,
            service_endpoints: 524_288,
            namespace_frontends: 262_144,
            namespace_endpoints: 1_048_576,
        }
    }
}
