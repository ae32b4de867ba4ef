//! Netlink against the real kernel, each test in a network namespace of its own. Needs root; without it the tests print
//! that they are skipped, and pass.
#![allow(clippy::unwrap_used, reason = "test support: a panic is the report")]

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use flowgate_control::model::NetState;
use flowgate_control::netlink::{self, Resolve};
use flowgate_tables::InterfaceId;
use flowgate_tables::routing::NeighbourKey;
use flowgate_tables::spec::{RouteHopSpec, VlanSpec};
use nix::sched::{CloneFlags, unshare};
use tokio::sync::{mpsc, watch};

#[test]
fn ipv6_addresses_routes_and_links_are_followed() {
    in_namespace(async |mut net| {
        ip("addr add 2001:db8:1::1/64 dev up0 nodad");
        ip("-6 route add 2001:db8:9::/48 via 2001:db8:1::9");
        ip("-6 route add unreachable 2001:db8:9:9::/64");
        net.until("an IPv6 address", |s| s.interfaces[0].addresses.contains(&addr("2001:db8:1::1"))).await;
        net.until("an IPv6 route", |s| {
            hops(s, "2001:db8:9::/48") == Some(vec![hop(0, Some("2001:db8:1::9"), 1)])
        })
        .await;
        net.until("a route on the link", |s| hops(s, "2001:db8:1::/64") == Some(vec![hop(0, None, 1)])).await;
        net.until("a route to nowhere", |s| hops(s, "2001:db8:9:9::/64") == Some(vec![])).await;
        ip("link set up0 mtu 1400");
        net.until("another MTU", |s| s.interfaces[0].mtu == 1400).await;
        ip("link set fab0 down");
        net.until("a link that goes down", |s| !s.interfaces[1].up).await;
        ip("link del fab0");
        net.until("a link that vanishes", |s| s.interfaces[1].ifindex == 0).await;
    });
}

#[test]
fn an_address_that_is_being_checked_is_not_own_and_a_deprecated_one_comes_last() {
    in_namespace(async |mut net| {
        // Without a carrier the check (RFC 4862 section 5.4) does not end.
        std::fs::write("/proc/sys/net/ipv6/conf/up0/accept_dad", "1").unwrap();
        ip("link set up1 down");
        ip("addr add 2001:db8::7/64 dev up0");
        ip("addr add 2001:db8::8/64 dev up0 nodad preferred_lft 0");
        ip("addr add 2001:db8::9/64 dev up0 nodad");
        let wanted = ["2001:db8::9", "2001:db8::8"].map(addr);
        net.until("the addresses in order", |s| {
            let own = s.interfaces[0].addresses.iter().filter(|a| a.to_string().starts_with("2001"));
            own.copied().eq(wanted)
        })
        .await;
    });
}

#[test]
fn several_next_hops_are_told_with_their_weights_in_both_families() {
    in_namespace(async |mut net| {
        ip("addr add 10.0.1.1/24 dev up0");
        ip("addr add 10.0.2.1/24 dev fab0");
        ip("addr add 2001:db8:1::1/64 dev up0 nodad");
        ip("addr add 2001:db8:2::1/64 dev fab0 nodad");
        ip("route add 10.9.0.0/16 nexthop via 10.0.1.9 weight 3 nexthop via 10.0.2.9");
        ip("-6 route add 2001:db8:9::/48 nexthop via 2001:db8:1::9 nexthop via 2001:db8:2::9 weight 2");
        ip("route add 10.8.0.0/16 via inet6 2001:db8:1::9");
        net.until("an IPv4 multipath route", |s| {
            hops(s, "10.9.0.0/16") == Some(vec![hop(0, Some("10.0.1.9"), 3), hop(1, Some("10.0.2.9"), 1)])
        })
        .await;
        net.until("an IPv6 multipath route", |s| {
            let wanted = [hop(0, Some("2001:db8:1::9"), 1), hop(1, Some("2001:db8:2::9"), 2)];
            hops(s, "2001:db8:9::/48") == Some(wanted.to_vec())
        })
        .await;
        net.until("an IPv4 route by an IPv6 router", |s| {
            hops(s, "10.8.0.0/16") == Some(vec![hop(0, Some("2001:db8:1::9"), 1)])
        })
        .await;
        ip("-6 route del 2001:db8:9::/48 via 2001:db8:1::9 dev up0");
        net.until("one way less", |s| {
            hops(s, "2001:db8:9::/48")
                .is_some_and(|hops| hops == [hop(1, Some("2001:db8:2::9"), hops[0].weight)])
        })
        .await;
        ip("link set up1 down");
        net.until("the way without carrier left out", |s| {
            hops(s, "10.9.0.0/16") == Some(vec![hop(1, Some("10.0.2.9"), 1)])
        })
        .await;
    });
}

