//! The names of one Service and their addresses, ports and aliases.
//!
//! Nothing is copied from the objects: answers are computed from the Service and its slices for each query.

use std::net::IpAddr;
use std::sync::Arc;

use flowgate_wire::Protocol;
use hickory_proto::rr::Name;

use crate::model::{
    ClusterAddress, Endpoint, EndpointPort, EndpointSlice, Service, ServicePort, ServiceType,
};

/// A Service with its endpoints, as DNS sees them.
///
/// Labels that exclude objects from proxies (P102, P103) do not exclude them here: another proxy may serve the Service,
/// but its name belongs to this zone, and slices of headless Services always carry such a label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// `<service>.<ns>.svc.<zone>`.
    pub(super) name: Name,
    /// The Service.
    pub(super) service: Arc<Service>,
    /// Its slices, mirrored ones included.
    pub(super) slices: Vec<Arc<EndpointSlice>>,
}

/// What the name of a Service leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind<'a> {
    /// Its own addresses.
    Addresses(&'a [IpAddr]),
    /// The addresses of its endpoints.
    Headless,
    /// Another name.
    Alias(Name),
    /// Nothing: its external name is an address or cannot be expressed in DNS.
    Unusable,
}

/// One target of a named port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PortTarget {
    /// The host.
    pub(super) host: Name,
    /// The port number there.
    pub(super) port: u16,
    /// An address of the host; each is a target of its own.
    pub(super) addr: IpAddr,
}

impl Entry {
    pub(super) fn kind(&self) -> Kind<'_> {
        if self.service.service_type == ServiceType::ExternalName {
            // P106: whatever else is set. An address is no name, and a CNAME to one resolves nowhere.
            let name = self.service.external_name.as_deref().filter(|name| name.parse::<IpAddr>().is_err());
            let name = name.and_then(|name| Name::from_ascii(name).ok()).filter(|name| !name.is_root());
            return name.map_or(Kind::Unusable, |mut name| {
                name.set_fqdn(true);
                Kind::Alias(name)
            });
        }
        match &self.service.cluster {
            ClusterAddress::Headless => Kind::Headless,
            ClusterAddress::Unassigned => Kind::Addresses(&[]),
            ClusterAddress::Assigned(addresses) => Kind::Addresses(addresses),
        }
    }

    /// Whether the name of the Service itself exists. A headless Service exists by its ready endpoints:
    /// without any there is no such name (specification 2.4.1).
    pub(super) fn exists(&self) -> bool {
        match self.kind() {
            Kind::Addresses(_) | Kind::Alias(_) => true,
            Kind::Headless => self.ready().next().is_some(),
            Kind::Unusable => false,
        }
    }

    /// The addresses of the Service's name.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        match self.kind() {
            Kind::Addresses(addresses) => addresses.to_vec(),
            Kind::Headless => {
                let of_family = |ipv4: bool| {
                    let addresses = self.ready().map(|(_, endpoint)| endpoint.addr);
                    addresses.filter(move |addr| addr.is_ipv4() == ipv4).take(ADDRESSES_MAX)
                };
                sorted(of_family(true).chain(of_family(false)))
            }
            Kind::Alias(_) | Kind::Unusable => Vec::new(),
        }
    }

    /// The addresses of an endpoint's name; empty if there is no such endpoint.
    pub(super) fn endpoint(&self, label: &str) -> Vec<IpAddr> {
        let meant = address_of_label(label);
        if matches!(self.kind(), Kind::Alias(_) | Kind::Unusable) {
            return Vec::new();
        }
        let of_it = self.ready().filter(|(_, endpoint)| is_named(endpoint, label, meant));
        sorted(of_it.map(|(_, endpoint)| endpoint.addr))
    }

    /// The targets of a named port; empty if there is no such port.
    pub(super) fn port(&self, name: &str, protocol: Protocol) -> Vec<PortTarget> {
        self.ports(|port, proto| !name.is_empty() && port.eq_ignore_ascii_case(name) && proto == protocol)
    }

    /// The targets of all ports, those without a name included.
    pub(super) fn all_ports(&self) -> Vec<PortTarget> {
        self.ports(|_, _| true)
    }

    /// The ports of an endpoint; empty if there is no such endpoint.
    pub(super) fn endpoint_ports(&self, label: &str) -> Vec<PortTarget> {
        let meant = address_of_label(label);
        let of_it = self.ready().filter(|(_, endpoint)| is_named(endpoint, label, meant));
        sorted(of_it.flat_map(|(slice, endpoint)| self.ports_of(slice, endpoint, |_, _| true)))
    }

    /// Whether any named port has this protocol.
    pub(super) fn has_protocol(&self, protocol: Protocol) -> bool {
        !self.ports(|port, proto| !port.is_empty() && proto == protocol).is_empty()
    }

    /// The names of an address; empty if neither the Service nor a ready endpoint has it.
    pub(super) fn names_of(&self, addr: IpAddr) -> Vec<Name> {
        if matches!(self.kind(), Kind::Addresses(own) if own.contains(&addr)) {
            return vec![self.name.clone()];
        }
        if matches!(self.kind(), Kind::Alias(_) | Kind::Unusable) {
            return Vec::new();
        }
        let having = self.ready().filter(|(_, endpoint)| endpoint.addr == addr);
        sorted(having.filter_map(|(_, endpoint)| self.host(endpoint)))
    }

    /// Every address that [`Self::names_of`] knows, some of them perhaps twice.
    pub(super) fn known_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let kind = self.kind();
        let own = if let Kind::Addresses(own) = &kind { own.to_vec() } else { Vec::new() };
        let has_endpoints = matches!(kind, Kind::Addresses(_) | Kind::Headless);
        own.into_iter().chain(self.ready().filter(move |_| has_endpoints).map(|(_, endpoint)| endpoint.addr))
    }

    fn ports(&self, wanted: impl Fn(&str, Protocol) -> bool) -> Vec<PortTarget> {
        match self.kind() {
            Kind::Addresses(addresses) => {
                let ports = self.service.ports.iter().filter(|port| wanted(&port.name, port.protocol));
                let host = || self.name.clone();
                sorted(ports.flat_map(|&ServicePort { port, .. }| {
                    addresses.iter().map(move |&addr| PortTarget { host: host(), port, addr })
                }))
            }
            Kind::Headless => {
                let targets =
                    self.ready().flat_map(|(slice, endpoint)| self.ports_of(slice, endpoint, &wanted));
                sorted(targets.take(TARGETS_MAX))
            }
            Kind::Alias(_) | Kind::Unusable => Vec::new(),
        }
    }

    /// Ports of an endpoint. P105: no proxy translates those of a headless Service, so the endpoint's own number counts.
    fn ports_of(
        &self,
        slice: &EndpointSlice,
        endpoint: &Endpoint,
        wanted: impl Fn(&str, Protocol) -> bool,
    ) -> Vec<PortTarget> {
        let Some(host) = self.host(endpoint) else { return Vec::new() };
        let ports = slice.ports.iter().filter(|port| wanted(&port.name, port.protocol));
        let target = |&EndpointPort { port, .. }: &EndpointPort| PortTarget {
            host: host.clone(),
            port,
            addr: endpoint.addr,
        };
        ports.map(target).collect()
    }

    /// Endpoints that take connections, with their slices. `publishNotReadyAddresses` needs no case here: its slices
    /// have all endpoints as ready.
    fn ready(&self) -> impl Iterator<Item = (&EndpointSlice, &Endpoint)> {
        self.slices.iter().flat_map(|slice| {
            slice.endpoints.iter().filter(|e| e.ready).map(move |endpoint| (slice.as_ref(), endpoint))
        })
    }

    fn host(&self, endpoint: &Endpoint) -> Option<Name> {
        let label = host_name(endpoint)
            .map_or_else(|| label_of_address(endpoint.addr), |name| name.to_ascii_lowercase());
        self.name.prepend_label(label.as_bytes()).ok()
    }
}

