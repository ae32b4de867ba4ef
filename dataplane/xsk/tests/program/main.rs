//! The XDP program on single packets by BPF_PROG_TEST_RUN: for each, the verdict, and that exactly one counter is
//! incremented.

#![allow(unreachable_pub, reason = "modules of one test")]

mod agreement;
#[path = "../common/mod.rs"]
mod common;
mod cost;
mod fragments;
mod frames;
mod grace;
mod icmp;
mod ipv6;
mod model;
mod vlan;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flowgate_xsk::steering::{Delivery, ETHERTYPE_8021Q, StationKey, Steering, SteeringSet, Verdict, VipKey};
use flowgate_xsk::{FramePool, XskSocket};

use common::{Namespace, counted, eventually, tcp, udp};
use frames::{ICMPV6, UDP, ethernet, extension, icmp, l4, tagged, v6};

const VIP: [u8; 4] = [10, 96, 0, 10];
const NODE: [u8; 4] = [192, 0, 2, 1];
const SNAT: [u8; 4] = [192, 0, 2, 1];
const OTHER: [u8; 4] = [198, 51, 100, 7];
/// A backend that sees the addresses of its clients.
const DNAT_ONLY: [u8; 4] = [10, 244, 0, 12];
const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0x10);
const NODE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const SNAT6: Ipv6Addr = NODE6;
const OTHER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 7);
const DNAT_ONLY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 0x12);

struct Rig {
    steering: Steering,
    ifindex: u32,
    sockets: Option<(FramePool, Vec<XskSocket>)>,
    namespace: Namespace,
}

/// An interface whose queue 0 has a socket, serving a VIP, a NodePort of each protocol and a SNAT range, all in both
/// address families.
fn rig() -> Rig {
    let namespace = Namespace::new();
    namespace.veth("lb0", "peer0");
    let mut steering = namespace.attach(&["lb0"]).expect("attach");
    let (pool, ports) = namespace.pool(&["lb0"]);
    let ifindex = namespace.ifindex("lb0");
    steering.set_socket(ifindex, 0, ports[0].fd()).expect("a slot");
    steering.add_new(&served()).expect("add");
    Rig { steering, ifindex, sockets: Some((pool, ports)), namespace }
}

fn served() -> SteeringSet {
    let mut set = SteeringSet::default();
    for addr in [IpAddr::from(VIP), IpAddr::from(VIP6)] {
        let vips = [(80, 6), (53, 17), (5060, 132)];
        set.vips.extend(vips.map(|(port, protocol)| VipKey { addr, port, protocol }));
    }
    set.node_addresses = [IpAddr::from(NODE), IpAddr::from(NODE6)].into();
    set.nodeports_tcp.insert(30380);
    set.nodeports_udp.insert(30053);
    set.nodeports_sctp.insert(30132);
    set.snat_addresses = [IpAddr::from(SNAT), IpAddr::from(SNAT6)].into();
    set.snat_ports.insert_range(20000..=20063);
    set.snat_ports.remove(20010);
    let dnat_only = [IpAddr::from(DNAT_ONLY), IpAddr::from(DNAT_ONLY6)];
    set.reply_sources = dnat_only.map(|addr| VipKey { addr, port: 8080, protocol: 6 }).into();
    set.own_addresses = [IpAddr::from(NODE), IpAddr::from(NODE6)].into();
    set
}

impl Rig {
    /// Expects a packet to go to the worker.
    fn redirects(&self, what: &str, packet: &[u8], reason: &'static str) {
        self.expect(what, packet, Verdict::Redirect, reason);
    }

    /// Expects a packet to go to the kernel.
    fn passes(&self, what: &str, packet: &[u8], reason: &'static str) {
        self.expect(what, packet, Verdict::Pass, reason);
    }

    /// Changes what is served.
    fn serve(&mut self, change: impl FnOnce(&mut SteeringSet)) {
        let mut set = self.steering.applied().clone();
        change(&mut set);
        self.steering.remove_stale(&set).expect("remove");
        self.steering.add_new(&set).expect("add");
    }

