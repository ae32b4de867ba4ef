//! Manifests in, tables and report out. Each case is a directory in `cases/` beside its snapshot.
#![allow(clippy::unwrap_used, reason = "test support: a panic is the report")]

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use flowgate_control::model::NetState;
use flowgate_control::source::manifests;
use flowgate_control::{CompileConfig, NodeAddresses, Role, compile};
use flowgate_tables::spec::{InterfaceSpec, RouteHopSpec, RouteSpec, SnatSpec};
use flowgate_tables::{EmptyAction, SourceNat, Tables};
use flowgate_wire::MacAddr;

macro_rules! cases {
    ($role:expr; $($sentence:ident => $case:ident)*) => {$(
        #[test]
        fn $sentence() {
            let mut snapshots = insta::Settings::new();
            snapshots.set_snapshot_path("cases");
            snapshots.set_prepend_module_to_snapshot(false);
            snapshots.set_omit_expression(true);
            snapshots.bind(|| insta::assert_snapshot!(stringify!($case), render(stringify!($case), $role)));
        }
    )*};
}

cases! { Role::Gateway;
    a_cluster_ip_leads_to_the_ready_endpoints => cluster_ip
    a_node_port_is_served_on_every_address_of_the_node => node_port
    a_load_balancer_address_is_captured_unless_a_proxy_has_it => load_balancer
    target_ports_come_from_slices_by_name => target_ports
    ports_are_told_apart_by_name_and_protocol => multi_port
    endpoints_of_all_slices_count_once => several_slices
    manual_endpoints_are_mirrored => selectorless_endpoints
    endpoints_that_the_controller_would_not_mirror_do_not_count => endpoints_not_mirrored
    manual_slices_work_like_generated_ones => selectorless_slices
    only_ready_endpoints_count => not_ready
    without_endpoints_connections_are_refused => no_endpoints
    without_ready_endpoints_those_that_still_serve_are_used => terminating_fallback
    headless_unassigned_and_external_name_services_are_not_served => never_served
    labelled_services_and_slices_are_invisible => excluded_by_label
    bad_services_are_refused_with_all_reasons_and_spoil_no_other => bad_services_next_to_a_good_one
    bad_objects_of_every_kind_are_named_and_the_rest_goes_on => bad_objects_of_every_kind
    of_an_object_that_is_there_twice_the_first_counts => duplicates
    of_equal_claims_without_history_or_age_the_first_name_counts => contested
    external_policy_local_keeps_the_client_on_a_gateway => external_policy_local
    lists_json_and_other_kinds_are_read => lists_and_json
    address_families_are_served_apart => dual_stack
    leading_zeros_are_decimal => sloppy_addresses
    source_ranges_guard_load_balancer_addresses => source_ranges_and_affinity
    a_node_port_among_the_snat_ports_is_warned_of => snat_overlap
}

cases! { Role::Node;
    local_policies_on_a_node_use_its_own_endpoints => policies_on_a_node
    an_external_ip_is_served_whoever_owns_it => external_ip
}

#[test]
fn a_check_says_the_same_as_running_without_devices() {
    let config = config(Role::Gateway);
    for case in ["bad_services_next_to_a_good_one", "duplicates", "contested"] {
        let report = flowgate_control::check(&dir(case), &config);
        assert!(report.has_errors(), "{case}");
    }
    for case in ["cluster_ip", "node_port", "selectorless_endpoints"] {
        assert_eq!(flowgate_control::check(&dir(case), &config).to_string(), "", "{case}");
    }
    let missing = flowgate_control::check(&dir("nowhere"), &config);
    assert!(missing.to_string().contains("nowhere: cannot be read"), "{missing}");
}

