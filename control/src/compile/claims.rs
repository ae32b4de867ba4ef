//! Who has an address and port that several Services claim. The order is kube-proxy's: what a packet's destination address
//! names comes before NodePorts, which any address of the node serves (D2). kube-proxy leaves open who of equals has it;
//! here it is the one that had it in the tables before, else the elder, else the first by name. So a Service that comes
//! later takes nothing from one that is served, and after a restart, which has no tables before, the result follows from
//! the objects alone.

use std::collections::{BTreeMap, HashMap, HashSet};

use flowgate_tables::service::ServiceKey;
use flowgate_tables::spec::ServiceName;
use flowgate_tables::{FrontendKind, ServiceTable};
use flowgate_wire::{L4Port, Protocol};
use ipnet::IpNet;

use super::address_rules::{AddressRules, Refusal};
use super::addresses::NodeContext;
use super::services::ServiceInput;
use super::wanted::{LOCALHOST, Wanted, served, wanted};
use crate::model::{Key, Service, ServicePort};
use crate::report::{Severity, and_more};

/// A port of a Service, by position: of the Service among all, of the port within it. `kind` is what it claims by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claimant {
    service: usize,
    port: usize,
    kind: FrontendKind,
}

/// Whose each address and port is.
#[derive(Debug, Default)]
pub(super) struct Claims {
    owners: HashMap<ServiceKey, Claimant>,
    /// The names of all Services, by position.
    names: Vec<Key>,
    /// By the Service that does not get what it claims.
    findings: BTreeMap<Key, Vec<(Severity, String)>>,
    /// The positions of all Services whose frontends depend on other Services or on the rules for addresses.
    disputed: HashSet<usize>,
}

impl Claims {
    /// Decides about the Services that fit the budgets, by position. `previous` are the tables in force.
    pub(super) fn new(
        input: ServiceInput<'_>,
        fits: &[bool],
        pod_ranges: &[IpNet],
        previous: &ServiceTable,
    ) -> Self {
        let services: Vec<(&Key, &Service)> =
            input.desired.services().iter().map(|(key, stored)| (key, &*stored.object)).collect();
        let mut contest = Contest {
            input,
            previous,
            services: &services,
            fits,
            owners: HashMap::new(),
            disputed: HashSet::new(),
            refusals: BTreeMap::new(),
            losers: Vec::new(),
        };
        let node_ports = contest.node_ports();
        contest.frontends(&node_ports, &AddressRules::new(input, pod_ranges));
        let findings = contest.findings(&node_ports);
        let Contest { owners, disputed, .. } = contest;
        let names = services.iter().map(|(key, _)| (*key).clone()).collect();
        Self { owners, names, findings, disputed }
    }

    /// Whether the Service at this position has what its port wants.
    pub(super) fn has(&self, service: usize, port: usize, key: &ServiceKey) -> bool {
        self.owners.get(key).is_some_and(|owner| (owner.service, owner.port) == (service, port))
    }

    /// Whether what the Service has depends on more than its own fields.
    pub(super) fn is_disputed(&self, service: usize) -> bool {
        self.disputed.contains(&service)
    }

    /// What a Service does not get, and why.
    pub(super) fn findings(&self, service: &Key) -> &[(Severity, String)] {
        self.findings.get(service).map_or(&[], Vec::as_slice)
    }

    /// The Service that is reached by this address and port, and by which of its fields.
    pub(super) fn owner(&self, key: &ServiceKey) -> Option<(&Key, FrontendKind)> {
        self.owners.get(key).map(|owner| (&self.names[owner.service], owner.kind))
    }

    /// Every address and port that is served, and the Service, in no order.
    pub(super) fn owners(&self) -> impl Iterator<Item = (&ServiceKey, &Key, FrontendKind)> {
        self.owners.iter().map(|(key, owner)| (key, &self.names[owner.service], owner.kind))
    }
}

/// The number of a NodePort.
type NodePort = (u16, Protocol);

struct Contest<'a> {
    input: ServiceInput<'a>,
    previous: &'a ServiceTable,
    services: &'a [(&'a Key, &'a Service)],
    fits: &'a [bool],
    owners: HashMap<ServiceKey, Claimant>,
    disputed: HashSet<usize>,
    /// What is refused whoever else wants it: the first of each reason, and how many more.
    refusals: BTreeMap<(Claimant, Refusal), (Wanted, usize)>,
    losers: Vec<(ServiceKey, Claimant)>,
}

