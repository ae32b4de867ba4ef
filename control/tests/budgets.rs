//! What asks for more than there is gets left out whole and is named with its budget; all others are served.
#![allow(clippy::unwrap_used, reason = "test support: a panic is the report")]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use flowgate_control::compile::Compiler;
use flowgate_control::model::{Desired, Key, Kind, NetState};
use flowgate_control::source::convert;
use flowgate_control::{CompileConfig, LocalPods, NodeAddresses, ObjectRef, Report, Role, Severity, compile};
use flowgate_tables::spec::{InterfaceSpec, RouteHopSpec, RouteSpec, SnatSpec, VlanSpec};
use flowgate_tables::{Budgets, InterfaceId, Tables};
use flowgate_wire::MacAddr;
use serde_json::{Value, json};

/// Objects by the dozen.
#[derive(Default)]
struct Cluster {
    desired: Desired,
    services: u32,
}

impl Cluster {
    fn add(&mut self, kind: Kind, namespace: &str, name: &str, value: Value) {
        let object = ObjectRef::new(kind.name(), namespace, name);
        let (object, findings) = convert::object(kind, &object, value);
        let object = object.unwrap_or_else(|| panic!("{name} is valid: {findings:?}"));
        self.desired.apply(Key::new(namespace, name), object, None);
    }

    /// A Service with a cluster IP of its own, `ports` ports, and further fields of its spec.
    fn service(&mut self, name: &str, ports: u16, more: Value) {
        self.service_of("default", name, ports, json!({ "spec": more }));
    }

    fn service_of(&mut self, namespace: &str, name: &str, ports: u16, more: Value) {
        self.services += 1;
        let ports: Vec<Value> = (0..ports)
            .map(|i| json!({"name": format!("p{i}"), "port": 1000 + i, "targetPort": 8000 + i}))
            .collect();
        let cluster_ip = Ipv4Addr::from_bits(0x0a60_0000 + self.services);
        let mut value = json!({"metadata": {}, "spec": {
            "clusterIP": cluster_ip, "ports": ports, "selector": {"app": name}}});
        merge(&mut value, more);
        self.add(Kind::Service, namespace, name, value);
    }

    /// Slices of a thousand endpoints each for the first `ports` ports of a Service.
    fn endpoints(&mut self, service: &str, ports: u16, first: u32, count: u32) {
        let ports: Vec<Value> =
            (0..ports).map(|i| json!({"name": format!("p{i}"), "port": 8000 + i})).collect();
        for from in (0..count).step_by(1000) {
            let endpoints: Vec<Value> = (from..count.min(from + 1000))
                .map(|i| json!({"addresses": [Ipv4Addr::from_bits(0x0af4_0000 + first + i)], "nodeName": "n2"}))
                .collect();
            let slice = json!({"metadata": {"labels": {"kubernetes.io/service-name": service}},
                "addressType": "IPv4", "ports": ports, "endpoints": endpoints});
            self.add(Kind::EndpointSlice, "default", &format!("{service}-{from}"), slice);
        }
    }

    fn compiled(&self, config: &CompileConfig) -> (Tables, Vec<String>) {
        let (tables, report) = compile(&self.desired, &network(), config, &Tables::empty());
        (tables, errors(&report))
    }
}

fn merge(value: &mut Value, more: Value) {
    match (value, more) {
        (Value::Object(fields), Value::Object(more)) => {
            for (key, more) in more {
                merge(fields.entry(key).or_insert(Value::Null), more);
            }
        }
        (value, more) => *value = more,
    }
}

fn errors(report: &Report) -> Vec<String> {
    report.of(Severity::Error).map(ToString::to_string).collect()
}

fn served(tables: &Tables) -> Vec<&str> {
    let mut names: Vec<&str> =
        tables.services.services().iter().map(|service| service.spec.name.name.as_str()).collect();
    names.dedup();
    names
}

fn config(role: Role, budgets: Budgets) -> CompileConfig {
    CompileConfig { role, node_name: "n1".into(), budgets, ..CompileConfig::default() }
}

fn network() -> NetState {
    NetState {
        interfaces: Arc::new(vec![interface("up0", &["192.0.2.1"])]),
        routes: Arc::new(vec![route("0.0.0.0/0", true)]),
        ..NetState::default()
    }
}

