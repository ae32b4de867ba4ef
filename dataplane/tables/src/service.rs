//! Services, their frontends and the sets of backends behind them. Never sees a packet.

use std::net::IpAddr;
use std::sync::Arc;

use flowgate_wire::{L4Port, Protocol};
use hashbrown::{HashMap, HashSet};

use crate::backend::{BackendId, BackendTable};
use crate::maglev::{Maglev, Member};
use crate::spec::{EndpointSpec, FrontendSpec, ServiceName, ServiceSpec};

/// Numbers a Service port; keeps its number across generations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct ServiceId(pub u32);

/// What a client aims at: a VIP, or an address of the node for a NodePort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Address.
    pub addr: IpAddr,
    /// Port.
    pub port: L4Port,
}

/// Where a frontend comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FrontendKind {
    /// `spec.clusterIPs`.
    ClusterIp,
    /// `spec.ports[].nodePort` on an address of the node.
    NodePort,
    /// `spec.externalIPs`.
    ExternalIp,
    /// `status.loadBalancer.ingress[].ip`.
    LoadBalancer,
}

impl FrontendKind {
    /// The name used in output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::ExternalIp => "ExternalIP",
            Self::LoadBalancer => "LoadBalancer",
        }
    }
}

/// Whether the backend sees the client's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceNat {
    /// The source is replaced by an address and port of ours, so that replies come back here.
    Always,
    /// The client's address is kept; replies must be routed through us.
    KeepClient,
}

/// What happens to a new flow when no backend may be chosen (P206, P501).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EmptyAction {
    /// No endpoint is usable anywhere.
    Reject,
    /// Endpoints exist, but none that this policy may use.
    Drop,
}

/// The backends that a frontend chooses from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendSet {
    members: Vec<BackendId>,
    lookup_table: Maglev,
}

impl BackendSet {
    /// The backend for a flow with this hash; none when the set is empty.
    #[inline]
    pub fn pick(&self, maglev_hash: u32) -> Option<BackendId> {
        self.members.get(self.lookup_table.pick(maglev_hash)?).copied()
    }

    /// All of them.
    pub fn members(&self) -> &[BackendId] {
        &self.members
    }
}

/// One address and port that clients aim at, with everything a new flow to it needs.
#[derive(Clone, Debug)]
pub struct Frontend {
    /// What clients aim at.
    pub key: ServiceKey,
    /// Where it comes from.
    pub kind: FrontendKind,
    /// The Service port it leads to.
    pub service: ServiceId,
    /// Who may be chosen.
    pub backends: Arc<BackendSet>,
    /// Whether the client's address is replaced.
    pub source_nat: SourceNat,
    /// What happens when nobody may be chosen.
    pub when_empty: EmptyAction,
}

/// One port of one Service.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its number.
    pub id: ServiceId,
    /// The description it was built from.
    pub spec: ServiceSpec,
    /// Its sets, in the order of the description.
    pub backend_sets: Vec<Arc<BackendSet>>,
}

/// Why a description cannot become tables. Names the Service that must change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceError {
    /// Two Service ports claim the same address, port and protocol; the first keeps it.
    #[error("{loser}: {} {}:{} belongs to {winner} already", key.protocol, key.addr, key.port)]
    FrontendTaken {
        /// Who had it first, in the order of names.
        winner: ServiceName,
        /// Who is refused this frontend.
        loser: ServiceName,
        /// The contested key.
        key: ServiceKey,
    },
    /// Two descriptions with one name and protocol; the second is refused.
    #[error("{name} ({protocol}) is described twice")]
    Duplicate {
        /// The name.
        name: ServiceName,
        /// The protocol.
        protocol: Protocol,
    },
    /// A frontend names an endpoint set that its Service does not have.
    #[error("{name}: frontend {addr}:{port} names endpoint set {set}, which does not exist")]
    NoSuchSet {
        /// The Service.
        name: ServiceName,
        /// The frontend's address.
        addr: IpAddr,
        /// The frontend's port.
        port: L4Port,
        /// The position it names.
        set: usize,
    },
    /// More backends than can be numbered; nothing was built.
    #[error(transparent)]
    TooManyBackends(#[from] crate::backend::TooManyBackends),
}