/// Whether an endpoint has the name `label`, which is that of the address `meant` if of any.
fn is_named(endpoint: &Endpoint, label: &str, meant: Option<IpAddr>) -> bool {
    match host_name(endpoint) {
        Some(name) => name.eq_ignore_ascii_case(label),
        None => meant == Some(endpoint.addr),
    }
}

/// The host name of an endpoint, if it can be a label.
fn host_name(endpoint: &Endpoint) -> Option<&str> {
    let is_label = |name: &&str| {
        (1..=63).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    endpoint.hostname.as_deref().filter(is_label)
}

/// The label of an endpoint that has no host name. The same that CoreDNS gives it.
fn label_of_address(addr: IpAddr) -> String {
    let mut label = addr.to_string().replace(['.', ':'], "-");
    // A label must not end with a hyphen (RFC 1123 section 2.1), as one from `fd00::` would.
    if label.ends_with('-') {
        label.push('0');
    }
    label
}

/// The address that `label` is the label of. Other spellings of the address are not names: `None`.
fn address_of_label(label: &str) -> Option<IpAddr> {
    // A label of an IPv4 address is no IPv6 address: that has at least two colons in a row or seven of them.
    let v4 = label.replace('-', ".").parse().ok().map(IpAddr::V4);
    let addr = v4.or_else(|| label.replace('-', ":").parse().ok().map(IpAddr::V6))?;
    (label_of_address(addr) == label).then_some(addr)
}

/// Sorted, each once: an endpoint may be in two slices, and a port too.
fn sorted<T: Ord>(all: impl Iterator<Item = T>) -> Vec<T> {
    let mut sorted: Vec<T> = all.collect();
    sorted.sort_unstable();
    sorted.dedup();
    sorted
}

/// Addresses of a family that are looked at for one answer. No message holds as many (65,535 bytes, 16 for each), and a
/// query must not cost more for the endpoints beyond.
const ADDRESSES_MAX: usize = 4096;
/// Targets of ports that are looked at for one answer; no message holds as many, since their names are not shortened.
const TARGETS_MAX: usize = 2400;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_addresses_lead_back_to_them() {
        let cases = [
            ("10.1.2.3", "10-1-2-3"),
            ("fd00::1", "fd00--1"),
            ("fd00:0:0:1::", "fd00-0-0-1--0"),
            ("2001:db8:1:2:3:4:5:6", "2001-db8-1-2-3-4-5-6"),
        ];
        for (addr, label) in cases {
            let addr: IpAddr = addr.parse().unwrap();
            assert_eq!(label_of_address(addr), label);
            assert_eq!(address_of_label(label), Some(addr), "{label}");
        }
        for label in ["fd00--0001", "10-1-2", "10-1-2-03", "pet-0", "", "-", "fd00-0-0-0-0-0-0-1"] {
            assert_eq!(address_of_label(label), None, "{label}");
        }
    }
}
