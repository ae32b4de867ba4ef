//! Addresses that several claim: other Services, the cluster, or the machine itself. And endpoints that are this machine.

use serde_json::{Value, json};

use crate::world::{As, World, endpoint, ingress, node, service, slice, slice_of};

/// A Service with one endpoint of its own: 10.244.1.`host`:8080, cluster IP 10.96.0.`host`.
fn claims(world: World, name: &str, host: u8, spec: Value) -> World {
    let mut own = json!({"clusterIP": format!("10.96.0.{host}")});
    let Value::Object(fields) = spec else { panic!("a spec is an object") };
    fields.into_iter().for_each(|(field, value)| own[field] = value);
    world.with(service(name, own)).with(slice(name, vec![endpoint(&format!("10.244.1.{host}"), "a")]))
}

/// The same, reached at a load balancer address.
fn balanced(world: World, name: &str, host: u8, addr: &str, port: u16) -> World {
    let spec =
        json!({"clusterIP": format!("10.96.0.{host}"), "type": "LoadBalancer", "ports": [{"port": port}]});
    world
        .with(ingress(service(name, spec), json!([{"ip": addr}])))
        .with(slice(name, vec![endpoint(&format!("10.244.1.{host}"), "a")]))
}

fn created(mut object: Value, time: &str) -> Value {
    object["metadata"]["creationTimestamp"] = time.into();
    object
}

/// What `flowgate trace` says about the objects.
fn findings(world: &World, machine: As) -> String {
    String::from_utf8(world.traced(machine).run("").stderr).expect("findings are text")
}

fn service_cidr() -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": ["10.96.0.0/16"]}})
}

#[test]
fn an_external_ip_comes_before_a_node_port_whatever_the_names() {
    let row = "tcp 198.51.100.9 -> 192.168.0.1:30900 => 10.244.1.12:8080 snat";
    for (with_node_port, with_external_ip) in [("a", "b"), ("b", "a")] {
        let spec = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30900}]});
        let world = claims(World::new(), with_node_port, 11, spec);
        let spec = json!({"externalIPs": ["192.168.0.1"], "ports": [{"port": 30900}]});
        let world = claims(world, with_external_ip, 12, spec);
        world.check(As::Node, &[row]);
        let lost = format!(
            "Service default/{with_node_port}: 192.168.0.1:30900 TCP belongs to default/{with_external_ip} as external IP, \
             which comes before nodePort"
        );
        let findings = findings(&world, As::Node);
        assert!(findings.contains(&lost), "{findings}");
    }
    // A gateway serves NodePorts on all of its addresses: the other one is still the NodePort's.
    let spec = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30900}]});
    let world = claims(World::new(), "a", 11, spec);
    balanced(world, "b", 12, "203.0.113.1", 30900).check(
        As::Gateway,
        &[
            "tcp 198.51.100.9 -> 203.0.113.1:30900 => 10.244.1.12:8080 snat",
            "tcp 198.51.100.9 -> 203.0.113.2:30900 => 10.244.1.11:8080 snat",
        ],
    );
}

#[test]
fn a_cluster_ip_belongs_to_its_own_service_with_every_port() {
    for external_ips in ["safe", "all", "10.96.0.0/16"] {
        for (victim, thief) in [("a", "b"), ("b", "a")] {
            let world = claims(World::new(), victim, 11, json!({"ports": [{"port": 443}]}));
            let ports = json!([{"name": "x", "port": 443}, {"name": "y", "port": 8443}]);
            let world = claims(world, thief, 12, json!({"externalIPs": ["10.96.0.11"], "ports": ports}));
            let world = world.flag(&format!("--external-ips={external_ips}"));
            for role in [As::Node, As::Gateway] {
                world.check(
                    role,
                    &[
                        "tcp 198.51.100.9 -> 10.96.0.11:443 => 10.244.1.11:8080 snat",
                        "tcp 198.51.100.9 -> 10.96.0.11:8443 => reject",
                    ],
                );
            }
        }
    }
    // Nor does the status of a Service take it.
    let world = claims(World::new(), "b", 11, json!({"ports": [{"port": 443}]}));
    let world = balanced(world, "a", 12, "10.96.0.11", 443);
    for role in [As::Node, As::Gateway] {
        world.check(role, &["tcp 198.51.100.9 -> 10.96.0.11:443 => 10.244.1.11:8080 snat"]);
    }
}

