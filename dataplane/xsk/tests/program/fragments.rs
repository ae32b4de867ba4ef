//! Fragments: later ones follow the decision on the first one if that is known.

use std::time::Duration;

use aya::maps::{HashMap, Map, MapData};
use nix::time::{ClockId, clock_gettime};

use super::*;
use common::PIN_DIR;
use frames::{DESTINATION, FRAGMENT, ICMP, TCP, UDP, V4, ethernet, extension, fragment, l4, v6};

/// The first fragment, and a later one, of a datagram.
fn pair(from: [u8; 4], to: [u8; 4], id: u16, ports: (u16, u16)) -> [Vec<u8>; 2] {
    let packet = V4 { id, ..V4::new(from.into(), to.into(), UDP) };
    let first = V4 { fragment: 0x2000, ..packet }.with(&l4(UDP, ports.0, ports.1));
    let later = V4 { fragment: 2, ..packet }.with(b"and so on");
    [first, later].map(|packet| ethernet(0x0800, &packet))
}

fn pair6(from: Ipv6Addr, to: Ipv6Addr, id: u32, ports: (u16, u16)) -> [Vec<u8>; 2] {
    let first = fragment(UDP, 1, id, &l4(UDP, ports.0, ports.1));
    let later = fragment(UDP, 16, id, b"and so on");
    [first, later].map(|fragment| ethernet(0x86dd, &v6(from, to, FRAGMENT, &fragment)))
}

#[test]
fn later_fragments_follow_the_first_one_to_the_worker() {
    let rig = rig();
    let [first, later] = pair(OTHER, VIP, 1, (4000, 53));
    rig.redirects("to a VIP", &first, "redirect_vip");
    rig.redirects("to a VIP", &later, "redirect_fragment");
    let [first, later] = pair(OTHER, NODE, 2, (4000, 30053));
    rig.passes("of a NodePort, too early", &later, "pass_fragment");
    rig.redirects("to a NodePort", &first, "redirect_nodeport");
    rig.redirects("to a NodePort", &later, "redirect_fragment");
    let [first, later] = pair(DNAT_ONLY, SNAT, 2, (8080, 20000));
    rig.redirects("to a SNAT port", &first, "redirect_snat_reply");
    rig.redirects("to a SNAT port", &later, "redirect_fragment");

    let [first, later] = pair6(OTHER6, NODE6, 3, (4000, 30053));
    rig.passes("of a NodePort, too early", &later, "pass_fragment");
    rig.redirects("to a NodePort", &first, "redirect_nodeport");
    rig.redirects("to a NodePort", &later, "redirect_fragment");
    // Only the first fragment's next header counts (RFC 8200, 4.5).
    let odd = v6(OTHER6, NODE6, FRAGMENT, &fragment(DESTINATION, 8, 3, b"and so on"));
    rig.redirects("with another next header", &ethernet(0x86dd, &odd), "redirect_fragment");
}

#[test]
fn fragments_of_the_nodes_own_datagrams_go_to_the_kernel() {
    let rig = rig();
    // The same two hosts, with addresses that are ours on other ports.
    let [first, later] = pair(DNAT_ONLY, NODE, 7, (9, 9));
    rig.passes("to the node", &first, "pass_not_ours");
    rig.passes("to the node", &later, "pass_fragment");
    let [first, later] = pair6(DNAT_ONLY6, NODE6, 7, (9, 9));
    rig.passes("to the node", &first, "pass_not_ours");
    rig.passes("to the node", &later, "pass_fragment");
    let [_, later] = pair(DNAT_ONLY, NODE, 8, (0, 0));
    rig.passes("to the node, nothing known", &later, "pass_fragment");
    let [_, later] = pair(OTHER, DNAT_ONLY, 8, (0, 0));
    rig.passes("by way of the node, nothing known", &later, "pass_fragment");
}

#[test]
fn each_datagram_is_told_from_the_others() {
    let rig = rig();
    let [first, _] = pair(OTHER, NODE, 1, (4000, 30053));
    rig.redirects("the datagram", &first, "redirect_nodeport");
    rig.passes("another id", &pair(OTHER, NODE, 2, (0, 0))[1], "pass_fragment");
    rig.passes("another source", &pair(DNAT_ONLY, NODE, 1, (0, 0))[1], "pass_fragment");
    let tcp = V4 { id: 1, fragment: 2, ..V4::new(OTHER.into(), NODE.into(), TCP) }.with(b"and so on");
    rig.passes("another protocol", &ethernet(0x0800, &tcp), "pass_fragment");

    // The id is reused: the last first fragment with it decides.
    rig.passes("the id again", &pair(OTHER, NODE, 1, (9, 9))[0], "pass_not_ours");
    rig.passes("the id again", &pair(OTHER, NODE, 1, (9, 9))[1], "pass_fragment");
    rig.redirects("and again", &first, "redirect_nodeport");
    rig.redirects("and again", &pair(OTHER, NODE, 1, (0, 0))[1], "redirect_fragment");
}

