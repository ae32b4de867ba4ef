//! Kubernetes objects for hostile tests: good ones, and valid ones that were broken at random.

use fastrand::Rng;
use serde_json::{Value, json};

/// How many good Services there are.
pub const GOOD: usize = 1000;
/// First by name among Services of one age.
pub const GOOD_NAMESPACE: &str = "a-good";
/// Objects replace one another, as versions of one object do.
const NAMES: usize = 20_000;

/// A kind, for example `Service`, and an object of it without `kind` and `apiVersion`.
pub type KindAndObject = (&'static str, Value);

/// One valid object of each kind that is read.
pub fn valid() -> Vec<KindAndObject> {
    vec![
        (
            "Service",
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
            "EndpointSlice",
            json!({"metadata": {"name": "web-1", "namespace": "default",
                    "labels": {"kubernetes.io/service-name": "web"},
                    "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-11-24T10:00:00Z"}},
                "addressType": "IPv4", "ports": [{"name": "a", "port": 8080, "protocol": "TCP"}],
                "endpoints": [{"addresses": ["10.244.0.1"], "conditions": {"ready": true, "serving": true},
                    "hostname": "web-0", "nodeName": "n1", "hints": {"forZones": [{"name": "z"}]}}]}),
        ),
        (
            "Node",
            json!({"metadata": {"name": "n1", "labels": {"zone": "z"}}, "spec": {"podCIDRs": ["10.244.0.0/24"]},
                "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}),
        ),
        (
            "ServiceCIDR",
            json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16", "fd00::/112"]}}),
        ),
        (
            "Endpoints",
            json!({"metadata": {"name": "web", "namespace": "default"}, "subsets": [{
                "addresses": [{"ip": "10.244.0.3", "nodeName": "n1"}], "ports": [{"name": "a", "port": 8080}]}]}),
        ),
    ]
}

/// The cluster IP of the good Service with this number.
pub fn good_address(n: usize) -> String {
    format!("10.96.{}.{}", n / 250 + 1, n % 250 + 1)
}

/// The good Service with this number, which has a NodePort and is older than all others, and its slice.
pub fn good(n: usize, endpoint: &str) -> [KindAndObject; 2] {
    let name = format!("good-{n}");
    let service = json!({"metadata": {"name": name, "namespace": GOOD_NAMESPACE,
            "creationTimestamp": "2020-01-01T00:00:00Z"},
        "spec": {"type": "NodePort", "clusterIP": good_address(n), "selector": {"app": name},
            "ports": [{"port": 80, "nodePort": 31_000 + n}]}});
    let slice = json!({"metadata": {"name": format!("{name}-1"), "namespace": GOOD_NAMESPACE,
            "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 8080}],
        "endpoints": [{"addresses": [endpoint]}]});
    [("Service", service), ("EndpointSlice", slice)]
}

/// The object as it stands in a file; what is no mapping any more stays as it is.
pub fn manifest((kind, mut object): KindAndObject) -> Value {
    let version = match kind {
        "EndpointSlice" => "discovery.k8s.io/v1",
        "ServiceCIDR" => "networking.k8s.io/v1",
        _ => "v1",
    };
    if let Some(fields) = object.as_object_mut() {
        fields.insert("apiVersion".into(), version.into());
        fields.insert("kind".into(), kind.into());
    }
    object
}

/// Valid objects with some parts broken, or with lists as long as the API allows, or with what belongs to a good Service.
#[derive(Debug)]
pub struct Hostile {
    seeds: Vec<KindAndObject>,
    random: Rng,
}

impl Hostile {
    /// The same objects for the same seed.
    pub fn new(seed: u64) -> Self {
        Self { seeds: valid(), random: Rng::with_seed(seed) }
    }

    /// A valid object with up to three broken parts.
    pub fn broken(&mut self) -> KindAndObject {
        let (kind, mut value) = self.seeds[self.random.usize(..self.seeds.len())].clone();
        for _ in 0..self.random.usize(1..4) {
            let mut at = self.random.usize(..count(&value));
            break_part(&mut value, &mut at, &mut self.random);
        }
        (kind, value)
    }
}

impl Iterator for Hostile {
    type Item = KindAndObject;

    /// An object in a namespace of its own: in that of the good ones it would change them with good reason.
    fn next(&mut self) -> Option<KindAndObject> {
        let (kind, mut value) = self.broken();
        let random = &mut self.random;
        if random.u8(..4) == 0 {
            overdo(&mut value, random);
        }
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            let number = random.usize(..NAMES);
            metadata.insert("namespace".into(), json!("z-hostile"));
            if random.u8(..10) > 0 {
                metadata.insert("name".into(), json!(format!("hostile-{number}")));
            }
            metadata
                .insert("labels".into(), json!({"kubernetes.io/service-name": format!("hostile-{number}")}));
        }
        Some((kind, value))
    }
}

/// Lets an object claim what a good Service has, or ask for very much.
fn overdo(value: &mut Value, random: &mut Rng) {
    let n = random.usize(..GOOD);
    if let Some(endpoints) = value.get_mut("endpoints") {
        let list: Vec<Value> =
            (0..1000).map(|i| json!({"addresses": [format!("10.96.{}.{}", i / 250, i % 250)]})).collect();
        *endpoints = json!(list);
    }
    let Some(spec) = value.get_mut("spec").and_then(Value::as_object_mut) else { return };
    match random.u8(..5) {
        0 => drop(spec.insert("clusterIPs".into(), json!([good_address(n)]))),
        1 => drop(spec.insert("externalIPs".into(), json!([good_address(n), "192.0.2.1"]))),
        2 => {
            let list: Vec<String> = (0..300).map(|i| format!("203.0.{}.{}", i / 250, i % 250)).collect();
            spec.insert("externalIPs".into(), json!(list));
        }
        3 => {
            let port = |i| json!({"name": format!("p{i}"), "port": i, "nodePort": 31_000 + n});
            let ports: Vec<Value> = (1..100).map(port).collect();
            spec.insert("ports".into(), json!(ports));
        }
        _ => {
            let ingress = json!([{"ip": good_address(n)}, {"ip": "0.0.0.0"}]);
            value["status"] = json!({"loadBalancer": {"ingress": ingress}});
        }
    }
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
fn break_part(value: &mut Value, at: &mut usize, random: &mut Rng) -> bool {
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

fn other(value: &Value, random: &mut Rng) -> Value {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_objects_of_all_kinds() {
        let objects = |seed| Hostile::new(seed).take(200).collect::<Vec<_>>();
        assert_eq!(objects(1), objects(1));
        assert_ne!(objects(1), objects(2));
        for (kind, _) in valid() {
            assert!(objects(1).iter().any(|(of, _)| *of == kind), "{kind}");
        }
    }
}
