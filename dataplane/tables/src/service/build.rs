//! Builds a service table from descriptions; the published table before it stays as it is.

use std::net::IpAddr;
use std::sync::Arc;
use std::thread;

use flowgate_wire::L4Port;
use hashbrown::{HashMap, HashSet};
use ipnet::IpNet;

use super::{
    BackendSet, Frontend, FrontendKind, Service, ServiceError, ServiceId, ServiceKey, ServiceTable,
    SourceNat, TrafficPolicy,
};
use crate::backend::BackendKey;
use crate::budgets::Budgets;
use crate::id::BackendId;
use crate::maglev::{Maglev, Member};
use crate::spec::{EndpointSpec, ServiceSpec};

impl ServiceTable {
    /// As [`build_within`](Self::build_within), with as many backends as there can be slots.
    pub fn build(
        previous: &Self,
        specs: Vec<Arc<ServiceSpec>>,
        service_cidrs: Vec<IpNet>,
    ) -> (Self, Vec<ServiceError>) {
        Self::build_within(previous, specs, service_cidrs, Budgets::MAX)
    }

    /// Builds the table with exactly `specs`. What is unchanged since `previous` is shared with it, and slots and numbers
    /// stay the same. What is invalid, or beyond `backends_max` backends, is left out and returned as an error; the rest is
    /// built.
    ///
    /// `service_cidrs` are the ranges that cluster IPs are taken from.
    pub fn build_within(
        previous: &Self,
        mut specs: Vec<Arc<ServiceSpec>>,
        service_cidrs: Vec<IpNet>,
        backends_max: u32,
    ) -> (Self, Vec<ServiceError>) {
        let mut errors = Vec::new();
        // By name: which of two contending Services wins must not depend on the order of events.
        specs.sort_by(|a, b| (&a.name, a.protocol).cmp(&(&b.name, b.protocol)));
        let mut next = Self { next_id: previous.next_id, service_cidrs, ..Self::default() };
        let mut accepted = Vec::with_capacity(specs.len());
        for mut spec in specs {
            let key = (spec.name.clone(), spec.protocol);
            if next.ids.contains_key(&key) {
                errors.push(ServiceError::Duplicate { name: key.0, protocol: key.1 });
                continue;
            }
            let id = previous.ids.get(&key).copied().unwrap_or_else(|| {
                // Not the lowest free number: conntrack entries and affinity may still have that of a removed Service.
                let id = ServiceId(next.next_id);
                next.next_id = next.next_id.wrapping_add(1);
                id
            });
            next.ids.insert(key, id);
            sort_endpoint_sets(&mut spec);
            accepted.push((id, spec));
        }
        let (keys, former) = previous.backends_with_slots(&accepted);
        let (backends, without_slot) = previous.backends.rebuilt(keys.into_iter(), &former, backends_max);
        next.backends = backends;
        errors.extend(leave_out(&mut accepted, &without_slot));
        for service in next.build_services(previous, &accepted) {
            next.add_frontends(&service, &mut errors);
            next.positions.insert(service.id, next.services.len());
            next.services.push(service);
        }
        (next, errors)
    }

    /// The keys of all backends that should have a slot: those of the sets and those that still serve; and apart from them
    /// the former ones of a Service port that has no endpoint left (P804).
    fn backends_with_slots(
        &self,
        accepted: &[(ServiceId, Arc<ServiceSpec>)],
    ) -> (Vec<BackendKey>, Vec<BackendKey>) {
        let mut keys = Vec::with_capacity(self.backends.len());
        let mut without_endpoints: HashSet<ServiceId> = HashSet::new();
        for (id, spec) in accepted {
            let before = keys.len();
            keys.extend(spec.endpoint_sets.iter().flatten().map(|e| (*id, e.addr, e.port)));
            keys.extend(spec.serving.iter().map(|&(addr, port)| (*id, addr, port)));
            // P804: with no endpoint to go to, ending the flows of the former ones would only break them.
            if keys.len() == before {
                without_endpoints.insert(*id);
            }
        }
        if without_endpoints.is_empty() {
            return (keys, Vec::new());
        }
        let former = self.backends.iter().filter(|backend| without_endpoints.contains(&backend.service));
        (keys, former.map(|backend| (backend.service, backend.addr, backend.port)).collect())
    }

    /// The Services in the order of `accepted`; unchanged ones are shared with `previous`.
    fn build_services(
        &self,
        previous: &Self,
        accepted: &[(ServiceId, Arc<ServiceSpec>)],
    ) -> Vec<Arc<Service>> {
        let build = |(id, spec): &(ServiceId, Arc<ServiceSpec>)| {
            let old = previous.positions.get(id).map(|&at| &previous.services[at]);
            // Pointers first: comparing the specs of thousands of Services takes longer than building the few that changed.
            match old.filter(|old| Arc::ptr_eq(&old.spec, spec) || old.spec == *spec) {
                Some(unchanged) => Arc::clone(unchanged),
                None => Arc::new(self.build_service(*id, spec, old.map(AsRef::as_ref))),
            }
        };
        let threads = thread::available_parallelism().map_or(1, usize::from);
        if accepted.len().abs_diff(previous.services.len()) < PARALLEL_BUILD_MIN || threads == 1 {
            return accepted.iter().map(build).collect();
        }
        // Filling lookup tables takes most of the time of a start with thousands of Services.
        let share = accepted.len().div_ceil(threads);
        thread::scope(|scope| {
            let parts: Vec<_> = accepted
                .chunks(share)
                .map(|chunk| scope.spawn(move || chunk.iter().map(build).collect::<Vec<_>>()))
                .collect();
            parts.into_iter().flat_map(|part| part.join().expect("building a table does not panic")).collect()
        })
    }