#[test]
fn of_equals_the_elder_has_an_address_then_the_first_by_name() {
    let external = |name: &str, host: u8| {
        let spec = json!({"clusterIP": format!("10.96.0.{host}"), "externalIPs": ["192.0.2.7"]});
        (service(name, spec), slice(name, vec![endpoint(&format!("10.244.1.{host}"), "a")]))
    };
    let ((a, a_slice), (b, b_slice)) = (external("a", 11), external("b", 12));
    let world = World::new().with(a_slice).with(b_slice);
    for (a, b, host) in [
        (a.clone(), b.clone(), 11),
        (created(a.clone(), "2026-01-02T00:00:00Z"), created(b.clone(), "2026-01-01T00:00:00Z"), 12),
        (created(a.clone(), "2026-01-01T00:00:00Z"), b.clone(), 11),
        (a, created(b, "2026-01-01T00:00:00Z"), 12),
    ] {
        let row = format!("tcp 198.51.100.9 -> 192.0.2.7:80 => 10.244.1.{host}:8080 snat");
        for role in [As::Node, As::Gateway] {
            world.clone().with(a.clone()).with(b.clone()).check(role, &[&row]);
        }
    }
}

#[test]
fn safe_external_ips_are_nobody_elses() {
    let world = balanced(World::new(), "victim", 11, "192.0.2.8", 443).with(service_cidr());
    let ports = json!([{"name": "x", "port": 443}, {"name": "y", "port": 8443}]);
    let claimed = ["192.0.2.8", "10.96.7.7", "203.0.113.2", "192.0.2.99"];
    let thief = created(
        service("a-thief", json!({"clusterIP": "10.96.0.12", "externalIPs": claimed, "ports": ports})),
        "2020-01-01T00:00:00Z",
    );
    let ports = json!([{"name": "x", "port": 8080}, {"name": "y", "port": 8080}]);
    let world =
        world.with(thief).with(slice_of("a-thief", "IPv4", ports, vec![endpoint("10.244.1.12", "a")]));
    let rows = [
        "tcp 198.51.100.9 -> 192.0.2.8:443 => 10.244.1.11:8080 snat",
        "tcp 198.51.100.9 -> 192.0.2.8:8443 => pass",
        "tcp 198.51.100.9 -> 10.96.7.7:443 => drop",
        "tcp 198.51.100.9 -> 203.0.113.2:443 => local",
        "tcp 198.51.100.9 -> 192.0.2.99:443 => 10.244.1.12:8080 snat",
    ];
    world.check(As::Gateway, &rows);
    let findings = findings(&world, As::Gateway);
    for sentence in [
        "external IP 192.0.2.8:443 TCP is not served: it is a load balancer address of default/victim",
        "external IP 10.96.7.7:443 TCP is not served: it lies in 10.96.0.0/16, the range of cluster IPs",
        "external IP 203.0.113.2:443 TCP is not served: it is an address of this machine",
    ] {
        assert!(
            findings.contains(&format!("Service default/a-thief: port x: {sentence}")),
            "{sentence}: {findings}"
        );
    }
    // It is the default of a gateway; a node asks for it.
    world.clone().flag("--external-ips=safe").check(As::Node, &rows[..3]);
    // As kube-proxy does it: of equals the elder.
    for (machine, all) in [(As::Node, world.clone()), (As::Gateway, world.flag("--external-ips=all"))] {
        all.check(
            machine,
            &[
                "tcp 198.51.100.9 -> 192.0.2.8:443 => 10.244.1.12:8080 snat",
                "tcp 198.51.100.9 -> 192.0.2.8:8443 => 10.244.1.12:8080 snat",
                "tcp 198.51.100.9 -> 10.96.7.7:443 => 10.244.1.12:8080 snat",
                "tcp 198.51.100.9 -> 203.0.113.2:443 => 10.244.1.12:8080 snat",
            ],
        );
    }
}

