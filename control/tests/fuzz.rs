//! Fuzz targets for objects, manifests and DNS queries. Corpora are replayed first; `FUZZ_SECONDS` and `FUZZ_SEED` as
//! in `flowgate_fuzz`.
#![allow(clippy::unwrap_used, reason = "test support: a panic is the report")]

use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::time::Duration;

use flowgate_control::model::{Desired, Key, Kind, NetState};
use flowgate_control::source::{convert, manifests};
use flowgate_control::{CompileConfig, ObjectRef, Role, Severity, compile};
use flowgate_fuzz::{Feature, Rng, Target, feature};
use flowgate_tables::Tables;
use hickory_proto::op::{Message, MessageType};
use hickory_proto::rr::RecordType;
use serde_json::Value;

use crate::dns::{TestServer, one_web, query};

const OBJECTS: &[(&str, &str)] = &[
    (
        "Service",
        r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"web","namespace":"default"},"spec":{"type":"LoadBalancer","clusterIP":"10.96.0.20","clusterIPs":["10.96.0.20","fd00::20"],"ipFamilies":["IPv4","IPv6"],"externalIPs":["192.0.2.9"],"sessionAffinity":"ClientIP","externalTrafficPolicy":"Local","healthCheckNodePort":30001,"loadBalancerSourceRanges":["192.0.2.0/24"],"ports":[{"name":"a","port":80,"targetPort":"http","nodePort":30080},{"name":"b","port":53,"protocol":"UDP"}]},"status":{"loadBalancer":{"ingress":[{"ip":"198.51.100.1","ipMode":"VIP"}]}}}"#,
    ),
    (
        "EndpointSlice",
        r#"{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{"name":"web-1","namespace":"default","labels":{"kubernetes.io/service-name":"web"}},"addressType":"IPv4","ports":[{"name":"a","port":8080,"protocol":"TCP"}],"endpoints":[{"addresses":["10.244.0.1"],"conditions":{"ready":true,"serving":true},"nodeName":"n1","hints":{"forZones":[{"name":"z"}]}}]}"#,
    ),
    (
        "Endpoints",
        r#"{"apiVersion":"v1","kind":"Endpoints","metadata":{"name":"db","namespace":"default"},"subsets":[{"addresses":[{"ip":"10.244.0.3"}],"ports":[{"name":"a","port":8080}]}]}"#,
    ),
    (
        "Node",
        r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"n1"},"spec":{"podCIDRs":["10.244.0.0/24"]},"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.1"}]}}"#,
    ),
    (
        "ServiceCIDR",
        r#"{"apiVersion":"networking.k8s.io/v1","kind":"ServiceCIDR","metadata":{"name":"kubernetes"},"spec":{"cidrs":["10.96.0.0/16","fd00::/112"]}}"#,
    ),
    ("Namespace", r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"default"}}"#),
];

const WORDS: &[&[u8]] = &[
    b"---\n",
    b"null",
    b"[]",
    b"{}",
    b"\"items\":",
    b"List",
    b"&a",
    b"*a",
    b"!!binary ",
    b"|-\n  ",
    b"<<: ",
    b"-1",
    b"65536",
    b"0.0.0.0",
    b"::",
    b"\"ports\":",
    b"\"None\"",
    b"SCTP",
    b"1e99",
    b"\xef\xbb\xbf",
    b"\r\n",
    b"\t",
    b"\\u0000",
];

#[test]
fn whatever_a_file_holds_it_is_read_and_compiled_and_spoils_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let make = |random: &mut Rng| {
        let texts = (0..random.usize(1..4)).map(|_| OBJECTS[random.usize(..OBJECTS.len())].1);
        texts.collect::<Vec<_>>().join(if random.bool() { "\n---\n" } else { "\n" }).into_bytes()
    };
    let good = "{apiVersion: v1, kind: Service, metadata: {name: good, namespace: a}, spec: {clusterIP: 10.96.9.9, ports: [{port: 80}]}}";
    fs::write(dir.path().join("0-good.yaml"), good).unwrap();
    Target::new("manifests", env!("CARGO_MANIFEST_DIR"))
        .dictionary(WORDS)
        .run(make, |input| read_and_compile(dir.path(), input));
}

fn read_and_compile(dir: &Path, input: &[u8]) -> Feature {
    let mut all = Vec::new();
    for (name, other) in [("1-any.yaml", "1-any.json"), ("1-any.json", "1-any.yaml")] {
        let _ = fs::remove_file(dir.join(other));
        fs::write(dir.join(name), input).unwrap();
        let snapshot = manifests::read(dir).unwrap();
        assert!(snapshot.findings.iter().all(|finding| !finding.reason.trim().is_empty()));
        let findings: Vec<String> = snapshot.findings.iter().map(|f| without_names(&f.reason)).collect();
        let (tables, _) = compiled(&snapshot.desired);
        let good = tables.services.frontends().any(|frontend| frontend.key.addr.to_string() == "10.96.9.9");
        assert!(good, "the good Service beside it is served");
        all.push((findings, snapshot.ignored, tables.services.services().len()));
    }
    feature(&all)
}

