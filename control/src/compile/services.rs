//! Services to the service table. Never lets one Service spoil another.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use flowgate_tables::service::ServiceError;
use flowgate_tables::spec::{EndpointSpec, FrontendSpec, ServiceName, ServiceSpec};
use flowgate_tables::{EmptyAction, FrontendKind, ServiceTable, SnatPool};
use flowgate_wire::{L4Port, Protocol};

use super::Settings;
use super::endpoints::{PortEndpoints, SliceIndex};
use super::policy::{Scope, policy};
use crate::model::{
    Affinity, ClusterAddress, Desired, EndpointSlice, IngressMode, Kept, Key, Service, ServicePort,
    ServiceType,
};
use crate::report::{Entry, ObjectRef, Severity};

/// Builds the service table; it is `previous` itself if nothing changed.
pub(super) fn compile(
    desired: &Desired,
    node_addresses: &[IpAddr],
    settings: &Settings,
    previous: &Arc<ServiceTable>,
) -> (Arc<ServiceTable>, Vec<Entry>) {
    let slices = SliceIndex::new(desired);
    let mut specs = Vec::new();
    let mut entries = Vec::new();
    let mut node_ports = NodePorts::default();
    for (key, kept) in desired.services() {
        let note = |severity, reason| entry(severity, key, kept, reason);
        match served(&kept.object) {
            Ok(cluster_ips) => {
                let slices = slices.of(key, &kept.object, desired);
                entries
                    .extend(warnings(&kept.object, &slices).into_iter().map(|w| note(Severity::Warning, w)));
                let service = Subject { key, service: &kept.object, cluster_ips, slices: &slices };
                let (more, refused) = service.specs(node_addresses, settings, &mut node_ports);
                specs.extend(more);
                entries.extend(refused.into_iter().map(|reason| note(Severity::Error, reason)));
            }
            Err(Some(warning)) => entries.push(note(Severity::Warning, warning.to_owned())),
            Err(None) => {}
        }
    }
    let (table, errors) = ServiceTable::build(previous, specs);
    entries.extend(errors.iter().map(|error| refusal(desired, error)));
    let unchanged = table.services().len() == previous.services().len()
        && table.services().iter().zip(previous.services()).all(|(a, b)| Arc::ptr_eq(a, b));
    (if unchanged { Arc::clone(previous) } else { Arc::new(table) }, entries)
}

/// Names the Services that are reached by an address and port that translated flows use as source.
pub(super) fn snat_overlaps(desired: &Desired, services: &ServiceTable, snat: &SnatPool) -> Vec<Entry> {
    let addresses = snat.all_addresses();
    let taken = |frontend: &&FrontendSpec| {
        let IpAddr::V4(addr) = frontend.addr else { return false };
        addresses.binary_search(&addr).is_ok() && snat.ports().binary_search(&frontend.port.number()).is_ok()
    };
    let mut entries = Vec::new();
    for service in services.services() {
        let ServiceSpec { name, frontends, .. } = &service.spec;
        if let Some(FrontendSpec { addr, port, .. }) = frontends.iter().find(taken) {
            let reason = format!(
                "{addr}:{port} is also a source of translated flows: take the port out of the SNAT range or choose another"
            );
            entries.push(about(desired, name, Severity::Warning, reason));
        }
    }
    entries
}

/// The cluster IPs of a Service that is served, or the reason for a silence that needs one.
fn served(service: &Service) -> Result<&[IpAddr], Option<&'static str>> {
    // P102, P103, P106
    if service.hidden_by.is_some() || service.service_type == ServiceType::ExternalName {
        return Err(None);
    }
    match &service.cluster {
        ClusterAddress::Assigned(ips) => Ok(ips),
        // P105
        ClusterAddress::Headless => Err(None),
        ClusterAddress::Unassigned => {
            Err(Some("has no spec.clusterIP and is not served: nobody assigns one here, so write one"))
        }
    }
}