    fn build_service(&self, id: ServiceId, spec: &Arc<ServiceSpec>, old: Option<&Service>) -> Service {
        let build = |endpoints: &Vec<EndpointSpec>| {
            let reusable = old.and_then(|service| {
                let at = service.spec.endpoint_sets.iter().position(|set| set == endpoints)?;
                Some(Arc::clone(&service.backend_sets[at]))
            });
            reusable.unwrap_or_else(|| Arc::new(self.build_set(id, endpoints)))
        };
        let backend_sets = spec.endpoint_sets.iter().map(build).collect();
        Service { id, spec: Arc::clone(spec), backend_sets }
    }

    fn build_set(&self, id: ServiceId, endpoints: &[EndpointSpec]) -> BackendSet {
        let backend = |e: &EndpointSpec| self.backends.id_of(&(id, e.addr, e.port));
        let mut members: Vec<(BackendId, &EndpointSpec)> =
            endpoints.iter().map(|e| (backend(e).expect("every endpoint was given a slot"), e)).collect();
        // `BackendSet::contains` searches by id.
        members.sort_unstable_by_key(|(id, _)| *id);
        // Named by address and not by id: ids differ between nodes, the lookup tables must not.
        let names: Vec<String> = members.iter().map(|(_, e)| format!("{}:{}", e.addr, e.port)).collect();
        let named: Vec<Member<'_>> = names
            .iter()
            .zip(&members)
            .map(|(name, (_, endpoint))| Member { name: name.as_bytes(), weight: endpoint.weight })
            .collect();
        BackendSet {
            lookup_table: Maglev::build(&named),
            members: members.into_iter().map(|(id, _)| id).collect(),
        }
    }

    fn add_frontends(&mut self, service: &Service, errors: &mut Vec<ServiceError>) {
        let mut own = HashSet::new();
        let ServiceSpec { name, protocol, frontends, endpoint_sets, affinity, .. } = &*service.spec;
        for spec in frontends {
            let (addr, port) = (spec.addr, spec.port);
            let missing = spec
                .policies
                .all()
                .into_iter()
                .map(|t| t.endpoint_set)
                .find(|&set| set >= endpoint_sets.len());
            if let Some(set) = missing {
                errors.push(ServiceError::NoSuchSet { name: name.clone(), addr, port, set });
                continue;
            }
            let key = ServiceKey { protocol: *protocol, addr, port };
            if let Some(taken) = self.frontends.get(&key) {
                // One Service may list an address twice, say as external IP and in its status.
                if !own.contains(&key) {
                    let winner = self.service(taken.service).map_or(name, |winner| &winner.spec.name).clone();
                    errors.push(ServiceError::FrontendTaken { winner, loser: name.clone(), key });
                }
                continue;
            }
            own.insert(key);
            if spec.kind == FrontendKind::ClusterIp {
                self.cluster_ips.insert(addr);
            }
            if spec.kind != FrontendKind::NodePort {
                self.vips.insert(addr);
            }
            // Replies of these backends are not addressed to us, so they are recognised by where they come from.
            for policy in spec.policies.all() {
                if policy.source_nat == SourceNat::PreserveClient {
                    let endpoints = &endpoint_sets[policy.endpoint_set];
                    let source = |e: &EndpointSpec| ServiceKey { addr: e.addr, port: e.port, ..key };
                    self.reply_sources.extend(endpoints.iter().map(source));
                }
            }
            let policies = spec.policies.map(|policy| TrafficPolicy {
                backends: Arc::clone(&service.backend_sets[policy.endpoint_set]),
                source_nat: policy.source_nat,
                when_empty: policy.when_empty,
            });
            let (allowed, affinity) = (spec.allowed.clone(), *affinity);
            let frontend =
                Frontend { key, kind: spec.kind, service: service.id, policies, allowed, affinity };
            self.frontends.insert(key, frontend);
        }
    }
}

/// Takes endpoints without a slot out of the specs; an error for each Service that has some.
fn leave_out(
    accepted: &mut [(ServiceId, Arc<ServiceSpec>)],
    without_slot: &[BackendKey],
) -> Vec<ServiceError> {
    if without_slot.is_empty() {
        return Vec::new();
    }
    let mut keys: HashMap<ServiceId, HashSet<(IpAddr, L4Port)>> = HashMap::new();
    for &(id, addr, port) in without_slot {
        keys.entry(id).or_default().insert((addr, port));
    }
    let mut errors = Vec::new();
    for (id, spec) in accepted {
        let Some(keys) = keys.get(id) else { continue };
        for set in &mut Arc::make_mut(spec).endpoint_sets {
            set.retain(|endpoint| !keys.contains(&(endpoint.addr, endpoint.port)));
        }
        errors.push(ServiceError::TooManyBackends { name: spec.name.clone(), left_out: keys.len() });
    }
    errors
}

/// Sorts endpoint sets, so that equal sets compare equal whatever order they arrived in.
fn sort_endpoint_sets(spec: &mut Arc<ServiceSpec>) {
    let key = |endpoint: &EndpointSpec| (endpoint.addr, endpoint.port);
    if spec.endpoint_sets.iter().all(|set| set.is_sorted_by(|a, b| key(a) < key(b))) {
        // Sorted already, as they usually are: `make_mut` would copy a spec that the previous generation shares.
        return;
    }
    for set in &mut Arc::make_mut(spec).endpoint_sets {
        set.sort_unstable();
        set.dedup_by_key(|endpoint| key(endpoint));
    }
}

/// From this many Services added or removed at once, tables are built on all cores.
const PARALLEL_BUILD_MIN: usize = 256;