/// All Services, their frontends by key, and their backends by slot.
#[derive(Clone, Debug, Default)]
pub struct ServiceTable {
    frontends: HashMap<ServiceKey, Frontend>,
    services: Vec<Arc<Service>>,
    ids: HashMap<(ServiceName, Protocol), ServiceId>,
    next_id: u32,
    backends: BackendTable,
    /// Where answers to clients whose address is kept come from.
    reply_sources: HashSet<ServiceKey>,
}

impl ServiceTable {
    /// Builds the table that holds exactly `specs`; what is unchanged against `previous` is shared with
    /// it, slots and numbers are kept. What is refused is left out and named; the rest is built.
    pub fn build(previous: &Self, mut specs: Vec<ServiceSpec>) -> (Self, Vec<ServiceError>) {
        let mut errors = Vec::new();
        specs.sort_by(|a, b| (&a.name, a.protocol).cmp(&(&b.name, b.protocol)));
        let mut next = Self { next_id: previous.next_id, ..Self::default() };
        let mut accepted = Vec::with_capacity(specs.len());
        for mut spec in specs {
            let key = (spec.name.clone(), spec.protocol);
            if next.ids.contains_key(&key) {
                errors.push(ServiceError::Duplicate { name: spec.name, protocol: spec.protocol });
                continue;
            }
            let id = previous.ids.get(&key).copied().unwrap_or_else(|| {
                let id = ServiceId(next.next_id);
                next.next_id = next.next_id.wrapping_add(1);
                id
            });
            next.ids.insert(key, id);
            for set in &mut spec.endpoint_sets {
                set.sort_unstable();
                set.dedup_by_key(|endpoint| (endpoint.addr, endpoint.port));
            }
            accepted.push((id, spec));
        }
        let keys = accepted.iter().flat_map(|(id, spec)| {
            spec.endpoint_sets.iter().flatten().map(|endpoint| (*id, endpoint.addr, endpoint.port))
        });
        next.backends = match previous.backends.rebuilt(keys) {
            Ok(backends) => backends,
            Err(error) => return (previous.clone(), vec![error.into()]),
        };
        let old: HashMap<ServiceId, &Arc<Service>> = previous.services.iter().map(|s| (s.id, s)).collect();
        for (id, spec) in accepted {
            let unchanged = old.get(&id).filter(|service| service.spec == spec);
            let service = unchanged.map_or_else(
                || Arc::new(next.build_service(id, spec, old.get(&id).map(|s| s.as_ref()))),
                |service| Arc::clone(service),
            );
            next.add_frontends(&service, &mut errors);
            next.services.push(service);
        }
        (next, errors)
    }

    /// The frontend for a packet with this destination.
    #[inline]
    pub fn frontend(&self, key: &ServiceKey) -> Option<&Frontend> {
        self.frontends.get(key)
    }

    /// All frontends, in no order.
    pub fn frontends(&self) -> impl Iterator<Item = &Frontend> {
        self.frontends.values()
    }

    /// Whether a packet with this source may be an answer to a client whose address is kept.
    pub fn is_reply_source(&self, source: &ServiceKey) -> bool {
        self.reply_sources.contains(source)
    }

    /// Where answers to clients whose address is kept come from, in no order.
    pub fn reply_sources(&self) -> impl Iterator<Item = &ServiceKey> {
        self.reply_sources.iter()
    }

    /// All Services by name.
    pub fn services(&self) -> &[Arc<Service>] {
        &self.services
    }

    /// The Service with this number.
    pub fn service(&self, id: ServiceId) -> Option<&Service> {
        self.services.iter().find(|service| service.id == id).map(AsRef::as_ref)
    }