fn interface(name: &str, addresses: &[&str]) -> InterfaceSpec {
    let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
    let mac = MacAddr([2, 0, 0, 0, 0, 1]);
    InterfaceSpec { name: name.into(), ifindex: 1, mac, mtu: 1500, up: true, addresses, vlan: None }
}

fn route(prefix: &str, is_served: bool) -> RouteSpec {
    let hop = RouteHopSpec { interface: 0, via: Some("192.0.2.254".parse().unwrap()), weight: 1 };
    RouteSpec { prefix: prefix.parse().unwrap(), hops: if is_served { vec![hop] } else { vec![] }, metric: 0 }
}

fn external_ips(count: u32) -> Value {
    json!({"externalIPs": (0..count).map(|i| Ipv4Addr::from_bits(0xc612_0000 + i)).collect::<Vec<_>>()})
}

#[test]
fn a_service_with_270_000_external_addresses_and_ports_is_left_out_whole_and_the_others_are_served() {
    let mut cluster = Cluster::default();
    cluster.service("large", 100, external_ips(2_700));
    cluster.service("web", 1, json!({}));
    cluster.endpoints("web", 1, 1, 2);
    for role in [Role::Gateway, Role::Node] {
        let (tables, errors) = cluster.compiled(&config(role, Budgets::default()));
        assert_eq!(served(&tables), ["web"]);
        assert_eq!(
            errors,
            [
                "Service default/large: is not served: it wants 270100 of limits.service_frontends = 131072: split it, or raise the limit"
            ]
        );
        let budgets =
            Budgets { service_frontends: 300_000, namespace_frontends: 300_000, ..Budgets::default() };
        let (tables, errors) = cluster.compiled(&config(role, budgets));
        assert_eq!((tables.services.frontends().count(), errors), (270_101, vec![]), "{role:?}");
    }
}

#[test]
fn seventy_thousand_endpoints_of_one_service_are_served_in_both_roles() {
    let mut cluster = Cluster::default();
    cluster.service("large", 1, json!({}));
    cluster.endpoints("large", 1, 0, 70_000);
    for (role, replies) in [(Role::Gateway, 0), (Role::Node, 70_000)] {
        let (tables, errors) = cluster.compiled(&config(role, Budgets::default()));
        assert_eq!((tables.services.backends().len(), errors), (70_000, vec![]));
        assert_eq!(tables.services.reply_sources().count(), replies, "{role:?}");
    }
}

#[test]
fn three_hundred_ports_with_a_thousand_endpoints_each_are_served() {
    let mut cluster = Cluster::default();
    cluster.service("large", 300, json!({}));
    cluster.endpoints("large", 300, 0, 1_001);
    let (tables, errors) = cluster.compiled(&config(Role::Gateway, Budgets::default()));
    assert_eq!((tables.services.backends().len(), errors), (300_300, vec![]));
}

#[test]
fn ten_thousand_services_are_served() {
    let mut cluster = Cluster::default();
    for i in 0..10_000 {
        cluster.service(&format!("s{i}"), 2, json!({"type": "NodePort", "externalTrafficPolicy": "Local"}));
    }
    let (tables, errors) = cluster.compiled(&config(Role::Node, Budgets::default()));
    assert_eq!((tables.services.services().len(), errors), (20_000, vec![]));
}

/// A cluster IP, an external address and a NodePort for each of two ports, and three endpoints, for each of four Services.
fn four_equal_services() -> Cluster {
    let mut cluster = Cluster::default();
    // Not in the order of the names.
    for (name, created) in [("a", 3), ("b", 1), ("c", 4), ("d", 2)] {
        let external = format!("198.51.100.{created}");
        cluster.service_of(
            "default",
            name,
            2,
            json!({"metadata": {"creationTimestamp": format!("2026-01-0{created}T00:00:00Z")},
                "spec": {"externalIPs": [external], "externalTrafficPolicy": "Local"}}),
        );
        cluster.endpoints(name, 2, 10 * created, 3);
    }
    cluster
}

