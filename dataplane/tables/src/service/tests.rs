//! The service table as control builds it and workers read it.

use super::*;
use crate::maglev::table_size;
use crate::spec::{EndpointSpec, FrontendSpec, TrafficPolicySpec};
use std::net::Ipv4Addr;

fn ip(host: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, host))
}

fn spec(name: &str, vip: u8, endpoints: &[u8]) -> ServiceSpec {
    ServiceSpec {
        name: ServiceName { namespace: "default".into(), name: name.into(), port: "http".into() },
        protocol: Protocol::Tcp,
        frontends: vec![FrontendSpec {
            addr: ip(vip),
            port: L4Port::new(80),
            kind: FrontendKind::ClusterIp,
            policies: PerSourceClass::same(POLICY),
            allowed: None,
        }],
        endpoint_sets: vec![
            endpoints
                .iter()
                .map(|&host| EndpointSpec { addr: ip(host), port: L4Port::new(8080), weight: 1 })
                .collect(),
        ],
        serving: endpoints.iter().map(|&host| (ip(host), L4Port::new(8080))).collect(),
        affinity: None,
    }
}

const POLICY: TrafficPolicySpec =
    TrafficPolicySpec { endpoint_set: 0, source_nat: SourceNat::Always, when_empty: EmptyAction::Reject };

fn build(previous: &ServiceTable, specs: Vec<ServiceSpec>) -> (ServiceTable, Vec<ServiceError>) {
    ServiceTable::build(previous, specs.into_iter().map(Arc::new).collect(), vec![])
}

fn picks(table: &ServiceTable, vip: u8, hash: u32) -> Option<BackendId> {
    table.frontend(&key(vip)).unwrap().policy(SourceClass::Outside).backends.pick(hash)
}

fn key(vip: u8) -> ServiceKey {
    ServiceKey { protocol: Protocol::Tcp, addr: ip(vip), port: L4Port::new(80) }
}

#[test]
fn a_frontend_leads_to_every_backend_of_its_set() {
    let (table, errors) = build(&ServiceTable::default(), vec![spec("web", 1, &[11, 12])]);
    assert!(errors.is_empty());
    let hashes = (0..=u32::MAX).step_by(1 << 20);
    let mut seen: Vec<_> = hashes.map(|hash| picks(&table, 1, hash).unwrap()).collect();
    seen.sort_unstable();
    seen.dedup();
    let addrs: Vec<_> = seen.iter().map(|id| table.backends().get(*id).unwrap().addr).collect();
    assert_eq!(addrs, [ip(11), ip(12)]);
    assert_eq!(table.frontend(&key(2)).map(|f| f.service), None);
}

#[test]
fn an_unchanged_service_shares_its_parts_and_a_changed_one_keeps_its_backends() {
    let before = vec![spec("a", 1, &[11, 12]), spec("b", 2, &[21])];
    let (first, _) = build(&ServiceTable::default(), before);
    let after = vec![spec("b", 2, &[21]), spec("a", 1, &[12, 13])];
    let (second, _) = build(&first, after);
    assert!(Arc::ptr_eq(&first.services()[1], &second.services()[1]));
    let id = |table: &ServiceTable, host| table.backends().iter().find(|b| b.addr == ip(host)).map(|b| b.id);
    assert_eq!(id(&first, 12), id(&second, 12));
    assert_eq!(id(&second, 11), None);
    assert_eq!(second.service(second.frontend(&key(1)).unwrap().service).unwrap().spec.name.name, "a");
}

#[test]
fn a_contested_address_goes_to_the_first_name_and_the_loser_is_told() {
    let (table, errors) =
        build(&ServiceTable::default(), vec![spec("second", 1, &[21]), spec("first", 1, &[11])]);
    assert_eq!(
        errors.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["default/second:http: TCP 10.0.0.1:80 belongs to default/first:http already"]
    );
    let winner = table.frontend(&key(1)).unwrap().service;
    assert_eq!(table.service(winner).unwrap().spec.name.name, "first");
}

