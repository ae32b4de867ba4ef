//! A small cluster for the rules: API objects, and rows of packets with the expected verdicts.

use serde_json::{Value, json};

use crate::command::{Answer, Traced};

/// What the machine under test is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum As {
    /// The node `a` of the cluster; it knows pods by the range of the cluster.
    Node,
    /// The same node without a way to tell pods from others.
    NodeWithoutDetector,
    /// A gateway, described by the Node `edge`.
    Gateway,
    /// Whatever the flags of the world say, and nothing else.
    Flags,
}

/// Objects and flags.
#[derive(Clone, Debug, Default)]
pub(crate) struct World {
    objects: Vec<Value>,
    flags: Vec<String>,
}

impl World {
    /// Two nodes and a gateway, each with a few addresses, and nothing else. Pods of `a` have addresses in
    /// 10.244.1.0/24, those of `b` in 10.244.2.0/24; clients outside are in 198.51.100.0/24.
    pub(crate) fn new() -> Self {
        let world = Self::default();
        world
            .with(node("a", "z1", &["192.168.0.1", "192.168.7.1", "fd00:a::1"]))
            .with(node("b", "z2", &["192.168.0.2", "fd00:a::2"]))
            .with(node("edge", "z1", &["203.0.113.1", "203.0.113.2", "2001:db8:1::1"]))
    }

    /// The world with the Service `web` at 10.96.0.10:80, the fields of `spec` over its own, and with the
    /// endpoints 10.244.1.10:8080 on node `a` and 10.244.2.10:8080 on `b`.
    pub(crate) fn web(spec: Value) -> Self {
        Self::new().with(service("web", spec)).with(slice("web", vec![local(), remote()]))
    }

    /// The world with `web` on every kind of address, the fields of `spec` over its own: 10.96.0.10:80, the external
    /// 192.0.2.7:80, the load balancer's 192.0.2.8:80 (and 192.0.2.9, which a proxy has), and NodePort 30080.
    pub(crate) fn reachable(spec: Value, endpoints: Vec<Value>) -> Self {
        let mut own = json!({"type": "LoadBalancer", "externalIPs": ["192.0.2.7"],
            "ports": [{"port": 80, "nodePort": 30080}]});
        let Value::Object(fields) = spec else { panic!("a spec is an object") };
        fields.into_iter().for_each(|(field, value)| own[field] = value);
        let status = json!([{"ip": "192.0.2.8"}, {"ip": "192.0.2.9", "ipMode": "Proxy"}]);
        Self::new().with(ingress(service("web", own), status)).with(slice("web", endpoints))
    }

    /// With another object.
    pub(crate) fn with(mut self, object: Value) -> Self {
        self.objects.push(object);
        self
    }

    /// With another flag.
    pub(crate) fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }

    /// Ready for packets, as this machine.
    pub(crate) fn traced(&self, machine: As) -> Traced {
        let flags: &[&str] = match machine {
            As::Node => &[
                "--role=node",
                "--node-name=a",
                "--cluster-cidr=10.244.0.0/16",
                "--cluster-cidr=fd00:244::/64",
            ],
            As::NodeWithoutDetector => &["--role=node", "--node-name=a", "--detect-local=none"],
            As::Gateway => &["--role=gateway", "--node-name=edge"],
            As::Flags => &[],
        };
        let flags = flags.iter().copied().chain(self.flags.iter().map(String::as_str));
        let objects: Vec<String> = self.objects.iter().map(ToString::to_string).collect();
        Traced::new(&objects.join("\n"), flags.map(str::to_owned).collect())
    }

    /// Tries rows of `protocol source -> destination => outcome`. The outcome is `reject`, `drop`, `pass` or
    /// `local`, or else the candidates, and `snat` if the client's address is replaced. A source without a
    /// port gets one.
    pub(crate) fn check(&self, machine: As, rows: &[&str]) {
        let parsed: Vec<_> = rows.iter().map(|row| parse_row(row)).collect();
        let packets: Vec<_> = parsed.iter().map(|(packet, _)| packet.clone()).collect();
        let answers = self.traced(machine).answers(&packets);
        let wrong: Vec<String> = rows
            .iter()
            .zip(parsed.iter().zip(&answers))
            .filter(|(_, ((_, wanted), answer))| outcome(answer) != *wanted)
            .map(|(row, (_, answer))| format!("  {row}\n    but: {} ({})", outcome(answer), answer.reason))
            .collect();
        assert!(wrong.is_empty(), "as {machine:?}:\n{}", wrong.join("\n"));
    }
}

