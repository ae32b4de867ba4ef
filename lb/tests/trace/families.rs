//! P9xx: protocols and address families.

use serde_json::{Value, json};

use crate::world::{As, World, endpoint, ingress, local, service, slice, slice_of};

#[test]
fn p901_a_load_balancer_may_mix_protocols_on_one_port() {
    let ports = json!([
        {"name": "t", "port": 443, "nodePort": 30443},
        {"name": "u", "port": 443, "nodePort": 30443, "protocol": "UDP"},
        {"name": "s", "port": 443, "nodePort": 30443, "protocol": "SCTP"},
    ]);
    let targets = json!([{"name": "t", "port": 1}, {"name": "u", "port": 2, "protocol": "UDP"},
        {"name": "s", "port": 3, "protocol": "SCTP"}]);
    let world = World::new()
        .with(ingress(
            service("web", json!({"type": "LoadBalancer", "ports": ports})),
            json!([{"ip": "192.0.2.8"}]),
        ))
        .with(slice_of("web", "IPv4", targets, vec![local()]));
    for (role, address) in [(As::Node, "192.168.0.1"), (As::Gateway, "203.0.113.1")] {
        for (proto, number) in [("tcp", 1), ("udp", 2), ("sctp", 3)] {
            for vip in ["192.0.2.8:443".to_owned(), format!("{address}:30443")] {
                world.check(role, &[&format!("{proto} 198.51.100.9 -> {vip} => 10.244.1.10:{number} snat")]);
            }
        }
    }
}

/// A Service of both families whose slices are those given.
fn dual_stack(spec: Value) -> Value {
    let mut own = json!({"clusterIPs": ["10.96.0.10", "fd00:96::10"], "ipFamilies": ["IPv4", "IPv6"],
        "ipFamilyPolicy": "RequireDualStack"});
    for (field, value) in spec.as_object().expect("a spec is an object") {
        own[field] = value.clone();
    }
    service("web", own)
}

#[test]
fn p902_each_family_has_its_own_address_and_its_own_endpoints() {
    let v4 = slice("web", vec![local()]);
    let v6 = slice_of("web", "IPv6", json!([{"name": "", "port": 8080}]), vec![endpoint("fd00:244::a", "a")]);
    World::new().with(dual_stack(json!({}))).with(v4.clone()).with(v6).check(
        As::Node,
        &[
            "tcp 10.244.1.5 -> 10.96.0.10:80 => 10.244.1.10:8080",
            "tcp fd00:244::5 -> [fd00:96::10]:80 => [fd00:244::a]:8080",
            "tcp 2001:db8::9 -> [fd00:96::10]:80 => [fd00:244::a]:8080 snat",
        ],
    );
    World::new().with(dual_stack(json!({}))).with(v4).check(
        As::Node,
        &[
            "tcp 10.244.1.5 -> 10.96.0.10:80 => 10.244.1.10:8080",
            "tcp fd00:244::5 -> [fd00:96::10]:80 => reject",
        ],
    );
}

#[test]
fn p902_a_family_that_the_service_does_not_have_does_not_exist_for_it() {
    let v6 = slice_of("web", "IPv6", json!([{"name": "", "port": 8080}]), vec![endpoint("fd00:244::a", "a")]);
    let ports = json!([{"port": 80, "nodePort": 30080}]);
    World::new()
        .with(service(
            "web",
            json!({"ipFamilies": ["IPv6"], "clusterIPs": ["fd00:96::10"], "type": "NodePort",
            "ports": ports, "externalIPs": ["192.0.2.7", "2001:db8::7"]}),
        ))
        .with(v6)
        .with(slice("web", vec![local()]))
        .check(
            As::Node,
            &[
                "tcp 2001:db8::9 -> [2001:db8::7]:80 => [fd00:244::a]:8080 snat",
                "tcp 2001:db8::9 -> [fd00:a::1]:30080 => [fd00:244::a]:8080 snat",
                "tcp 198.51.100.9 -> 192.0.2.7:80 => pass",
                "tcp 198.51.100.9 -> 192.168.0.1:30080 => local",
            ],
        );
    World::new()
        .with(service("web", json!({"ipFamilies": ["IPv4"], "clusterIPs": ["10.96.0.10", "fd00:96::10"]})))
        .with(slice("web", vec![local()]))
        .check(
            As::Node,
            &[
                "tcp 10.244.1.5 -> 10.96.0.10:80 => 10.244.1.10:8080",
                "tcp fd00:244::5 -> [fd00:96::10]:80 => pass",
            ],
        );
}

#[test]
fn p903_addresses_and_ranges_of_the_other_family_do_not_count() {
    let spec = json!({"type": "LoadBalancer", "externalIPs": ["2001:db8::7", "192.0.2.7"],
        "loadBalancerSourceRanges": ["2001:db8::/64"]});
    World::new()
        .with(ingress(service("web", spec), json!([{"ip": "2001:db8::8"}, {"ip": "192.0.2.8"}])))
        .with(slice("web", vec![local()]))
        .check(
            As::Node,
            &[
                "tcp 198.51.100.9 -> 192.0.2.7:80 => 10.244.1.10:8080 snat",
                "tcp 198.51.100.9 -> 192.0.2.8:80 => 10.244.1.10:8080 snat",
                "tcp 2001:db8::9 -> [2001:db8::7]:80 => pass",
                "tcp 2001:db8::9 -> [2001:db8::8]:80 => pass",
            ],
        );
}
