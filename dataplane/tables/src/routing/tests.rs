//! Routing tables from descriptions.

use std::net::Ipv4Addr;

use flowgate_wire::MacAddr;

use super::*;
use crate::spec::RouteHopSpec;

fn interface(name: &str, host: u8) -> InterfaceSpec {
    InterfaceSpec {
        name: name.into(),
        ifindex: u32::from(host),
        mac: MacAddr([2, 0, 0, 0, 0, host]),
        mtu: 1500,
        up: true,
        addresses: vec![IpAddr::V4(Ipv4Addr::new(10, host, 0, 1))],
        vlan: None,
    }
}

fn route(prefix: &str, interface: usize, via: Option<&str>) -> RouteSpec {
    multipath(prefix, &[(interface, via, 1)])
}

fn multipath(prefix: &str, hops: &[(usize, Option<&str>, u16)]) -> RouteSpec {
    let hop = |&(interface, via, weight): &(usize, Option<&str>, u16)| RouteHopSpec {
        interface,
        via: via.map(|via| via.parse().unwrap()),
        weight,
    };
    RouteSpec { prefix: prefix.parse().unwrap(), hops: hops.iter().map(hop).collect(), metric: 0 }
}

fn neighbour(addr: &str, interface: usize, mac: Option<u8>) -> NeighbourSpec {
    let mac = mac.map(|m| MacAddr([4, 0, 0, 0, 0, m]));
    NeighbourSpec { interface, addr: addr.parse().unwrap(), mac, has_failed: false }
}

fn build(previous: &Routing, routes: &[RouteSpec], neighbours: &[NeighbourSpec]) -> Routing {
    Routing::build(previous, vec![interface("up0", 1), interface("fab0", 2)], routes, neighbours).unwrap()
}