#[test]
fn routes_by_next_hop_objects_are_followed() {
    in_namespace(async |mut net| {
        ip("addr add 10.0.1.1/24 dev up0");
        ip("addr add 10.0.2.1/24 dev fab0");
        ip("nexthop add id 1 via 10.0.1.9 dev up0");
        ip("nexthop add id 2 via 10.0.2.9 dev fab0");
        ip("nexthop add id 9 group 1,3/2");
        ip("route add 10.9.0.0/16 nhid 9");
        let (first, second) = (hop(0, Some("10.0.1.9"), 3), hop(1, Some("10.0.2.9"), 1));
        net.until("a group of next hops", |s| hops(s, "10.9.0.0/16") == Some(vec![first, second])).await;
        ip("nexthop replace id 1 via 10.0.1.8 dev up0");
        let other = hop(0, Some("10.0.1.8"), 3);
        net.until("another router", |s| hops(s, "10.9.0.0/16") == Some(vec![other, second])).await;
        // The kernel tells of no route that goes with its object; nor may another event make us look.
        tokio::time::sleep(QUIET).await;
        ip("nexthop del id 9");
        net.until("a route that is gone", |s| hops(s, "10.9.0.0/16").is_none()).await;
    });
}

#[test]
fn the_kernel_resolves_ipv6_neighbours_when_it_is_asked() {
    in_namespace(async |mut net| {
        ip("addr add 2001:db8::1/64 dev up0 nodad");
        ip("addr add 2001:db8::2/64 dev up1 nodad");
        net.until("an own address", |s| s.interfaces[0].addresses.contains(&addr("2001:db8::1"))).await;
        let neighbour = NeighbourKey { egress: InterfaceId(0), addr: addr("2001:db8::2") };
        net.resolve.send(Resolve::Now(vec![neighbour])).await.unwrap();
        net.until("a resolved neighbour", |s| {
            s.neighbours.iter().any(|n| n.interface == 0 && n.addr == neighbour.addr && n.mac.is_some())
        })
        .await;
        ip("-6 route add default via 2001:db8::3 dev up0");
        net.until("a router that nobody requested", |s| {
            s.neighbours.iter().any(|n| n.addr == addr("2001:db8::3") && n.mac.is_none())
        })
        .await;
    });
}

#[test]
fn vlan_interfaces_come_and_go() {
    in_namespace(async |mut net| {
        if !try_ip("link add link fab0 name storage type vlan id 7") {
            eprintln!("skipped: this kernel has no VLAN interfaces (CONFIG_VLAN_8021Q)");
            return;
        }
        ip("addr add 10.7.0.1/24 dev storage");
        ip("link set storage up");
        ip("route add 10.77.0.0/16 via 10.7.0.9");
        net.until("a VLAN with an address", |s| {
            s.interfaces.get(2).is_some_and(|i| {
                i.vlan == Some(VlanSpec { parent: 1, id: 7 })
                    && i.addresses.contains(&addr("10.7.0.1"))
                    && i.up
            })
        })
        .await;
        net.until("a route through it", |s| {
            hops(s, "10.77.0.0/16") == Some(vec![hop(2, Some("10.7.0.9"), 1)])
        })
        .await;
        ip("link del storage");
        net.until("no VLAN", |s| s.interfaces.len() == 2).await;
    });
}

/// What a test has: two links up0 and fab0, whose other ends are up1 and fab1 in the same namespace.
struct Net {
    state: watch::Receiver<NetState>,
    resolve: mpsc::Sender<Resolve>,
}

impl Net {
    /// Waits for a state of the network.
    async fn until(&mut self, what: &str, is_so: impl FnMut(&NetState) -> bool) {
        let waited =
            tokio::time::timeout(PATIENCE, self.state.wait_for(is_so)).await.map(|seen| seen.is_ok());
        assert!(matches!(waited, Ok(true)), "no {what} in {:#?}", *self.state.borrow());
    }
}

/// Runs a test on a thread of its own in a fresh network namespace, which ends with the thread.
fn in_namespace(test: impl AsyncFnOnce(Net) + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: network namespaces need root");
        return;
    }
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        // Link-local addresses are there at once: one that comes later is an event that no test waits for.
        std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").unwrap();
        for (a, b) in [("up0", "up1"), ("fab0", "fab1")] {
            ip(&format!("link add {a} type veth peer name {b}"));
            ip(&format!("link set {a} up"));
            ip(&format!("link set {b} up"));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let names = ["up0", "fab0"].map(str::to_owned).to_vec();
            let (net, tracker) = netlink::open(names).await.unwrap();
            tokio::spawn(tracker.run());
            test(Net { state: net.state, resolve: net.resolve }).await;
        });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn ip(arguments: &str) {
    assert!(try_ip(arguments), "ip {arguments}");
}

fn try_ip(arguments: &str) -> bool {
    Command::new("ip").args(arguments.split_ascii_whitespace()).status().unwrap().success()
}

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The ways of the route with this prefix.
fn hops(state: &NetState, prefix: &str) -> Option<Vec<RouteHopSpec>> {
    let prefix = prefix.parse().unwrap();
    let mut hops = state.routes.iter().find(|route| route.prefix == prefix)?.hops.clone();
    hops.sort_unstable();
    Some(hops)
}

fn hop(interface: usize, via: Option<&str>, weight: u16) -> RouteHopSpec {
    RouteHopSpec { interface, via: via.map(addr), weight }
}

const PATIENCE: Duration = Duration::from_secs(20);
const QUIET: Duration = Duration::from_secs(2);
