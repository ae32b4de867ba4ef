//! Where the role gateway differs from node: all endpoints count, no client is a pod, and replies come back through it.

use serde_json::json;

use crate::world::{As, World, but, ending, endpoint, hinted, local, remote, slice_of, unready};

const BOTH: &str = "10.244.1.10:8080 10.244.2.10:8080";

fn outside_addresses(world: &World, source: &str, wanted: &str) {
    let rows: Vec<String> = ["192.0.2.7:80", "192.0.2.8:80", "203.0.113.1:30080", "203.0.113.2:30080"]
        .iter()
        .map(|address| format!("tcp {source} -> {address} => {wanted}"))
        .collect();
    world.check(As::Gateway, &rows.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn p302_p303_p603_p604_to_a_cluster_ip_all_endpoints_count_and_every_client_is_masqueraded() {
    for policy in ["Cluster", "Local"] {
        let spec = json!({"internalTrafficPolicy": policy, "externalTrafficPolicy": policy});
        let world = World::reachable(spec, vec![local(), remote()]);
        for source in ["198.51.100.9", "10.244.1.5", "203.0.113.1"] {
            let row = format!("tcp {source} -> 10.96.0.10:80 => {BOTH} snat");
            world.check(As::Gateway, &[&row]);
            // It has no pods, whatever the flags say.
            for flag in ["--cluster-cidr=10.244.0.0/16", "--detect-local=none", "--masquerade-all"] {
                world.clone().flag(flag).check(As::Gateway, &[&row]);
            }
        }
    }
}

#[test]
fn p317_policy_cluster_masquerades_every_client() {
    let world = World::reachable(json!({}), vec![local(), remote()]);
    for source in ["198.51.100.9", "10.244.1.5", "203.0.113.1"] {
        outside_addresses(&world, source, &format!("{BOTH} snat"));
    }
}

#[test]
fn p318_p319_p320_p606_policy_local_keeps_every_client_and_uses_all_endpoints() {
    let world = World::reachable(json!({"externalTrafficPolicy": "Local"}), vec![local(), remote()]);
    for source in ["198.51.100.9", "10.244.1.5", "203.0.113.1"] {
        outside_addresses(&world, source, BOTH);
        outside_addresses(&world.clone().flag("--masquerade-all"), source, BOTH);
    }
    let nobody = World::reachable(json!({"externalTrafficPolicy": "Local"}), vec![but(local(), unready())]);
    outside_addresses(&nobody, "198.51.100.9", "reject");
}

#[test]
fn p605_a_client_that_is_its_own_backend_is_masqueraded_under_policy_local_too() {
    let world = World::reachable(json!({"externalTrafficPolicy": "Local"}), vec![local()]);
    outside_addresses(&world, "10.244.1.10", "10.244.1.10:8080 snat");
}

#[test]
fn p202_p205_every_node_is_alike_to_a_gateway_even_the_one_of_its_own_name() {
    let ends = but(endpoint("10.244.2.10", "edge"), ending());
    let world = World::reachable(json!({"externalTrafficPolicy": "Local"}), vec![local(), ends.clone()]);
    outside_addresses(&world, "198.51.100.9", "10.244.1.10:8080");
    let world =
        World::reachable(json!({"externalTrafficPolicy": "Local"}), vec![but(local(), ending()), ends]);
    outside_addresses(&world, "198.51.100.9", BOTH);
}

#[test]
fn p208_p209_hints_are_for_nodes_and_a_gateway_follows_none() {
    let here = hinted(local(), &["z1"], &["edge"]);
    let there = hinted(remote(), &["z2"], &["b"]);
    outside_addresses(
        &World::reachable(json!({}), vec![here, there]),
        "198.51.100.9",
        &format!("{BOTH} snat"),
    );
}

#[test]
fn p305_x1_a_gateway_serves_node_ports_on_all_of_its_addresses_unless_a_list_says_otherwise() {
    let v6 = slice_of("web", "IPv6", json!([{"name": "", "port": 8080}]), vec![endpoint("fd00:244::a", "a")]);
    let spec = json!({"clusterIPs": ["10.96.0.10", "fd00:96::10"], "ipFamilies": ["IPv4", "IPv6"]});
    let world = World::reachable(spec, vec![local()]).with(v6);
    world.check(
        As::Gateway,
        &[
            "tcp 198.51.100.9 -> 203.0.113.1:30080 => 10.244.1.10:8080 snat",
            "tcp 198.51.100.9 -> 203.0.113.2:30080 => 10.244.1.10:8080 snat",
            "tcp 2001:db8::9 -> [2001:db8:1::1]:30080 => [fd00:244::a]:8080 snat",
            "tcp 198.51.100.9 -> 192.168.0.1:30080 => pass",
        ],
    );
    world.clone().flag("--nodeport-addresses=primary").check(
        As::Gateway,
        &[
            "tcp 198.51.100.9 -> 203.0.113.1:30080 => 10.244.1.10:8080 snat",
            "tcp 198.51.100.9 -> 203.0.113.2:30080 => local",
        ],
    );
    world.flag("--nodeport-addresses=203.0.113.2/32").check(
        As::Gateway,
        &[
            "tcp 198.51.100.9 -> 203.0.113.1:30080 => local",
            "tcp 198.51.100.9 -> 203.0.113.2:30080 => 10.244.1.10:8080 snat",
        ],
    );
}

#[test]
fn p308_x2_a_gateway_serves_nothing_on_localhost() {
    World::reachable(json!({}), vec![local()])
        .flag("--localhost-nodeports")
        .check(As::Gateway, &["tcp 127.0.0.1 -> 127.0.0.1:30080 => local"]);
}

#[test]
fn p313_p314_p316_load_balancer_addresses_mean_the_same_to_a_gateway() {
    World::reachable(json!({}), vec![local()]).check(
        As::Gateway,
        &[
            "tcp 198.51.100.9 -> 192.0.2.8:80 => 10.244.1.10:8080 snat",
            "tcp 198.51.100.9 -> 192.0.2.9:80 => pass",
            "tcp 198.51.100.9 -> 192.0.2.8:443 => pass",
        ],
    );
}
