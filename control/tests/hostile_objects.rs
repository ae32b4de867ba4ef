//! Valid objects broken in a random place: none may cause a panic, affect another object or be refused without a
//! reason. The random numbers are the same in each run.
#![allow(clippy::unwrap_used, reason = "test support: a panic is the report")]

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use flowgate_control::compile::Compiler;
use flowgate_control::model::{ClusterAddress, Desired, Key, Kind, NetState, Object, ServiceType};
use flowgate_control::source::convert;
use flowgate_control::{CompileConfig, ObjectRef, Report, Role, Severity, compile};
use flowgate_tables::Tables;
use flowgate_tables::spec::{InterfaceSpec, ServiceSpec};
use flowgate_wire::MacAddr;
use serde_json::{Value, json};

const CASES: usize = 100_000;
/// Every so many cases, those that were accepted are compiled beside a good Service.
const COMPILED_TOGETHER: usize = 20;
const COMPILED_EVERY: usize = 2_000;

fn valid() -> Vec<(Kind, Value)> {
    vec![
        (
            Kind::Service,
            json!({"metadata": {"name": "web", "namespace": "default", "labels": {"a": "b"}}, "spec": {
                "type": "LoadBalancer", "clusterIP": "10.96.0.20", "clusterIPs": ["10.96.0.20", "fd00::20"],
                "externalIPs": ["192.0.2.9"], "selector": {"app": "web"}, "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 100}},
                "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Cluster",
                "healthCheckNodePort": 30001, "loadBalancerSourceRanges": ["192.0.2.0/24"],
                "ports": [{"name": "a", "port": 80, "targetPort": "http", "nodePort": 30080, "protocol": "TCP"},
                    {"name": "b", "port": 53, "targetPort": 5353, "protocol": "UDP"}]},
                "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.1", "ipMode": "VIP"}]}}}),
        ),
        (
            Kind::EndpointSlice,
            json!({"metadata": {"name": "web-1", "namespace": "default",
                    "labels": {"kubernetes.io/service-name": "web"},
                    "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-11-24T10:00:00Z"}},
                "addressType": "IPv4", "ports": [{"name": "a", "port": 8080, "protocol": "TCP"}],
                "endpoints": [{"addresses": ["10.244.0.1"], "conditions": {"ready": true, "serving": true},
                    "hostname": "web-0", "nodeName": "n1", "hints": {"forZones": [{"name": "z"}]}}]}),
        ),
        (
            Kind::Node,
            json!({"metadata": {"name": "n1", "labels": {"zone": "z"}}, "spec": {"podCIDRs": ["10.244.0.0/24"]},
                "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}),
        ),
        (
            Kind::ServiceCidr,
            json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16", "fd00::/112"]}}),
        ),
        (
            Kind::Endpoints,
            json!({"metadata": {"name": "web", "namespace": "default"}, "subsets": [{
                "addresses": [{"ip": "10.244.0.3", "nodeName": "n1"}], "ports": [{"name": "a", "port": 8080}]}]}),
        ),
    ]
}

