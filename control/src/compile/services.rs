//! Services to the service table. One Service's errors do not affect another.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flowgate_tables::service::ServiceError;
use flowgate_tables::spec::{FrontendSpec, ServiceName, ServiceSpec};
use flowgate_tables::{ServiceTable, SnatPool};
use flowgate_wire::Protocol;
use ipnet::IpNet;

use super::CompileConfig;
use super::address_rules::pod_ranges;
use super::addresses::NodeContext;
use super::budget::{Candidate, Demand, refusals};
use super::claims::Claims;
use super::endpoints::{SliceIndex, slices_of};
use super::ourselves::{SelfCheck, SelfChecker};
use super::service_compiler::{Neighbourhood, ServiceCompiler};
use super::wanted::served;
use crate::model::{Desired, EndpointSlice, Endpoints, Key, Service, ServicePort, ServiceType, Stored};
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
    /// What the claims were decided from: all Services in the order of names, and whether each fits the budgets; and the
    /// ranges of pods.
    services: Vec<(Arc<Service>, bool)>,
    pod_ranges: Vec<IpNet>,
    claims: Claims,
    self_check: SelfCheck,
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
    /// Whether it depends on other Services too: by what it claims or by whom it points at.
    is_entangled: bool,
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

    /// Whether one of its endpoints may be this machine.
    fn may_point_here(&self, check: &SelfCheck) -> bool {
        let of_slices = self.slices.iter().flat_map(|slice| &slice.endpoints).map(|endpoint| endpoint.addr);
        let subsets = self.endpoints.iter().flat_map(|endpoints| &endpoints.subsets);
        let mut all = of_slices.chain(subsets.flat_map(|subset| &subset.addresses).map(|a| a.addr));
        all.any(|addr| check.suspects(addr))
    }
}

impl ServiceMemo {
    /// Makes the claims those of `input`, of the Services that fit the budgets; returns whether any may have changed.
    fn follow(&mut self, input: ServiceInput<'_>, fits: &[bool], previous: &ServiceTable) -> bool {
        let services =
            || input.desired.services().values().map(|stored| &stored.object).zip(fits.iter().copied());
        let pod_ranges = pod_ranges(input.desired, input.config);
        let unchanged = self.services.len() == fits.len()
            && self.pod_ranges == pod_ranges
            && self
                .services
                .iter()
                .zip(services())
                .all(|((a, fitted), (b, fits))| Arc::ptr_eq(a, b) && *fitted == fits);
        // Then who has what has it still: among equals it is the one that had it.
        if !unchanged {
            self.services = services().map(|(service, fits)| (Arc::clone(service), fits)).collect();
            self.claims = Claims::new(input, fits, &pod_ranges, previous);
            self.pod_ranges = pod_ranges;
            self.self_check = SelfCheck::new(&self.claims, input.node_context, input.config);
        }
        !unchanged
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
    let refusals = refusals(&candidates, &config.budgets);
    let fits: Vec<bool> = refusals.iter().map(Option::is_none).collect();
    let claims_changed = memo.follow(input, &fits, previous);
    let ServiceMemo { claims, self_check, .. } = &*memo;
    let selves = SelfChecker { check: self_check, claims, node_context, config };
    let mut specs = Vec::new();
    let mut entries = node_context.findings.clone();
    // Both maps have the same keys in the same order.
    let services = desired.services().iter().zip(by_service.values_mut()).zip(refusals).enumerate();
    for (position, (((key, stored), compiled), refusal)) in services {
        if let Some(reason) = refusal {
            compiled.built = None;
            entries.push(entry(Severity::Error, key, stored, reason));
            continue;
        }
        if claims_changed || compiled.built.is_none() {
            let is_entangled = claims.is_disputed(position) || compiled.may_point_here(self_check);
            compiled.built = compiled.built.take().filter(|built| !(built.is_entangled || is_entangled));
            compiled.built.get_or_insert_with(|| Built {
                is_entangled,
                ..compile_one((key, &stored.object), index.of(key), input, Neighbourhood { position, selves })
            });
        }
        let Some(built) = &compiled.built else { continue };
        let notes = claims.findings(key).iter().chain(&built.notes);
        entries.extend(notes.map(|(severity, reason)| entry(*severity, key, stored, reason.clone())));
        specs.extend(built.specs.iter().cloned());
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
    (key, service): (&Key, &Service),
    slices: &[&Arc<EndpointSlice>],
    input: ServiceInput<'_>,
    others: Neighbourhood<'_>,
) -> Built {
    match served(service) {
        Ok(cluster_ips) => {
            let slices = slices_of(key, service, slices, input.desired);
            let mut notes = warnings(service, &slices);
            let ServiceInput { node_context, config, .. } = input;
            let compiler =
                ServiceCompiler { key, service, cluster_ips, slices: &slices, node_context, config };
            let (specs, left_out) = compiler.specs(others);
            notes.extend(left_out.sentences());
            Built {
                specs: specs.into_iter().map(Arc::new).collect(),
                notes: notes.into_iter().map(|note| (Severity::Warning, note)).collect(),
                ..Built::default()
            }
        }
        Err(Some(warning)) => {
            Built { notes: vec![(Severity::Warning, warning.to_owned())], ..Built::default() }
        }
        Err(None) => Built::default(),
    }
}

/// Warns about Services that are reached by an address and port that translated flows use as source: packets to it
/// could be either a client's or a backend's reply.
pub(super) fn snat_overlaps(desired: &Desired, services: &ServiceTable, snat: &SnatPool) -> Vec<Entry> {
    let taken = |frontend: &&FrontendSpec| snat.is_source(frontend.addr, frontend.port);
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
    if slices.iter().any(|slice| !slice.endpoints.is_empty()) {
        all.extend(unmatched_ports(service, slices));
    }
    all
}

/// Warnings about the ports that no endpoint has. Linear, since a Service may have thousands of them.
fn unmatched_ports(service: &Service, slices: &[Arc<EndpointSlice>]) -> Vec<String> {
    let have: BTreeSet<(&str, Protocol)> = slices
        .iter()
        .flat_map(|slice| &slice.ports)
        .map(|port| (port.name.as_str(), port.protocol))
        .collect();
    let mut listed: Vec<String> =
        have.iter().take(LISTED_MAX).map(|(name, protocol)| format!("{name:?} {protocol}")).collect();
    match have.len().saturating_sub(LISTED_MAX) {
        0 if have.is_empty() => listed.push("none".into()),
        0 => {}
        more => listed.push(format!("{more} more")),
    }
    let listed = listed.join(", ");
    let unmatched = service.ports.iter().filter(|port| !have.contains(&(port.name.as_str(), port.protocol)));
    let warning = |ServicePort { name, protocol, .. }: &ServicePort| {
        format!(
            "no endpoint has a port named {name:?} {protocol} (they have {listed}): new connections are refused"
        )
    };
    unmatched.map(warning).collect()
}

/// The most ports that a warning lists.
const LISTED_MAX: usize = 10;

fn refusal(desired: &Desired, error: &ServiceError) -> Entry {
    let (ServiceError::FrontendTaken { loser: name, .. }
    | ServiceError::Duplicate { name, .. }
    | ServiceError::NoSuchSet { name, .. }
    | ServiceError::TooManyBackends { name, .. }) = error;
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
