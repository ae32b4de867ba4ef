//! The command itself: its input, its output, and its errors.

use serde_json::{Value, json};

use crate::command::{Traced, parse};
use crate::world::{As, World, service};

fn web() -> Traced {
    World::web(json!({"ports": [{"name": "http", "port": 80}]})).traced(As::Node)
}

fn packet(id: &Value, proto: &str, src: &str, dst: &str) -> String {
    json!({"id": id, "proto": proto, "src": src, "dst": dst}).to_string() + "\n"
}

#[test]
fn a_batch_is_answered_in_its_order_with_its_ids_from_a_file_or_from_standard_input() {
    let ids = [json!("b"), json!(7), json!("a"), json!(null), json!("b"), json!({"n": 1})];
    let lines: String = ids
        .iter()
        .zip(["tcp", "udp", "sctp", "tcp", "udp", "tcp"])
        .map(|(id, proto)| packet(id, proto, "10.244.1.5:1234", "10.96.0.10:81"))
        .collect();
    let traced = web();
    for output in [traced.run(&lines), traced.run_from_stdin(&lines)] {
        assert!(output.status.success(), "{output:?}");
        let answers = parse(&output);
        assert_eq!(answers.iter().map(|answer| answer.id.clone()).collect::<Vec<_>>(), ids);
        assert!(answers.iter().all(|answer| answer.verdict == "reject"), "{answers:?}");
    }
    let output = traced.run("\n\n");
    assert!(output.status.success() && output.stdout.is_empty(), "blank lines are no packets: {output:?}");
}

#[test]
fn an_answer_names_the_service_port_where_there_is_one() {
    let ports = json!([{"name": "http", "port": 80}, {"name": "udp", "port": 80, "protocol": "UDP"}]);
    let guarded = json!({"clusterIP": "10.96.0.12", "type": "LoadBalancer", "externalIPs": ["192.0.2.7"],
        "loadBalancerSourceRanges": ["203.0.113.0/24"]});
    let world = World::web(json!({"ports": ports}))
        .with(service("single", json!({"clusterIP": "10.96.0.11"})))
        .with(crate::world::ingress(service("guarded", guarded), json!([{"ip": "192.0.2.8"}])));
    let expected = [
        ("tcp", "10.96.0.10:80", "reject", Some("default/web:http")),
        ("udp", "10.96.0.10:80", "reject", Some("default/web:udp")),
        ("tcp", "10.96.0.10:81", "reject", None),
        ("tcp", "10.96.0.11:80", "reject", Some("default/single")),
        ("tcp", "192.0.2.8:80", "drop", Some("default/guarded")),
        ("tcp", "192.168.0.1:22", "local", None),
        ("tcp", "10.244.2.10:8080", "pass", None),
    ];
    let packets: Vec<_> = expected
        .iter()
        .map(|(proto, dst, _, _)| ((*proto).to_owned(), "198.51.100.9:5".to_owned(), (*dst).to_owned()))
        .collect();
    for (answer, (proto, dst, verdict, name)) in world.traced(As::Node).answers(&packets).iter().zip(expected)
    {
        assert_eq!(
            (&*answer.verdict, answer.service.as_deref()),
            (verdict, name),
            "{proto} {dst}: {answer:?}"
        );
    }
}

#[test]
fn the_same_packet_is_answered_alike_each_time() {
    let lines = packet(&json!("x"), "tcp", "10.244.1.5:1234", "10.96.0.10:80").repeat(50);
    let traced = web();
    let output = traced.run(&lines);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().collect::<std::collections::BTreeSet<_>>().len(), 1, "{text}");
    assert_eq!(text.as_bytes(), traced.run(&lines).stdout);
}