    /// All backends.
    pub fn backends(&self) -> &BackendTable {
        &self.backends
    }

    fn build_service(&self, id: ServiceId, spec: ServiceSpec, old: Option<&Service>) -> Service {
        let build = |endpoints: &Vec<EndpointSpec>| {
            let reusable = old.and_then(|service| {
                let at = service.spec.endpoint_sets.iter().position(|set| set == endpoints)?;
                Some(Arc::clone(&service.backend_sets[at]))
            });
            reusable.unwrap_or_else(|| Arc::new(self.build_set(id, endpoints)))
        };
        let backend_sets = spec.endpoint_sets.iter().map(build).collect();
        Service { id, spec, backend_sets }
    }

    fn build_set(&self, id: ServiceId, endpoints: &[EndpointSpec]) -> BackendSet {
        let names: Vec<String> = endpoints.iter().map(|e| format!("{}:{}", e.addr, e.port)).collect();
        let members: Vec<Member<'_>> = names
            .iter()
            .zip(endpoints)
            .map(|(name, endpoint)| Member { name: name.as_bytes(), weight: endpoint.weight })
            .collect();
        let backend = |e: &EndpointSpec| self.backends.id_of(&(id, e.addr, e.port));
        BackendSet {
            members: endpoints.iter().map(|e| backend(e).expect("every endpoint was given a slot")).collect(),
            lookup_table: Maglev::build(&members),
        }
    }

    fn add_frontends(&mut self, service: &Service, errors: &mut Vec<ServiceError>) {
        let mut own = HashSet::new();
        for frontend in &service.spec.frontends {
            let FrontendSpec { addr, port, kind, endpoint_set, source_nat, when_empty } = *frontend;
            let name = &service.spec.name;
            let Some(backends) = service.backend_sets.get(endpoint_set) else {
                errors.push(ServiceError::NoSuchSet { name: name.clone(), addr, port, set: endpoint_set });
                continue;
            };
            let key = ServiceKey { protocol: service.spec.protocol, addr, port };
            if let Some(taken) = self.frontends.get(&key) {
                // One Service may list an address twice, say as external IP and in its status.
                if !own.contains(&key) {
                    let winner = self.services.iter().find(|s| s.id == taken.service);
                    let winner = winner.map_or_else(|| name.clone(), |s| s.spec.name.clone());
                    errors.push(ServiceError::FrontendTaken { winner, loser: name.clone(), key });
                }
                continue;
            }
            own.insert(key);
            if source_nat == SourceNat::KeepClient {
                let endpoints = &service.spec.endpoint_sets[endpoint_set];
                self.reply_sources.extend(endpoints.iter().map(|e| ServiceKey {
                    addr: e.addr,
                    port: e.port,
                    ..key
                }));
            }
            let backends = Arc::clone(backends);
            self.frontends
                .insert(key, Frontend { key, kind, service: service.id, backends, source_nat, when_empty });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn ip(host: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 0, 0, host))
    }

    fn spec(name: &str, vip: u8, endpoints: &[u8]) -> ServiceSpec {
        ServiceSpec {
            name: ServiceName { namespace: "default".into(), name: name.into(), port: "http".into() },
            protocol: Protocol::Tcp,
            frontends: vec![FrontendSpec {
                addr: ip(vip),
                port: L4Port::new(80),
                kind: FrontendKind::ClusterIp,
                endpoint_set: 0,
                source_nat: SourceNat::Always,
                when_empty: EmptyAction::Reject,
            }],
            endpoint_sets: vec![
                endpoints
                    .iter()
                    .map(|&host| EndpointSpec { addr: ip(host), port: L4Port::new(8080), weight: 1 })
                    .collect(),
            ],
        }
    }

    fn key(vip: u8) -> ServiceKey {
        ServiceKey { protocol: Protocol::Tcp, addr: ip(vip), port: L4Port::new(80) }
    }

