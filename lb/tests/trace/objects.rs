//! P1xx: which objects count, and for which addresses and ports.

use serde_json::{Value, json};

use crate::world::{
    As, World, but, ending, endpoint, ingress, labelled, local, remote, service, slice, slice_of, unready,
};

const BOTH_ROLES: [As; 2] = [As::Node, As::Gateway];

#[test]
fn p102_the_name_of_another_proxy_hides_a_service_whatever_it_is_and_no_slice() {
    for value in ["other", ""] {
        let labelled = |object| labelled(object, "service.kubernetes.io/service-proxy-name", value);
        let (web, endpoints) = (service("web", json!({})), slice("web", vec![local()]));
        for role in BOTH_ROLES {
            World::new()
                .with(labelled(web.clone()))
                .with(endpoints.clone())
                .check(role, &["tcp 198.51.100.9 -> 10.96.0.10:80 => pass"]);
            World::new()
                .with(web.clone())
                .with(labelled(endpoints.clone()))
                .check(role, &["tcp 198.51.100.9 -> 10.96.0.10:80 => 10.244.1.10:8080 snat"]);
        }
    }
}

#[test]
fn p103_the_label_of_headless_services_hides_a_slice_whatever_its_value_and_no_service() {
    for value in ["no", ""] {
        let labelled = |object| labelled(object, "service.kubernetes.io/headless", value);
        World::new()
            .with(labelled(service("web", json!({}))))
            .with(slice("web", vec![local()]))
            .with(labelled(slice("web", vec![remote()])))
            .check(As::Node, &["tcp 10.244.1.5 -> 10.96.0.10:80 => 10.244.1.10:8080"]);
        // The labels of Endpoints are copied to the slices that mirror them (P118).
        let manual = json!({"apiVersion": "v1", "kind": "Endpoints",
            "metadata": {"name": "web", "namespace": "default", "labels": {}},
            "subsets": [{"addresses": [{"ip": "10.244.1.10"}], "ports": [{"port": 8080}]}]});
        World::new()
            .with(service("web", json!({"selector": {}})))
            .with(labelled(manual))
            .check(As::Node, &["tcp 10.244.1.5 -> 10.96.0.10:80 => reject"]);
    }
}

#[test]
fn p104_p105_a_headless_service_is_not_served_whatever_else_it_has() {
    for cluster_ip in ["None", ""] {
        let headless = json!({"clusterIP": cluster_ip, "type": "LoadBalancer", "externalIPs": ["192.0.2.7"],
            "ports": [{"port": 80, "nodePort": 30080}]});
        World::new()
            .with(ingress(service("web", headless), json!([{"ip": "192.0.2.8"}])))
            .with(slice("web", vec![local()]))
            .check(
                As::Node,
                &[
                    "tcp 198.51.100.9 -> 192.0.2.7:80 => pass",
                    "tcp 198.51.100.9 -> 192.0.2.8:80 => pass",
                    "tcp 198.51.100.9 -> 192.168.0.1:30080 => local",
                ],
            );
    }
}

#[test]
fn p106_an_external_name_is_not_served_even_with_a_cluster_ip() {
    World::web(json!({"type": "ExternalName", "externalName": "db.example.org"}))
        .check(As::Node, &["tcp 10.244.1.5 -> 10.96.0.10:80 => pass"]);
}

#[test]
fn p107_what_was_asked_of_a_load_balancer_is_no_address_until_the_status_has_it() {
    let asked =
        json!({"type": "LoadBalancer", "loadBalancerIP": "192.0.2.5", "loadBalancerClass": "example.org/x"});
    World::new()
        .with(ingress(service("web", asked), json!([{"ip": "192.0.2.8"}])))
        .with(slice("web", vec![local()]))
        .check(
            As::Node,
            &[
                "tcp 198.51.100.9 -> 192.0.2.5:80 => pass",
                "tcp 198.51.100.9 -> 192.0.2.8:80 => 10.244.1.10:8080 snat",
            ],
        );
}

#[test]
fn p108_app_protocol_changes_nothing() {
    World::new()
        .with(service("web", json!({"ports": [{"port": 80, "appProtocol": "kubernetes.io/h2c"}]})))
        .with(slice_of(
            "web",
            "IPv4",
            json!([{"name": "", "port": 8080, "appProtocol": "kubernetes.io/ws"}]),
            vec![local()],
        ))
        .check(As::Node, &["tcp 10.244.1.5 -> 10.96.0.10:80 => 10.244.1.10:8080"]);
}

