//! Nodes, Namespaces and ServiceCIDRs.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// A Node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// `status.addresses` of type `InternalIP`, then those of type `ExternalIP`.
    pub addresses: Vec<IpAddr>,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `spec.podCIDRs`: the ranges of its pods' addresses (P601).
    pub pod_cidrs: Vec<IpNet>,
    /// Whether it is being deleted, or is tainted by the autoscaler (P1106).
    pub is_leaving: bool,
}

/// A Namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
}

/// A ServiceCIDR: ranges that cluster IPs are taken from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceCidr {
    /// `spec.cidrs`.
    pub cidrs: Vec<IpNet>,
}
