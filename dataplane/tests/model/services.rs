//! Who may serve a packet: the rules of Services, read off the descriptions.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use flowgate_tables::spec::{FrontendSpec, ServiceName, ServiceSpec, TrafficPolicySpec};
use flowgate_tables::{EmptyAction, FrontendKind, InterfaceId, SourceNat};
use flowgate_wire::Protocol;

use super::packet::Tuple;
use super::places::snat_addresses;
use super::world::World;

/// One Service port.
pub(crate) type PortKey = (ServiceName, Protocol);

/// One endpoint of one Service port.
pub(crate) type BackendKey = (PortKey, SocketAddr);

/// How long Services and backends have been there: what goes and comes back is another one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lives {
    services: HashMap<PortKey, u64>,
    backends: HashMap<BackendKey, u64>,
    /// When a life ended.
    died: HashMap<u64, u64>,
    born: u64,
}

impl Lives {
    /// Follows a change of tables.
    pub(crate) fn follow(&mut self, world: &World, now: u64) {
        let services: Vec<(PortKey, &ServiceSpec)> =
            world.services.iter().map(|s| ((s.name.clone(), s.protocol), s)).collect();
        let mut backends: HashSet<BackendKey> = HashSet::new();
        for (key, service) in &services {
            let in_sets = service.endpoint_sets.iter().flatten().map(|e| (e.addr, e.port));
            let all = in_sets.chain(service.serving.iter().copied());
            let mut own: HashSet<BackendKey> =
                all.map(|(addr, port)| (key.clone(), SocketAddr::new(addr, port.number()))).collect();
            if own.is_empty() {
                // P804: nobody ends the flows of the last endpoints before there are others.
                own = self.backends.keys().filter(|(owner, _)| owner == key).cloned().collect();
            }
            backends.extend(own);
        }
        let names: HashSet<PortKey> = services.into_iter().map(|(key, _)| key).collect();
        self.services.retain(|key, _| names.contains(key));
        let gone = self.backends.iter().filter(|(key, _)| !backends.contains(*key));
        self.died.extend(gone.map(|(_, life)| (*life, now)));
        self.backends.retain(|key, _| backends.contains(key));
        for key in names {
            self.born += 1;
            self.services.entry(key).or_insert(self.born);
        }
        for key in backends {
            self.born += 1;
            self.backends.entry(key).or_insert(self.born);
        }
    }

    /// Which life of this backend it is; none when it is gone.
    pub(crate) fn of_backend(&self, key: &BackendKey) -> Option<u64> {
        self.backends.get(key).copied()
    }

    /// Milliseconds since this life ended.
    pub(crate) fn dead_for(&self, life: u64, now: u64) -> Option<u64> {
        self.died.get(&life).map(|died| now - died)
    }

    fn of_service(&self, key: &PortKey) -> u64 {
        self.services[key]
    }
}