/// What its owner would wonder about.
fn warnings(service: &Service, slices: &[Arc<EndpointSlice>]) -> Vec<String> {
    let mut all = Vec::new();
    if service.service_type == ServiceType::NodePort && service.ports.iter().all(|p| p.node_port.is_none()) {
        all.push("is of type NodePort without a nodePort: nobody assigns one here, so write one".to_owned());
    }
    if slices.is_empty() {
        let missing = if service.has_selector { "EndpointSlice" } else { "EndpointSlice or Endpoints" };
        all.push(format!("has no {missing}: new connections are refused"));
    }
    let has_endpoints = slices.iter().any(|slice| !slice.endpoints.is_empty());
    for ServicePort { name, protocol, .. } in service.ports.iter().filter(|_| has_endpoints) {
        let all_ports = || slices.iter().flat_map(|slice| &slice.ports);
        if !all_ports().any(|p| p.name == *name && p.protocol == *protocol) {
            let mut have: Vec<String> = all_ports().map(|p| format!("{:?} {}", p.name, p.protocol)).collect();
            have.sort_unstable();
            have.dedup();
            let have = if have.is_empty() { "none".into() } else { have.join(", ") };
            all.push(format!(
                "no endpoint has a port named {name:?} {protocol} (they have {have}): new connections are refused"
            ));
        }
    }
    if service.affinity != Affinity::None {
        all.push(
            "sessionAffinity ClientIP is not honoured yet: each connection is placed by itself".to_owned(),
        );
    }
    all
}

/// A Service that is served.
struct Subject<'a> {
    key: &'a Key,
    service: &'a Service,
    cluster_ips: &'a [IpAddr],
    slices: &'a [Arc<EndpointSlice>],
}

impl Subject<'_> {
    /// One description per port, and what is refused.
    fn specs(
        &self,
        node_addresses: &[IpAddr],
        settings: &Settings,
        node_ports: &mut NodePorts,
    ) -> (Vec<ServiceSpec>, Vec<String>) {
        let mut refused = Vec::new();
        let captured = self.service.ingress.iter().filter(|ingress| ingress.mode == IngressMode::Vip);
        let mut ingress: Vec<IpAddr> = captured.map(|ingress| ingress.ip).collect();
        if let Some(reason) = self.unenforceable_ranges(&ingress) {
            refused.push(reason);
            ingress.clear();
        }
        let mut specs = Vec::new();
        for port in self.service.ports.iter() {
            let name = self.name(port);
            let mut wanted: Vec<(FrontendKind, IpAddr, u16)> = Vec::new();
            let mut want = |kind, addresses: &[IpAddr], number| {
                wanted.extend(addresses.iter().map(|&addr| (kind, addr, number)));
            };
            want(FrontendKind::ClusterIp, self.cluster_ips, port.port);
            want(FrontendKind::ExternalIp, &self.service.external_ips, port.port);
            want(FrontendKind::LoadBalancer, &ingress, port.port);
            if let Some(node_port) = port.node_port {
                match node_ports.claim(node_port, port.protocol, &name) {
                    Ok(()) => want(FrontendKind::NodePort, node_addresses, node_port),
                    Err(reason) => refused.push(reason),
                }
            }
            specs.push(self.spec(name, port, &wanted, settings));
        }
        (specs, refused)
    }

    fn spec(
        &self,
        name: ServiceName,
        port: &ServicePort,
        wanted: &[(FrontendKind, IpAddr, u16)],
        settings: &Settings,
    ) -> ServiceSpec {
        let endpoints = PortEndpoints::new(self.slices, port, &settings.node_name);
        let mut sets: Vec<(Scope, bool)> = Vec::new();
        let mut endpoint_sets: Vec<Vec<EndpointSpec>> = Vec::new();
        let mut frontends = Vec::with_capacity(wanted.len());
        for &(kind, addr, number) in wanted {
            let ipv4 = addr.is_ipv4();
            // P902: a family that the Service has no address of does not exist for it.
            if !self.cluster_ips.iter().any(|ip| ip.is_ipv4() == ipv4) {
                continue;
            }
            let policy = policy(settings.role, kind, self.service);
            let wanted_set = (policy.scope, ipv4);
            let endpoint_set = sets.iter().position(|set| *set == wanted_set).unwrap_or_else(|| {
                sets.push(wanted_set);
                endpoint_sets.push(endpoints.set(policy.scope, ipv4));
                sets.len() - 1
            });
            // P206, P501
            let when_empty = if endpoints.any_usable(ipv4) { EmptyAction::Drop } else { EmptyAction::Reject };
            frontends.push(FrontendSpec {
                addr,
                port: L4Port::new(number),
                kind,
                endpoint_set,
                source_nat: policy.source_nat,
                when_empty,
            });
        }
        ServiceSpec { name, protocol: port.protocol, frontends, endpoint_sets }
    }

    /// Serving an address without the filter its owner put before it would open what must be closed.
    fn unenforceable_ranges(&self, ingress: &[IpAddr]) -> Option<String> {
        let filters = |ip: &&IpAddr| {
            let mut of_family = self
                .service
                .source_ranges
                .iter()
                .filter(|net| net.addr().is_ipv4() == ip.is_ipv4())
                .peekable();
            of_family.peek().is_some() && of_family.all(|net| net.prefix_len() != 0)
        };
        let ip = ingress.iter().find(filters)?;
        Some(format!(
            "loadBalancerSourceRanges cannot be enforced yet, so load balancer addresses ({ip}) are not served"
        ))
    }

    fn name(&self, port: &ServicePort) -> ServiceName {
        ServiceName {
            namespace: self.key.namespace.clone(),
            name: self.key.name.clone(),
            port: port.name.clone(),
        }
    }
}