#[test]
fn external_ips_may_be_confined_to_ranges_or_turned_off() {
    let claimed = ["192.0.2.7", "192.0.2.99", "203.0.113.2", "203.0.113.1"];
    let world = claims(World::new(), "web", 11, json!({"externalIPs": claimed}));
    let world = balanced(world, "other", 12, "192.0.2.7", 443);
    let served = "10.244.1.11:8080 snat";
    world.clone().flag("--external-ips=192.0.2.0/26,203.0.113.2/32").check(
        As::Gateway,
        &[
            // Another Service's, though in the range.
            "tcp 198.51.100.9 -> 192.0.2.7:80 => pass",
            "tcp 198.51.100.9 -> 192.0.2.99:80 => pass",
            // An address of the machine counts where the operator names it.
            &format!("tcp 198.51.100.9 -> 203.0.113.2:80 => {served}"),
            "tcp 198.51.100.9 -> 203.0.113.1:80 => local",
        ],
    );
    let none = world.flag("--external-ips=none");
    none.check(
        As::Node,
        &[
            "tcp 198.51.100.9 -> 192.0.2.99:80 => pass",
            "tcp 198.51.100.9 -> 192.0.2.7:443 => 10.244.1.12:8080 snat",
        ],
    );
    let findings = findings(&none, As::Node);
    let one = "Service default/web: external IP 192.0.2.7:80 TCP (and 3 more) is not served: services.external_ips is none";
    assert_eq!(
        findings.matches("is not served").count(),
        1,
        "one finding, however many addresses: {findings}"
    );
    assert!(findings.contains(one), "{findings}");
}

#[test]
fn ssh_bgp_the_kubelet_and_health_stay_reachable_whatever_services_claim() {
    // On a node with kube-proxy's rules, where all external addresses count, and on a gateway that is told to serve them.
    for (machine, own) in
        [(As::Node, ["192.168.0.1", "192.168.7.1"]), (As::Gateway, ["203.0.113.1", "203.0.113.2"])]
    {
        for (what, port) in [("ssh", 22), ("BGP", 179), ("kubelet", 10_250), ("health", 10_256)] {
            let world = || World::new().flag("--external-ips=all");
            let ports = json!([{"port": port}]);
            let external = claims(
                world(),
                "a",
                11,
                json!({"externalIPs": [own[0], own[1], "192.0.2.7"], "ports": ports}),
            );
            let by_status = balanced(world(), "a", 11, own[0], port);
            let by_node_port = claims(
                world(),
                "a",
                11,
                json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]}),
            );
            for (world, field) in
                [(external, "external IP"), (by_status, "load balancer address"), (by_node_port, "nodePort")]
            {
                for addr in own {
                    world.check(machine, &[&format!("tcp 198.51.100.9 -> {addr}:{port} => local")]);
                }
                let findings = findings(&world, machine);
                let sentence = format!("default/a: {field} {}:{port} TCP", own[0]);
                assert!(
                    findings.contains(&sentence) && findings.contains("services.protected_ports"),
                    "{what}: {findings}"
                );
            }
            // The port is the machine's only on its own addresses.
            let elsewhere =
                claims(world(), "a", 11, json!({"externalIPs": ["192.0.2.7"], "ports": [{"port": port}]}));
            elsewhere
                .check(machine, &[&format!("tcp 198.51.100.9 -> 192.0.2.7:{port} => 10.244.1.11:8080 snat")]);
        }
    }
    let spec = json!({"externalIPs": ["192.168.0.1"], "ports": [{"port": 8443}]});
    let world = claims(World::new(), "a", 11, spec);
    world.check(As::Node, &["tcp 198.51.100.9 -> 192.168.0.1:8443 => 10.244.1.11:8080 snat"]);
    world
        .flag("--protected-ports=8443/tcp")
        .check(As::Node, &["tcp 198.51.100.9 -> 192.168.0.1:8443 => local"]);
}

#[test]
fn the_health_check_port_of_a_service_is_no_other_services() {
    let spec = json!({"clusterIP": "10.96.0.11", "type": "LoadBalancer", "externalTrafficPolicy": "Local",
        "healthCheckNodePort": 32_100});
    let world = World::new().with(ingress(service("checked", spec), json!([{"ip": "192.0.2.8"}])));
    let world = claims(world, "a", 12, json!({"externalIPs": ["192.168.0.1"], "ports": [{"port": 32_100}]}));
    world.check(As::Node, &["tcp 198.51.100.9 -> 192.168.0.1:32100 => local"]);
    let findings = findings(&world, As::Node);
    assert!(findings.contains("it is the health check port of default/checked"), "{findings}");
}

