//! The kernel's routes to those that workers can take.

use std::collections::{BTreeMap, HashMap, HashSet};

use flowgate_tables::spec::{RouteHopSpec, RouteSpec};
use ipnet::IpNet;

use super::message::Route;

/// The routes through served interfaces. `positions` are those of the served interfaces by the kernel's index of the
/// link; a bond has several, and its flows are spread over its ports.
///
/// A prefix whose routes lead only through other interfaces, or nowhere, becomes a route without next hops: else a
/// shorter prefix would be taken for it.
pub(super) fn specs(all: &[Route], positions: &HashMap<u32, Vec<usize>>) -> Vec<RouteSpec> {
    // Each IPv6 router that was announced (RFC 4861) is a route of its own in the kernel.
    let mut grouped: BTreeMap<(IpNet, u32), Vec<&Route>> = BTreeMap::new();
    for route in all {
        grouped.entry((route.prefix, route.metric)).or_default().push(route);
    }
    let mut served = HashSet::new();
    let (mut specs, mut elsewhere) = (Vec::new(), Vec::new());
    for ((prefix, metric), routes) in grouped {
        let is_closed = routes.iter().all(|route| route.hops.is_empty());
        let spec = RouteSpec { prefix, hops: hops(&routes, positions), metric };
        // A route through other interfaces only, as against one to nowhere (blackhole, unreachable).
        if spec.hops.is_empty() && !is_closed {
            elsewhere.push(spec);
        } else {
            served.insert(prefix);
            specs.push(spec);
        }
    }
    // A dearer route through a served interface wins over a cheaper one through an interface for management.
    specs.extend(elsewhere.into_iter().filter(|spec| !served.contains(&spec.prefix)));
    specs
}

/// The next hops through served interfaces, of those of `routes` (one prefix and metric) that are preferred most
/// (RFC 4191).
fn hops(routes: &[&Route], positions: &HashMap<u32, Vec<usize>>) -> Vec<RouteHopSpec> {
    let best = routes.iter().map(|route| route.preference).max();
    let preferred = routes.iter().filter(|route| Some(route.preference) == best);
    let (mut live, mut dead) = (Vec::new(), Vec::new());
    for hop in preferred.flat_map(|route| &route.hops) {
        let list = if hop.is_dead { &mut dead } else { &mut live };
        let interfaces = positions.get(&hop.ifindex).map_or(&[][..], Vec::as_slice);
        let spec = |&interface| RouteHopSpec { interface, via: hop.via, weight: hop.weight };
        list.extend(interfaces.iter().map(spec));
    }
    // If all are dead their interfaces are down, which the tables have from the interfaces.
    if live.is_empty() { dead } else { live }
}

#[cfg(test)]
mod tests {
    use super::super::message::Hop;
    use super::*;

    fn hop(ifindex: u32, via: &str) -> Hop {
        Hop { ifindex, via: Some(via.parse().unwrap()), weight: 1, is_dead: false }
    }

    fn route(prefix: &str, metric: u32, hops: Vec<Hop>) -> Route {
        Route { prefix: prefix.parse().unwrap(), metric, preference: 0, hops }
    }

    /// Interface 9 is served at position 0, 5 is a bond with ports at 1 and 2.
    fn shown(routes: &[Route]) -> Vec<String> {
        let positions = HashMap::from([(9, vec![0]), (5, vec![1, 2])]);
        let hop = |hop: &RouteHopSpec| format!(" {}x{} {:?}", hop.interface, hop.weight, hop.via);
        let shown = |spec: RouteSpec| {
            format!("{} {}{}", spec.prefix, spec.metric, spec.hops.iter().map(hop).collect::<String>())
        };
        specs(routes, &positions).into_iter().map(shown).collect()
    }

    #[test]
    fn a_route_takes_its_ways_through_served_interfaces_with_their_weights() {
        let mut ways = vec![hop(1, "10.0.0.8"), hop(9, "10.0.0.9"), hop(9, "fe80::9")];
        ways[2].weight = 7;
        assert_eq!(
            shown(&[route("10.1.0.0/16", 5, ways)]),
            ["10.1.0.0/16 5 0x1 Some(10.0.0.9) 0x7 Some(fe80::9)"]
        );
    }

    #[test]
    fn a_way_through_a_bond_is_one_through_each_of_its_ports() {
        let on_link = Hop { via: None, ..hop(5, "::") };
        assert_eq!(shown(&[route("2001:db8::/64", 0, vec![on_link])]), ["2001:db8::/64 0 1x1 None 2x1 None"]);
    }

    #[test]
    fn a_dead_way_is_left_out_while_another_lives() {
        let dead = Hop { is_dead: true, ..hop(9, "10.0.0.9") };
        assert_eq!(
            shown(&[
                route("10.1.0.0/16", 0, vec![dead, hop(9, "10.0.0.8")]),
                route("10.2.0.0/16", 0, vec![dead])
            ]),
            ["10.1.0.0/16 0 0x1 Some(10.0.0.8)", "10.2.0.0/16 0 0x1 Some(10.0.0.9)"]
        );
    }

    #[test]
    fn a_prefix_that_leads_elsewhere_or_nowhere_has_no_way() {
        let elsewhere = |prefix, metric| route(prefix, metric, vec![hop(1, "10.0.0.8")]);
        let routes = [
            elsewhere("10.1.0.0/16", 0),
            route("10.2.0.0/16", 3, vec![]),
            elsewhere("10.3.0.0/16", 0),
            route("10.3.0.0/16", 100, vec![hop(9, "10.0.0.9")]),
        ];
        assert_eq!(
            shown(&routes),
            ["10.2.0.0/16 3", "10.3.0.0/16 100 0x1 Some(10.0.0.9)", "10.1.0.0/16 0"],
            "an interface for management may have the cheaper default route"
        );
    }

    #[test]
    fn announced_routers_share_the_flows_if_they_are_equally_preferred() {
        let announced = |via, preference| Route { preference, ..route("::/0", 1024, vec![hop(9, via)]) };
        assert_eq!(
            shown(&[announced("fe80::1", 0), announced("fe80::2", 1), announced("fe80::3", 1)]),
            ["::/0 1024 0x1 Some(fe80::2) 0x1 Some(fe80::3)"]
        );
    }
}
