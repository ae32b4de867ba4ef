//! P1003: after any sequence of changes the tables are equivalent to those of a fresh start: slots and numbers may
//! differ; names, sets, refusals and the backend that a flow would get may not.
//!
//! With one exception, which is history: of Services that claim one address and port, or one NodePort, by fields of one rank,
//! the one that has it keeps it, so a fresh start, which knows of no one that has it, may give it to another. Where nothing
//! is claimed twice nothing depends on history; and where something is, compiling everything with the tables before at hand
//! gives what compiling only the changes does.
#![allow(clippy::unwrap_used, reason = "test support: a panic is the report")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use flowgate_control::compile::Compiler;
use flowgate_control::model::{Desired, Key, Kind, NetState};
use flowgate_control::source::convert;
use flowgate_control::{CompileConfig, LocalPods, ObjectRef, Role, compile};
use flowgate_tables::service::ServiceKey;
use flowgate_tables::spec::{InterfaceSpec, NeighbourSpec, RouteHopSpec, RouteSpec, SnatSpec};
use flowgate_tables::{Budgets, Tables, TrafficPolicy, UnmatchedDestination};
use flowgate_wire::{L4Port, MacAddr, Protocol};
use proptest::prelude::*;
use serde_json::{Value, json};

/// One step of a cluster's life.
#[derive(Clone, Debug)]
enum Step {
    /// An object comes or becomes another: which, and the seed of what it is then.
    Apply(Kind, u8, u64),
    /// An object goes.
    Delete(Kind, u8),
    /// The machine's addresses and neighbours are others.
    Network(u8),
    /// The tables are compiled; between two of these many objects may change.
    Compile,
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop::sample::select(vec![
        Kind::Service,
        Kind::Service,
        Kind::EndpointSlice,
        Kind::EndpointSlice,
        Kind::EndpointSlice,
        Kind::Endpoints,
        Kind::Node,
        Kind::ServiceCidr,
    ]);
    prop_oneof![
        6 => (kind.clone(), 0..6_u8, any::<u64>()).prop_map(|(kind, number, seed)| Step::Apply(kind, number, seed)),
        2 => (kind, 0..6_u8).prop_map(|(kind, number)| Step::Delete(kind, number)),
        1 => (0..3_u8).prop_map(Step::Network),
        4 => Just(Step::Compile),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn p1003_whatever_changed_before_the_tables_are_those_of_a_fresh_start(
        is_node in any::<bool>(),
        budgets in budgets(),
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let role = if is_node { Role::Node } else { Role::Gateway };
        let config = CompileConfig { budgets, ..config(role) };
        let mut compiler = Compiler::new(config.clone());
        let (mut desired, mut net) = (Arc::new(Desired::default()), network(0));
        for step in steps.into_iter().chain([Step::Compile]) {
            match step {
                Step::Apply(kind, number, seed) => apply(Arc::make_mut(&mut desired), kind, number, seed),
                Step::Delete(kind, number) => {
                    let name = name(kind, number);
                    Arc::make_mut(&mut desired).delete(&name);
                }
                Step::Network(number) => net = network(number),
                Step::Compile => {
                    let before = compiler.tables().clone();
                    let (tables, report) = compiler.compile(&desired, &net);
                    let (whole, whole_report) = compile(&desired, &net, &config, &before);
                    prop_assert_eq!(meaning(&tables), meaning(&whole));
                    prop_assert_eq!(report.to_string(), whole_report.to_string());
                    prop_assert_eq!(compiler.tables().generation, tables.generation);
                    let (fresh, fresh_report) = compile(&desired, &net, &config, &Tables::empty());
                    let claimed_twice = report.to_string().contains(" belongs to ");
                    prop_assert_eq!(claimed_twice, fresh_report.to_string().contains(" belongs to "));
                    if !claimed_twice {
                        prop_assert_eq!(meaning(&tables), meaning(&fresh));
                        prop_assert_eq!(report.to_string(), fresh_report.to_string());
                    }
                }
            }
        }
        // Nothing changed: nothing is published.
        let before = compiler.tables().generation;
        prop_assert_eq!(compiler.compile(&desired, &net).0.generation, before);
        let same = Arc::new(Desired::clone(&desired));
        prop_assert_eq!(compiler.compile(&same, &net).0.generation, before);
    }
}

/// Those that hold everything, or few of which some are full most of the time.
fn budgets() -> impl Strategy<Value = Budgets> {
    let few = (1..7_u32, 1..20_u32, 1..20_u32, 1..5_u32, 1..12_u32, 1..3_u32).prop_map(
        |(services, frontends, backends, cluster_ips, reply_sources, service_cidrs)| Budgets {
            services,
            frontends,
            backends,
            cluster_ips,
            reply_sources,
            service_cidrs,
            service_frontends: frontends.min(6),
            namespace_endpoints: backends + 1,
            node_addresses: 1,
            ..Budgets::default()
        },
    );
    prop_oneof![Just(Budgets::default()), few]
}

/// A cluster whose Services claim one external address and one NodePort.
struct Contest {
    desired: Arc<Desired>,
    compiler: Compiler,
}

impl Contest {
    fn new() -> Self {
        let config = CompileConfig { snat: SnatSpec::default(), ..config(Role::Node) };
        Self { desired: Arc::default(), compiler: Compiler::new(config) }
    }

