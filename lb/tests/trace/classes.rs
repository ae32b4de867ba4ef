//! P3xx on a node: kinds of frontend addresses and traffic policies.

use serde_json::json;

use crate::world::{
    As, World, but, ending, endpoint, ingress, local, remote, service, slice, slice_of, unready,
};

const BOTH: &str = "10.244.1.10:8080 10.244.2.10:8080";

/// The same for a source and each of the addresses that are meant for the outside.
fn outside_addresses(world: &World, machine: As, source: &str, wanted: &str) {
    let rows: Vec<String> = ["192.0.2.7:80", "192.0.2.8:80", "192.168.0.1:30080"]
        .iter()
        .map(|address| format!("tcp {source} -> {address} => {wanted}"))
        .collect();
    world.check(machine, &rows.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn p301_a_cluster_ip_is_captured_from_pods_the_node_and_everybody_else() {
    World::web(json!({})).check(
        As::Node,
        &[
            &format!("tcp 10.244.1.5 -> 10.96.0.10:80 => {BOTH}"),
            &format!("tcp 192.168.0.1 -> 10.96.0.10:80 => {BOTH} snat"),
            &format!("tcp 198.51.100.9 -> 10.96.0.10:80 => {BOTH} snat"),
            "tcp 198.51.100.9 -> 10.96.0.11:80 => pass",
        ],
    );
}

#[test]
fn p302_internal_policy_local_holds_for_every_source_and_for_the_cluster_ip_only() {
    let policy = || json!({"internalTrafficPolicy": "Local"});
    World::reachable(policy(), vec![local(), remote()]).check(
        As::Node,
        &[
            "tcp 10.244.1.5 -> 10.96.0.10:80 => 10.244.1.10:8080",
            "tcp 192.168.0.1 -> 10.96.0.10:80 => 10.244.1.10:8080 snat",
            "tcp 198.51.100.9 -> 10.96.0.10:80 => 10.244.1.10:8080 snat",
            &format!("tcp 198.51.100.9 -> 192.0.2.8:80 => {BOTH} snat"),
        ],
    );
    for (endpoints, wanted) in [(vec![remote()], "drop"), (vec![but(remote(), unready())], "reject")] {
        for source in ["10.244.1.5", "192.168.0.1", "198.51.100.9"] {
            let row = format!("tcp {source} -> 10.96.0.10:80 => {wanted}");
            World::reachable(policy(), endpoints.clone()).check(As::Node, &[&row]);
        }
    }
}

#[test]
fn p303_external_policy_local_does_not_restrict_the_cluster_ip() {
    World::reachable(json!({"externalTrafficPolicy": "Local"}), vec![local(), remote()]).check(
        As::Node,
        &[
            &format!("tcp 10.244.1.5 -> 10.96.0.10:80 => {BOTH}"),
            &format!("tcp 198.51.100.9 -> 10.96.0.10:80 => {BOTH} snat"),
        ],
    );
}

#[test]
fn p304_a_node_port_is_whatever_number_the_service_has_for_its_protocol() {
    let ports = json!([{"name": "t", "port": 80, "nodePort": 8}, {"name": "u", "port": 80, "nodePort": 60000,
        "protocol": "UDP"}]);
    let targets = json!([{"name": "t", "port": 8080}, {"name": "u", "port": 9090, "protocol": "UDP"}]);
    World::new()
        .with(service("web", json!({"type": "NodePort", "ports": ports})))
        .with(slice_of("web", "IPv4", targets, vec![local()]))
        .check(
            As::Node,
            &[
                "tcp 198.51.100.9 -> 192.168.0.1:8 => 10.244.1.10:8080 snat",
                "udp 198.51.100.9 -> 192.168.0.1:60000 => 10.244.1.10:9090 snat",
                "udp 198.51.100.9 -> 192.168.0.1:8 => local",
                "tcp 198.51.100.9 -> 192.168.0.1:80 => local",
            ],
        );
}

#[test]
fn p305_p307_x1_a_node_serves_node_ports_on_its_primary_addresses_and_leaves_the_others_alone() {
    let v6 = slice_of("web", "IPv6", json!([{"name": "", "port": 8080}]), vec![endpoint("fd00:244::a", "a")]);
    let spec = json!({"clusterIPs": ["10.96.0.10", "fd00:96::10"], "ipFamilies": ["IPv4", "IPv6"]});
    World::reachable(spec, vec![local()]).with(v6).check(
        As::Node,
        &[
            "tcp 198.51.100.9 -> 192.168.0.1:30080 => 10.244.1.10:8080 snat",
            "tcp 198.51.100.9 -> 192.168.7.1:30080 => local",
            "tcp 2001:db8::9 -> [fd00:a::1]:30080 => [fd00:244::a]:8080 snat",
            // Another node's address is nobody's here.
            "tcp 198.51.100.9 -> 192.168.0.2:30080 => pass",
        ],
    );
}

#[test]
fn p306_a_list_says_which_addresses_serve_node_ports() {
    let served = "10.244.1.10:8080 snat";
    let v6 = slice_of("web", "IPv6", json!([{"name": "", "port": 8080}]), vec![endpoint("fd00:244::a", "a")]);
    let spec = json!({"clusterIPs": ["10.96.0.10", "fd00:96::10"], "ipFamilies": ["IPv4", "IPv6"]});
    let world = World::reachable(spec, vec![local()]).with(v6);
    for (list, primary, second, v6) in [
        ("primary", true, false, true),
        ("all", true, true, true),
        ("192.168.7.0/24", false, true, true),
        ("0.0.0.0/0", true, true, true),
        ("192.168.7.0/24,0.0.0.0/0", true, true, true),
        ("192.168.7.0/24,fd00:b::/64", false, true, false),
        // Nothing is said about IPv4.
        ("fd00:a::/64", true, true, true),
        ("fd00:b::/64", true, true, false),
        ("10.0.0.0/8", false, false, true),
    ] {
        let of = |serves: bool| if serves { served } else { "local" };
        let of_v6 = if v6 { "[fd00:244::a]:8080 snat" } else { "local" };
        world.clone().flag(&format!("--nodeport-addresses={list}")).check(
            As::Node,
            &[
                &format!("tcp 198.51.100.9 -> 192.168.0.1:30080 => {}", of(primary)),
                &format!("tcp 198.51.100.9 -> 192.168.7.1:30080 => {}", of(second)),
                &format!("tcp 2001:db8::9 -> [fd00:a::1]:30080 => {of_v6}"),
            ],
        );
    }
}

#[test]
fn p308_x2_localhost_serves_node_ports_only_when_asked_and_only_for_the_node() {
    let asked = "--localhost-nodeports";
    let world = World::reachable(
        json!({"externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local"}),
        vec![remote()],
    );
    let from_the_node = "tcp 127.0.0.1 -> 127.0.0.1:30080";
    world.check(As::Node, &[&format!("{from_the_node} => local")]);
    world.clone().flag(asked).check(
        As::Node,
        &[
            // Whatever the policies: the cluster's endpoints, and masqueraded.
            &format!("{from_the_node} => 10.244.2.10:8080 snat"),
            "tcp 198.51.100.9 -> 127.0.0.1:30080 => drop",
            "tcp 10.244.1.5 -> 127.0.0.1:30080 => drop",
        ],
    );
    for (list, wanted) in [("192.168.0.0/16", "local"), ("127.0.0.0/8", "10.244.2.10:8080 snat")] {
        let row = format!("{from_the_node} => {wanted}");
        world.clone().flag(asked).flag(&format!("--nodeport-addresses={list}")).check(As::Node, &[&row]);
    }
}

#[test]
fn p309_localhost_of_ipv6_never_serves_node_ports() {
    let v6 = slice_of("web", "IPv6", json!([{"name": "", "port": 8080}]), vec![endpoint("fd00:244::a", "a")]);
    World::new()
        .with(service(
            "web",
            json!({"type": "NodePort", "clusterIPs": ["fd00:96::10"],
            "ports": [{"port": 80, "nodePort": 30080}]}),
        ))
        .with(v6)
        .flag("--localhost-nodeports")
        .check(
            As::Node,
            &[
                "tcp ::1 -> [::1]:30080 => local",
                "tcp 2001:db8::9 -> [fd00:a::1]:30080 => [fd00:244::a]:8080 snat",
            ],
        );
}

#[test]
fn p310_a_load_balancer_without_node_ports_is_reached_by_its_address() {
    let spec = json!({"allocateLoadBalancerNodePorts": false, "ports": [{"port": 80, "nodePort": 0}]});
    World::reachable(spec, vec![local()]).check(
        As::Node,
        &[
            "tcp 198.51.100.9 -> 192.0.2.8:80 => 10.244.1.10:8080 snat",
            "tcp 198.51.100.9 -> 192.168.0.1:30080 => local",
            "tcp 198.51.100.9 -> 192.168.0.1:80 => local",
        ],
    );
}

#[test]
fn p312_a_node_port_of_no_service_is_left_to_the_node() {
    World::web(json!({})).check(As::Node, &["tcp 198.51.100.9 -> 192.168.0.1:30080 => local"]);
}

#[test]
fn p313_a_load_balancer_address_is_captured_at_the_service_port_from_everywhere() {
    // Whatever the type, and whether or not the node owns it.
    for kind in ["LoadBalancer", "NodePort"] {
        World::reachable(json!({"type": kind}), vec![local()]).check(
            As::Node,
            &[
                "tcp 198.51.100.9 -> 192.0.2.8:80 => 10.244.1.10:8080 snat",
                "tcp 10.244.1.5 -> 192.0.2.8:80 => 10.244.1.10:8080 snat",
                "tcp 192.168.0.1 -> 192.0.2.8:80 => 10.244.1.10:8080 snat",
                "tcp 198.51.100.9 -> 192.0.2.8:30080 => pass",
            ],
        );
    }
    let spec = json!({"type": "LoadBalancer"});
    World::new()
        .with(ingress(
            service("web", spec),
            json!([{"hostname": "lb.example.org"}, {"ip": "192.168.7.1", "ipMode": "VIP"}]),
        ))
        .with(slice("web", vec![local()]))
        .check(As::Node, &["tcp 198.51.100.9 -> 192.168.7.1:80 => 10.244.1.10:8080 snat"]);
}

#[test]
fn p314_an_address_that_a_proxy_has_is_left_alone_and_its_node_port_works() {
    let spec = json!({"type": "LoadBalancer", "ports": [{"port": 80, "nodePort": 30080}]});
    World::new()
        .with(ingress(service("web", spec), json!([{"ip": "192.0.2.8", "ipMode": "Proxy"}])))
        .with(slice("web", vec![local()]))
        .check(
            As::Node,
            &[
                "tcp 198.51.100.9 -> 192.0.2.8:80 => pass",
                "tcp 10.244.1.5 -> 192.0.2.8:80 => pass",
                "tcp 198.51.100.9 -> 192.168.0.1:30080 => 10.244.1.10:8080 snat",
            ],
        );
}

#[test]
fn p315_an_external_ip_is_captured_for_any_type_and_source_ranges_do_not_guard_it() {
    let spec =
        json!({"externalIPs": ["192.0.2.7", "192.168.0.1"], "loadBalancerSourceRanges": ["203.0.113.0/24"]});
    World::web(spec).check(
        As::Node,
        &[
            &format!("tcp 198.51.100.9 -> 192.0.2.7:80 => {BOTH} snat"),
            &format!("tcp 198.51.100.9 -> 192.168.0.1:80 => {BOTH} snat"),
        ],
    );
}

#[test]
fn p316_other_ports_of_outside_addresses_are_left_alone() {
    World::reachable(json!({}), vec![local()]).check(
        As::Node,
        &[
            "tcp 198.51.100.9 -> 192.0.2.7:443 => pass",
            "tcp 198.51.100.9 -> 192.0.2.8:443 => pass",
            "udp 198.51.100.9 -> 192.0.2.8:80 => pass",
        ],
    );
}

#[test]
fn p317_external_policy_cluster_uses_all_endpoints_and_always_masquerades() {
    let world = World::reachable(json!({}), vec![local(), remote()]);
    for machine in [As::Node, As::NodeWithoutDetector] {
        for source in ["198.51.100.9", "10.244.1.5", "10.244.2.5", "192.168.0.1", "192.168.0.2"] {
            outside_addresses(&world, machine, source, &format!("{BOTH} snat"));
        }
    }
}

#[test]
fn p318_external_policy_local_uses_local_endpoints_and_keeps_the_client() {
    let policy = || json!({"externalTrafficPolicy": "Local"});
    let outside = |endpoints, wanted| {
        outside_addresses(&World::reachable(policy(), endpoints), As::Node, "198.51.100.9", wanted);
    };
    outside(vec![local(), remote()], "10.244.1.10:8080");
    outside(vec![remote()], "drop");
    outside(vec![but(local(), ending()), remote()], "10.244.1.10:8080");
    outside(vec![but(local(), unready())], "reject");
    outside(vec![], "reject");
}

#[test]
fn p319_a_pod_is_not_bound_by_external_policy_local_where_pods_are_known() {
    let world = World::reachable(json!({"externalTrafficPolicy": "Local"}), vec![local(), remote()]);
    outside_addresses(&world, As::Node, "10.244.1.5", BOTH);
    outside_addresses(&world, As::NodeWithoutDetector, "10.244.1.5", "10.244.1.10:8080");
    let elsewhere = World::reachable(json!({"externalTrafficPolicy": "Local"}), vec![remote()]);
    outside_addresses(&elsewhere, As::Node, "10.244.1.5", "10.244.2.10:8080");
    outside_addresses(&elsewhere, As::NodeWithoutDetector, "10.244.1.5", "drop");
}

#[test]
fn p320_the_node_is_not_bound_by_external_policy_local_and_masqueraded() {
    let world = World::reachable(json!({"externalTrafficPolicy": "Local"}), vec![remote()]);
    for machine in [As::Node, As::NodeWithoutDetector] {
        for source in ["192.168.0.1", "192.168.7.1", "127.0.0.1"] {
            outside_addresses(&world, machine, source, "10.244.2.10:8080 snat");
        }
        // Another node is a client outside.
        outside_addresses(&world, machine, "192.168.0.2", "drop");
    }
}

#[test]
fn p321_by_the_range_of_the_cluster_pods_of_other_nodes_count_as_local() {
    let world = World::reachable(json!({"externalTrafficPolicy": "Local"}), vec![remote()]);
    outside_addresses(&world, As::Node, "10.244.2.5", "10.244.2.10:8080");
}

#[test]
fn p322_internal_policy_local_does_not_restrict_outside_addresses() {
    let world = World::reachable(json!({"internalTrafficPolicy": "Local"}), vec![remote()]);
    for source in ["198.51.100.9", "10.244.1.5", "192.168.0.1"] {
        outside_addresses(&world, As::Node, source, "10.244.2.10:8080 snat");
    }
    let both_local = json!({"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"});
    let world = World::reachable(both_local, vec![remote()]);
    outside_addresses(&world, As::Node, "10.244.1.5", "10.244.2.10:8080");
    world.check(As::Node, &["tcp 10.244.1.5 -> 10.96.0.10:80 => drop"]);
}