/// Who has each NodePort, and who wanted it too.
#[derive(Default)]
struct NodePorts {
    owners: HashMap<NodePort, Claimant>,
    losers: Vec<(NodePort, Claimant)>,
}

impl<'a> Contest<'a> {
    /// A NodePort is one number on all addresses of the node, so one Service has it on all of them.
    fn node_ports(&mut self) -> NodePorts {
        let mut found = NodePorts::default();
        for (claimant, port) in self.ports(FrontendKind::NodePort) {
            let Some(number) = port.node_port.filter(|_| self.has_node_port_address(&claimant)) else {
                continue;
            };
            let key = (number, port.protocol);
            let had = |claimant: &Claimant| self.had_node_port(claimant, key);
            let Some(&owner) = found.owners.get(&key) else {
                found.owners.insert(key, claimant);
                continue;
            };
            let loser = if self.precedes(&claimant, &owner, had) {
                found.owners.insert(key, claimant);
                owner
            } else {
                claimant
            };
            self.disputed.extend([owner.service, claimant.service]);
            found.losers.push((key, loser));
        }
        found
    }

    fn frontends(&mut self, node_ports: &NodePorts, rules: &AddressRules<'_>) {
        for (claimant, port) in self.ports(FrontendKind::ClusterIp) {
            let (key, service) = self.services[claimant.service];
            let Ok(cluster_ips) = served(service) else { continue };
            let has_node_port = port.node_port.is_some_and(|number| {
                let owner = node_ports.owners.get(&(number, port.protocol));
                owner.is_some_and(|owner| (owner.service, owner.port) == (claimant.service, claimant.port))
            });
            for wanted in wanted(service, cluster_ips, port, self.input.node_context) {
                let claimant = Claimant { kind: wanted.kind, ..claimant };
                if wanted.kind == FrontendKind::NodePort && !has_node_port {
                    continue;
                }
                if let Some(refusal) = rules.refusal(key, &wanted, port.protocol) {
                    self.disputed.insert(claimant.service);
                    let (_, count) = self.refusals.entry((claimant, refusal)).or_insert((wanted, 0));
                    *count += 1;
                } else {
                    self.claim(wanted.key(port.protocol), claimant);
                }
            }
        }
    }

    fn claim(&mut self, key: ServiceKey, claimant: Claimant) {
        let Some(&owner) = self.owners.get(&key) else {
            self.owners.insert(key, claimant);
            return;
        };
        // One Service may list an address twice, say as external IP and in its status.
        if (owner.service, owner.port) == (claimant.service, claimant.port) {
            return;
        }
        let loser = if self.precedes(&claimant, &owner, |claimant| self.had(claimant, &key)) {
            self.owners.insert(key, claimant);
            owner
        } else {
            claimant
        };
        self.disputed.extend([owner.service, claimant.service]);
        self.losers.push((key, loser));
    }

    /// Whether `a` has it rather than `b`.
    fn precedes(&self, a: &Claimant, b: &Claimant, had: impl Fn(&Claimant) -> bool) -> bool {
        let order = |claimant: &Claimant| {
            let (key, service) = self.services[claimant.service];
            let port = &service.ports[claimant.port];
            (rank(claimant.kind), !had(claimant), service.age_order(), key, &port.name, claimant.port)
        };
        order(a) < order(b)
    }

    fn had(&self, claimant: &Claimant, key: &ServiceKey) -> bool {
        let owner = self.previous.frontend(key).and_then(|frontend| self.previous.service(frontend.service));
        owner.is_some_and(|owner| self.is(claimant, &owner.spec.name))
    }

    /// Whether an address serves the NodePorts of this Service; else it claims none, and the tables could not tell later that
    /// it had one.
    fn has_node_port_address(&self, claimant: &Claimant) -> bool {
        let NodeContext { nodeport_addresses, localhost_nodeports, .. } = self.input.node_context;
        let Ok(cluster_ips) = served(self.services[claimant.service].1) else { return false };
        let mut addresses = nodeport_addresses.iter().chain(localhost_nodeports.then_some(&LOCALHOST));
        addresses.any(|addr| cluster_ips.iter().any(|ip| ip.is_ipv4() == addr.is_ipv4()))
    }