    /// A Service comes: its name, the day it was created, and further fields of its spec.
    fn comes(&mut self, name: &str, day: Option<u8>, spec: &Value) {
        let number = name.bytes().next().expect("a name");
        let mut value = json!({"metadata": {}, "spec": {"type": "NodePort", "clusterIP": format!("10.96.0.{number}"),
            "ports": [{"port": 80}]}});
        if let Some(day) = day {
            value["metadata"]["creationTimestamp"] = json!(format!("2026-01-0{day}T00:00:00Z"));
        }
        for (field, field_value) in spec.as_object().expect("fields") {
            value["spec"][field] = field_value.clone();
        }
        let reference = ObjectRef::new("Service", "default", name);
        let (object, findings) = convert::object(Kind::Service, &reference, value);
        let object = object.unwrap_or_else(|| panic!("{findings:?}"));
        Arc::make_mut(&mut self.desired).apply(Key::new("default", name), object, None);
    }

    fn goes(&mut self, name: &str) {
        Arc::make_mut(&mut self.desired).delete(&ObjectRef::new("Service", "default", name));
    }

    /// Who has an address after the changes so far; and the findings.
    fn owner(&mut self, addr: &str, port: u16) -> (String, String) {
        let before = self.compiler.tables().clone();
        let (tables, report) = self.compiler.compile(&self.desired, &network(0));
        let (whole, _) = compile(&self.desired, &network(0), self.compiler.config(), &before);
        assert_eq!(meaning(&tables), meaning(&whole));
        (owner(&tables, addr, port), report.to_string())
    }