#[test]
fn a_later_fragment_of_nothing_known_is_ours_when_it_goes_to_a_vip_that_is_not_the_nodes() {
    let mut rig = rig();
    rig.redirects("to a VIP", &pair(OTHER, VIP, 1, (0, 0))[1], "redirect_fragment");
    rig.redirects("to a VIP", &pair6(OTHER6, VIP6, 1, (0, 0))[1], "redirect_fragment");
    let ping = V4 { fragment: 2, ..V4::new(OTHER.into(), VIP.into(), ICMP) }.with(b"and so on");
    rig.passes("of a ping", &ethernet(0x0800, &ping), "pass_fragment");
    rig.passes("another port of the VIP", &pair(OTHER, VIP, 2, (9, 9))[0], "pass_not_ours");
    rig.passes("another port of the VIP", &pair(OTHER, VIP, 2, (9, 9))[1], "pass_fragment");

    let vip = VipKey { addr: IpAddr::from(NODE), port: 443, protocol: 6 };
    rig.serve(|set| {
        set.vips.insert(vip);
    });
    rig.passes("a VIP that is the node's", &pair(OTHER, NODE, 3, (0, 0))[1], "pass_fragment");

    // The address is a VIP as long as one of its ports is.
    rig.serve(|set| set.vips.retain(|vip| vip.protocol == 6));
    rig.redirects("to a VIP", &pair(OTHER, VIP, 4, (0, 0))[1], "redirect_fragment");
    rig.serve(|set| set.vips.retain(|vip| vip.addr != IpAddr::from(VIP)));
    rig.passes("to a VIP no more", &pair(OTHER, VIP, 5, (0, 0))[1], "pass_fragment");
}

#[test]
fn a_first_fragment_without_its_ports_goes_to_the_kernel() {
    let rig = rig();
    let tiny = V4 { fragment: 0x2000, ..V4::new(OTHER.into(), VIP.into(), TCP) };
    for len in [0, 8, 16, 19] {
        let packet = tiny.with(&l4(TCP, 4000, 80)[..len]);
        rig.passes("a tiny first fragment", &ethernet(0x0800, &packet), "pass_malformed");
    }
    let options = fragment(DESTINATION, 1, 7, &extension(UDP, 0, 0, &l4(UDP, 4000, 53)));
    let whole = ethernet(0x86dd, &v6(OTHER6, VIP6, FRAGMENT, &options));
    rig.redirects("options behind the fragment header", &whole, "redirect_vip");
    for len in 0..24 {
        let packet = v6(OTHER6, VIP6, FRAGMENT, &options[..len]);
        rig.passes("a tiny first fragment", &ethernet(0x86dd, &packet), "pass_malformed");
    }
}

/// Makes all entries of the map `fragments` older.
fn age(rig: &Rig, by: Duration) {
    let pin = format!("{PIN_DIR}/fragments");
    let map = rig.namespace.run(|| MapData::from_pin(pin)).expect("the pinned map");
    let map = Map::from_map_data(map).expect("a map");
    let mut map: HashMap<_, [u8; 40], [u64; 2]> = map.try_into().expect("a hash map");
    let clock = || Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).expect("a clock"));
    // A virtual machine may have booted less than this time ago.
    std::thread::sleep(by.saturating_sub(clock()));
    let now = clock();
    let seen = u64::try_from((now - by).as_nanos()).expect("a young machine");
    for key in map.keys().collect::<Result<Vec<_>, _>>().expect("keys") {
        let [_, ours] = map.get(&key, 0).expect("a value");
        map.insert(key, [seen, ours], 0).expect("room");
    }
}

#[test]
fn a_first_fragment_is_forgotten_after_a_minute() {
    let rig = rig();
    let [first, later] = pair(OTHER, NODE, 1, (4000, 30053));
    rig.redirects("the first", &first, "redirect_nodeport");
    age(&rig, Duration::from_secs(50));
    rig.redirects("within a minute", &later, "redirect_fragment");
    age(&rig, Duration::from_secs(61));
    rig.passes("later", &later, "pass_fragment");
    rig.redirects("the id again", &first, "redirect_nodeport");
    rig.redirects("the id again", &later, "redirect_fragment");
}

#[test]
fn the_memory_for_first_fragments_is_bounded_and_never_refuses_the_newest() {
    let rig = rig();
    for id in 0..60_000 {
        let [first, _] = pair(OTHER, NODE, id, (4000, 30053));
        rig.steering.probe(rig.ifindex, &first).expect("test run");
        if id % 1000 == 999 {
            rig.redirects("the newest", &pair(OTHER, NODE, id, (0, 0))[1], "redirect_fragment");
        }
    }
    rig.passes("the oldest", &pair(OTHER, NODE, 0, (0, 0))[1], "pass_fragment");
}