/// Who has which NodePort; the first in the order of names keeps it.
#[derive(Default)]
struct NodePorts {
    owners: HashMap<(u16, Protocol), ServiceName>,
}

impl NodePorts {
    fn claim(&mut self, port: u16, protocol: Protocol, name: &ServiceName) -> Result<(), String> {
        if let Some(owner) = self.owners.get(&(port, protocol)) {
            return Err(format!("nodePort {port} {protocol} belongs to {owner} already: choose another"));
        }
        self.owners.insert((port, protocol), name.clone());
        Ok(())
    }
}

fn refusal(desired: &Desired, error: &ServiceError) -> Entry {
    let name = match error {
        ServiceError::FrontendTaken { winner, loser, key } => {
            let reason = format!(
                "{}:{} {} belongs to {winner} already: choose another address or port",
                key.addr, key.port, key.protocol
            );
            return about(desired, loser, Severity::Error, reason);
        }
        ServiceError::Duplicate { name, .. } | ServiceError::NoSuchSet { name, .. } => name,
        ServiceError::TooManyBackends(_) => {
            let reason = format!("{error}: the last tables stay in force");
            return Entry { severity: Severity::Error, place: None, object: None, reason };
        }
    };
    about(desired, name, Severity::Error, error.to_string())
}

fn about(desired: &Desired, name: &ServiceName, severity: Severity, reason: String) -> Entry {
    let key = Key::new(&name.namespace, &name.name);
    let reason = if name.port.is_empty() { reason } else { format!("port {}: {reason}", name.port) };
    match desired.services().get(&key) {
        Some(kept) => entry(severity, &key, kept, reason),
        None => Entry {
            severity,
            place: None,
            object: Some(ObjectRef::new("Service", key.namespace, key.name)),
            reason,
        },
    }
}

fn entry(severity: Severity, key: &Key, kept: &Kept<Service>, reason: String) -> Entry {
    let object = ObjectRef::new("Service", &key.namespace, &key.name);
    Entry { severity, place: kept.place.clone(), object: Some(object), reason }
}