#[test]
fn a_check_takes_node_addresses_from_the_node_object() {
    let snapshot = manifests::read(&dir("node_port")).unwrap();
    let mut desired = snapshot.desired;
    let node = flowgate_control::model::Node { addresses: vec![ip("198.51.100.7")], ..Default::default() };
    let key = flowgate_control::model::Key::new("", "edge-1");
    desired.apply(key, flowgate_control::model::Object::Node(Arc::new(node)), None);
    let config = CompileConfig { node_addresses: NodeAddresses::NodeObject, ..config(Role::Gateway) };
    let (tables, _) = compile(&desired, &NetState::default(), &config, &Tables::empty());
    let addresses: Vec<String> =
        tables.services.frontends().map(|f| format!("{}:{}", f.key.addr, f.key.port)).collect();
    assert!(addresses.contains(&"198.51.100.7:30380".to_owned()), "{addresses:?}");
}

fn render(case: &str, role: Role) -> String {
    let snapshot = manifests::read(&dir(case)).unwrap();
    let (tables, report) = compile(&snapshot.desired, &network(), &config(role), &Tables::empty());
    let mut out = String::new();
    for service in tables.services.services() {
        writeln!(out, "{} ({})", service.spec.name, service.spec.protocol).unwrap();
        for frontend in &service.spec.frontends {
            let treated = frontend.policies.map(|policy| {
                let nat = match policy.source_nat {
                    SourceNat::Always => "snat",
                    SourceNat::PreserveClient => "keep client",
                };
                let set = &service.spec.endpoint_sets[policy.endpoint_set];
                let endpoints: Vec<String> = set.iter().map(|e| format!("{}:{}", e.addr, e.port)).collect();
                match (endpoints.is_empty(), policy.when_empty) {
                    (false, _) => format!("{nat} -> {}", endpoints.join(" ")),
                    (true, EmptyAction::Reject) => format!("{nat} -> reject"),
                    (true, EmptyAction::Drop) => format!("{nat} -> drop"),
                }
            });
            let key = format!("{}:{}", frontend.addr, frontend.port);
            writeln!(out, "  {:<12} {key:<22} {}", frontend.kind.name(), treated.outside).unwrap();
            if treated.pod != treated.outside {
                writeln!(out, "    from a pod of this node: {}", treated.pod).unwrap();
            }
            if treated.node != treated.outside {
                writeln!(out, "    from the node: {}", treated.node).unwrap();
            }
            if let Some(allowed) = &frontend.allowed {
                let allowed: Vec<String> = allowed.iter().map(ToString::to_string).collect();
                writeln!(out, "    only from {}", allowed.join(" ")).unwrap();
            }
        }
    }
    let path = format!("{}/", dir(case).display());
    for entry in snapshot.findings.iter().chain(&report.entries) {
        let line = format!("{}: {entry}", entry.severity.name()).replace(&path, "");
        writeln!(out, "{line}").unwrap();
    }
    if snapshot.ignored > 0 {
        writeln!(out, "{} ignored", snapshot.ignored).unwrap();
    }
    out
}

fn dir(case: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "cases", case].iter().collect()
}

fn config(role: Role) -> CompileConfig {
    CompileConfig {
        role,
        node_name: "edge-1".into(),
        snat: SnatSpec { addresses: vec![], ports: (40_000..50_000).collect() },
        ..CompileConfig::default()
    }
}

fn network() -> NetState {
    let interface = |name: &str, n: u8, addresses: &[&str]| InterfaceSpec {
        name: name.into(),
        ifindex: n.into(),
        mac: MacAddr([2, 0, 0, 0, 0, n]),
        mtu: 1500,
        up: true,
        addresses: addresses.iter().map(|a| ip(a)).collect(),
        vlan: None,
    };
    let route = RouteSpec {
        prefix: "10.244.0.0/16".parse().unwrap(),
        hops: vec![RouteHopSpec { interface: 1, via: Some(ip("10.0.0.254")), weight: 1 }],
        metric: 0,
    };
    NetState {
        interfaces: Arc::new(vec![
            interface("up0", 1, &["192.0.2.10", "fe80::1"]),
            interface("fab0", 2, &["10.0.0.1"]),
        ]),
        routes: Arc::new(vec![route]),
        ..NetState::default()
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}
