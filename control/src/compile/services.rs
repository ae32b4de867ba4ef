//! Services to the service table. One Service's errors do not affect another.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use flowgate_tables::service::ServiceError;
use flowgate_tables::spec::{FrontendSpec, ServiceName, ServiceSpec};
use flowgate_tables::{FrontendKind, ServiceTable, SnatPool};
use flowgate_wire::Protocol;

use super::CompileConfig;
use super::addresses::NodeContext;
use super::budget::{Candidate, Demand, refusals};
use super::endpoints::{SliceIndex, slices_of};
use super::service_compiler::ServiceCompiler;
use crate::model::{
    ClusterAddress, Desired, EndpointSlice, Endpoints, Key, Service, ServicePort, ServiceType, Stored,
};
use crate::report::{Entry, ObjectRef, Severity};

/// What all Services are compiled from.
#[derive(Clone, Copy, Debug)]
pub(super) struct ServiceInput<'a> {
    pub(super) desired: &'a Desired,
    pub(super) node_context: &'a NodeContext,
    pub(super) config: &'a CompileConfig,
}

/// The last result of each Service, reused while nothing changes that it was compiled from.
#[derive(Debug, Default)]
pub(super) struct ServiceMemo {
    node_context: NodeContext,
    by_service: BTreeMap<Key, Compiled>,
}

/// The result of one Service, and what it was compiled from.
#[derive(Debug)]
struct Compiled {
    service: Arc<Service>,
    slices: Vec<Arc<EndpointSlice>>,
    endpoints: Option<Arc<Endpoints>>,
    demand: Demand,
    /// `None` while it is left out because of a budget.
    built: Option<Built>,
}

/// What one Service is compiled to.
#[derive(Debug, Default)]
struct Built {
    specs: Vec<Arc<ServiceSpec>>,
    notes: Vec<(Severity, String)>,
}

impl Compiled {
    fn is_current(
        &self,
        service: &Arc<Service>,
        slices: &[&Arc<EndpointSlice>],
        of: Option<&Endpoints>,
    ) -> bool {
        Arc::ptr_eq(&self.service, service)
            && self.slices.len() == slices.len()
            && self.slices.iter().zip(slices).all(|(a, b)| Arc::ptr_eq(a, b))
            && self.endpoints.as_deref().map(std::ptr::from_ref) == of.map(std::ptr::from_ref)
    }
}

/// Builds the service table; it is `previous` itself if nothing changed. Services that were compiled from the same
/// objects (by `Arc`) before are taken from `memo`.
pub(super) fn compile(
    input: ServiceInput<'_>,
    memo: &mut ServiceMemo,
    previous: &Arc<ServiceTable>,
) -> (Arc<ServiceTable>, Vec<Entry>) {
    let ServiceInput { desired, node_context, config } = input;
    // Every Service depends on the node's context; the configuration never changes while the memo lives.
    if memo.node_context != *node_context {
        *memo = ServiceMemo { node_context: node_context.clone(), ..ServiceMemo::default() };
    }
    let index = SliceIndex::new(desired);
    let mut by_service = BTreeMap::new();
    let mut candidates = Vec::with_capacity(desired.services().len());
    for (key, stored) in desired.services() {
        let slices = index.of(key);
        let endpoints = desired.endpoints().get(key).map(|stored| &stored.object);
        // Moved from the old memo to the new one: Services that are gone are left behind.
        let known = memo.by_service.remove(key);
        let compiled = known
            .filter(|known| known.is_current(&stored.object, slices, endpoints.map(AsRef::as_ref)))
            .unwrap_or_else(|| Compiled {
                service: Arc::clone(&stored.object),
                slices: slices.iter().map(|&slice| Arc::clone(slice)).collect(),
                endpoints: endpoints.map(Arc::clone),
                demand: demand(key, &stored.object, slices, input),
                built: None,
            });
        candidates.push(Candidate { key, service: &stored.object, demand: compiled.demand });
        by_service.insert(key.clone(), compiled);
    }
    let mut specs = Vec::new();
    let mut entries = node_context.findings.clone();
    let mut node_ports = NodePorts::default();
    // Both maps have the same keys in the same order.
    let services = desired.services().iter().zip(by_service.values_mut());
    for (((key, stored), compiled), refusal) in services.zip(refusals(&candidates, &config.budgets)) {
        if let Some(reason) = refusal {
            compiled.built = None;
            entries.push(entry(Severity::Error, key, stored, reason));
            continue;
        }
        let built =
            compiled.built.get_or_insert_with(|| compile_one(key, &stored.object, index.of(key), input));
        entries.extend(
            built.notes.iter().map(|(severity, reason)| entry(*severity, key, stored, reason.clone())),
        );
        // Not part of the memo: which Service owns a NodePort depends on the others.
        for spec in &built.specs {
            let (spec, refused) = node_ports.claim(spec, &stored.object);
            specs.push(spec);
            entries.extend(refused.map(|reason| entry(Severity::Error, key, stored, reason)));
        }
    }
    memo.by_service = by_service;
    let (table, errors) = ServiceTable::build_within(
        previous,
        specs,
        node_context.service_cidrs.clone(),
        config.budgets.backends,
    );
    entries.extend(errors.iter().map(|error| refusal(desired, error)));
    let unchanged = table.services().len() == previous.services().len()
        && table.service_cidrs() == previous.service_cidrs()
        && table.services().iter().zip(previous.services()).all(|(a, b)| Arc::ptr_eq(a, b));
    (if unchanged { Arc::clone(previous) } else { Arc::new(table) }, entries)
}