#[test]
fn p109_p901_ports_are_told_apart_by_name_and_protocol() {
    let ports = json!([
        {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 53},
        {"name": "sig", "port": 53, "protocol": "SCTP"},
    ]);
    World::new()
        .with(service("web", json!({"ports": ports})))
        .with(slice_of(
            "web",
            "IPv4",
            json!([{"name": "dns", "port": 1053, "protocol": "UDP"}, {"name": "dns-tcp", "port": 2053}]),
            vec![local()],
        ))
        .with(slice_of(
            "web",
            "IPv4",
            json!([{"name": "sig", "port": 3053, "protocol": "SCTP"}]),
            vec![remote()],
        ))
        .check(
            As::Node,
            &[
                "udp 10.244.1.5 -> 10.96.0.10:53 => 10.244.1.10:1053",
                "tcp 10.244.1.5 -> 10.96.0.10:53 => 10.244.1.10:2053",
                "sctp 10.244.1.5 -> 10.96.0.10:53 => 10.244.2.10:3053",
            ],
        );
}

#[test]
fn p110_leading_zeros_are_decimal_and_blanks_around_ranges_do_not_count() {
    let spec = json!({"clusterIP": "10.96.000.041", "type": "LoadBalancer", "externalIPs": ["192.0.2.007"],
        "loadBalancerSourceRanges": [" 198.51.100.009/32 "]});
    World::new()
        .with(ingress(service("web", spec), json!([{"ip": "192.0.2.08"}])))
        .with(slice("web", vec![endpoint("10.244.01.010", "a")]))
        .check(
            As::Node,
            &[
                "tcp 10.244.1.5 -> 10.96.0.41:80 => 10.244.1.10:8080",
                "tcp 10.244.1.5 -> 10.96.0.33:80 => pass",
                "tcp 198.51.100.9 -> 192.0.2.7:80 => 10.244.1.10:8080 snat",
                "tcp 198.51.100.9 -> 192.0.2.8:80 => 10.244.1.10:8080 snat",
                "tcp 198.51.100.7 -> 192.0.2.8:80 => drop",
            ],
        );
}