    #[test]
    fn a_frontend_leads_to_every_backend_of_its_set() {
        let (table, errors) = ServiceTable::build(&ServiceTable::default(), vec![spec("web", 1, &[11, 12])]);
        assert!(errors.is_empty());
        let frontend = table.frontend(&key(1)).unwrap();
        let hashes = (0..=u32::MAX).step_by(1 << 20);
        let mut seen: Vec<_> = hashes.map(|hash| frontend.backends.pick(hash).unwrap()).collect();
        seen.sort_unstable();
        seen.dedup();
        let addrs: Vec<_> = seen.iter().map(|id| table.backends().get(*id).unwrap().addr).collect();
        assert_eq!(addrs, [ip(11), ip(12)]);
        assert_eq!(table.frontend(&key(2)).map(|f| f.service), None);
    }

    #[test]
    fn an_unchanged_service_shares_its_parts_and_a_changed_one_keeps_its_backends() {
        let before = vec![spec("a", 1, &[11, 12]), spec("b", 2, &[21])];
        let (first, _) = ServiceTable::build(&ServiceTable::default(), before);
        let after = vec![spec("b", 2, &[21]), spec("a", 1, &[12, 13])];
        let (second, _) = ServiceTable::build(&first, after);
        assert!(Arc::ptr_eq(&first.services()[1], &second.services()[1]));
        let id =
            |table: &ServiceTable, host| table.backends().iter().find(|b| b.addr == ip(host)).map(|b| b.id);
        assert_eq!(id(&first, 12), id(&second, 12));
        assert_eq!(id(&second, 11), None);
        assert_eq!(second.service(second.frontend(&key(1)).unwrap().service).unwrap().spec.name.name, "a");
    }

    #[test]
    fn a_contested_address_goes_to_the_first_name_and_the_loser_is_told() {
        let (table, errors) = ServiceTable::build(
            &ServiceTable::default(),
            vec![spec("second", 1, &[21]), spec("first", 1, &[11])],
        );
        assert_eq!(
            errors.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["default/second:http: TCP 10.0.0.1:80 belongs to default/first:http already"]
        );
        let winner = table.frontend(&key(1)).unwrap().service;
        assert_eq!(table.service(winner).unwrap().spec.name.name, "first");
    }

    #[test]
    fn a_name_given_twice_is_refused_once() {
        let twice = vec![spec("web", 1, &[11]), spec("web", 2, &[11])];
        let (table, errors) = ServiceTable::build(&ServiceTable::default(), twice);
        assert_eq!(table.services().len(), 1);
        assert_eq!(errors[0].to_string(), "default/web:http (TCP) is described twice");
    }

    #[test]
    fn answers_are_expected_from_backends_whose_clients_are_kept() {
        let mut kept = spec("kept", 1, &[11]);
        kept.frontends[0].source_nat = SourceNat::KeepClient;
        let (table, _) = ServiceTable::build(&ServiceTable::default(), vec![kept, spec("web", 2, &[12])]);
        let source = |host| ServiceKey { port: L4Port::new(8080), ..key(host) };
        assert!(table.is_reply_source(&source(11)) && !table.is_reply_source(&source(12)));
        assert_eq!(table.reply_sources().count(), 1);
    }

    #[test]
    fn an_empty_set_picks_nobody() {
        let (table, _) = ServiceTable::build(&ServiceTable::default(), vec![spec("web", 1, &[])]);
        assert_eq!(table.frontend(&key(1)).unwrap().backends.pick(5), None);
    }

    #[test]
    fn a_set_that_does_not_exist_is_named() {
        let mut wrong = spec("web", 1, &[]);
        wrong.frontends[0].endpoint_set = 3;
        let (_, errors) = ServiceTable::build(&ServiceTable::default(), vec![wrong]);
        assert!(errors[0].to_string().contains("endpoint set 3"));
    }
}
