//! How large the sets may become, and what is missing in the maps when they cannot hold everything.

use std::io;

/// The most entries of each set, which the kernel's maps grow up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetLimits {
    /// [`SteeringSet::vips`](super::SteeringSet::vips).
    pub vips: u32,
    /// Addresses of VIPs, and those of them for which workers reply to echo requests.
    pub vip_addresses: u32,
    /// [`SteeringSet::cluster_ips`](super::SteeringSet::cluster_ips).
    pub cluster_ips: u32,
    /// [`SteeringSet::reply_sources`](super::SteeringSet::reply_sources).
    pub reply_sources: u32,
    /// [`SteeringSet::own_addresses`](super::SteeringSet::own_addresses), and those of them with NodePorts.
    pub node_addresses: u32,
    /// [`SteeringSet::snat_addresses`](super::SteeringSet::snat_addresses).
    pub snat_addresses: u32,
    /// [`SteeringSet::service_cidrs`](super::SteeringSet::service_cidrs).
    pub service_cidrs: u32,
    /// [`SteeringSet::vlans`](super::SteeringSet::vlans).
    pub vlans: u32,
}

impl SetLimits {
    /// VLANs that one set of interfaces can have.
    pub const VLANS: u32 = 4096 * super::sockets::MAX_INTERFACES;

    /// The limit of the set in this map.
    pub(super) fn of(&self, map: &str) -> u32 {
        // A map has at least one entry, and the kernel refuses hash maps of more than 2^28 buckets.
        self.field(map).1.clamp(1, 1 << 28)
    }

    /// The name of the field with the limit of the set in this map; `None` for VLANs, whose limit nobody chooses.
    #[must_use]
    pub fn field_of(map: &str) -> Option<&'static str> {
        Some(Self::default().field(map).0).filter(|field| *field != "vlans")
    }

    fn field(&self, map: &str) -> (&'static str, u32) {
        match map {
            "vips" => ("vips", self.vips),
            "vip_addrs" | "echo_addrs" => ("vip_addresses", self.vip_addresses),
            "cluster_ips" => ("cluster_ips", self.cluster_ips),
            "reply_sources" => ("reply_sources", self.reply_sources),
            "own_addrs" | "node_addrs" => ("node_addresses", self.node_addresses),
            "snat_addrs" => ("snat_addresses", self.snat_addresses),
            "service_cidrs" => ("service_cidrs", self.service_cidrs),
            _ => ("vlans", self.vlans),
        }
    }
}

impl Default for SetLimits {
    fn default() -> Self {
        Self {
            vips: 262_144,
            vip_addresses: 262_144,
            cluster_ips: 65_536,
            reply_sources: 65_536,
            node_addresses: 4096,
            snat_addresses: 4096,
            service_cidrs: 1024,
            vlans: Self::VLANS,
        }
    }
}

/// What one map of the program lacks. Packets that the missing entries are for pass to the kernel.
#[derive(Debug, thiserror::Error)]
#[error("map {map} of the XDP program lacks {missing} entries, the first {first}: {cause}")]
pub struct Shortfall {
    /// The map.
    pub map: &'static str,
    /// Entries that it has room for.
    pub capacity: u32,
    /// Number of entries that are missing.
    pub missing: usize,
    /// The first of them, for the operator.
    pub first: String,
    /// Why.
    pub cause: ShortfallCause,
}

/// Why a map lacks entries.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShortfallCause {
    /// It has no more room: a larger one takes its place ([`Steering::resize`](super::Steering::resize)), unless it is as
    /// large as it may become.
    #[error("it is full")]
    Full,
    /// An own address of the node is missing: traffic to it would be taken for Flowgate's by these entries.
    #[error("an own address of the node is missing in own_addrs")]
    OwnAddressMissing,
    /// The kernel refused an entry.
    #[error("{0}")]
    Kernel(io::Error),
}
