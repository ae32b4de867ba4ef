//! P2xx: which endpoints may be chosen.

use serde_json::{Value, json};

use crate::world::{As, World, but, ending, endpoint, hinted, local, remote, service, slice, unready};

const POD: &str = "tcp 10.244.1.5 -> 10.96.0.10:80";

fn with_endpoints(spec: Value, endpoints: Vec<Value>) -> World {
    World::new().with(service("web", spec)).with(slice("web", endpoints))
}

/// A packet of a pod to the cluster IP, and what must become of it on the node.
fn from_a_pod(world: &World, wanted: &str) {
    world.check(As::Node, &[&format!("{POD} => {wanted}")]);
}

#[test]
fn p201_conditions_that_are_not_set_mean_ready_serving_and_not_terminating() {
    let sets = [json!({}), json!({"ready": null}), json!({"ready": true}), json!({"serving": false})];
    for conditions in sets {
        from_a_pod(&with_endpoints(json!({}), vec![but(local(), conditions)]), "10.244.1.10:8080");
    }
    // Serving by default, and so a last resort once it is terminating.
    let ends = but(local(), json!({"ready": false, "terminating": true}));
    from_a_pod(&with_endpoints(json!({}), vec![ends]), "10.244.1.10:8080");
    from_a_pod(&with_endpoints(json!({}), vec![but(local(), json!({"ready": false}))]), "reject");
}

#[test]
fn p202_an_endpoint_without_a_node_is_local_nowhere() {
    let nowhere = json!({"addresses": ["10.244.1.10"]});
    let policy = json!({"internalTrafficPolicy": "Local"});
    from_a_pod(&with_endpoints(policy.clone(), vec![nowhere]), "drop");
    from_a_pod(&with_endpoints(policy, vec![local(), remote()]), "10.244.1.10:8080");
}

#[test]
fn p202_the_name_of_the_node_is_lower_case() {
    World::web(json!({"internalTrafficPolicy": "Local"}))
        .flag("--role=node")
        .flag("--node-name=A")
        .check(As::Flags, &["tcp 10.244.1.5 -> 10.96.0.10:80 => 10.244.1.10:8080"]);
}

#[test]
fn p203_each_policy_has_its_own_set() {
    let spec = json!({"type": "NodePort", "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Cluster",
        "ports": [{"port": 80, "nodePort": 30080}]});
    World::web(spec).check(
        As::Node,
        &[
            "tcp 10.244.1.5 -> 10.96.0.10:80 => 10.244.1.10:8080",
            "tcp 198.51.100.9 -> 192.168.0.1:30080 => 10.244.1.10:8080 10.244.2.10:8080 snat",
        ],
    );
    let spec = json!({"type": "NodePort", "internalTrafficPolicy": "Cluster", "externalTrafficPolicy": "Local",
        "ports": [{"port": 80, "nodePort": 30080}]});
    World::web(spec).check(
        As::Node,
        &[
            "tcp 10.244.1.5 -> 10.96.0.10:80 => 10.244.1.10:8080 10.244.2.10:8080",
            "tcp 198.51.100.9 -> 192.168.0.1:30080 => 10.244.1.10:8080",
        ],
    );
    // Without an address for the outside, the external policy says nothing.
    World::web(json!({"externalTrafficPolicy": "Local"}))
        .check(As::Node, &["tcp 10.244.1.5 -> 10.96.0.10:80 => 10.244.1.10:8080 10.244.2.10:8080"]);
}

#[test]
fn p204_only_ready_endpoints_count() {
    let mixed = vec![local(), but(remote(), unready()), but(endpoint("10.244.1.11", "a"), ending())];
    from_a_pod(&with_endpoints(json!({}), mixed.clone()), "10.244.1.10:8080");
    from_a_pod(&with_endpoints(json!({"internalTrafficPolicy": "Local"}), mixed), "10.244.1.10:8080");
}

#[test]
fn p205_without_a_ready_endpoint_those_that_end_are_used_and_each_set_for_itself() {
    let ends = |ip, node| but(endpoint(ip, node), ending());
    let dead =
        but(endpoint("10.244.1.12", "a"), json!({"ready": false, "serving": false, "terminating": true}));
    let policy = json!({"internalTrafficPolicy": "Local"});
    let all_end = vec![ends("10.244.1.10", "a"), ends("10.244.2.10", "b"), dead.clone()];
    from_a_pod(&with_endpoints(json!({}), all_end.clone()), "10.244.1.10:8080 10.244.2.10:8080");
    from_a_pod(&with_endpoints(policy.clone(), all_end), "10.244.1.10:8080");
    // The local ones end while another node has a ready one.
    let half = vec![ends("10.244.1.10", "a"), remote(), dead.clone()];
    from_a_pod(&with_endpoints(json!({}), half.clone()), "10.244.2.10:8080");
    from_a_pod(&with_endpoints(policy.clone(), half), "10.244.1.10:8080");
    from_a_pod(&with_endpoints(json!({}), vec![dead.clone()]), "reject");
    from_a_pod(&with_endpoints(policy, vec![dead]), "reject");
}

#[test]
fn p205_hints_do_not_matter_to_endpoints_that_end() {
    let elsewhere = hinted(but(remote(), ending()), &["z2"], &["b"]);
    let here = hinted(but(local(), ending()), &["z1"], &["a"]);
    from_a_pod(&with_endpoints(json!({}), vec![here, elsewhere]), "10.244.1.10:8080 10.244.2.10:8080");
}