fn compiled(desired: &Desired) -> (Tables, usize) {
    let config = CompileConfig { role: Role::Gateway, node_name: "n1".into(), ..CompileConfig::default() };
    let (tables, report) = compile(desired, &NetState::default(), &config, &Tables::empty());
    (tables, report.to_string().len())
}

/// A reason without what it quotes.
fn without_names(reason: &str) -> String {
    reason.chars().filter(|c| c.is_ascii_alphabetic() || *c == ' ').take(40).collect()
}

#[test]
fn whatever_the_api_server_sends_it_is_accepted_or_refused_with_a_reason() {
    let make = |random: &mut Rng| OBJECTS[random.usize(..OBJECTS.len())].1.as_bytes().to_vec();
    let check = |input: &[u8]| {
        let Ok(value) = serde_json::from_slice::<Value>(input) else { return 0 };
        let text = |path: &str| value.pointer(path).and_then(Value::as_str).unwrap_or("").to_owned();
        let kind = match text("/kind").as_str() {
            "EndpointSlice" => Kind::EndpointSlice,
            "Endpoints" => Kind::Endpoints,
            "Node" => Kind::Node,
            "ServiceCIDR" => Kind::ServiceCidr,
            "Namespace" => Kind::Namespace,
            _ => Kind::Service,
        };
        let namespace = if kind.is_namespaced() { text("/metadata/namespace") } else { String::new() };
        let name = ObjectRef::new(kind.name(), namespace, text("/metadata/name"));
        let (object, findings) = convert::object(kind, &name, value);
        let refused = findings.iter().any(|(severity, _)| *severity == Severity::Error);
        assert_eq!(object.is_none(), refused, "{findings:?}");
        assert!(findings.iter().all(|(_, reason)| !reason.trim().is_empty()));
        if let Some(object) = object {
            let mut desired = Desired::default();
            desired.apply(Key::new(&name.namespace, &name.name), object, None);
            compiled(&desired);
        }
        let reasons: Vec<String> = findings.iter().map(|(_, reason)| without_names(reason)).collect();
        feature(&(kind.name(), reasons))
    };
    Target::new("kube", env!("CARGO_MANIFEST_DIR")).dictionary(WORDS).run(make, check);
}

#[test]
fn whatever_a_client_sends_the_name_server_goes_on_answering() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let server = runtime.block_on(TestServer::with(one_web(), &[]));
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(server.addr).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let names = [
        "web.default.svc.cluster.local.",
        "_a._tcp.web.default.svc.cluster.local.",
        ".",
        "1.0.244.10.in-addr.arpa.",
    ];
    let types = [RecordType::A, RecordType::AAAA, RecordType::SRV, RecordType::PTR, RecordType::ANY];
    let make = |random: &mut Rng| {
        let question = query(names[random.usize(..names.len())], types[random.usize(..types.len())]);
        let question = if random.bool() { crate::dns::with_edns(question, random.u16(..)) } else { question };
        question.to_vec().unwrap()
    };
    let check = |input: &[u8]| ask(&socket, input);
    Target::new("dns", env!("CARGO_MANIFEST_DIR")).run(make, check);
    drop(server);
}

/// Sends any bytes, then a question that must be answered, and looks at what came back before.
fn ask(socket: &UdpSocket, input: &[u8]) -> Feature {
    let mut probe = query("web.default.svc.cluster.local.", RecordType::A);
    // Answers to earlier bytes may still come: the probe is told by a number of its own.
    probe.metadata.id = next_id();
    if socket.send(&input[..input.len().min(4096)]).is_err() {
        return 0;
    }
    socket.send(&probe.to_vec().unwrap()).unwrap();
    let mut codes = Vec::new();
    let mut buffer = [0; 65_535];
    loop {
        let len = socket.recv(&mut buffer).expect("the name server still answers");
        let answer = Message::from_vec(&buffer[..len]).expect("an answer is a message");
        assert_eq!(answer.metadata.message_type, MessageType::Response);
        assert!(len <= 1232, "{len} bytes in a datagram");
        if answer.metadata.id == probe.metadata.id && answer.queries == probe.queries {
            return feature(&codes);
        }
        codes.push(format!("{:?} {}", answer.metadata.response_code, answer.answers.len()));
    }
}

/// A message number that differs from call to call.
fn next_id() -> u16 {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