    /// Who has it after a restart.
    fn owner_afresh(&self, addr: &str, port: u16) -> String {
        let (tables, _) = compile(&self.desired, &network(0), self.compiler.config(), &Tables::empty());
        owner(&tables, addr, port)
    }
}

fn owner(tables: &Tables, addr: &str, port: u16) -> String {
    let key = ServiceKey { protocol: Protocol::Tcp, addr: ip(addr), port: L4Port::new(port) };
    let frontend = tables.services.frontend(&key).expect("somebody has it");
    tables.services.service(frontend.service).expect("a Service that is there").spec.name.name.clone()
}

#[test]
fn of_equals_the_one_that_had_an_address_has_it_then_the_elder_then_the_first_by_name() {
    let (external, port) = ("203.0.113.5", 80);
    let spec = json!({"externalIPs": [external]});
    let mut contest = Contest::new();
    contest.comes("b", Some(2), &spec);
    assert_eq!(contest.owner(external, port).0, "b");
    // The elder comes late, as after it was labelled for another proxy for a while.
    contest.comes("a", Some(1), &spec);
    let (owner, report) = contest.owner(external, port);
    assert_eq!(owner, "b");
    let taken = "error: Service default/a: 203.0.113.5:80 TCP belongs to default/b already";
    assert!(report.contains(taken), "{report}");
    assert_eq!(contest.owner_afresh(external, port), "a", "nothing is remembered over a restart");
    contest.goes("b");
    assert_eq!(contest.owner(external, port).0, "a");
    contest.comes("b", Some(2), &spec);
    assert_eq!(contest.owner(external, port).0, "a");
    // Without history: the elder, what has no age after all that have one, and the first by name.
    let mut contest = Contest::new();
    contest.comes("a", None, &spec);
    contest.comes("c", Some(1), &spec);
    contest.comes("b", Some(1), &spec);
    contest.comes("d", Some(3), &spec);
    assert_eq!(contest.owner(external, port).0, "b");
    contest.goes("b");
    contest.goes("c");
    assert_eq!(contest.owner(external, port).0, "d");
}

#[test]
fn a_node_port_stays_with_the_service_that_had_it_on_all_addresses() {
    let spec = json!({"ports": [{"port": 80, "nodePort": 30_001}]});
    let mut contest = Contest::new();
    contest.comes("b", Some(2), &spec);
    assert_eq!(contest.owner("192.0.2.1", 30_001).0, "b");
    contest.comes("a", Some(1), &spec);
    let (owner, report) = contest.owner("192.0.2.1", 30_001);
    assert_eq!(owner, "b");
    assert!(
        report.contains("Service default/a: nodePort 30001 TCP belongs to default/b already"),
        "{report}"
    );
    assert_eq!(contest.owner_afresh("192.0.2.1", 30_001), "a");
}

#[test]
fn the_rank_of_a_field_comes_before_history() {
    let mut contest = Contest::new();
    contest.comes("a", Some(1), &json!({"ports": [{"port": 80, "nodePort": 30_001}]}));
    assert_eq!(contest.owner("192.0.2.1", 30_001).0, "a");
    contest.comes("b", Some(2), &json!({"externalIPs": ["192.0.2.1"], "ports": [{"port": 30_001}]}));
    let (owner, report) = contest.owner("192.0.2.1", 30_001);
    assert_eq!(owner, "b");
    let lost = "Service default/a: 192.0.2.1:30001 TCP belongs to default/b as external IP, which comes before nodePort: \
                choose another address or port";
    assert!(report.contains(lost), "{report}");
    // `a` is 97, so this is its cluster IP.
    contest.comes("b", Some(2), &json!({"externalIPs": ["10.96.0.97"]}));
    let (owner, report) = contest.owner("10.96.0.97", 80);
    assert_eq!(owner, "a");
    let refused =
        "Service default/b: external IP 10.96.0.97:80 TCP is not served: it is the cluster IP of default/a";
    assert!(report.contains(refused), "{report}");
}

/// What tables say, without the numbers that they say it with.
fn meaning(tables: &Tables) -> String {
    let mut lines = BTreeSet::new();
    let services = &tables.services;
    let backend = |id| {
        let backend = services.backends().get(id).expect("a set names backends that exist");
        format!("{}:{}", backend.addr, backend.port)
    };
    let treated = |policy: &TrafficPolicy| {
        let set: BTreeSet<String> = policy.backends.members().iter().map(|id| backend(*id)).collect();
        let picks: Vec<String> = (0..32_u32)
            .map(|n| policy.backends.pick(n.wrapping_mul(0x9e37_79b9)).map_or_else(String::new, backend))
            .collect();
        format!("{set:?} {:?} {:?} {picks:?}", policy.source_nat, policy.when_empty)
    };
    for frontend in services.frontends() {
        let service = services.service(frontend.service).expect("a frontend names a Service that exists");
        let mut line = format!("{:?} {:?} {}", frontend.key, frontend.kind, service.spec.name);
        for policy in frontend.policies.all() {
            write!(line, "\n  {}", treated(policy)).unwrap();
        }
        write!(line, "\n  {:?} {:?}", frontend.allowed, frontend.affinity).unwrap();
        lines.insert(line);
    }
    lines.extend(services.services().iter().map(|service| format!("{:?}", service.spec)));
    lines.extend(services.reply_sources().map(|source| format!("reply {source:?}")));
    lines.extend(services.cluster_ips().map(|ip| format!("cluster IP {ip}")));
    let unallocated = services.unmatched(ip("10.96.0.77")) == Some(UnmatchedDestination::Unallocated);
    lines.insert(format!("ranges {:?} {unallocated}", services.service_cidrs()));
    lines.insert(format!("own 192.0.2.1 {:?}", tables.sources.class(ip("192.0.2.1"))));
    lines.insert(format!("own 192.0.2.2 {:?}", tables.sources.class(ip("192.0.2.2"))));
    lines.insert(format!("pod {:?}", tables.sources.class(ip("10.244.1.1"))));
    lines.into_iter().collect::<Vec<_>>().join("\n")
}

fn apply(desired: &mut Desired, kind: Kind, number: u8, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let value = match kind {
        Kind::Service => service(number, &mut random),
        Kind::EndpointSlice => slice(&mut random),
        Kind::Endpoints => endpoints(&mut random),
        Kind::Node => node(&mut random),
        _ => {
            json!({"spec": {"cidrs": [one_of(&mut random, &["10.96.0.0/24", "10.112.0.0/24", "10.96.0.64/26"])]}})
        }
    };
    let name = name(kind, number);
    let (object, findings) = convert::object(kind, &name, value);
    let object = object.unwrap_or_else(|| panic!("{name} is valid: {findings:?}"));
    desired.apply(Key::new(&name.namespace, &name.name), object, None);
}

fn name(kind: Kind, number: u8) -> ObjectRef {
    let namespace = if kind.is_namespaced() { "default" } else { "" };
    ObjectRef::new(kind.name(), namespace, format!("n{number}"))
}

/// Few addresses and ports, so that Services contest them and inherit them from one another (P1009, P1010).
fn service(number: u8, random: &mut fastrand::Rng) -> Value {
    let cluster_ip = one_of(random, &["10.96.0.1", "10.96.0.2", "10.96.0.3", "None"]);
    let policy = |local: bool| if local { "Local" } else { "Cluster" };
    let mut ports = vec![json!({"name": "a", "port": 80, "nodePort": 30_000 + i32::from(random.u8(..3))})];
    if random.bool() {
        ports.push(json!({"name": "b", "port": 53, "protocol": "UDP"}));
    }
    let mut spec = json!({"type": "NodePort", "clusterIP": cluster_ip, "ports": ports,
        "internalTrafficPolicy": policy(random.u8(..3) == 0), "externalTrafficPolicy": policy(random.bool())});
    if random.bool() {
        spec["selector"] = json!({"app": format!("n{number}")});
    }
    if random.u8(..3) == 0 {
        let addresses = ["198.51.100.1", "198.51.100.2", "10.96.0.2", "10.96.0.9", "192.0.2.1"];
        spec["externalIPs"] = json!([one_of(random, &addresses)]);
    }
    if random.u8(..4) == 0 {
        spec["sessionAffinity"] = json!("ClientIP");
    }
    if random.u8(..6) == 0 {
        spec["type"] = json!("ExternalName");
        spec["externalName"] = json!("db.example.org");
    }
    let labels =
        if random.u8(..6) == 0 { json!({"service.kubernetes.io/service-proxy-name": ""}) } else { json!({}) };
    let mut metadata = json!({"labels": labels});
    if random.bool() {
        metadata["creationTimestamp"] = json!(format!("2026-01-0{}T00:00:00Z", random.u8(1..4)));
    }
    json!({"metadata": metadata, "spec": spec})
}

fn slice(random: &mut fastrand::Rng) -> Value {
    let endpoints: Vec<Value> = (0..random.u8(..4))
        .map(|_| {
            // Now and then a Service, or the machine itself.
            let address = match random.u8(..8) {
                0 => one_of(random, &["10.96.0.1", "10.96.0.2", "198.51.100.1", "192.0.2.1"]).to_owned(),
                _ => format!("10.244.1.{}", random.u8(1..6)),
            };
            json!({"addresses": [address],
                "nodeName": one_of(random, &["n0", "elsewhere"]),
                "hints": {"forZones": [{"name": one_of(random, &["z0", "z1"])}]},
                "conditions": {"ready": random.bool(), "serving": random.bool(), "terminating": random.bool()}})
        })
        .collect();
    // Renamed and renumbered ports too.
    let mut ports = vec![
        json!({"name": one_of(random, &["a", "a", "a", "c"]), "port": one_of(random, &[80, 8080, 8081, 30_001])}),
    ];
    if random.bool() {
        ports.push(json!({"name": "b", "port": 53, "protocol": "UDP"}));
    }
    json!({"metadata": {"labels": {"kubernetes.io/service-name": format!("n{}", random.u8(..6))}},
        "addressType": "IPv4", "endpoints": endpoints, "ports": ports})
}

fn endpoints(random: &mut fastrand::Rng) -> Value {
    json!({"subsets": [{"addresses": [{"ip": format!("10.244.1.{}", random.u8(1..6)), "nodeName": "n0"}],
        "ports": [{"name": "a", "port": 8080}]}]})
}

fn node(random: &mut fastrand::Rng) -> Value {
    let (zone, address) = (random.u8(..3), random.u8(1..3));
    json!({"metadata": {"labels": {"topology.kubernetes.io/zone": format!("z{zone}")}},
        "status": {"addresses": [{"type": "InternalIP", "address": format!("192.0.2.{address}")}]}})
}

fn one_of<T: Copy>(random: &mut fastrand::Rng, list: &[T]) -> T {
    list[random.usize(..list.len())]
}

fn config(role: Role) -> CompileConfig {
    CompileConfig {
        role,
        node_name: "n0".into(),
        // Over the NodePorts, so that there is something to warn of.
        snat: SnatSpec { addresses: vec![], ports: (30_001..30_100).collect() },
        local_pods: LocalPods::ClusterCidr(vec!["10.244.0.0/16".parse().unwrap()]),
        ..CompileConfig::default()
    }
}

/// One interface with one, another or both addresses, and a neighbour that is resolved or not.
fn network(number: u8) -> NetState {
    let addresses = [vec!["192.0.2.1"], vec!["192.0.2.2"], vec!["192.0.2.1", "192.0.2.2"]];
    let interface = InterfaceSpec {
        name: "up0".into(),
        ifindex: 1,
        mac: MacAddr([2, 0, 0, 0, 0, 1]),
        mtu: 1500,
        up: true,
        addresses: addresses[usize::from(number)].iter().map(|text| ip(text)).collect(),
        vlan: None,
    };
    let route = RouteSpec {
        prefix: "10.244.0.0/16".parse().unwrap(),
        hops: vec![RouteHopSpec { interface: 0, via: Some(ip("192.0.2.254")), weight: 1 }],
        metric: 0,
    };
    let mac = (number > 0).then_some(MacAddr([2, 0, 0, 0, 0, 254]));
    NetState {
        interfaces: Arc::new(vec![interface]),
        routes: Arc::new(vec![route]),
        neighbours: Arc::new(vec![NeighbourSpec {
            interface: 0,
            addr: ip("192.0.2.254"),
            mac,
            has_failed: false,
        }]),
        ..NetState::default()
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}