#[test]
fn p111_a_slice_belongs_to_the_service_that_its_label_names_in_its_own_namespace() {
    let mut elsewhere = slice("web", vec![endpoint("10.244.1.11", "a")]);
    elsewhere["metadata"]["namespace"] = "other".into();
    let mut unlabelled = slice("web", vec![endpoint("10.244.1.12", "a")]);
    unlabelled["metadata"]["labels"] = json!({});
    unlabelled["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "v1", "kind": "Service", "name": "web", "uid": "1"}]);
    let empty = labelled(slice("web", vec![endpoint("10.244.1.13", "a")]), "kubernetes.io/service-name", "");
    let mut odd_name = slice("web", vec![remote()]);
    odd_name["metadata"]["name"] = "made-by-hand".into();
    let managed = labelled(slice("web", vec![local()]), "endpointslice.kubernetes.io/managed-by", "someone");
    [elsewhere, unlabelled, empty, odd_name, managed]
        .into_iter()
        .fold(World::new().with(service("web", json!({}))), World::with)
        .check(As::Node, &["tcp 10.244.1.5 -> 10.96.0.10:80 => 10.244.1.10:8080 10.244.2.10:8080"]);
}

#[test]
fn p112_names_are_no_endpoints() {
    let name = json!({"addresses": ["backend.example.org"]});
    World::new()
        .with(service("web", json!({})))
        .with(slice_of("web", "FQDN", json!([{"name": "", "port": 8080}]), vec![name]))
        .check(As::Node, &["tcp 10.244.1.5 -> 10.96.0.10:80 => reject"]);
}

#[test]
fn p113_only_the_first_address_of_an_endpoint_counts() {
    World::new()
        .with(service("web", json!({})))
        .with(slice(
            "web",
            vec![
                json!({"addresses": ["10.244.1.10", "10.244.1.11"], "nodeName": "a"}),
                json!({"addresses": []}),
            ],
        ))
        .check(As::Node, &["tcp 10.244.1.5 -> 10.96.0.10:80 => 10.244.1.10:8080"]);
}

#[test]
fn p114_endpoint_ports_match_by_name_and_protocol_and_target_port_is_not_read() {
    let spec = json!({"ports": [
        {"name": "http", "port": 80, "targetPort": 9999},
        {"name": "all", "port": 81},
        {"name": "zero", "port": 82},
        {"name": "udp", "port": 83},
    ]});
    let ports = json!([{"name": "http", "port": 8080}, {"name": "all"}, {"name": "zero", "port": 0},
        {"name": "udp", "port": 8083, "protocol": "UDP"}]);
    World::new().with(service("web", spec)).with(slice_of("web", "IPv4", ports, vec![local()])).check(
        As::Node,
        &[
            "tcp 10.244.1.5 -> 10.96.0.10:80 => 10.244.1.10:8080",
            "tcp 10.244.1.5 -> 10.96.0.10:81 => reject",
            "tcp 10.244.1.5 -> 10.96.0.10:82 => reject",
            "tcp 10.244.1.5 -> 10.96.0.10:83 => reject",
        ],
    );
}

#[test]
fn p115_endpoints_of_one_port_may_have_different_numbers() {
    World::new()
        .with(service("web", json!({"ports": [{"name": "http", "port": 80, "targetPort": "web"}]})))
        .with(slice_of("web", "IPv4", json!([{"name": "http", "port": 8080}]), vec![local()]))
        .with(slice_of("web", "IPv4", json!([{"name": "http", "port": 9090}]), vec![remote()]))
        .check(As::Node, &["tcp 10.244.1.5 -> 10.96.0.10:80 => 10.244.1.10:8080 10.244.2.10:9090"]);
}

/// [`local`] and `other` are one endpoint in two slices, in either order, and it is served.
fn is_served_with(other: Value) {
    for slices in [[vec![local()], vec![other.clone()]], [vec![other], vec![local()]]] {
        let [first, second] = slices;
        let mut second = slice("web", second);
        second["metadata"]["name"] = "web-zzzz".into();
        World::new()
            .with(service("web", json!({})))
            .with(slice("web", first))
            .with(second)
            .check(As::Node, &["tcp 10.244.1.5 -> 10.96.0.10:80 => 10.244.1.10:8080"]);
    }
}

#[test]
fn p116_an_endpoint_in_two_slices_counts_once_and_as_the_one_that_does_not_end() {
    is_served_with(but(local(), ending()));
}

#[test]
fn p116_an_endpoint_in_two_slices_is_ready_if_it_is_in_one() {
    is_served_with(but(local(), unready()));
}

#[test]
fn p117_manual_slices_work_like_generated_ones_and_may_lead_out_of_the_cluster() {
    World::new()
        .with(service("web", json!({"selector": {}})))
        .with(slice("web", vec![json!({"addresses": ["198.51.100.80"]})]))
        .check(
            As::Node,
            &[
                "tcp 10.244.1.5 -> 10.96.0.10:80 => 198.51.100.80:8080",
                "tcp 198.51.100.9 -> 10.96.0.10:80 => 198.51.100.80:8080 snat",
            ],
        );
}

#[test]
fn p118_endpoints_count_only_where_the_controller_would_mirror_them() {
    let endpoints = json!({"apiVersion": "v1", "kind": "Endpoints",
    "metadata": {"name": "web", "namespace": "default"},
    "subsets": [
        {"addresses": [{"ip": "10.244.1.10"}], "notReadyAddresses": [{"ip": "10.244.1.11"}],
            "ports": [{"port": 8080}]},
        {"addresses": [{"ip": "10.244.1.10"}], "ports": [{"port": 9090}]},
    ]});
    let mirrored = "tcp 10.244.1.5 -> 10.96.0.10:80 => 10.244.1.10:8080 10.244.1.10:9090";
    let not_mirrored = "tcp 10.244.1.5 -> 10.96.0.10:80 => reject";
    let manual = World::new().with(service("web", json!({"selector": {}})));
    manual.clone().with(endpoints.clone()).check(As::Node, &[mirrored]);
    let skipped = labelled(endpoints.clone(), "endpointslice.kubernetes.io/skip-mirror", "true");
    manual.clone().with(skipped).check(As::Node, &[not_mirrored]);
    let mut leader = endpoints.clone();
    leader["metadata"]["annotations"] = json!({"control-plane.alpha.kubernetes.io/leader": "{}"});
    manual.with(leader).check(As::Node, &[not_mirrored]);
    World::new().with(service("web", json!({}))).with(endpoints).check(As::Node, &[not_mirrored]);
}

#[test]
fn p119_publishing_addresses_that_are_not_ready_is_the_controllers_work() {
    let spec = json!({"publishNotReadyAddresses": true});
    let published = but(local(), json!({"ready": true, "serving": false, "terminating": true}));
    World::new()
        .with(service("web", spec))
        .with(slice("web", vec![published, but(remote(), unready())]))
        .check(As::Node, &["tcp 10.244.1.5 -> 10.96.0.10:80 => 10.244.1.10:8080"]);
}