/// A key, its value, and its field.
type Budget = (&'static str, u32, fn(&mut Budgets) -> &mut u32);

/// What the four take of each budget together, and how it is set.
fn budgets_of_services() -> Vec<Budget> {
    vec![
        ("services", 4, |b| &mut b.services),
        ("frontends", 16, |b| &mut b.frontends),
        ("vips", 16, |b| &mut b.vips),
        ("vip_addresses", 8, |b| &mut b.vip_addresses),
        ("cluster_ips", 4, |b| &mut b.cluster_ips),
        ("reply_sources", 24, |b| &mut b.reply_sources),
        ("backends", 24, |b| &mut b.backends),
        ("namespace_frontends", 16, |b| &mut b.namespace_frontends),
        ("namespace_endpoints", 24, |b| &mut b.namespace_endpoints),
    ]
}

#[test]
fn whichever_budget_is_full_the_newest_of_equal_services_is_left_out_and_named_with_it() {
    let cluster = four_equal_services();
    for (key, all, budget) in budgets_of_services() {
        let mut budgets = Budgets::default();
        *budget(&mut budgets) = all;
        let (tables, errors) = cluster.compiled(&config(Role::Gateway, budgets));
        assert_eq!((served(&tables), errors), (vec!["a", "b", "c", "d"], vec![]), "{key}");
        *budget(&mut budgets) = all - 1;
        let (tables, errors) = cluster.compiled(&config(Role::Gateway, budgets));
        assert_eq!(served(&tables), ["a", "b", "d"], "{key}");
        assert_eq!(errors.len(), 1, "{key}");
        let named =
            format!("Service default/c: is not served: it wants {} of limits.{key} = {},", all / 4, all - 1);
        assert!(errors[0].starts_with(&named), "{}", errors[0]);
        // The budget is kept to the entry, and one that is nearly gone still serves whom it can.
        *budget(&mut budgets) = all / 4;
        let (tables, errors) = cluster.compiled(&config(Role::Gateway, budgets));
        assert_eq!((served(&tables), errors.len()), (vec!["b"], 3), "{key}");
        *budget(&mut budgets) = 0;
        assert_eq!(served(&cluster.compiled(&config(Role::Gateway, budgets)).0), Vec::<&str>::new(), "{key}");
    }
    for (key, share) in [("service_frontends", 4), ("service_endpoints", 6)] {
        let of = |limit| match key {
            "service_frontends" => Budgets { service_frontends: limit, ..Budgets::default() },
            _ => Budgets { service_endpoints: limit, ..Budgets::default() },
        };
        assert_eq!(cluster.compiled(&config(Role::Gateway, of(share))).1, Vec::<String>::new(), "{key}");
        let (tables, errors) = cluster.compiled(&config(Role::Gateway, of(share - 1)));
        assert_eq!((served(&tables).len(), errors.len()), (0, 4), "{key}");
        assert!(errors.iter().all(|error| error.contains(&format!("limits.{key} = {}", share - 1))));
    }
}

#[test]
fn the_largest_is_left_out_first_however_old_it_is() {
    let mut cluster = Cluster::default();
    let created = |day: u8| json!({"metadata": {"creationTimestamp": format!("2026-01-0{day}T00:00:00Z")}});
    cluster.service_of("default", "old-and-large", 5, created(1));
    cluster.service_of("default", "small", 2, created(3));
    cluster.service_of("default", "ageless", 2, json!({}));
    let budgets = |vips| config(Role::Gateway, Budgets { vips, ..Budgets::default() });
    assert_eq!(served(&cluster.compiled(&budgets(8)).0), ["ageless", "small"]);
    assert_eq!(served(&cluster.compiled(&budgets(3)).0), ["small"], "one of unknown age is the newest");
}

#[test]
fn a_namespace_that_is_full_takes_nothing_from_another() {
    let mut cluster = Cluster::default();
    cluster.service_of("greedy", "a", 3, json!({}));
    cluster.service_of("greedy", "b", 4, json!({}));
    cluster.service_of("modest", "c", 5, json!({}));
    let budgets = Budgets { namespace_frontends: 6, ..Budgets::default() };
    let (tables, errors) = cluster.compiled(&config(Role::Gateway, budgets));
    assert_eq!(served(&tables), ["a", "c"]);
    assert_eq!(
        errors,
        [
            "Service greedy/b: is not served: it wants 4 of limits.namespace_frontends = 6, and other Services of its namespace leave less: ask for less, or raise the limit"
        ]
    );
}

#[test]
fn a_product_of_ports_and_addresses_that_no_memory_holds_is_refused_at_once() {
    let mut cluster = Cluster::default();
    cluster.service("large", 5_000, external_ips(20_000));
    cluster.endpoints("large", 5_000, 0, 5_000);
    let (tables, errors) = cluster.compiled(&config(Role::Node, Budgets::default()));
    assert_eq!((served(&tables), errors.len()), (vec![], 1));
    assert!(errors[0].contains("wants 100005000 of limits.service_frontends"), "{}", errors[0]);
}

#[test]
fn who_did_not_fit_is_served_as_soon_as_there_is_room_and_the_neighbours_do_not_notice() {
    let mut cluster = Cluster::default();
    cluster.service("a", 1, json!({}));
    cluster.service("b", 4, json!({}));
    cluster.service("c", 5, json!({}));
    let mut compiler = Compiler::new(config(Role::Gateway, Budgets { vips: 6, ..Budgets::default() }));
    let (before, report) = compiler.compile(&Arc::new(cluster.desired.clone()), &network());
    assert_eq!((served(&before), errors(&report).len()), (vec!["a", "b"], 1));
    assert!(report.leaves_out(&Key::new("default", "c")) && !report.leaves_out(&Key::new("default", "b")));
    cluster.desired.delete(&ObjectRef::new("Service", "default", "b"));
    let (after, report) = compiler.compile(&Arc::new(cluster.desired.clone()), &network());
    assert_eq!((served(&after), errors(&report)), (vec!["a", "c"], vec![]));
    assert!(Arc::ptr_eq(&before.services.services()[0], &after.services.services()[0]));
}

#[test]
fn a_service_that_is_not_served_takes_no_room() {
    let mut cluster = Cluster::default();
    cluster.service("web", 1, json!({}));
    cluster.service("headless", 9, json!({"clusterIP": "None"}));
    cluster.service("alias", 9, json!({"type": "ExternalName", "externalName": "example.org"}));
    let budgets = Budgets { services: 1, frontends: 1, vips: 1, ..Budgets::default() };
    let (tables, errors) = cluster.compiled(&config(Role::Gateway, budgets));
    assert_eq!((served(&tables), errors), (vec!["web"], vec![]));
}

#[test]
fn an_endpoint_that_moves_between_slices_is_counted_once() {
    let mut cluster = Cluster::default();
    cluster.service("web", 1, json!({}));
    cluster.endpoints("web", 1, 0, 900);
    let slices: Vec<_> = cluster.desired.slices().values().map(|stored| Arc::clone(&stored.object)).collect();
    for (slice, i) in slices.into_iter().zip(0..) {
        let object = flowgate_control::model::Object::EndpointSlice(slice);
        cluster.desired.apply(Key::new("default", format!("again-{i}")), object, None);
    }
    let budgets = Budgets { backends: 900, ..Budgets::default() };
    let (tables, errors) = cluster.compiled(&config(Role::Gateway, budgets));
    assert_eq!((tables.services.backends().len(), errors), (900, vec![]));
}

#[test]
fn flows_of_a_service_without_endpoints_keep_their_backends_only_while_others_leave_room() {
    let mut cluster = Cluster::default();
    cluster.service("a", 1, json!({}));
    cluster.service("b", 1, json!({}));
    cluster.endpoints("a", 1, 0, 3);
    let mut compiler = Compiler::new(config(Role::Gateway, Budgets { backends: 4, ..Budgets::default() }));
    let mut backends = |cluster: &Cluster| {
        let (tables, report) = compiler.compile(&Arc::new(cluster.desired.clone()), &network());
        assert_eq!(errors(&report), Vec::<String>::new());
        let of = |name| {
            let service = tables.services.services().iter().find(|s| s.spec.name.name == name).unwrap().id;
            tables.services.backends().iter().filter(|backend| backend.service == service).count()
        };
        (of("a"), of("b"))
    };
    assert_eq!(backends(&cluster), (3, 0));
    cluster.desired.delete(&ObjectRef::new("EndpointSlice", "default", "a-0"));
    assert_eq!(backends(&cluster), (3, 0), "P804");
    cluster.endpoints("b", 1, 100, 2);
    assert_eq!(backends(&cluster), (2, 2));
}

#[test]
fn service_cidrs_beyond_their_budget_are_left_out_and_named() {
    let mut cluster = Cluster::default();
    for i in 0..4 {
        let cidrs = json!({"spec": {"cidrs": [format!("10.{i}.0.0/16"), format!("fd00:{i}::/112")]}});
        cluster.add(Kind::ServiceCidr, "", &format!("range-{i}"), cidrs);
    }
    let of = |service_cidrs| config(Role::Gateway, Budgets { service_cidrs, ..Budgets::default() });
    assert_eq!(cluster.compiled(&of(8)).1, Vec::<String>::new());
    let (tables, errors) = cluster.compiled(&of(7));
    assert_eq!(tables.services.service_cidrs().len(), 6);
    assert_eq!(
        errors,
        [
            "ServiceCIDR range-3: is left out: it wants 2 of limits.service_cidrs = 7, and those before it by name leave less: raise the limit"
        ]
    );
}

#[test]
fn addresses_of_interfaces_beyond_their_budget_are_left_out_and_flows_keep_the_primary_ones() {
    let mut net = network();
    net.interfaces = Arc::new(vec![
        interface("up0", &["192.0.2.1", "192.0.2.2", "2001:db8::1", "192.0.2.3"]),
        interface("down0", &["10.0.0.1", "10.0.0.2"]),
    ]);
    let budgets = Budgets { node_addresses: 4, ..Budgets::default() };
    let config = config(Role::Gateway, budgets);
    let (tables, report) = compile(&Desired::default(), &net, &config, &Tables::empty());
    let kept: Vec<String> = tables
        .routing
        .interfaces()
        .iter()
        .flat_map(|interface| &interface.spec.addresses)
        .map(ToString::to_string)
        .collect();
    assert_eq!(kept, ["192.0.2.1", "192.0.2.2", "2001:db8::1", "10.0.0.1"]);
    assert_eq!(tables.snat.reply_addresses().len(), 4);
    assert_eq!(
        errors(&report),
        [
            "Interface up0: 1 of its 4 addresses are not used: limits.node_addresses = 4 is used up: remove some, or raise the limit",
            "Interface down0: 1 of its 2 addresses are not used: limits.node_addresses = 4 is used up: remove some, or raise the limit"
        ]
    );
    let (again, report_again) = Compiler::new(config).compile(&Arc::default(), &net);
    assert_eq!(report_again.to_string(), report.to_string());
    assert_eq!(again.routing.interfaces(), tables.routing.interfaces());
}

#[test]
fn addresses_of_a_node_object_are_bounded_too() {
    let mut cluster = Cluster::default();
    let address = |i: u8| json!({"type": "InternalIP", "address": format!("192.0.2.{i}")});
    let addresses = json!({"status": {"addresses": (1..=9).map(address).collect::<Vec<_>>()}});
    cluster.add(Kind::Node, "", "n1", addresses);
    cluster.service("web", 1, json!({"type": "NodePort"}));
    let budgets = Budgets { node_addresses: 5, ..Budgets::default() };
    let config =
        CompileConfig { node_addresses: NodeAddresses::NodeObject, ..config(Role::Gateway, budgets) };
    assert_eq!(
        cluster.compiled(&config).1,
        ["Node n1: 4 of its addresses are not used: limits.node_addresses = 5 is used up"]
    );
}

#[test]
fn sources_of_translated_flows_beyond_their_budget_are_left_out() {
    let addresses: Vec<IpAddr> = (1..=9).map(|i: u8| IpAddr::from(Ipv4Addr::new(198, 51, 100, i))).collect();
    let mut net = network();
    net.interfaces = Arc::new(vec![interface("up0", &["2001:db8::1", "2001:db8::2", "192.0.2.1"])]);
    let with = |snat_addresses| CompileConfig {
        snat: SnatSpec { addresses: addresses.clone(), ports: (40_000..40_010).collect() },
        ..config(Role::Gateway, Budgets { snat_addresses, ..Budgets::default() })
    };
    let compiled = |budget| {
        let (tables, report) = compile(&Desired::default(), &net, &with(budget), &Tables::empty());
        (tables.snat.all_addresses().len(), tables.snat.reply_addresses().len(), errors(&report))
    };
    assert_eq!(compiled(11), (10, 11, vec![]));
    let left_out = |n, limit| {
        vec![format!(
            "{n} sources of translated flows are not used: limits.snat_addresses = {limit} is used up: take some out of snat.addresses, or raise the limit"
        )]
    };
    assert_eq!(compiled(10), (10, 10, left_out(1, 10)), "an address for replies alone goes first");
    assert_eq!(compiled(5), (5, 5, left_out(6, 5)));
}

#[test]
fn interfaces_beyond_what_can_be_numbered_are_named_and_the_others_go_on() {
    let mut net = network();
    let vlan = |id| InterfaceSpec {
        vlan: Some(VlanSpec { parent: 0, id }),
        ..interface(&format!("up0.{id}"), &[&format!("10.{}.{}.1", id / 256, id % 256)])
    };
    let interfaces = Arc::make_mut(&mut net.interfaces);
    interfaces.extend((1..257).map(vlan));
    let beyond = RouteSpec {
        hops: vec![RouteHopSpec { interface: 256, via: None, weight: 1 }],
        ..route("10.1.0.0/24", true)
    };
    Arc::make_mut(&mut net.routes).push(beyond);
    let config = config(Role::Gateway, Budgets::default());
    let (tables, report) = compile(&Desired::default(), &net, &config, &Tables::empty());
    assert_eq!(tables.routing.interfaces().len(), InterfaceId::MAX);
    assert_eq!(
        errors(&report),
        [
            "Interface up0.255: is not served: there are 255 served interfaces before it",
            "Interface up0.256: is not served: there are 255 served interfaces before it"
        ]
    );
}

/// How many sources of replies a Service has on a node that recognises its pods by its own range.
fn reply_sources(routes: Vec<RouteSpec>, service: Value) -> usize {
    let mut cluster = Cluster::default();
    cluster.service("web", 1, service);
    cluster.endpoints("web", 1, 0x200, 5);
    let local = json!({"metadata": {"labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
        "ports": [{"name": "p0", "port": 8000}],
        "endpoints": [{"addresses": ["10.244.1.1"], "nodeName": "n1"}]});
    cluster.add(Kind::EndpointSlice, "default", "web-here", local);
    cluster.add(Kind::Node, "", "n1", json!({"spec": {"podCIDRs": ["10.244.1.0/24"]}}));
    let net = NetState { routes: Arc::new(routes), ..network() };
    let config = CompileConfig { local_pods: LocalPods::NodeCidr, ..config(Role::Node, Budgets::default()) };
    let (tables, report) = compile(&cluster.desired, &net, &config, &Tables::empty());
    assert_eq!(errors(&report), Vec::<String>::new());
    tables.services.reply_sources().count()
}

#[test]
fn replies_to_pods_are_looked_for_only_where_pods_can_come_from() {
    let (elsewhere, here) = (false, true);
    let by_default = || route("0.0.0.0/0", here);
    let to_cluster_ip = |routes| reply_sources(routes, json!({}));
    // P603: only pods keep their address on the way to a cluster IP, and their bridge is no served interface.
    assert_eq!(to_cluster_ip(vec![by_default(), route("10.244.1.0/24", elsewhere)]), 0);
    assert_eq!(to_cluster_ip(vec![by_default(), route("10.244.0.0/16", elsewhere)]), 0);
    for routes in [
        vec![],
        vec![by_default()],
        vec![by_default(), route("10.244.1.0/24", here)],
        vec![by_default(), route("10.244.1.0/24", elsewhere), route("10.244.1.7/32", here)],
        vec![route("0.0.0.0/0", elsewhere), route("10.244.0.0/16", here)],
    ] {
        assert_eq!(to_cluster_ip(routes.clone()), 6, "{routes:?}");
    }
    // P318: clients outside keep theirs, on the way to the endpoints of this node. P319: pods, to all.
    let local = json!({"externalIPs": ["198.51.100.1"], "externalTrafficPolicy": "Local"});
    let to_external_ip = |routes| reply_sources(routes, local.clone());
    assert_eq!(to_external_ip(vec![by_default(), route("10.244.1.0/24", elsewhere)]), 1);
    assert_eq!(to_external_ip(vec![by_default()]), 6);
}