/// What an answer is in the words of a row.
pub(crate) fn outcome(answer: &Answer) -> String {
    if answer.verdict != "forward" {
        return answer.verdict.clone();
    }
    let mut words: Vec<&str> = answer.candidates.iter().map(String::as_str).collect();
    words.extend(answer.snat.then_some("snat"));
    words.join(" ")
}

fn parse_row(row: &str) -> ((String, String, String), String) {
    let (packet, wanted) = row.split_once(" => ").expect("a row has an outcome");
    let words: Vec<&str> = packet.split_whitespace().collect();
    let [proto, src, "->", dst] = words[..] else { panic!("{row}: not a packet") };
    let src = match src {
        with_port if with_port.starts_with('[') || with_port.matches(':').count() == 1 => src.to_owned(),
        v6 if v6.contains(':') => format!("[{v6}]:40000"),
        v4 => format!("{v4}:40000"),
    };
    ((proto.to_owned(), src, dst.to_owned()), wanted.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// A Node with these addresses of its own.
pub(crate) fn node(name: &str, zone: &str, addresses: &[&str]) -> Value {
    let addresses: Vec<Value> =
        addresses.iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}},
        "status": {"addresses": addresses},
    })
}

/// A Service at 10.96.0.10:80; what `spec` has replaces what it would have.
pub(crate) fn service(name: &str, spec: Value) -> Value {
    let mut merged = json!({"clusterIP": "10.96.0.10", "ports": [{"port": 80}], "selector": {"app": name}});
    let Value::Object(fields) = spec else { panic!("a spec is an object") };
    if fields.contains_key("clusterIPs") {
        merged["clusterIP"] = fields["clusterIPs"][0].clone();
    }
    fields.into_iter().for_each(|(field, value)| merged[field] = value);
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "default"}, "spec": merged,
    })
}

/// The object with a label.
pub(crate) fn labelled(mut object: Value, label: &str, value: &str) -> Value {
    object["metadata"]["labels"][label] = value.into();
    object
}

/// The Service with this load balancer status.
pub(crate) fn ingress(mut service: Value, ingress: Value) -> Value {
    service["status"] = json!({"loadBalancer": {"ingress": ingress}});
    service
}

/// An IPv4 slice of a Service whose unnamed port is 8080 there.
pub(crate) fn slice(service: &str, endpoints: Vec<Value>) -> Value {
    slice_of(service, "IPv4", json!([{"name": "", "port": 8080}]), endpoints)
}

/// A slice; its name is made from what is in it.
pub(crate) fn slice_of(service: &str, family: &str, ports: Value, endpoints: Vec<Value>) -> Value {
    let text = format!("{family}{ports}{endpoints:?}");
    let sum = text.bytes().fold(5381_u32, |sum, byte| sum.wrapping_mul(33) ^ u32::from(byte));
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-{sum:08x}"), "namespace": "default",
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": family, "ports": ports, "endpoints": endpoints,
    })
}

/// A ready endpoint on a node.
pub(crate) fn endpoint(ip: &str, node: &str) -> Value {
    json!({"addresses": [ip], "nodeName": node})
}

/// The endpoint with these conditions.
pub(crate) fn but(mut endpoint: Value, conditions: Value) -> Value {
    endpoint["conditions"] = conditions;
    endpoint
}

/// The endpoint with hints for zones and nodes.
pub(crate) fn hinted(mut endpoint: Value, zones: &[&str], nodes: &[&str]) -> Value {
    let names = |list: &[&str]| -> Vec<Value> { list.iter().map(|name| json!({"name": name})).collect() };
    endpoint["hints"] = json!({"forZones": names(zones), "forNodes": names(nodes)});
    endpoint
}

/// Conditions of an endpoint that takes nothing new.
pub(crate) fn unready() -> Value {
    json!({"ready": false, "serving": false, "terminating": false})
}

/// Conditions of an endpoint that still answers while it ends.
pub(crate) fn ending() -> Value {
    json!({"ready": false, "serving": true, "terminating": true})
}

/// The endpoint of `web` on the node under test.
pub(crate) fn local() -> Value {
    endpoint("10.244.1.10", "a")
}

/// The endpoint of `web` on the other node.
pub(crate) fn remote() -> Value {
    endpoint("10.244.2.10", "b")
}