/// What the rules say about a first packet.
#[derive(Clone, Debug)]
pub(crate) enum Rule {
    /// One of these may have it.
    Serve(Offer),
    Reject(&'static str),
    Drop(&'static str),
    NotOurs,
}

/// Who may have a first packet.
#[derive(Clone, Debug)]
pub(crate) struct Offer {
    pub(crate) port: PortKey,
    pub(crate) candidates: Vec<SocketAddr>,
    pub(crate) source_nat: SourceNat,
    /// Whether session affinity was asked.
    pub(crate) bound: bool,
}

impl Offer {
    /// Whether `backend` must not see the client's address. P605: nobody is its own client.
    pub(crate) fn replaces_source(&self, client: IpAddr, backend: SocketAddr) -> bool {
        self.source_nat == SourceNat::Always || client == backend.ip()
    }
}

/// The Service port and frontend at a destination.
pub(crate) fn frontend<'w>(world: &'w World, tuple: &Tuple) -> Option<(&'w ServiceSpec, &'w FrontendSpec)> {
    let all = world.services.iter().filter(|s| s.protocol == tuple.protocol);
    let mut found: Vec<_> = all
        .flat_map(|s| s.frontends.iter().map(move |f| (s, f)))
        .filter(|(_, f)| f.addr == tuple.dst.ip() && f.port.number() == tuple.dst.port())
        .collect();
    // The first name keeps what two claim.
    found.sort_by(|a, b| a.0.name.cmp(&b.0.name));
    found.first().copied()
}

/// Applies the rules to a first packet at time `now`.
pub(crate) fn rule(world: &World, lives: &Lives, bindings: &Bindings, tuple: &Tuple, now: u64) -> Rule {
    let Some((service, frontend)) = frontend(world, tuple) else { return unmatched(world, tuple.dst.ip()) };
    let client = tuple.src.ip();
    if frontend.allowed.as_ref().is_some_and(|ranges| !ranges.iter().any(|net| net.contains(&client))) {
        return Rule::Drop("source_not_allowed");
    }
    if is_own_source(world, frontend, tuple) {
        return Rule::Drop("own_source");
    }
    let is_node = is_own_address(world, client);
    let policy: &TrafficPolicySpec =
        if is_node { &frontend.policies.node } else { &frontend.policies.outside };
    let set = &service.endpoint_sets[policy.endpoint_set];
    let candidates: Vec<SocketAddr> = set.iter().map(|e| SocketAddr::new(e.addr, e.port.number())).collect();
    if candidates.is_empty() {
        return match policy.when_empty {
            EmptyAction::Reject => Rule::Reject("no_endpoint"),
            EmptyAction::Drop => Rule::Drop("no_backend"),
        };
    }
    let port = (service.name.clone(), service.protocol);
    let candidates = match service.affinity {
        Some(timeout) => {
            let timeout_ms = u64::try_from(timeout.as_millis()).unwrap();
            bindings.candidates_of_client(lives, (client, &port), candidates, (now, timeout_ms))
        }
        None => candidates,
    };
    Rule::Serve(Offer { port, candidates, source_nat: policy.source_nat, bound: service.affinity.is_some() })
}

/// Whether the source of a new flow is one that only the gateway itself could have: an address and port of translated flows,
/// or the VIP that it goes to.
pub(crate) fn is_own_source(world: &World, frontend: &FrontendSpec, tuple: &Tuple) -> bool {
    let mut interfaces = (0..).map(InterfaceId).take(world.interfaces.len());
    let src = tuple.src.ip();
    let is_snat = world.snat_ports.contains(tuple.src.port())
        && interfaces.any(|interface| snat_addresses(world, interface, src).contains(&src));
    is_snat || frontend.kind != FrontendKind::NodePort && src == tuple.dst.ip()
}

/// Whether the address is one of the node's.
pub(crate) fn is_own_address(world: &World, addr: IpAddr) -> bool {
    addr.is_loopback() || world.interfaces.iter().any(|i| i.addresses.contains(&addr))
}

/// P505, P506.
fn unmatched(world: &World, dst: IpAddr) -> Rule {
    if is_own_address(world, dst) {
        return Rule::NotOurs;
    }
    let mut frontends = world.services.iter().flat_map(|s| &s.frontends);
    if frontends.any(|f| f.kind == FrontendKind::ClusterIp && f.addr == dst) {
        Rule::Reject("unknown_port")
    } else if world.service_cidrs.iter().any(|net| net.contains(&dst)) {
        Rule::Drop("unallocated_cluster_ip")
    } else {
        Rule::NotOurs
    }
}

/// Whether a packet of this source may answer a client whose address was kept.
pub(crate) fn may_answer_kept(world: &World, tuple: &Tuple) -> bool {
    world.services.iter().filter(|s| s.protocol == tuple.protocol).any(|service| {
        let kept = service
            .frontends
            .iter()
            .flat_map(|f| [f.policies.outside, f.policies.pod, f.policies.node])
            .filter(|t| t.source_nat == SourceNat::PreserveClient);
        kept.flat_map(|t| &service.endpoint_sets[t.endpoint_set])
            .any(|e| e.addr == tuple.src.ip() && e.port.number() == tuple.src.port())
    })
}

/// Session affinity: which backends a client may be bound to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bindings(HashMap<(IpAddr, u64), Binding>);

#[derive(Clone, Debug)]
struct Binding {
    /// One of these; more than one while nothing has shown which. Each with its life.
    possible: BTreeSet<(SocketAddr, u64)>,
    used: u64,
}

impl Bindings {
    fn candidates_of_client(
        &self,
        lives: &Lives,
        (client, port): (IpAddr, &PortKey),
        candidates: Vec<SocketAddr>,
        (now, timeout_ms): (u64, u64),
    ) -> Vec<SocketAddr> {
        let Some(binding) = self.0.get(&(client, lives.of_service(port))) else { return candidates };
        if now - binding.used > timeout_ms {
            return candidates;
        }
        let alive = |(addr, life): &(SocketAddr, u64)| {
            candidates.contains(addr) && lives.of_backend(&(port.clone(), *addr)) == Some(*life)
        };
        let chosen: Vec<SocketAddr> = binding.possible.iter().filter(|b| alive(b)).map(|b| b.0).collect();
        // Should the binding be to one that is gone, any may be chosen anew.
        if chosen.len() == binding.possible.len() { chosen } else { candidates }
    }

    /// Learns that the client is bound to one of `possible` from now on.
    pub(crate) fn learn(
        &mut self,
        lives: &Lives,
        client: IpAddr,
        port: &PortKey,
        possible: &[SocketAddr],
        now: u64,
    ) {
        let with_life = |addr: &SocketAddr| Some((*addr, lives.of_backend(&(port.clone(), *addr))?));
        let possible = possible.iter().filter_map(with_life).collect();
        self.0.insert((client, lives.of_service(port)), Binding { possible, used: now });
    }

    /// P704: nobody may be chosen, so nobody is remembered.
    pub(crate) fn forget(&mut self, lives: &Lives, client: IpAddr, port: &PortKey) {
        self.0.remove(&(client, lives.of_service(port)));
    }
}