#[test]
fn a_cluster_ip_is_no_endpoint() {
    // Two Services that point at each other, and one at a port that the other does not have.
    let point = |name: &str, at: &str, port: u16| {
        slice_of(name, "IPv4", json!([{"name": "", "port": port}]), vec![json!({"addresses": [at]})])
    };
    for role in [As::Node, As::Gateway] {
        let world = World::new()
            .with(service("ping", json!({"clusterIP": "10.96.0.11"})))
            .with(service("pong", json!({"clusterIP": "10.96.0.12"})))
            .with(point("ping", "10.96.0.12", 80))
            .with(point("pong", "10.96.0.11", 443));
        world.check(
            role,
            &["udp 198.51.100.9 -> 10.96.0.11:80 => reject", "tcp 198.51.100.9 -> 10.96.0.11:80 => reject"],
        );
        let findings = findings(&world, role);
        for sentence in [
            "Service default/ping: endpoint 10.96.0.12:80 TCP has the cluster IP of Service default/pong and is left out",
            "Service default/pong: endpoint 10.96.0.11:443 TCP has the cluster IP of Service default/ping and is left out",
        ] {
            assert!(findings.contains(sentence), "{findings}");
        }
        // What else a Service has is used.
        world
            .with(slice("ping", vec![endpoint("10.244.1.11", "a")]))
            .check(role, &["tcp 198.51.100.9 -> 10.96.0.11:80 => 10.244.1.11:8080 snat"]);
    }
}

#[test]
fn an_address_and_port_of_a_service_is_no_endpoint_and_another_port_of_the_address_is_one() {
    for role in [As::Node, As::Gateway] {
        let world = balanced(World::new(), "balanced", 11, "192.0.2.8", 443);
        let ports = json!([{"name": "same", "port": 443}, {"name": "other", "port": 8443}]);
        let spec = json!({"clusterIP": "10.96.0.12", "ports": [{"name": "same", "port": 1}, {"name": "other", "port": 2}]});
        world
            .with(service("chained", spec))
            .with(slice_of("chained", "IPv4", ports, vec![json!({"addresses": ["192.0.2.8"]})]))
            .check(
                role,
                &[
                    "tcp 198.51.100.9 -> 10.96.0.12:1 => reject",
                    "tcp 198.51.100.9 -> 10.96.0.12:2 => 192.0.2.8:8443 snat",
                ],
            );
    }
}

#[test]
fn an_external_ip_takes_no_pod_and_no_api_server_from_another_service() {
    let api = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "ports": [{"name": "", "port": 6443}], "endpoints": [{"addresses": ["192.0.2.66"]}]});
    let spec = json!({"clusterIP": "10.96.0.12",
        "externalIPs": ["10.244.1.11", "10.244.2.11", "192.0.2.66", "192.0.2.99"],
        "ports": [{"name": "x", "port": 8080}, {"name": "y", "port": 6443}]});
    let thief = created(service("a-thief", spec), "2020-01-01T00:00:00Z");
    let ports = json!([{"name": "x", "port": 8080}, {"name": "y", "port": 8080}]);
    let mut ranged = node("ranged", "z1", &["192.168.0.9"]);
    ranged["spec"] = json!({"podCIDRs": ["10.244.2.0/25", "10.244.2.128/25", "0.0.0.0/0"]});
    let world = claims(World::new(), "victim", 11, json!({}))
        .with(ranged)
        .with(service("kubernetes", json!({"clusterIP": "10.96.0.1", "ports": [{"port": 443}]})))
        .with(api)
        .with(thief)
        .with(slice_of("a-thief", "IPv4", ports, vec![endpoint("10.244.1.12", "a")]));
    for (machine, world) in [
        (As::Node, world.clone()),
        (As::Gateway, world.clone()),
        (As::Gateway, world.clone().flag("--external-ips=all")),
    ] {
        world.check(
            machine,
            &[
                "tcp 198.51.100.9 -> 10.96.0.11:80 => 10.244.1.11:8080 snat",
                "tcp 198.51.100.9 -> 10.96.0.1:443 => 192.0.2.66:6443 snat",
                "tcp 198.51.100.9 -> 192.0.2.99:8080 => 10.244.1.12:8080 snat",
            ],
        );
    }
    // Nor does it get what lies in the range of a Node's pods.
    world.check(As::Gateway, &["tcp 198.51.100.9 -> 10.244.2.11:8080 => pass"]);
    let findings = findings(&world, As::Gateway);
    let refused = "external IP 10.244.2.11:8080 TCP is not served: it lies in 10.244.2.0/24, the range of a Node's pods";
    assert!(findings.contains(refused), "{findings}");
    world.check(As::Node, &["tcp 198.51.100.9 -> 10.244.2.11:8080 => 10.244.1.12:8080 snat"]);
}