#[test]
fn whatever_is_in_an_object_it_is_accepted_or_refused_with_a_reason_and_spoils_no_other() {
    let mut random = fastrand::Rng::with_seed(0x00f1_0a7e);
    let seeds = valid();
    let (mut accepted, mut refused) = (Vec::new(), 0_usize);
    for case in 0..CASES {
        let (kind, seed) = &seeds[random.usize(..seeds.len())];
        let mut value = seed.clone();
        for _ in 0..random.usize(1..4) {
            let parts = count(&value);
            let mut at = random.usize(..parts);
            break_part(&mut value, &mut at, &mut random);
        }
        let text = |path: &str| value.pointer(path).and_then(Value::as_str).unwrap_or("").to_owned();
        let namespace = if kind.is_namespaced() { text("/metadata/namespace") } else { String::new() };
        let name = ObjectRef::new(kind.name(), namespace, text("/metadata/name"));
        let shown = value.to_string();
        match convert::object(*kind, &name, value) {
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
    assert!(refused > CASES / 10, "the objects were not broken enough: {refused} refused");
    assert!(refused < CASES, "something is accepted");
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

/// How many values there are in a value, itself included.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(fields) => fields.values().map(count).sum(),
        _ => 0,
    }
}

/// Replaces the part number `at`, counted as in [`count`].
fn break_part(value: &mut Value, at: &mut usize, random: &mut fastrand::Rng) -> bool {
    if *at == 0 {
        *value = other(value, random);
        return true;
    }
    *at -= 1;
    match value {
        Value::Array(items) => items.iter_mut().any(|item| break_part(item, at, random)),
        Value::Object(fields) => fields.values_mut().any(|field| break_part(field, at, random)),
        _ => false,
    }
}

fn other(value: &Value, random: &mut fastrand::Rng) -> Value {
    const TEXTS: [&str; 17] = [
        "",
        " ",
        "None",
        "0.0.0.0",
        "255.255.255.255",
        "::",
        "fe80::1",
        "10.0.0.0/33",
        "1e9",
        "тест",
        "\u{0}",
        "a\nb",
        "../../etc",
        "127.0.0.1",
        "ff02::1",
        "10.96.9.9",
        "-1",
    ];
    const NUMBERS: [i64; 8] = [0, -1, 1, 65_535, 65_536, 2_147_483_647, 2_147_483_648, i64::MIN];
    match random.u8(..10) {
        0 => Value::Null,
        1 => json!(NUMBERS[random.usize(..NUMBERS.len())]),
        2 => json!(TEXTS[random.usize(..TEXTS.len())]),
        3 => json!("x".repeat(random.usize(1..400))),
        4 => json!([value, value]),
        5 => json!({ "deep": value }),
        6 => json!(random.bool()),
        7 => json!([]),
        8 => json!({}),
        _ => json!(0.5),
    }
}

/// The same at the scale of a cluster: `HOSTILE_OBJECTS=100000 cargo test --test hostile_objects` for the whole of it.
#[test]
fn hostile_objects_among_a_thousand_good_services_disturb_none_of_them_and_are_named() {
    let count = std::env::var("HOSTILE_OBJECTS").ok().and_then(|text| text.parse().ok()).unwrap_or(HOSTILE);
    let mut random = fastrand::Rng::with_seed(0x00f1_0a7f);
    let mut desired = Arc::new(Desired::default());
    for n in 0..GOOD {
        for (kind, value) in good(n) {
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

    let seeds = valid();
    let mut refused = 0_usize;
    for case in 1..=count {
        let (kind, value) = hostile(&seeds, &mut random);
        let name = name_of(kind, &value);
        let convert = if random.bool() { convert::object } else { convert::accepted_object };
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

/// A Service with a NodePort and its slice.
fn good(n: usize) -> [(Kind, Value); 2] {
    let (name, ip) = (format!("good-{n}"), format!("{}.{}", n / 250, n % 250 + 1));
    let service = json!({"metadata": {"name": name, "namespace": GOOD_NAMESPACE,
            "creationTimestamp": "2020-01-01T00:00:00Z"},
        "spec": {"type": "NodePort", "clusterIP": format!("10.96.{ip}"), "selector": {"app": name},
            "ports": [{"port": 80, "nodePort": 30_000 + n}]}});
    let slice = json!({"metadata": {"name": format!("{name}-1"), "namespace": GOOD_NAMESPACE,
            "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 8080}],
        "endpoints": [{"addresses": [format!("10.244.{ip}")]}]});
    [(Kind::Service, service), (Kind::EndpointSlice, slice)]
}

/// A valid object with some parts broken, or with lists as long as the API allows, or with what belongs to a good Service.
/// It has a namespace of its own: in theirs it would change the good ones with good reason.
fn hostile(seeds: &[(Kind, Value)], random: &mut fastrand::Rng) -> (Kind, Value) {
    let (kind, seed) = &seeds[random.usize(..seeds.len())];
    let mut value = seed.clone();
    for _ in 0..random.usize(1..4) {
        let mut at = random.usize(..count(&value));
        break_part(&mut value, &mut at, random);
    }
    if random.u8(..4) == 0 {
        let n = random.usize(..GOOD);
        let taken = format!("10.96.{}.{}", n / 250, n % 250 + 1);
        if let Some(spec) = value.get_mut("spec").and_then(Value::as_object_mut) {
            match random.u8(..5) {
                0 => drop(spec.insert("clusterIPs".into(), json!([taken]))),
                1 => drop(spec.insert("externalIPs".into(), json!([taken, "192.0.2.1"]))),
                2 => {
                    let list: Vec<String> =
                        (0..300).map(|i| format!("203.0.{}.{}", i / 250, i % 250)).collect();
                    spec.insert("externalIPs".into(), json!(list));
                }
                3 => {
                    let ports: Vec<Value> = (1..100)
                        .map(|i| json!({"name": format!("p{i}"), "port": i, "nodePort": 30_000 + n}))
                        .collect();
                    spec.insert("ports".into(), json!(ports));
                }
                _ => {
                    value["status"] = json!({"loadBalancer": {"ingress": [{"ip": taken}, {"ip": "0.0.0.0"}]}})
                }
            }
        } else if let Some(endpoints) = value.get_mut("endpoints") {
            let list: Vec<Value> =
                (0..1000).map(|i| json!({"addresses": [format!("10.96.{}.{}", i / 250, i % 250)]})).collect();
            *endpoints = json!(list);
        }
    }
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        let number = random.usize(..HOSTILE_NAMES);
        metadata.insert("namespace".into(), json!("z-hostile"));
        if random.u8(..10) > 0 {
            metadata.insert("name".into(), json!(format!("hostile-{number}")));
        }
        metadata.insert("labels".into(), json!({"kubernetes.io/service-name": format!("hostile-{number}")}));
    }
    (*kind, value)
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

const GOOD: usize = 1000;
/// First by name, as they would be the elder ones.
const GOOD_NAMESPACE: &str = "a-good";
const HOSTILE: usize = 4_000;
/// Objects replace one another, as versions of one object do.
const HOSTILE_NAMES: usize = 20_000;