#[test]
fn a_name_given_twice_is_refused_once() {
    let twice = vec![spec("web", 1, &[11]), spec("web", 2, &[11])];
    let (table, errors) = build(&ServiceTable::default(), twice);
    assert_eq!(table.services().len(), 1);
    assert_eq!(errors[0].to_string(), "default/web:http (TCP) is described twice");
}

#[test]
fn answers_are_expected_from_backends_whose_clients_are_kept() {
    let mut preserved = spec("preserved", 1, &[11]);
    preserved.frontends[0].policies.pod.source_nat = SourceNat::PreserveClient;
    let (table, _) = build(&ServiceTable::default(), vec![preserved, spec("web", 2, &[12])]);
    let source = |host| ServiceKey { port: L4Port::new(8080), ..key(host) };
    assert!(table.is_reply_source(&source(11)) && !table.is_reply_source(&source(12)));
    assert_eq!(table.reply_sources().count(), 1);
}

#[test]
fn endpoints_beyond_the_most_backends_are_left_out_and_the_rest_is_built() {
    let specs = [spec("a", 1, &[11, 12]), spec("b", 2, &[21, 22])].map(Arc::new).to_vec();
    let (table, errors) = ServiceTable::build_within(&ServiceTable::default(), specs, vec![], 3);
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["default/b:http: 1 endpoints beyond the most backends are left out"]);
    assert_eq!(table.backends().len(), 3);
    let of = |vip, hash| table.backends().get(picks(&table, vip, hash).unwrap()).unwrap().addr;
    assert!((0..=u32::MAX).step_by(1 << 24).all(|hash| of(2, hash) == ip(21)));
    assert!((0..=u32::MAX).step_by(1 << 24).any(|hash| of(1, hash) == ip(12)));
}

#[test]
fn an_empty_set_picks_nobody() {
    let (table, _) = build(&ServiceTable::default(), vec![spec("web", 1, &[])]);
    assert_eq!(picks(&table, 1, 5), None);
}

#[test]
fn a_set_that_does_not_exist_is_named() {
    let mut wrong = spec("web", 1, &[]);
    wrong.frontends[0].policies.node.endpoint_set = 3;
    let (_, errors) = build(&ServiceTable::default(), vec![wrong]);
    assert!(errors[0].to_string().contains("endpoint set 3"));
}

#[test]
fn p803_a_backend_that_only_answers_keeps_its_slot_and_its_flows() {
    // Served while it is in a set, then only answering, then gone.
    let (first, _) = build(&ServiceTable::default(), vec![spec("web", 1, &[11, 12])]);
    let id = first.backends().iter().find(|b| b.addr == ip(11)).unwrap().id;
    let mut draining = spec("web", 1, &[12]);
    draining.serving.push((ip(11), L4Port::new(8080)));
    let (second, _) = build(&first, vec![draining]);
    assert!(second.backends().is_current(id));
    assert!((0..100).all(|n| picks(&second, 1, n << 25) != Some(id)));
    let (third, _) = build(&second, vec![spec("web", 1, &[12])]);
    assert!(!third.backends().is_current(id));
}

#[test]
fn p804_the_last_backends_of_a_service_stay_until_there_are_others() {
    let (first, _) = build(&ServiceTable::default(), vec![spec("web", 1, &[11])]);
    let id = first.backends().iter().next().unwrap().id;
    let (second, _) = build(&first, vec![spec("web", 1, &[])]);
    assert!(second.backends().is_current(id) && picks(&second, 1, 0).is_none());
    let (third, _) = build(&second, vec![spec("web", 1, &[12])]);
    assert!(!third.backends().is_current(id));
    let (gone, _) = build(&second, vec![]);
    assert!(!gone.backends().is_current(id));
}