#[test]
fn p206_an_empty_set_drops_while_anything_is_usable_elsewhere_and_rejects_otherwise() {
    let policy = json!({"internalTrafficPolicy": "Local"});
    from_a_pod(&with_endpoints(policy.clone(), vec![remote()]), "drop");
    from_a_pod(&with_endpoints(policy.clone(), vec![but(remote(), ending())]), "drop");
    from_a_pod(&with_endpoints(policy.clone(), vec![but(remote(), unready())]), "reject");
    from_a_pod(&with_endpoints(policy, vec![]), "reject");
}

#[test]
fn p207_what_the_service_asks_of_distribution_is_not_read() {
    for spec in
        [json!({"trafficDistribution": "PreferSameZone"}), json!({"trafficDistribution": "PreferClose"})]
    {
        from_a_pod(&with_endpoints(spec, vec![local(), remote()]), "10.244.1.10:8080 10.244.2.10:8080");
    }
}

#[test]
fn p208_hints_for_nodes_keep_traffic_on_the_node() {
    let here = hinted(local(), &["z1"], &["a"]);
    let there = hinted(remote(), &["z1"], &["b"]);
    from_a_pod(&with_endpoints(json!({}), vec![here.clone(), there.clone()]), "10.244.1.10:8080");
    // None for this node: the zone decides.
    let third = hinted(endpoint("10.244.2.11", "b"), &["z2"], &["b"]);
    from_a_pod(&with_endpoints(json!({}), vec![there, third]), "10.244.2.10:8080");
    // One of them has none.
    let without = hinted(remote(), &["z1"], &[]);
    from_a_pod(&with_endpoints(json!({}), vec![here, without]), "10.244.1.10:8080 10.244.2.10:8080");
}

#[test]
fn p209_hints_for_zones_keep_traffic_in_the_zone() {
    let here = hinted(local(), &["z1", "z3"], &[]);
    let there = hinted(remote(), &["z2"], &[]);
    from_a_pod(&with_endpoints(json!({}), vec![here, there]), "10.244.1.10:8080");
}

#[test]
fn p210_hints_do_not_count_unless_every_ready_endpoint_has_some_and_one_is_for_the_zone() {
    let both = "10.244.1.10:8080 10.244.2.10:8080";
    let here = || hinted(local(), &["z1"], &[]);
    from_a_pod(&with_endpoints(json!({}), vec![here(), remote()]), both);
    let elsewhere = |endpoint: Value| hinted(endpoint, &["z2"], &[]);
    from_a_pod(&with_endpoints(json!({}), vec![elsewhere(local()), elsewhere(remote())]), both);
    let unready_here = but(hinted(endpoint("10.244.1.11", "a"), &["z1"], &[]), unready());
    let hints = vec![elsewhere(local()), elsewhere(remote()), unready_here];
    from_a_pod(&with_endpoints(json!({}), hints), both);
    // An unready one without hints does not matter.
    let silent = but(endpoint("10.244.1.11", "a"), unready());
    let hints = vec![here(), elsewhere(remote()), silent];
    from_a_pod(&with_endpoints(json!({}), hints), "10.244.1.10:8080");
    for zone in [json!({"topology.kubernetes.io/zone": ""}), json!({})] {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "c", "labels": zone}});
        World::default()
            .with(node)
            .with(service("web", json!({})))
            .with(slice("web", vec![here(), elsewhere(remote())]))
            .flag("--node-name=c")
            .flag("--role=node")
            .check(As::Flags, &[&format!("{POD} => {both}")]);
    }
}

#[test]
fn p211_hints_do_not_narrow_the_local_set() {
    let here = hinted(local(), &["z2"], &["b"]);
    let also_here = hinted(endpoint("10.244.1.11", "a"), &["z1"], &["a"]);
    let policy = json!({"internalTrafficPolicy": "Local"});
    from_a_pod(
        &with_endpoints(policy, vec![here.clone(), also_here.clone(), remote()]),
        "10.244.1.10:8080 10.244.1.11:8080",
    );
    from_a_pod(&with_endpoints(json!({}), vec![here, also_here]), "10.244.1.11:8080");
}

#[test]
fn p212_new_flows_spread_evenly_over_the_endpoints() {
    let endpoints = (1..=8).map(|n| endpoint(&format!("10.244.1.{n}"), "a")).collect();
    let traced = with_endpoints(json!({}), endpoints).traced(As::Node);
    let packets: Vec<_> = (0..4_000)
        .map(|n| {
            let source = format!("198.51.{}.{}:{}", n % 100, n % 250 + 1, 1024 + n * 7 % 60_000);
            ("tcp".to_owned(), source, "10.96.0.10:80".to_owned())
        })
        .collect();
    let mut shares = std::collections::BTreeMap::<String, usize>::new();
    for answer in traced.answers(&packets) {
        assert_eq!(answer.candidates.len(), 8, "all may be chosen");
        *shares.entry(answer.backend.expect("it is forwarded")).or_default() += 1;
    }
    // 500 each; six standard deviations are 126.
    assert!(shares.len() == 8 && shares.values().all(|n| (374..=626).contains(n)), "{shares:?}");
}
