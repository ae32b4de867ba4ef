//! P6xx and P7xx on a node: which source address a backend sees, and that affinity excludes no endpoint before it binds.

use serde_json::{Value, json};

use crate::world::{As, World, endpoint, local, service, slice};

const POD: &str = "10.244.1.5";
const NODE: &str = "192.168.0.1";
const OUTSIDE: &str = "198.51.100.9";

/// `web` on all kinds of addresses with one endpoint on the node.
fn reachable(spec: Value) -> World {
    World::reachable(spec, vec![local()])
}

/// Whether the source is replaced on the way to each of these.
fn check(world: &World, machine: As, rows: &[(&str, &str, bool)]) {
    let rows: Vec<String> = rows
        .iter()
        .map(|(source, to, snat)| {
            format!("tcp {source} -> {to} => 10.244.1.10:8080{}", if *snat { " snat" } else { "" })
        })
        .collect();
    world.check(machine, &rows.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn p601_the_first_range_of_a_family_tells_pods_from_others_and_without_one_nobody_can() {
    let world = reachable(json!({})).flag("--role=node").flag("--node-name=a");
    let two = world.clone().flag("--cluster-cidr=fd00:244::/64").flag("--cluster-cidr=10.244.0.0/16");
    let two = two.flag("--cluster-cidr=198.51.100.0/24");
    check(&two, As::Flags, &[(POD, "10.96.0.10:80", false), (OUTSIDE, "10.96.0.10:80", true)]);
    // Only a range of the other family: as without a detector (P604).
    let other = world.clone().flag("--cluster-cidr=fd00:244::/64");
    check(&other, As::Flags, &[(POD, "10.96.0.10:80", false), (OUTSIDE, "10.96.0.10:80", false)]);
    let off = world.flag("--cluster-cidr=10.244.0.0/16").flag("--detect-local=none");
    check(&off, As::Flags, &[(OUTSIDE, "10.96.0.10:80", false)]);
}

#[test]
fn p603_to_a_cluster_ip_all_but_local_pods_are_masqueraded() {
    let sources = |all: bool| {
        [
            (POD, "10.96.0.10:80", all),
            (NODE, "10.96.0.10:80", true),
            ("192.168.0.2", "10.96.0.10:80", true),
            (OUTSIDE, "10.96.0.10:80", true),
        ]
    };
    for policy in ["Cluster", "Local"] {
        let world = reachable(json!({"internalTrafficPolicy": policy}));
        check(&world, As::Node, &sources(false));
        check(&world.flag("--masquerade-all"), As::Node, &sources(true));
    }
}

#[test]
fn p604_without_a_detector_nobody_is_masqueraded_to_a_cluster_ip() {
    let rows = |all: bool| [POD, NODE, "192.168.0.2", OUTSIDE].map(|source| (source, "10.96.0.10:80", all));
    check(&reachable(json!({})), As::NodeWithoutDetector, &rows(false));
    check(&reachable(json!({})).flag("--masquerade-all"), As::NodeWithoutDetector, &rows(true));
}

#[test]
fn p605_a_client_that_is_its_own_backend_is_masqueraded_whatever_else_is_said() {
    let everywhere = ["10.96.0.10:80", "192.0.2.7:80", "192.0.2.8:80", "192.168.0.1:30080"];
    for machine in [As::Node, As::NodeWithoutDetector] {
        for policy in ["Cluster", "Local"] {
            let world = reachable(json!({"externalTrafficPolicy": policy, "internalTrafficPolicy": policy}));
            check(&world, machine, &everywhere.map(|to| ("10.244.1.10", to, true)));
        }
    }
    // Only when it is the one that was chosen.
    let two = World::new()
        .with(service("web", json!({})))
        .with(slice("web", vec![local(), endpoint("10.244.1.11", "a")]));
    let packets: Vec<_> = (0..64)
        .map(|n| ("tcp".to_owned(), format!("10.244.1.10:{}", 40_000 + n), "10.96.0.10:80".to_owned()))
        .collect();
    let answers = two.traced(As::Node).answers(&packets);
    for answer in &answers {
        assert_eq!(answer.snat, answer.backend.as_deref() == Some("10.244.1.10:8080"), "{answer:?}");
    }
    assert!(answers.iter().any(|answer| answer.snat) && answers.iter().any(|answer| !answer.snat));
}

#[test]
fn p606_masquerading_everything_changes_nothing_for_outside_addresses() {
    let world = reachable(json!({"externalTrafficPolicy": "Local"})).flag("--masquerade-all");
    for to in ["192.0.2.7:80", "192.0.2.8:80", "192.168.0.1:30080"] {
        check(&world, As::Node, &[(OUTSIDE, to, false), (POD, to, false), (NODE, to, true)]);
    }
}

#[test]
fn p701_affinity_changes_neither_the_candidates_nor_the_masquerade() {
    for spec in [
        json!({"sessionAffinity": "ClientIP"}),
        json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 1}}}),
        json!({"sessionAffinity": "None"}),
    ] {
        World::web(spec).check(
            As::Node,
            &[
                "tcp 10.244.1.5 -> 10.96.0.10:80 => 10.244.1.10:8080 10.244.2.10:8080",
                "tcp 198.51.100.9 -> 10.96.0.10:80 => 10.244.1.10:8080 10.244.2.10:8080 snat",
            ],
        );
    }
    // What the API server would refuse is not served by halves.
    let spec = json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86401}}});
    World::web(spec).check(As::Node, &["tcp 10.244.1.5 -> 10.96.0.10:80 => pass"]);
}