#[test]
fn many_services_at_once_are_built_as_one_by_one() {
    let name = |n: usize| format!("web-{n}");
    let specs: Vec<ServiceSpec> = (0..300)
        .map(|n| {
            let mut one = spec(&name(n), 1, &[11, 12, 13]);
            one.frontends[0].port = L4Port::new(u16::try_from(n + 1).unwrap());
            one
        })
        .collect();
    let (at_once, errors) = build(&ServiceTable::default(), specs.clone());
    assert!(errors.is_empty());
    let mut one_by_one = ServiceTable::default();
    for n in 1..=specs.len() {
        one_by_one = build(&one_by_one, specs[..n].to_vec()).0;
    }
    assert_eq!(at_once.services().len(), 300);
    for (a, b) in at_once.services().iter().zip(one_by_one.services()) {
        let addr = |table: &ServiceTable, id| table.backends().get(id).map(|b| b.addr);
        assert_eq!(a.spec, b.spec);
        for hash in (0..=u32::MAX).step_by(1 << 27) {
            let pick = |s: &Service| s.backend_sets[0].pick(hash).unwrap();
            assert_eq!(addr(&at_once, pick(a)), addr(&one_by_one, pick(b)));
        }
    }
}

#[test]
fn the_ports_of_a_service_share_one_lookup_table_whatever_their_numbers() {
    let members = 1_001_u16;
    let port = |number: u16| {
        let mut port = spec("web", 1, &[]);
        port.name.port = format!("p{number}");
        port.frontends[0].port = L4Port::new(number);
        let endpoint = |n: u16| {
            let [high, low] = n.to_be_bytes();
            let addr = IpAddr::V4(Ipv4Addr::new(10, 244, high, low));
            EndpointSpec { addr, port: L4Port::new(8000 + number), weight: 1 }
        };
        port.endpoint_sets = vec![(0..members).map(endpoint).collect()];
        port
    };
    let (table, errors) = build(&ServiceTable::default(), (1..=300).map(port).collect());
    assert!(errors.is_empty());
    assert_eq!((table.services().len(), table.backends().len()), (300, 300 * 1_001));
    // Two bytes per slot and a name per member: what one port of the Service needs.
    let slots = table_size(usize::from(members)) as usize * size_of::<u16>();
    let bytes = table.lookup_table_bytes();
    assert!((slots..slots + 64 * usize::from(members)).contains(&bytes), "{bytes}");
    let lookup_table = |service: &Service| Arc::as_ptr(&service.backend_sets[0].lookup_table);
    let shared = lookup_table(&table.services()[0]);
    assert!(table.services().iter().all(|service| lookup_table(service) == shared));
    // The next generation has the table as well, although each port is another now.
    let (next, _) = build(&table, (301..=310).map(port).collect());
    assert!(next.services().iter().all(|service| lookup_table(service) == shared));
}

#[test]
fn sets_that_share_a_lookup_table_pick_the_same_address_and_each_its_own_backend() {
    let secure = ServiceSpec {
        name: ServiceName { namespace: "default".into(), name: "web".into(), port: "https".into() },
        endpoint_sets: vec![
            [11, 12, 13]
                .map(|host| EndpointSpec { addr: ip(host), port: L4Port::new(8443), weight: 1 })
                .to_vec(),
        ],
        ..spec("web", 2, &[])
    };
    // Backends that came later have lower or higher numbers than those before, in the order of slots that were free.
    let (first, _) =
        build(&ServiceTable::default(), vec![spec("web", 1, &[12, 14]), spec("gone", 3, &[1, 2])]);
    let (table, _) = build(&first, vec![spec("web", 1, &[11, 12, 13]), secure]);
    for hash in (0..=u32::MAX).step_by(1 << 20) {
        let picked = |vip| table.backends().get(picks(&table, vip, hash).unwrap()).unwrap().clone();
        let (plain, secure) = (picked(1), picked(2));
        assert_eq!(plain.addr, secure.addr);
        assert_eq!((plain.port, secure.port), (L4Port::new(8080), L4Port::new(8443)));
        let set = |vip| &table.frontend(&key(vip)).unwrap().policy(SourceClass::Outside).backends;
        assert!(set(1).contains(plain.id) && !set(1).contains(secure.id));
        assert!(set(2).contains(secure.id) && !set(2).contains(plain.id));
    }
}