#[test]
fn an_address_of_the_gateway_is_no_endpoint_and_a_pod_in_the_network_of_the_node_is_one() {
    let host_network = |addr: &str| {
        World::new().with(service("web", json!({}))).with(slice("web", vec![endpoint(addr, "a")]))
    };
    let gateway = host_network("203.0.113.2");
    gateway.check(As::Gateway, &["tcp 198.51.100.9 -> 10.96.0.10:80 => reject"]);
    let findings = findings(&gateway, As::Gateway);
    assert!(findings.contains("endpoint 203.0.113.2:8080 TCP is an address of this machine"), "{findings}");
    host_network("192.168.0.1")
        .check(As::Node, &["tcp 198.51.100.9 -> 10.96.0.10:80 => 192.168.0.1:8080 snat"]);
}

#[test]
fn a_source_address_of_translated_flows_is_no_endpoint() {
    let world = World::new()
        .with(service("web", json!({})))
        .with(slice("web", vec![endpoint("198.51.100.200", "a"), endpoint("10.244.1.10", "a")]));
    for role in [As::Node, As::Gateway] {
        world
            .clone()
            .flag("--snat-addresses=198.51.100.200")
            .check(role, &["tcp 198.51.100.9 -> 10.96.0.10:80 => 10.244.1.10:8080 snat"]);
    }
    // A node's own address is one only with a port of the range.
    let ports = json!([{"name": "in", "port": 40_000}, {"name": "out", "port": 39_999}]);
    let spec = json!({"ports": [{"name": "in", "port": 1}, {"name": "out", "port": 2}]});
    World::new()
        .with(service("web", spec))
        .with(slice_of("web", "IPv4", ports, vec![endpoint("192.168.0.1", "a")]))
        .flag("--snat-ports=40000-40009")
        .check(
            As::Node,
            &[
                "tcp 10.244.1.5 -> 10.96.0.10:1 => reject",
                "tcp 10.244.1.5 -> 10.96.0.10:2 => 192.168.0.1:39999",
            ],
        );
}

#[test]
fn a_new_flow_from_a_source_of_our_own_is_dropped() {
    let world = World::reachable(json!({}), vec![endpoint("10.244.1.10", "a")]);
    for (role, own) in [(As::Node, "192.168.0.1"), (As::Gateway, "203.0.113.1")] {
        let served = "10.244.1.10:8080 snat";
        // The VIP that it goes to.
        world.check(
            role,
            &[
                "tcp 192.0.2.8:5000 -> 192.0.2.8:80 => drop",
                "tcp 192.0.2.7:5000 -> 192.0.2.7:80 => drop",
                "udp 10.96.0.10:5000 -> 10.96.0.10:80 => reject",
                "tcp 10.96.0.10:5000 -> 10.96.0.10:80 => drop",
                &format!("tcp {own}:5000 -> {own}:30080 => {served}"),
            ],
        );
        // A source of translated flows.
        world.clone().flag("--snat-ports=40000-40009").check(
            role,
            &[
                &format!("tcp {own}:40009 -> 192.0.2.8:80 => drop"),
                &format!("tcp {own}:40009 -> 10.96.0.10:80 => drop"),
                &format!("tcp {own}:40009 -> {own}:30080 => drop"),
                &format!("tcp {own}:40010 -> 192.0.2.8:80 => {served}"),
                &format!("tcp 198.51.100.9:40009 -> 192.0.2.8:80 => {served}"),
                &format!("tcp {own}:40009 -> {own}:22 => local"),
            ],
        );
        let answer = &world.traced(role).answers(&[(
            "tcp".to_owned(),
            "192.0.2.8:5000".to_owned(),
            "192.0.2.8:80".to_owned(),
        )])[0];
        assert!(answer.reason.starts_with("own_source: "), "{answer:?}");
    }
}