fn via(routing: &Routing, dst: impl Into<IpAddr>) -> NextHop {
    match routing.route(dst.into(), 0) {
        Route::Via(id) => *routing.next_hop(id).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_routed_destination_goes_to_the_router_and_a_link_one_to_itself() {
    let routes = [route("10.1.0.0/16", 0, None), route("0.0.0.0/0", 0, Some("10.1.0.9"))];
    let routing = build(
        &Routing::default(),
        &routes,
        &[neighbour("10.1.0.9", 0, Some(9)), neighbour("10.1.0.5", 0, None)],
    );
    let hop = via(&routing, [8, 8, 8, 8]);
    assert_eq!(hop.ether, Some(EtherAddrs([4, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1])));
    assert_eq!(via(&routing, [10, 1, 0, 5]).ether, None, "known but not resolved");
    let unknown = NeighbourKey { egress: InterfaceId(0), addr: [10, 1, 0, 6].into() };
    assert_eq!(routing.route([10, 1, 0, 6].into(), 0), Route::Unknown(unknown));
    assert_eq!(build(&routing, &[], &[]).route([10, 1, 0, 6].into(), 0), Route::None);
}

#[test]
fn the_lowest_metric_wins() {
    let mut costly = route("0.0.0.0/0", 0, Some("10.1.0.9"));
    costly.metric = 100;
    let neighbours = [neighbour("10.1.0.9", 0, Some(9)), neighbour("10.2.0.9", 1, Some(8))];
    let cheap = route("0.0.0.0/0", 1, Some("10.2.0.9"));
    for routes in [[costly.clone(), cheap.clone()], [cheap, costly]] {
        assert_eq!(
            via(&build(&Routing::default(), &routes, &neighbours), [1, 1, 1, 1]).egress,
            InterfaceId(1)
        );
    }
}

#[test]
fn a_neighbour_change_keeps_numbers_and_epoch() {
    let routes = [route("10.1.0.0/16", 0, None)];
    let first = build(&Routing::default(), &routes, &[neighbour("10.1.0.5", 0, Some(5))]);
    let both = [neighbour("10.1.0.5", 0, Some(6)), neighbour("10.1.0.7", 0, None)];
    let second = build(&first, &routes, &both);
    assert_eq!(first.epoch(), second.epoch());
    assert_eq!(first.route([10, 1, 0, 5].into(), 0), second.route([10, 1, 0, 5].into(), 0));
    assert_eq!(via(&second, [10, 1, 0, 5]).ether.unwrap().0[5], 6);
}

#[test]
fn a_route_change_and_a_reused_number_raise_the_epoch() {
    let routes = [route("10.1.0.0/16", 0, None)];
    let first = build(&Routing::default(), &routes, &[neighbour("10.1.0.5", 0, Some(5))]);
    let moved = build(&first, &[route("10.1.0.0/16", 1, None)], &[neighbour("10.1.0.5", 0, Some(5))]);
    assert_ne!(first.epoch(), moved.epoch());
    let reused = build(&first, &routes, &[neighbour("10.1.0.6", 0, Some(5))]);
    assert_ne!(first.epoch(), reused.epoch());
}

#[test]
fn a_route_whose_interface_is_down_gives_way_to_a_costlier_one_of_its_prefix_only() {
    let mut down = interface("up0", 1);
    down.up = false;
    let mut costly = route("10.1.0.0/16", 1, Some("10.2.0.9"));
    costly.metric = 100;
    let neighbours = [neighbour("10.1.0.5", 0, Some(5)), neighbour("10.2.0.9", 1, Some(9))];
    let at = |routes: &[RouteSpec]| {
        let interfaces = vec![down.clone(), interface("fab0", 2)];
        Routing::build(&Routing::default(), interfaces, routes, &neighbours)
            .unwrap()
            .route([10, 1, 0, 5].into(), 0)
    };
    let (cheap, default) = (route("10.1.0.0/16", 0, None), route("0.0.0.0/0", 1, Some("10.2.0.9")));
    assert_eq!(at(&[cheap.clone(), default.clone()]), Route::None);
    for routes in [[costly.clone(), cheap.clone()], [cheap, costly]] {
        assert!(matches!(at(&routes), Route::Via(_)));
    }
}

#[test]
fn a_prefix_without_a_way_wins_over_a_shorter_one() {
    let routes = [multipath("10.1.0.0/16", &[]), route("0.0.0.0/0", 0, Some("10.1.0.9"))];
    let routing = build(&Routing::default(), &routes, &[neighbour("10.1.0.9", 0, Some(9))]);
    assert_eq!(routing.route([10, 1, 0, 5].into(), 0), Route::None);
    assert_eq!(via(&routing, [10, 2, 0, 5]).egress, InterfaceId(0));
}

#[test]
fn flows_spread_over_the_routers_that_answer() {
    let routes = [multipath("0.0.0.0/0", &[(0, Some("10.1.0.9"), 1), (1, Some("10.2.0.9"), 1)])];
    let both = [neighbour("10.1.0.9", 0, Some(9)), neighbour("10.2.0.9", 1, Some(8))];
    let taken = |routing: &Routing| -> Vec<u8> {
        let via = |flow| match routing.route([8, 8, 8, 8].into(), flow) {
            Route::Via(id) => routing.next_hop(id).unwrap().egress.0,
            other => panic!("{other:?}"),
        };
        (0..100).map(via).collect()
    };
    let first = build(&Routing::default(), &routes, &both);
    let paths = taken(&first);
    assert!(paths.contains(&0) && paths.contains(&1));
    assert_eq!(taken(&build(&first, &routes, &both)), paths);
    let one = build(&first, &routes, &[both[0].clone(), neighbour("10.2.0.9", 1, None)]);
    assert_eq!(taken(&one), [0; 100]);
    assert_ne!(one.epoch(), first.epoch(), "flows of the unresolved router look again");
    let unresolved = [neighbour("10.1.0.9", 0, None), neighbour("10.2.0.9", 1, None)];
    let unanswered = taken(&build(&one, &routes, &unresolved));
    assert_eq!(unanswered, paths, "all are requested");
}

#[test]
fn an_ipv4_route_may_lead_to_an_ipv6_router() {
    let routes = [
        route("0.0.0.0/0", 0, Some("fe80::9")),
        route("2001:db8::/32", 1, None),
        route("::/0", 0, Some("fe80::9")),
    ];
    let neighbours = [neighbour("fe80::9", 0, Some(9)), neighbour("2001:db8::5", 1, Some(5))];
    let routing = build(&Routing::default(), &routes, &neighbours);
    assert_eq!(via(&routing, [8, 8, 8, 8]).addr, "fe80::9".parse::<IpAddr>().unwrap());
    assert_eq!(via(&routing, "2001:db8::5".parse::<IpAddr>().unwrap()).ether.unwrap().0[5], 5);
    assert_eq!(via(&routing, "2001:db9::5".parse::<IpAddr>().unwrap()).ether.unwrap().0[5], 9);
    let unknown = NeighbourKey { egress: InterfaceId(1), addr: "2001:db8::6".parse().unwrap() };
    assert_eq!(routing.route(unknown.addr, 0), Route::Unknown(unknown));
}

#[test]
fn a_vlan_is_an_interface_of_its_device() {
    let vlan =
        |name: &str, parent, id| InterfaceSpec { vlan: Some(VlanSpec { parent, id }), ..interface(name, 3) };
    let [up0, fab0] = [interface("up0", 1), interface("fab0", 2)];
    let at =
        |interfaces: Vec<InterfaceSpec>, previous: &Routing| Routing::build(previous, interfaces, &[], &[]);
    let first = at(vec![up0.clone(), fab0.clone(), vlan("fab0.7", 1, 7)], &Routing::default()).unwrap();
    assert_eq!(first.device(InterfaceId(2)), (InterfaceId(1), Some(7)));
    assert_eq!(first.device(InterfaceId(1)), (InterfaceId(1), None));
    assert_eq!(first.ingress(InterfaceId(1), 7), Some(InterfaceId(2)));
    assert_eq!(first.ingress(InterfaceId(0), 7), None);
    let other = at(vec![up0.clone(), fab0, vlan("fab0.8", 1, 8)], &first).unwrap();
    assert_ne!(other.epoch(), first.epoch(), "the number is another interface's");
    let error = at(vec![up0, vlan("up0.7", 0, 7), vlan("up0.7.8", 1, 8)], &first).unwrap_err();
    assert_eq!(error.to_string(), "VLAN 8 of interface 1: its parent must be a device that comes before it");
}

#[test]
fn a_reference_to_no_interface_is_refused_by_name() {
    let wrong =
        Routing::build(&Routing::default(), vec![], &[route("10.0.0.0/8", 2, None)], &[]).unwrap_err();
    assert_eq!(wrong.to_string(), "route to 10.0.0.0/8 names interface 2, of 0");
}

#[test]
fn a_source_comes_by_every_path_of_its_route_and_by_no_other_interface() {
    let routes = [
        route("10.1.0.0/16", 0, None),
        route("10.2.0.0/16", 1, None),
        multipath("10.3.0.0/16", &[(0, Some("10.1.0.9"), 1), (1, Some("10.2.0.9"), 1)]),
        multipath("10.2.7.0/24", &[]),
    ];
    // Only one of the two routers answers: the other may send nevertheless.
    let routing = build(&Routing::default(), &routes, &[neighbour("10.1.0.9", 0, Some(9))]);
    for (src, by) in [
        ([10, 1, 0, 5], &[0][..]),
        ([10, 2, 0, 5], &[1]),
        ([10, 3, 0, 5], &[0, 1]),
        ([10, 2, 7, 5], &[]),
        ([192, 0, 2, 1], &[]),
    ] {
        let found: Vec<u8> =
            [0, 1].into_iter().filter(|&n| routing.is_reverse_path(src.into(), InterfaceId(n))).collect();
        assert_eq!(found, by, "{src:?}");
    }
}

#[test]
fn a_link_with_an_own_address_has_a_broadcast_address() {
    let routes = [
        route("10.1.0.0/24", 0, None),
        route("10.2.0.0/31", 1, None),
        route("10.3.0.0/24", 1, None),
        route("10.4.0.0/24", 0, Some("10.1.0.9")),
    ];
    let routing = build(&Routing::default(), &routes, &[]);
    for (addr, expected) in [
        ("10.1.0.255", true),
        ("10.1.0.0", false),
        ("10.2.0.1", false),
        ("10.3.0.255", false),
        ("10.4.0.255", false),
    ] {
        assert_eq!(routing.is_broadcast(addr.parse().unwrap()), expected, "{addr}");
    }
}

#[test]
fn what_the_kernel_does_not_forward_is_known_by_interface_and_family() {
    let off = [ForwardingOff { interface: 1, v4: true }, ForwardingOff { interface: 0, v4: false }];
    let routing = build(&Routing::default(), &[], &[]).with_forwarding_off(&off);
    let forwards = |n, v4| routing.forwards(InterfaceId(n), v4);
    assert_eq!(
        [forwards(0, true), forwards(0, false), forwards(1, true), forwards(1, false)],
        [true, false, false, true]
    );
}