#[test]
fn a_service_whose_ports_all_have_other_members_takes_bounded_memory_and_disturbs_no_other() {
    let port = |name: &str, number: u16, members: u16| {
        let mut port = spec(name, 1, &[]);
        port.name.port = format!("p{number:03}");
        port.frontends[0].port = L4Port::new(number);
        let endpoint = |n: u16| {
            let [high, low] = n.to_be_bytes();
            EndpointSpec {
                addr: IpAddr::V4(Ipv4Addr::new(10, 244, high, low)),
                port: L4Port::new(8080),
                weight: 1,
            }
        };
        // One endpoint of its own for each port.
        port.endpoint_sets = vec![(0..members).chain([10_000 + number]).map(endpoint).collect()];
        port
    };
    let good = || port("other", 999, 1_500);
    let ports = |count: u16| (1..=count).map(|number| port("web", number, 1_001)).chain([good()]).collect();
    let size = |table: &ServiceTable, at: usize| table.services()[at].backend_sets[0].lookup_table.slots();
    let (table, _) = build(&ServiceTable::default(), ports(100));
    assert!(table.lookup_table_bytes() < 24 << 20, "{}", table.lookup_table_bytes());
    assert_eq!(size(&table, 0), 655_373, "the other Service");
    assert_eq!((size(&table, 1), size(&table, 100)), (655_373, 8_191), "first and last port");
    // Whatever the table was before: it is that of a fresh start.
    let (fewer, _) = build(&table, ports(10));
    let (fresh, _) = build(&ServiceTable::default(), ports(10));
    assert!((0..11).all(|at| size(&fewer, at) == 655_373 && size(&fresh, at) == 655_373));
    let (without_first, _) = build(&table, (2..=100).map(|number| port("web", number, 1_001)).collect());
    let sizes: Vec<usize> = (0..99).map(|at| size(&without_first, at)).collect();
    assert_eq!(sizes.iter().filter(|&&size| size == 655_373).count(), (16 << 20) / (655_373 * 2));
    assert!(sizes.is_sorted_by(|a, b| a >= b), "the first ports have the full tables: {sizes:?}");
}

#[test]
fn a_removed_service_leaves_no_lookup_table_behind() {
    let (first, _) = build(&ServiceTable::default(), vec![spec("a", 1, &[11, 12]), spec("b", 2, &[21, 22])]);
    let (second, _) = build(&first, vec![spec("a", 1, &[11, 12])]);
    assert_eq!(second.lookup_table_bytes() * 2, first.lookup_table_bytes());
    assert_eq!(build(&second, vec![]).0.lookup_table_bytes(), 0);
}

#[test]
fn other_ports_of_a_cluster_ip_and_unused_ones_are_known() {
    // P505, P506
    let specs = vec![Arc::new(spec("web", 1, &[11]))];
    let range = "10.0.0.0/28".parse().unwrap();
    let (table, _) = ServiceTable::build(&ServiceTable::default(), specs, vec![range]);
    assert_eq!(table.unmatched(ip(1)), Some(UnmatchedDestination::ClusterIp));
    assert_eq!(table.unmatched(ip(2)), Some(UnmatchedDestination::Unallocated));
    assert_eq!(table.unmatched(ip(200)), None);
}

#[test]
fn source_ranges_admit_whom_they_hold() {
    // P401
    let mut narrow = spec("web", 1, &[11]);
    narrow.frontends[0].allowed = Some(Arc::from(["10.0.0.128/25".parse().unwrap()]));
    let (table, _) = build(&ServiceTable::default(), vec![narrow]);
    let frontend = table.frontend(&key(1)).unwrap();
    assert!(frontend.admits(ip(200)) && !frontend.admits(ip(3)));
}