    fn had_node_port(&self, claimant: &Claimant, (number, protocol): NodePort) -> bool {
        let addresses = self.input.node_context.own.iter().copied().chain([LOCALHOST]);
        let mut keys = addresses.map(|addr| ServiceKey { protocol, addr, port: L4Port::new(number) });
        keys.any(|key| {
            let frontend = self.previous.frontend(&key);
            frontend.is_some_and(|frontend| frontend.kind == FrontendKind::NodePort)
                && self.had(claimant, &key)
        })
    }

    fn is(&self, claimant: &Claimant, name: &ServiceName) -> bool {
        let (key, service) = self.services[claimant.service];
        name.namespace == key.namespace
            && name.name == key.name
            && name.port == service.ports[claimant.port].name
    }

    /// All ports of Services that are served.
    fn ports(&self, kind: FrontendKind) -> impl Iterator<Item = (Claimant, &'a ServicePort)> + use<'a> {
        let fits = self.fits;
        let services = self.services.iter().enumerate();
        let services = services.filter(|(at, (_, service))| fits[*at] && served(service).is_ok());
        services.flat_map(move |(at, (_, service))| {
            let ports = service.ports.iter().enumerate();
            ports.map(move |(port_at, port)| (Claimant { service: at, port: port_at, kind }, port))
        })
    }

    /// A sentence for each reason and port, however many addresses it concerns.
    fn findings(&self, node_ports: &NodePorts) -> BTreeMap<Key, Vec<(Severity, String)>> {
        let mut all: BTreeMap<Key, Vec<(Severity, String)>> = BTreeMap::new();
        let mut add = |claimant: &Claimant, severity, sentence: String| {
            let (key, service) = self.services[claimant.service];
            let port = &service.ports[claimant.port].name;
            let sentence = if port.is_empty() { sentence } else { format!("port {port}: {sentence}") };
            all.entry(key.clone()).or_default().push((severity, sentence));
        };
        for ((claimant, refusal), (wanted, count)) in &self.refusals {
            let protocol = self.services[claimant.service].1.ports[claimant.port].protocol;
            let what = described(claimant.kind, &wanted.key(protocol)) + &and_more(*count - 1);
            add(claimant, Severity::Warning, refusal.sentence(&what));
        }
        for ((number, protocol), claimant) in &node_ports.losers {
            let winner = self.name(&node_ports.owners[&(*number, *protocol)]);
            let sentence =
                format!("nodePort {number} {protocol} belongs to {winner} already: choose another");
            add(claimant, Severity::Error, sentence);
        }
        let mut lost: BTreeMap<(Claimant, Claimant), (ServiceKey, usize)> = BTreeMap::new();
        for (key, loser) in &self.losers {
            let (first, count) = lost.entry((*loser, self.owners[key])).or_insert((*key, 0));
            *first = (*first).min(*key);
            *count += 1;
        }
        for ((loser, winner), (key, count)) in &lost {
            let ServiceKey { protocol, addr, port } = key;
            let by = if rank(winner.kind) == rank(loser.kind) {
                "already".to_owned()
            } else {
                format!("as {}, which comes before {}", field(winner.kind), field(loser.kind))
            };
            let (name, more) = (self.name(winner), and_more(*count - 1));
            let sentence = format!(
                "{addr}:{port} {protocol}{more} belongs to {name} {by}: choose another address or port"
            );
            add(loser, Severity::Error, sentence);
        }
        all
    }

    fn name(&self, claimant: &Claimant) -> ServiceName {
        let (key, service) = self.services[claimant.service];
        let port = service.ports[claimant.port].name.clone();
        ServiceName { namespace: key.namespace.clone(), name: key.name.clone(), port }
    }
}

/// The order of kinds: a lower one wins.
const fn rank(kind: FrontendKind) -> u8 {
    match kind {
        FrontendKind::ClusterIp => 0,
        FrontendKind::LoadBalancer | FrontendKind::ExternalIp => 1,
        FrontendKind::NodePort => 2,
    }
}

/// The field that a frontend comes from.
const fn field(kind: FrontendKind) -> &'static str {
    match kind {
        FrontendKind::ClusterIp => "cluster IP",
        FrontendKind::LoadBalancer => "load balancer address",
        FrontendKind::ExternalIp => "external IP",
        FrontendKind::NodePort => "nodePort",
    }
}

fn described(kind: FrontendKind, key: &ServiceKey) -> String {
    format!("{} {}:{} {}", field(kind), key.addr, key.port, key.protocol)
}
