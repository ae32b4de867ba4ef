//! P4xx and P5xx: source ranges of load balancers, and the verdict on packets to Services without endpoints.

use serde_json::{Value, json};

use crate::world::{As, World, but, ingress, local, remote, service, slice, unready};

const BOTH_ROLES: [As; 2] = [As::Node, As::Gateway];
const SERVED: &str = "10.244.1.10:8080 snat";

/// `web` at the load balancer address 192.0.2.8, the external address 192.0.2.7 and NodePort 30080.
fn guarded(ranges: Value, endpoints: Vec<Value>) -> World {
    let spec = json!({"type": "LoadBalancer", "externalIPs": ["192.0.2.7"], "loadBalancerSourceRanges": ranges,
        "ports": [{"port": 80, "nodePort": 30080}]});
    World::new()
        .with(ingress(service("web", spec), json!([{"ip": "192.0.2.8"}, {"ip": "192.0.2.9"}])))
        .with(slice("web", endpoints))
}

#[test]
fn p401_source_ranges_guard_load_balancer_addresses_against_everybody_and_nothing_else() {
    let world = guarded(json!(["198.51.100.0/28", "203.0.113.128/25"]), vec![local()]);
    for role in BOTH_ROLES {
        world.check(
            role,
            &[
                &format!("tcp 198.51.100.9 -> 192.0.2.8:80 => {SERVED}"),
                &format!("tcp 203.0.113.200 -> 192.0.2.9:80 => {SERVED}"),
                "tcp 198.51.100.16 -> 192.0.2.8:80 => drop",
                "tcp 10.244.1.5 -> 192.0.2.8:80 => drop",
                "tcp 192.168.0.1 -> 192.0.2.8:80 => drop",
                &format!("tcp 198.51.100.16 -> 192.0.2.7:80 => {SERVED}"),
            ],
        );
    }
    world.check(
        As::Node,
        &[
            &format!("tcp 198.51.100.16 -> 192.168.0.1:30080 => {SERVED}"),
            &format!("tcp 198.51.100.16 -> 10.96.0.10:80 => {SERVED}"),
        ],
    );
    world.check(As::Gateway, &[&format!("tcp 198.51.100.16 -> 203.0.113.1:30080 => {SERVED}")]);
}

#[test]
fn p401_no_range_of_the_family_and_a_range_of_everything_allow_all() {
    for ranges in [json!([]), json!(["2001:db8::/64"]), json!(["203.0.113.0/24", "0.0.0.0/0"])] {
        let row = format!("tcp 198.51.100.9 -> 192.0.2.8:80 => {SERVED}");
        guarded(ranges, vec![local()]).check(As::Node, &[&row]);
    }
    // Everything of the other family is nothing of this one.
    guarded(json!(["203.0.113.0/24", "::/0"]), vec![local()])
        .check(As::Node, &["tcp 198.51.100.9 -> 192.0.2.8:80 => drop"]);
}

#[test]
fn p401_where_the_node_is_allowed_its_own_load_balancer_addresses_are() {
    guarded(json!(["192.168.0.0/24"]), vec![local()]).check(
        As::Node,
        &[
            &format!("tcp 192.0.2.9 -> 192.0.2.8:80 => {SERVED}"),
            // Allowed, but no VIP sends to itself.
            "tcp 192.0.2.8 -> 192.0.2.8:80 => drop",
            "tcp 192.0.2.7 -> 192.0.2.8:80 => drop",
        ],
    );
    guarded(json!(["192.168.7.0/24"]), vec![local()])
        .check(As::Node, &["tcp 192.0.2.9 -> 192.0.2.8:80 => drop"]);
}

#[test]
fn p402_x7_the_range_is_asked_before_the_endpoints_are() {
    for role in BOTH_ROLES {
        guarded(json!(["203.0.113.0/24"]), vec![]).check(
            role,
            &["tcp 198.51.100.9 -> 192.0.2.8:80 => drop", "tcp 203.0.113.9 -> 192.0.2.8:80 => reject"],
        );
    }
}

#[test]
fn p501_without_a_usable_endpoint_every_address_refuses() {
    let dead = json!({"ready": false, "serving": false, "terminating": true});
    for endpoints in [vec![], vec![but(local(), unready())], vec![but(remote(), dead)]] {
        for (role, address) in [(As::Node, "192.168.0.1"), (As::Gateway, "203.0.113.1")] {
            let rows: Vec<String> =
                ["10.96.0.10:80", "192.0.2.7:80", "192.0.2.8:80", &format!("{address}:30080")]
                    .iter()
                    .map(|to| format!("tcp 198.51.100.9 -> {to} => reject"))
                    .collect();
            let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
            guarded(json!([]), endpoints.clone()).check(role, &rows);
        }
    }
    // No slice at all.
    World::new()
        .with(service("web", json!({})))
        .check(As::Node, &["tcp 10.244.1.5 -> 10.96.0.10:80 => reject"]);
}

#[test]
fn p504_the_first_endpoint_that_is_ready_is_used_at_once() {
    // The same objects but for one condition, and nothing remembered in between.
    World::new().with(service("web", json!({}))).with(slice("web", vec![but(local(), unready())])).check(
        As::Node,
        &["udp 10.244.1.5 -> 10.96.0.10:80 => reject", "tcp 10.244.1.5 -> 10.96.0.10:80 => reject"],
    );
    World::new()
        .with(service("web", json!({})))
        .with(slice("web", vec![local()]))
        .check(As::Node, &["tcp 10.244.1.5 -> 10.96.0.10:80 => 10.244.1.10:8080"]);
}

#[test]
fn p505_x3_other_ports_and_protocols_of_a_cluster_ip_in_use_are_refused() {
    for world in [World::web(json!({})), World::new().with(service("web", json!({})))] {
        for role in BOTH_ROLES {
            world.check(
                role,
                &[
                    "tcp 10.244.1.5 -> 10.96.0.10:81 => reject",
                    "udp 198.51.100.9 -> 10.96.0.10:80 => reject",
                    "sctp 192.168.0.1 -> 10.96.0.10:80 => reject",
                ],
            );
        }
    }
}

#[test]
fn p506_x4_a_cluster_ip_that_no_service_has_is_silent() {
    let cidr = |name: &str, cidrs: Value| {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": name},
            "spec": {"cidrs": cidrs}})
    };
    let world = World::web(json!({}))
        .with(cidr("kubernetes", json!(["10.96.0.0/16", "fd00:96::/112"])))
        .with(cidr("more", json!(["10.112.0.0/24"])));
    for role in BOTH_ROLES {
        world.check(
            role,
            &[
                "tcp 10.244.1.5 -> 10.96.0.11:80 => drop",
                "udp 198.51.100.9 -> 10.112.0.1:53 => drop",
                "tcp fd00:244::5 -> [fd00:96::10]:80 => drop",
                "tcp 10.244.1.5 -> 10.96.0.10:81 => reject",
                "tcp 10.244.1.5 -> 10.112.1.1:80 => pass",
            ],
        );
    }
    // Without the object nothing is known of the range.
    World::web(json!({})).check(As::Node, &["tcp 10.244.1.5 -> 10.96.0.11:80 => pass"]);
}