    /// Expects a verdict, and that exactly this counter is incremented by one.
    fn expect(&self, what: &str, packet: &[u8], verdict: Verdict, reason: &'static str) {
        let before = counted(&self.steering);
        let got = self.steering.probe(self.ifindex, packet).expect("test run");
        let mut expected = before;
        match expected.iter_mut().find(|(name, _)| *name == reason) {
            Some((_, count)) => *count += 1,
            None => expected.push((reason, 1)),
        }
        let mut after = counted(&self.steering);
        expected.sort_unstable();
        after.sort_unstable();
        assert_eq!((got, after), (verdict, expected), "{what}");
    }
}

/// Changes bytes of a frame.
fn with(mut frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

/// Puts `words` words of NOP options into the IPv4 header.
fn with_options(frame: &[u8], words: usize) -> Vec<u8> {
    let mut out = frame[..34].to_vec();
    out.extend(vec![1; words * 4]);
    out.extend(&frame[34..]);
    out[14] = 0x45 + u8::try_from(words).expect("at most 10");
    let total = u16::try_from(out.len() - 14).expect("a small packet");
    with(out, 16, &total.to_be_bytes())
}

#[test]
fn what_flowgate_serves_goes_to_the_worker() {
    let rig = rig();
    let redirect = |what, packet: &[u8], reason| rig.expect(what, packet, Verdict::Redirect, reason);
    redirect("VIP by TCP", &tcp((VIP, 80)), "redirect_vip");
    redirect("VIP by UDP", &udp((VIP, 53), b"?"), "redirect_vip");
    redirect("NodePort by TCP", &tcp((NODE, 30380)), "redirect_nodeport");
    redirect("NodePort by UDP", &udp((NODE, 30053), b"?"), "redirect_nodeport");
    redirect("first SNAT port", &tcp((SNAT, 20000)), "redirect_snat_reply");
    redirect("last SNAT port", &udp((SNAT, 20063), b"!"), "redirect_snat_reply");
    for words in 1..=10 {
        redirect("IPv4 options", &with_options(&tcp((VIP, 80)), words), "redirect_vip");
    }
    redirect("Ethernet padding", &[udp((VIP, 53), b""), vec![0; 18]].concat(), "redirect_vip");
    redirect("don't fragment", &with(tcp((VIP, 80)), 20, &[0x40, 0]), "redirect_vip");
}

#[test]
fn the_replies_of_a_backend_that_sees_its_clients_go_to_the_worker() {
    let rig = rig();
    let from_backend = |to, port: u16| with(with(tcp(to), 26, &DNAT_ONLY), 34, &port.to_be_bytes());
    let answer = from_backend((OTHER, 4000), 8080);
    rig.expect("an answer to a client", &answer, Verdict::Redirect, "redirect_kept_reply");
    for (what, packet) in [
        ("the same to the node itself", from_backend((NODE, 4000), 8080)),
        ("another port of the backend", from_backend((OTHER, 4000), 8081)),
        (
            "the same port by UDP",
            with(with(udp((OTHER, 4000), b"?"), 26, &DNAT_ONLY), 34, &8080_u16.to_be_bytes()),
        ),
    ] {
        rig.expect(what, &packet, Verdict::Pass, "pass_not_ours");
    }
}

#[test]
fn p505_p506_what_is_aimed_at_cluster_ips_goes_to_the_worker_but_the_nodes_own_addresses_do_not() {
    let mut rig = rig();
    let mut set = SteeringSet { cluster_ips: [IpAddr::from(VIP)].into(), ..rig.steering.applied().clone() };
    set.service_cidrs.insert((IpAddr::from([198, 18, 0, 0]), 16));
    // A range that covers the node itself does not redirect the node's traffic.
    set.service_cidrs.insert((IpAddr::from(NODE), 32));
    rig.steering.add_new(&set).expect("add");
    let redirect = |what, packet: &[u8]| rig.expect(what, packet, Verdict::Redirect, "redirect_unserved");
    redirect("another port of the cluster IP", &tcp((VIP, 81)));
    redirect("another protocol of its port", &udp((VIP, 80), b"?"));
    redirect("the first address of the range", &tcp(([198, 18, 0, 0], 80)));
    redirect("the last one", &udp(([198, 18, 255, 255], 9), b"?"));
    rig.expect("a Service's port", &tcp((VIP, 80)), Verdict::Redirect, "redirect_vip");
    for (what, packet) in
        [("beyond the range", tcp(([198, 19, 0, 0], 80))), ("ssh to the node", tcp((NODE, 22)))]
    {
        rig.expect(what, &packet, Verdict::Pass, "pass_not_ours");
    }
    set.cluster_ips.clear();
    set.service_cidrs.clear();
    rig.steering.remove_stale(&set).expect("remove");
    rig.expect("the same when it is gone", &tcp((VIP, 81)), Verdict::Pass, "pass_not_ours");
}

#[test]
fn what_is_for_an_address_of_which_everything_is_ours_goes_to_the_worker_whatever_it_is() {
    let mut rig = rig();
    rig.serve(|set| set.cluster_ips = [IpAddr::from(VIP), IpAddr::from(VIP6), IpAddr::from(NODE)].into());
    let redirect = |what, packet: &[u8]| rig.expect(what, packet, Verdict::Redirect, "redirect_unserved");
    for protocol in [1, 2, 47, 50] {
        redirect("another protocol", &with(tcp((VIP, 80)), 23, &[protocol]));
    }
    redirect("a fragment of another protocol", &with(with(tcp((VIP, 80)), 23, &[47]), 20, &[0x20, 0]));
    redirect("its end", &with(with(tcp((VIP, 80)), 23, &[47]), 20, &[0, 3]));
    redirect("a transport header that is cut off", &with(tcp((VIP, 80)), 16, &[0, 39]));
    let six = |next, payload: &[u8]| ethernet(0x86dd, &v6(OTHER6, VIP6, next, payload));
    redirect("a route that is not at its end", &six(43, &extension(UDP, 0, 1, &l4(UDP, 4000, 53))));
    redirect("an echo request", &six(ICMPV6, &icmp(128, b"?")));
    let pass = |what, packet: &[u8], reason| rig.expect(what, packet, Verdict::Pass, reason);
    let probe = six(ICMPV6, &icmp(135, b"?"));
    pass("a router that probes its neighbour", &with(probe.clone(), 14 + 7, &[255]), "pass_not_l4");
    pass("a listener of a group", &with(six(ICMPV6, &icmp(143, b"?")), 14 + 7, &[1]), "pass_not_l4");
    // RFC 4861 section 7.1: a router has forwarded it, and would get it back.
    redirect("a probe from beyond the link", &probe);
    redirect("another message", &six(ICMPV6, &icmp(160, b"?")));
    pass("the node's own address", &with(tcp((NODE, 80)), 23, &[47]), "pass_not_l4");
    pass("an address of nobody", &with(tcp((OTHER, 80)), 23, &[47]), "pass_not_l4");
    pass("less than its length", &tcp((VIP, 80))[..50], "pass_truncated");
}

#[test]
fn what_is_for_another_ethernet_address_goes_to_the_kernel() {
    let mut rig = rig();
    let ifindex = rig.ifindex;
    let (own, other) = ([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 9]);
    let to = |station: [u8; 6]| with(tcp((VIP, 80)), 0, &station);
    rig.redirects("while no address is known", &to(other), "redirect_vip");
    rig.passes("all, while none is known", &to([0xff; 6]), "pass_other_host");
    rig.serve(|set| set.stations = [StationKey { ifindex, vlan: 0, address: own }].into());
    rig.redirects("its own", &to(own), "redirect_vip");
    rig.passes("another", &to(other), "pass_other_host");
    rig.passes("all", &to([0xff; 6]), "pass_other_host");
    rig.passes("a group", &to([0x01, 0, 0x5e, 0, 0, 0x12]), "pass_other_host");
    rig.passes("what the kernel has anyway", &with(tcp((NODE, 22)), 0, &other), "pass_other_host");
    rig.serve(|set| set.stations = [StationKey { ifindex, vlan: 0, address: other }].into());
    rig.redirects("another one now", &to(other), "redirect_vip");
    rig.passes("the old one", &to(own), "pass_other_host");
    // A second address, as of a virtual router, and one of a VLAN.
    rig.serve(|set| {
        set.stations.insert(StationKey { ifindex, vlan: 0, address: own });
        set.stations.insert(StationKey { ifindex, vlan: 100, address: [2, 0, 0, 0, 0, 7] });
        set.serve_vlans([(ifindex, 100)]);
    });
    rig.redirects("both", &to(own), "redirect_vip");
    rig.redirects("both", &to(other), "redirect_vip");
    rig.passes("that of the VLAN, without its tag", &to([2, 0, 0, 0, 0, 7]), "pass_other_host");
    for station in [[2, 0, 0, 0, 0, 7], own, other] {
        rig.redirects("with its tag", &tagged(ETHERTYPE_8021Q, 100, &to(station)), "redirect_vip");
    }
    rig.passes("another with a tag", &tagged(ETHERTYPE_8021Q, 100, &to([2; 6])), "pass_other_host");
}

#[test]
fn everything_else_goes_to_the_kernel() {
    let rig = rig();
    let pass = |what, packet: &[u8], reason| rig.expect(what, packet, Verdict::Pass, reason);
    pass("another port of the VIP", &tcp((VIP, 81)), "pass_not_ours");
    pass("the VIP's TCP port by UDP", &udp((VIP, 80), b"?"), "pass_not_ours");
    pass("ssh to the node", &tcp((NODE, 22)), "pass_not_ours");
    pass("a TCP NodePort by UDP", &udp((NODE, 30380), b"?"), "pass_not_ours");
    pass("a NodePort on a foreign address", &tcp((OTHER, 30380)), "pass_not_ours");
    pass("a SNAT port on a foreign address", &tcp((OTHER, 20000)), "pass_not_ours");
    pass("a port that the node uses itself", &tcp((SNAT, 20010)), "pass_not_ours");
    pass("below the SNAT range", &tcp((SNAT, 19999)), "pass_not_ours");
    pass("above the SNAT range", &tcp((SNAT, 20064)), "pass_not_ours");

    let arp = with(vec![0; 60], 12, &[0x08, 0x06]);
    pass("ARP", &arp, "pass_not_ip");
    pass("a VLAN tag", &with(arp, 12, &[0x81, 0x00, 0x00, 0x05]), "pass_vlan");
    for protocol in [1, 2, 47] {
        pass("ICMP, IGMP, GRE", &with(tcp((VIP, 80)), 23, &[protocol]), "pass_not_l4");
    }
}

#[test]
fn a_header_that_contradicts_itself_goes_to_the_kernel() {
    let rig = rig();
    let malformed = |what, packet: &[u8]| rig.expect(what, packet, Verdict::Pass, "pass_malformed");
    let truncated = |what, packet: &[u8]| rig.expect(what, packet, Verdict::Pass, "pass_truncated");
    let whole = tcp((VIP, 80));
    for (what, packet) in [("TCP", whole.clone()), ("UDP", udp((VIP, 53), b""))] {
        for len in 14..packet.len() {
            // From the whole IP header on, the packet's length is known.
            let is_told = len >= 34;
            if is_told { truncated(what, &packet[..len]) } else { malformed(what, &packet[..len]) }
        }
    }
    malformed("version 6 in an IPv4 frame", &with(whole.clone(), 14, &[0x65]));
    for ihl in 0..5 {
        malformed("header shorter than a header", &with(whole.clone(), 14, &[0x40 + ihl]));
    }
    malformed("options beyond the packet", &with(whole.clone(), 14, &[0x4f]));
    malformed("total length below the header", &with(whole.clone(), 16, &[0, 19]));
    malformed("total length cuts the TCP header", &with(whole.clone(), 16, &[0, 39]));
    truncated("total length beyond the packet", &with(whole, 16, &[0xff, 0xff]));
}

#[test]
fn whether_large_packets_arrive_whole_is_noted_for_each_interface() {
    let mut rig = rig();
    let delivery = |rig: &Rig| rig.steering.delivery(rig.ifindex).expect("delivery");
    assert_eq!(delivery(&rig), Delivery::default());

    let whole = udp((VIP, 53), &[0; 1200]);
    let six = ethernet(0x86dd, &v6(OTHER6, VIP6, UDP, &l4(UDP, 4000, 53)));
    rig.passes("cut", &whole[..1024], "pass_truncated");
    rig.passes("cut", &six[..six.len() - 1], "pass_truncated");
    rig.passes("cut", &whole[..1024], "pass_truncated");
    assert_eq!(delivery(&rig), Delivery { truncated: 3, truncated_len: 1024, longest_whole: 0 });

    let len = u32::try_from(whole.len()).expect("a packet");
    rig.redirects("whole", &whole, "redirect_vip");
    rig.redirects("small", &udp((VIP, 53), &[0; 500]), "redirect_vip");
    rig.passes("of somebody else", &udp((OTHER, 9), &[0; 1100]), "pass_not_ours");
    assert_eq!(delivery(&rig), Delivery { truncated: 3, truncated_len: 1024, longest_whole: len });

    // A longer packet that is not ours counts as well.
    rig.passes("of somebody else", &udp((OTHER, 9), &[0; 1400]), "pass_not_ours");
    assert_eq!(delivery(&rig).longest_whole, len + 200);
    rig.steering.reset_delivery(rig.ifindex).expect("forget");
    assert_eq!(delivery(&rig), Delivery::default());
}

#[test]
fn a_queue_without_a_socket_passes_to_the_kernel() {
    let mut rig = rig();
    rig.expect("with a socket", &tcp((VIP, 80)), Verdict::Redirect, "redirect_vip");

    rig.steering.sockets().clear_all().expect("clear");
    rig.expect("slot emptied", &tcp((VIP, 80)), Verdict::Pass, "pass_no_worker");
    rig.expect("slot emptied, SNAT", &tcp((SNAT, 20000)), Verdict::Pass, "pass_no_worker");

    let ports = &rig.sockets.as_ref().expect("open").1;
    rig.steering.set_socket(rig.ifindex, 0, ports[0].fd()).expect("a slot");
    rig.expect("socket back", &tcp((VIP, 80)), Verdict::Redirect, "redirect_vip");

    // The kernel removes a closed socket from the map, as it does when a process is killed.
    rig.namespace.run(|| drop(rig.sockets.take()));
    // A child of another test, between fork and exec, can keep the descriptor open for a moment.
    let passes = || rig.steering.probe(rig.ifindex, &tcp((VIP, 80))).expect("test run") == Verdict::Pass;
    assert!(eventually(passes), "the slot stays filled");
    rig.expect("socket closed", &tcp((VIP, 80)), Verdict::Pass, "pass_no_worker");
}

#[test]
fn stale_entries_are_removed_and_new_ones_added_and_nothing_else_changes() {
    let mut rig = rig();
    let mut next = rig.steering.applied().clone();
    next.vips.retain(|vip| vip.protocol == 6);
    next.vips.insert(VipKey { addr: Ipv4Addr::from(OTHER).into(), port: 443, protocol: 6 });
    next.nodeports_tcp.insert(30999);
    next.nodeports_udp = [30054].into_iter().collect();
    next.snat_addresses = [IpAddr::from(OTHER)].into();

    rig.steering.remove_stale(&next).expect("remove");
    rig.expect("still served", &tcp((VIP, 80)), Verdict::Redirect, "redirect_vip");
    rig.expect("gone", &udp((VIP, 53), b"?"), Verdict::Pass, "pass_not_ours");
    rig.expect("gone", &udp((NODE, 30053), b"?"), Verdict::Pass, "pass_not_ours");
    rig.expect("gone", &tcp((SNAT, 20000)), Verdict::Pass, "pass_not_ours");
    rig.expect("not yet", &tcp((OTHER, 443)), Verdict::Pass, "pass_not_ours");
    rig.expect("not yet", &tcp((NODE, 30999)), Verdict::Pass, "pass_not_ours");

    rig.steering.add_new(&next).expect("add");
    rig.expect("new", &tcp((OTHER, 443)), Verdict::Redirect, "redirect_vip");
    rig.expect("new", &tcp((NODE, 30999)), Verdict::Redirect, "redirect_nodeport");
    rig.expect("new", &udp((NODE, 30054), b"?"), Verdict::Redirect, "redirect_nodeport");
    rig.expect("new", &tcp((OTHER, 20000)), Verdict::Redirect, "redirect_snat_reply");
    assert_eq!(rig.steering.applied(), &next);
}