#[test]
fn a_line_that_is_no_packet_is_answered_with_its_error_and_the_others_go_on() {
    let bad = [
        ("nonsense", "expected"),
        ("{\"id\": 1}", "missing field"),
        (r#"{"id":1,"proto":"icmp","src":"10.0.0.2:1","dst":"10.0.0.3:1"}"#, "proto"),
        (r#"{"id":1,"proto":"tcp","src":"10.0.0.2","dst":"10.0.0.3:1"}"#, "src"),
        (r#"{"id":1,"proto":"tcp","src":"10.0.0.2:1","dst":"web:80"}"#, "dst"),
        (r#"{"id":1,"proto":"tcp","src":"10.0.0.2:1","dst":"10.0.0.3:65536"}"#, "dst"),
        (r#"{"id":1,"proto":"tcp","src":"10.0.0.2:1","dst":"[fd00::1]:80"}"#, "families"),
    ];
    let good = packet(&json!("good"), "tcp", "10.244.1.5:1234", "10.96.0.10:81");
    let lines: String = bad.iter().flat_map(|(line, _)| [line, "\n", &*good]).collect();
    let output = web().run(&lines);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let answers: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), 2 * bad.len(), "{text}");
    for ((pair, (line, says)), number) in answers.chunks(2).zip(bad).zip(0..) {
        let error = pair[0]["error"].as_str().unwrap_or_default();
        let place = format!(":{}: ", 2 * number + 1);
        assert!(
            error.contains(&place) && error.contains(says),
            "{line}: {error:?} has its place and {says:?}"
        );
        assert_eq!((&pair[1]["id"], &pair[1]["verdict"]), (&json!("good"), &json!("reject")), "{text}");
    }
}

#[test]
fn objects_that_are_wrong_are_named_and_the_others_are_served() {
    let bad = service("bad", json!({"clusterIP": "10.96.0.300"}));
    let traced = World::web(json!({})).with(bad).traced(As::Node);
    let output = traced.run(&packet(&json!(1), "tcp", "10.244.1.5:1234", "10.96.0.10:80"));
    assert!(output.status.success(), "{output:?}");
    assert_eq!(parse(&output)[0].verdict, "forward");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("Service default/bad: ") && stderr.contains("10.96.0.300"), "{stderr}");
}

#[test]
fn manifests_or_packets_that_cannot_be_read_are_an_error_that_names_them() {
    let traced = web();
    let missing = |manifests: &str, packets: &str| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_flowgate"))
            .args(["trace", "--manifests", manifests, "--packets", packets])
            .output()
            .unwrap();
        assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let manifests = traced.manifests().display().to_string();
    assert!(missing("/nowhere/manifests", "/dev/null").contains("/nowhere/manifests: cannot be read"));
    assert!(missing(&manifests, "/nowhere/packets").contains("/nowhere/packets"));
}

#[test]
fn a_node_that_the_manifests_lack_has_no_node_ports_and_is_named() {
    let world = World::web(json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]}));
    let traced = world.flag("--role=node").flag("--node-name=nobody").traced(As::Flags);
    let lines = packet(&json!(1), "tcp", "198.51.100.9:1", "192.168.0.1:30080")
        + &packet(&json!(2), "tcp", "198.51.100.9:1", "10.96.0.10:80");
    let output = traced.run(&lines);
    assert!(output.status.success(), "{output:?}");
    let verdicts: Vec<String> = parse(&output).into_iter().map(|answer| answer.verdict).collect();
    assert_eq!(verdicts, ["pass", "forward"]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("no Node named \"nobody\""));
}

#[test]
fn flags_that_mean_nothing_are_refused_with_what_to_write() {
    for (flag, says) in [
        ("--nodeport-addresses=eth0", "eth0"),
        ("--cluster-cidr=10.244.0.0", "10.244.0.0"),
        ("--role=master", "gateway"),
        ("--detect-local=magic", "cluster-cidr"),
        ("--external-ips=most", "safe, all, none"),
        ("--protected-ports=ssh", "22/tcp"),
        ("--snat-ports=5", "range of ports"),
    ] {
        let output = World::new().flag(flag).traced(As::Flags).run("");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && stderr.contains(says), "{flag}: {stderr}");
    }
}
