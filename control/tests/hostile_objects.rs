//! Valid objects broken in a random place: none may cause a panic, affect another object or be refused without a
//! reason. The random numbers are the same in each run.
#![allow(clippy::unwrap_used, reason = "test support: a panic is the report")]

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use flowgate_control::compile::Compiler;
use flowgate_control::model::{ClusterAddress, Desired, Key, Kind, NetState, Object, ServiceType};
use flowgate_control::source::convert;
use flowgate_control::{CompileConfig, ObjectRef, Report, Role, Severity, compile};
use flowgate_fuzz::objects::{GOOD, GOOD_NAMESPACE, Hostile, good};
use flowgate_tables::Tables;
use flowgate_tables::spec::{InterfaceSpec, ServiceSpec};
use flowgate_wire::MacAddr;
use serde_json::{Value, json};

/// How many objects a test tries: `HOSTILE_OBJECTS`, which `make fuzz` sets to 100,000, or as many as take seconds.
fn cases(otherwise: usize) -> usize {
    std::env::var("HOSTILE_OBJECTS").ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

const BROKEN: usize = 20_000;
/// Every so many cases, those that were accepted are compiled beside a good Service.
const COMPILED_TOGETHER: usize = 20;
const COMPILED_EVERY: usize = 2_000;

#[test]
fn whatever_is_in_an_object_it_is_accepted_or_refused_with_a_reason_and_spoils_no_other() {
    let cases = cases(BROKEN);
    let mut objects = Hostile::new(0x00f1_0a7e);
    let (mut accepted, mut refused) = (Vec::new(), 0_usize);
    for case in 0..cases {
        let (kind, value) = objects.broken();
        let kind = kind_named(kind);
        let text = |path: &str| value.pointer(path).and_then(Value::as_str).unwrap_or("").to_owned();
        let namespace = if kind.is_namespaced() { text("/metadata/namespace") } else { String::new() };
        let name = ObjectRef::new(kind.name(), namespace, text("/metadata/name"));
        let shown = value.to_string();
        match convert::object(kind, &name, value) {
            (Some(object), findings) => {
                assert!(findings.iter().all(|(severity, _)| *severity == Severity::Warning), "{shown}");
                accepted.push((Key::new(&name.namespace, &name.name), object));
            }
            (None, findings) => {
                refused += 1;
                let says = |(severity, reason): &(Severity, String)| {
                    *severity == Severity::Error && !reason.trim().is_empty()
                };
                assert!(findings.iter().any(says), "{shown} is refused without a reason: {findings:?}");
            }
        }
        if case % COMPILED_EVERY == 0 {
            the_good_one_is_served_beside(accepted.drain(..).rev().take(COMPILED_TOGETHER));
        }
    }
    assert!(refused > cases / 10, "the objects were not broken enough: {refused} refused");
    assert!(refused < cases, "something is accepted");
}

fn the_good_one_is_served_beside(objects: impl Iterator<Item = (Key, Object)>) {
    let mut desired = Desired::default();
    for (n, (key, object)) in objects.enumerate() {
        // Names that differ, but in one namespace, where they meet.
        desired.apply(Key::new("default", format!("{}-{n}", key.name)), object, None);
    }
    let good = json!({"metadata": {"name": "good", "namespace": "default"},
        "spec": {"clusterIP": "10.96.9.9", "ports": [{"port": 80}]}});
    let name = ObjectRef::new("Service", "default", "good");
    let (Some(good), _) = convert::object(Kind::Service, &name, good) else { panic!("it is good") };
    // First by name: whatever claims the same address comes later.
    desired.apply(Key::new("default", "0-good"), good, None);
    let config = CompileConfig { role: Role::Gateway, node_name: "n1".into(), ..CompileConfig::default() };
    let (tables, _) = compile(&desired, &NetState::default(), &config, &Tables::empty());
    let served = tables.services.frontends().any(|frontend| frontend.key.addr.to_string() == "10.96.9.9");
    assert!(served, "the good Service is served");
}

/// The same at the scale of a cluster: `HOSTILE_OBJECTS=100000 cargo test --test control hostile` for the whole of it.
#[test]
fn hostile_objects_among_a_thousand_good_services_disturb_none_of_them_and_are_named() {
    let count = cases(HOSTILE);
    let mut accepts_all = fastrand::Rng::with_seed(0x00f1_0a7f);
    let mut desired = Arc::new(Desired::default());
    for n in 0..GOOD {
        for (kind, value) in good(n, &format!("10.244.{}.{}", n / 250, n % 250 + 1)) {
            let kind = kind_named(kind);
            let name = name_of(kind, &value);
            let (Some(object), findings) = convert::object(kind, &name, value) else {
                panic!("{name} is good")
            };
            assert_eq!(findings, [], "{name}");
            Arc::make_mut(&mut desired).apply(Key::new(&name.namespace, &name.name), object, None);
        }
    }
    let mut compiler = Compiler::new(CompileConfig {
        role: Role::Gateway,
        node_name: "edge".into(),
        ..CompileConfig::default()
    });
    let (tables, report) = compiler.compile(&desired, &network());
    assert_eq!(report.to_string(), "");
    let undisturbed = good_ones(&tables);
    assert_eq!(undisturbed.len(), GOOD);

    let mut refused = 0_usize;
    for (case, (kind, value)) in (1..=count).zip(Hostile::new(0x00f1_0a7f)) {
        let kind = kind_named(kind);
        let name = name_of(kind, &value);
        let convert = if accepts_all.bool() { convert::object } else { convert::accepted_object };
        match convert(kind, &name, value) {
            // As sources do: a version that is refused leaves the one before.
            (None, findings) => {
                refused += 1;
                assert!(findings.iter().any(|(severity, _)| *severity == Severity::Error), "{name}");
            }
            (Some(object), _) => {
                Arc::make_mut(&mut desired).apply(Key::new(&name.namespace, &name.name), object, None);
            }
        }
        if case % (count / 20).max(1) == 0 {
            let (tables, report) = compiler.compile(&desired, &network());
            let found: Vec<String> = report.to_string().lines().map(str::to_owned).collect();
            let of_good: Vec<&String> = found.iter().filter(|line| line.contains(GOOD_NAMESPACE)).collect();
            assert!(good_ones(&tables) == undisturbed, "after {case} hostile objects: {of_good:#?}");
            what_is_left_out_is_named(&desired, &tables, &report);
        }
    }
    assert!(refused > count / 10 && refused < count, "{refused} of {count} refused");
}

/// What is served of the good Services: spec and addresses of each, by name.
fn good_ones(tables: &Tables) -> BTreeMap<String, (Arc<ServiceSpec>, Vec<String>)> {
    let mut all: BTreeMap<_, _> = BTreeMap::new();
    for service in tables.services.services().iter().filter(|s| s.spec.name.namespace == GOOD_NAMESPACE) {
        all.insert(service.spec.name.to_string(), (Arc::clone(&service.spec), Vec::new()));
    }
    for frontend in tables.services.frontends() {
        let service = tables.services.service(frontend.service).expect("a frontend has a Service");
        if let Some((_, served)) = all.get_mut(&service.spec.name.to_string()) {
            served.push(format!("{}:{}", frontend.key.addr, frontend.key.port));
        }
    }
    all.values_mut().for_each(|(_, served)| served.sort_unstable());
    all
}

/// Each port of each Service that is to be served is in the tables, or its Service is in the report.
fn what_is_left_out_is_named(desired: &Desired, tables: &Tables, report: &Report) {
    let served: HashSet<String> =
        tables.services.services().iter().map(|s| s.spec.name.to_string()).collect();
    let named: HashSet<&ObjectRef> =
        report.entries.iter().filter_map(|entry| entry.object.as_ref()).collect();
    for (key, stored) in desired.services() {
        let service = &stored.object;
        let is_wanted = service.excluded_by.is_none()
            && service.service_type != ServiceType::ExternalName
            && matches!(service.cluster, ClusterAddress::Assigned(_));
        for port in service.ports.iter().filter(|_| is_wanted) {
            let name = match port.name.as_str() {
                "" => format!("{}/{}", key.namespace, key.name),
                port => format!("{}/{}:{port}", key.namespace, key.name),
            };
            let object = ObjectRef::new("Service", &key.namespace, &key.name);
            assert!(served.contains(&name) || named.contains(&object), "{name} is neither served nor named");
        }
    }
}

fn kind_named(name: &str) -> Kind {
    let known = [Kind::Service, Kind::EndpointSlice, Kind::Node, Kind::ServiceCidr, Kind::Endpoints];
    known.into_iter().find(|kind| kind.name() == name).expect("a kind that is read")
}

fn name_of(kind: Kind, value: &Value) -> ObjectRef {
    let text = |path: &str| value.pointer(path).and_then(Value::as_str).unwrap_or("");
    let namespace = if kind.is_namespaced() { text("/metadata/namespace") } else { "" };
    ObjectRef::new(kind.name(), namespace, text("/metadata/name"))
}

fn network() -> NetState {
    let interface = InterfaceSpec {
        name: "up0".into(),
        ifindex: 1,
        mac: MacAddr([2, 0, 0, 0, 0, 1]),
        mtu: 1500,
        up: true,
        addresses: vec!["192.0.2.1".parse().unwrap()],
        vlan: None,
    };
    NetState { interfaces: Arc::new(vec![interface]), ..NetState::default() }
}

const HOSTILE: usize = 4_000;