/// What a Service asks for; nothing if it is not served anyway.
fn demand(key: &Key, service: &Service, slices: &[&Arc<EndpointSlice>], input: ServiceInput<'_>) -> Demand {
    let Ok(cluster_ips) = served(service) else { return Demand::default() };
    let slices = slices_of(key, service, slices, input.desired);
    let ServiceInput { node_context, config, .. } = input;
    Demand::new(&ServiceCompiler { key, service, cluster_ips, slices: &slices, node_context, config })
}

/// One spec per port, and warnings for the owner.
fn compile_one(
    key: &Key,
    service: &Service,
    slices: &[&Arc<EndpointSlice>],
    input: ServiceInput<'_>,
) -> Built {
    match served(service) {
        Ok(cluster_ips) => {
            let slices = slices_of(key, service, slices, input.desired);
            let notes = warnings(service, &slices);
            let ServiceInput { node_context, config, .. } = input;
            let compiler =
                ServiceCompiler { key, service, cluster_ips, slices: &slices, node_context, config };
            let specs = compiler.specs().into_iter().map(Arc::new).collect();
            Built { specs, notes: notes.into_iter().map(|note| (Severity::Warning, note)).collect() }
        }
        Err(Some(warning)) => {
            Built { specs: Vec::new(), notes: vec![(Severity::Warning, warning.to_owned())] }
        }
        Err(None) => Built::default(),
    }
}

/// Warns about Services that are reached by an address and port that translated flows use as source: packets to it
/// could be either a client's or a backend's reply.
pub(super) fn snat_overlaps(desired: &Desired, services: &ServiceTable, snat: &SnatPool) -> Vec<Entry> {
    let taken = |frontend: &&FrontendSpec| {
        snat.is_reply_address(frontend.addr) && snat.ports().binary_search(&frontend.port.number()).is_ok()
    };
    let mut entries = Vec::new();
    for service in services.services() {
        let ServiceSpec { name, frontends, .. } = &*service.spec;
        if let Some(FrontendSpec { addr, port, .. }) = frontends.iter().find(taken) {
            let reason = format!(
                "{addr}:{port} is also a source of translated flows: take the port out of the SNAT range or choose another"
            );
            entries.push(about(desired, name, Severity::Warning, reason));
        }
    }
    entries
}

/// The cluster IPs of a Service that is served; else the warning, if its owner should get one.
fn served(service: &Service) -> Result<&[IpAddr], Option<&'static str>> {
    // P102, P103, P106
    if service.excluded_by.is_some() || service.service_type == ServiceType::ExternalName {
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

/// Warnings about a Service that is served.
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
    all
}

/// The owner of each NodePort: the first Service in the order of names that claims it.
#[derive(Default)]
struct NodePorts {
    owners: HashMap<(u16, Protocol), ServiceName>,
}

impl NodePorts {
    /// The spec, without the NodePort if it belongs to another Service, and then the reason.
    fn claim(&mut self, spec: &Arc<ServiceSpec>, service: &Service) -> (Arc<ServiceSpec>, Option<String>) {
        let (name, protocol) = (&spec.name, spec.protocol);
        let port = service.ports.iter().find(|p| p.name == name.port && p.protocol == protocol);
        let Some(number) = port.and_then(|port| port.node_port) else { return (Arc::clone(spec), None) };
        match self.owners.get(&(number, protocol)) {
            Some(owner) => {
                let mut without = ServiceSpec::clone(spec);
                without.frontends.retain(|frontend| frontend.kind != FrontendKind::NodePort);
                let reason =
                    format!("nodePort {number} {protocol} belongs to {owner} already: choose another");
                (Arc::new(without), Some(reason))
            }
            None => {
                self.owners.insert((number, protocol), name.clone());
                (Arc::clone(spec), None)
            }
        }
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
        ServiceError::Duplicate { name, .. }
        | ServiceError::NoSuchSet { name, .. }
        | ServiceError::TooManyBackends { name, .. } => name,
    };
    about(desired, name, Severity::Error, error.to_string())
}

fn about(desired: &Desired, name: &ServiceName, severity: Severity, reason: String) -> Entry {
    let key = Key::new(&name.namespace, &name.name);
    let reason = if name.port.is_empty() { reason } else { format!("port {}: {reason}", name.port) };
    match desired.services().get(&key) {
        Some(stored) => entry(severity, &key, stored, reason),
        None => Entry {
            severity,
            place: None,
            object: Some(ObjectRef::new("Service", key.namespace, key.name)),
            reason,
        },
    }
}

fn entry(severity: Severity, key: &Key, stored: &Stored<Service>, reason: String) -> Entry {
    let object = ObjectRef::new("Service", &key.namespace, &key.name);
    Entry { severity, place: stored.place.clone(), object: Some(object), reason }
}
