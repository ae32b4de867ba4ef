//! Builds a service table from descriptions; the published table before it stays as it is.

use std::net::IpAddr;
use std::sync::Arc;

use flowgate_wire::L4Port;
use hashbrown::{HashMap, HashSet};
use ipnet::IpNet;

use super::lookup::{LookupTable, LookupTables, Members, TableSizes};
use super::{
    BackendSet, Frontend, FrontendKind, Service, ServiceError, ServiceId, ServiceKey, ServiceTable,
    SourceNat, TrafficPolicy,
};
use crate::backend::BackendKey;
use crate::budgets::Budgets;
use crate::id::BackendId;
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
        next.lookup_table_bytes = lookup_table_bytes(&next.services);
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
    fn build_services<'a>(
        &self,
        previous: &'a Self,
        accepted: &'a [(ServiceId, Arc<ServiceSpec>)],
    ) -> Vec<Arc<Service>> {
        let plan = |(id, spec): &'a (ServiceId, Arc<ServiceSpec>)| {
            let old = previous.positions.get(id).map(|&at| &previous.services[at]);
            // Pointers first: comparing the specs of thousands of Services takes longer than building the few that changed.
            match old.filter(|old| Arc::ptr_eq(&old.spec, spec) || old.spec == *spec) {
                Some(unchanged) => Plan::Share(unchanged),
                None => Plan::Build { id: *id, spec, old },
            }
        };
        let plans: Vec<Plan<'a>> = accepted.iter().map(plan).collect();
        let mut tables = LookupTables::default();
        if plans.len() != previous.services.len()
            || plans.iter().any(|plan| matches!(plan, Plan::Build { .. }))
        {
            tables = LookupTables::of(previous.services.iter().map(AsRef::as_ref));
        }
        let mut planned: Vec<(Plan<'a>, Vec<SetPlan>)> = Vec::with_capacity(plans.len());
        // The ports of a Service lie one after the other.
        for ports in plans.chunk_by(|a, b| a.is_of_same_service(b)) {
            let mut sizes = TableSizes::default();
            planned.extend(ports.iter().map(|plan| plan.with_sets(&mut tables, &mut sizes)));
        }
        let tables = tables.built();
        planned.into_iter().map(|(plan, sets)| self.build_service(plan, sets, &tables)).collect()
    }

    fn build_service(&self, plan: Plan<'_>, sets: Vec<SetPlan>, tables: &[Arc<LookupTable>]) -> Arc<Service> {
        let (id, spec) = match plan {
            Plan::Share(unchanged) => return Arc::clone(unchanged),
            Plan::Build { id, spec, .. } => (id, spec),
        };
        let build = |(endpoints, set): (&Vec<EndpointSpec>, SetPlan)| match set {
            SetPlan::Share(unchanged) => unchanged,
            SetPlan::Build { table } => Arc::new(self.build_set(id, endpoints, &tables[table])),
        };
        let backend_sets = spec.endpoint_sets.iter().zip(sets).map(build).collect();
        Arc::new(Service { id, spec: Arc::clone(spec), backend_sets })
    }

    fn build_set(&self, id: ServiceId, endpoints: &[EndpointSpec], table: &Arc<LookupTable>) -> BackendSet {
        let backend = |e: &EndpointSpec| {
            self.backends.id_of(&(id, e.addr, e.port)).expect("every endpoint was given a slot")
        };
        let members: Box<[BackendId]> = endpoints.iter().map(backend).collect();
        let ascending = (!members.is_sorted()).then(|| {
            let mut ascending = members.clone();
            ascending.sort_unstable();
            ascending
        });
        BackendSet { members, ascending, lookup_table: Arc::clone(table) }
    }

    fn add_frontends(&mut self, service: &Service, errors: &mut Vec<ServiceError>) {
        let (mut own, mut preserving) = (HashSet::new(), HashSet::new());
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
                // Each set once, whatever the number of frontends.
                if policy.source_nat == SourceNat::PreserveClient && preserving.insert(policy.endpoint_set) {
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

/// Memory of the lookup tables of all sets; one that several share counts once.
fn lookup_table_bytes(services: &[Arc<Service>]) -> usize {
    let sets = services.iter().flat_map(|service| &service.backend_sets);
    let mut counted = HashSet::new();
    sets.map(|set| &set.lookup_table)
        .filter(|table| counted.insert(Arc::as_ptr(table)))
        .map(|table| table.len_bytes())
        .sum()
}

/// How a Service of the new generation comes about.
#[derive(Clone, Copy)]
enum Plan<'a> {
    /// It is that of the generation before.
    Share(&'a Arc<Service>),
    Build {
        id: ServiceId,
        spec: &'a Arc<ServiceSpec>,
        old: Option<&'a Arc<Service>>,
    },
}

/// How a backend set of the new generation comes about.
enum SetPlan {
    /// It is that of the generation before.
    Share(Arc<BackendSet>),
    /// `table` is the number of its lookup table.
    Build { table: usize },
}

impl<'a> Plan<'a> {
    fn spec(&self) -> &ServiceSpec {
        match self {
            Self::Share(service) => &service.spec,
            Self::Build { spec, .. } => spec,
        }
    }

    /// Whether both are ports of one Service.
    fn is_of_same_service(&self, other: &Self) -> bool {
        let (a, b) = (&self.spec().name, &other.spec().name);
        (&a.namespace, &a.name) == (&b.namespace, &b.name)
    }

    /// The plan, and how its sets come about if it is built, in the order of its spec.
    fn with_sets(self, tables: &mut LookupTables, sizes: &mut TableSizes) -> (Self, Vec<SetPlan>) {
        let (id, spec, old) = match self {
            Self::Build { id, spec, old } => (id, spec, old),
            Self::Share(service) => {
                let is_too_large = |set: &&Arc<BackendSet>| !sizes.fits(set.lookup_table.members());
                // Counted and not searched for: every set takes its room.
                if service.backend_sets.iter().filter(is_too_large).count() == 0 {
                    return (self, Vec::new());
                }
                // Another port has taken the room that its tables had, or left it.
                (service.id, &service.spec, Some(service))
            }
        };
        let plan = |endpoints: &Vec<EndpointSpec>| {
            let unchanged = old.and_then(|service| {
                let at = service.spec.endpoint_sets.iter().position(|set| set == endpoints)?;
                let set = &service.backend_sets[at];
                sizes.fits(set.lookup_table.members()).then(|| Arc::clone(set))
            });
            unchanged.map_or_else(
                || SetPlan::Build { table: tables.number_for(Members::of(endpoints), sizes) },
                SetPlan::Share,
            )
        };
        let sets = spec.endpoint_sets.iter().map(plan).collect();
        (Self::Build { id, spec, old }, sets)
    }
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
