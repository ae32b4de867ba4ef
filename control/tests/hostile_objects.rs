//! Valid objects broken in a random place: none may cause a panic, affect another object or be refused without a
//! reason. The random numbers are the same in each run.

use flowgate_control::model::{Desired, Key, Kind, NetState, Object};
use flowgate_control::source::convert;
use flowgate_control::{CompileConfig, ObjectRef, Role, Severity, compile};
use flowgate_tables::Tables;
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
