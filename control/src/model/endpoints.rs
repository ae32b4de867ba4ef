//! EndpointSlices, and Endpoints as the slices that mirror them.

use std::net::IpAddr;
use std::time::SystemTime;

use flowgate_wire::Protocol;
use serde::{Deserialize, Serialize};

use super::ExcludedBy;

/// `addressType` of an EndpointSlice (P112).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SliceFamily {
    /// `IPv4`.
    V4,
    /// `IPv6`.
    V6,
    /// `FQDN`: host names, which are not served (P112).
    Fqdn,
}

/// For whom an endpoint is meant, by the controller that spreads traffic (P207).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hints {
    /// `hints.forNodes`: names of Nodes.
    pub nodes: Vec<String>,
    /// `hints.forZones`: names of zones.
    pub zones: Vec<String>,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its first address: the others mean nothing (P113).
    pub addr: IpAddr,
    /// Whether it takes new connections; unset means yes (P201).
    pub ready: bool,
    /// Whether it answers, even while it ends; unset means yes (P201).
    pub serving: bool,
    /// Whether it is about to end; unset means no (P201).
    pub terminating: bool,
    /// The node it runs on, if known (P202).
    pub node_name: Option<String>,
    /// Its own name within a headless Service, for DNS.
    pub hostname: Option<String>,
    /// The nodes and zones that it is meant for; `None` for all.
    pub hints: Option<Box<Hints>>,
}

/// One port of a slice or of a subset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointPort {
    /// The name of the Service port that it serves.
    pub name: String,
    /// Its protocol.
    #[serde(with = "super::protocol")]
    pub protocol: Protocol,
    /// Its number; never 0.
    pub port: u16,
    /// The application protocol; carried, not used (P108).
    pub app_protocol: Option<String>,
}

/// An EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSlice {
    /// The Service of the same namespace that it belongs to (P111).
    pub service: Option<String>,
    /// Whether the mirroring controller wrote it (P118).
    pub is_mirror: bool,
    /// The kind of its addresses.
    pub family: SliceFamily,
    /// Its endpoints; none for `FQDN`.
    pub endpoints: Vec<Endpoint>,
    /// Its ports, without those that have no number (P114).
    pub ports: Vec<EndpointPort>,
    /// The label that excludes it from being served, if it has one.
    #[serde(rename = "hidden_by")] // As in files that were saved under the name before.
    pub excluded_by: Option<ExcludedBy>,
    /// When the change that led to this version happened, by its controller's clock (P1203).
    pub triggered_at: Option<SystemTime>,
}

/// One address of a subset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointAddress {
    /// The address.
    pub addr: IpAddr,
    /// The node it is on, if known.
    pub node_name: Option<String>,
    /// Whether it takes new connections.
    pub ready: bool,
    /// Its own name within a headless Service, for DNS.
    pub hostname: Option<String>,
}

/// Addresses that have the same ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subset {
    /// The addresses, the ready ones first.
    pub addresses: Vec<EndpointAddress>,
    /// The ports.
    pub ports: Vec<EndpointPort>,
}

/// An Endpoints object, which belongs to the Service of its own name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// Its subsets.
    pub subsets: Vec<Subset>,
    /// Whether a label or annotation excludes it from being mirrored (P118).
    pub skip_mirror: bool,
    /// The label that excludes its mirror from being served, if it has one: labels are copied.
    pub excluded_by: Option<ExcludedBy>,
}

impl Endpoints {
    /// The slices that the mirroring controller would write for the Service `name` (P118).
    pub fn mirrored(&self, name: &str) -> Vec<EndpointSlice> {
        let mut slices = Vec::new();
        for subset in &self.subsets {
            let addresses = &subset.addresses[..subset.addresses.len().min(MIRRORED_ADDRESSES_MAX)];
            for family in [SliceFamily::V4, SliceFamily::V6] {
                let of_family = |a: &&EndpointAddress| a.addr.is_ipv4() == (family == SliceFamily::V4);
                let endpoints: Vec<Endpoint> = addresses.iter().filter(of_family).map(mirror).collect();
                if !endpoints.is_empty() {
                    slices.push(EndpointSlice {
                        service: Some(name.to_owned()),
                        is_mirror: true,
                        family,
                        endpoints,
                        ports: subset.ports.clone(),
                        excluded_by: self.excluded_by,
                        triggered_at: None,
                    });
                }
            }
        }
        slices
    }
}

fn mirror(address: &EndpointAddress) -> Endpoint {
    Endpoint {
        addr: address.addr,
        ready: address.ready,
        serving: true,
        terminating: false,
        node_name: address.node_name.clone(),
        hostname: address.hostname.clone(),
        hints: None,
    }
}

/// The most addresses of a subset that the mirroring controller copies (P118).
const MIRRORED_ADDRESSES_MAX: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subset_gives_one_slice_per_family_and_at_most_a_thousand_addresses() {
        let address = |n: u16| EndpointAddress {
            addr: if n.is_multiple_of(2) {
                IpAddr::V4((0x0a00_0000 + u32::from(n)).into())
            } else {
                IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, n])
            },
            node_name: None,
            ready: n < 1100,
            hostname: None,
        };
        let subset = Subset { addresses: (0..1200).map(address).collect(), ports: vec![] };
        let endpoints = Endpoints { subsets: vec![subset], skip_mirror: false, excluded_by: None };
        let slices = endpoints.mirrored("db");
        assert_eq!(slices.iter().map(|s| s.endpoints.len()).collect::<Vec<_>>(), [500, 500]);
        assert_eq!(slices[1].family, SliceFamily::V6);
    }
}
