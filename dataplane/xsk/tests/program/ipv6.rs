//! IPv6, its extension headers, and SCTP in both families.

use super::*;
use frames::{
    DESTINATION, FRAGMENT, HOP_BY_HOP, ROUTING, SCTP, TCP, UDP, V4, ethernet, extension, fragment, l4, v6,
};

fn frame(to: (Ipv6Addr, u16), protocol: u8) -> Vec<u8> {
    ethernet(0x86dd, &v6(OTHER6, to.0, protocol, &l4(protocol, 4000, to.1)))
}

/// A TCP packet to the VIP behind these extension headers, the last one first.
fn behind(headers: &[(u8, u8)]) -> Vec<u8> {
    let (mut next, mut packet) = (TCP, l4(TCP, 4000, 80));
    for &(kind, len) in headers {
        packet = extension(next, len, 0, &packet);
        next = kind;
    }
    ethernet(0x86dd, &v6(OTHER6, VIP6, next, &packet))
}

#[test]
fn what_flowgate_serves_by_ipv6_goes_to_the_worker() {
    let rig = rig();
    for (what, to, protocol, reason) in [
        ("VIP by TCP", (VIP6, 80), TCP, "redirect_vip"),
        ("VIP by UDP", (VIP6, 53), UDP, "redirect_vip"),
        ("VIP by SCTP", (VIP6, 5060), SCTP, "redirect_vip"),
        ("NodePort by TCP", (NODE6, 30380), TCP, "redirect_nodeport"),
        ("NodePort by UDP", (NODE6, 30053), UDP, "redirect_nodeport"),
        ("NodePort by SCTP", (NODE6, 30132), SCTP, "redirect_nodeport"),
        ("a SNAT port by TCP", (SNAT6, 20000), TCP, "redirect_snat_reply"),
        ("a SNAT port by SCTP", (SNAT6, 20063), SCTP, "redirect_snat_reply"),
    ] {
        rig.redirects(what, &frame(to, protocol), reason);
    }
    let answer = v6(DNAT_ONLY6, OTHER6, TCP, &l4(TCP, 8080, 4000));
    rig.redirects(
        "the reply of a backend that sees the client",
        &ethernet(0x86dd, &answer),
        "redirect_kept_reply",
    );
}

#[test]
fn other_ipv6_packets_go_to_the_kernel() {
    let rig = rig();
    for (what, to, protocol) in [
        ("another port of the VIP", (VIP6, 81), TCP),
        ("another protocol", (VIP6, 80), UDP),
        ("another protocol", (VIP6, 80), SCTP),
        ("a TCP NodePort by SCTP", (NODE6, 30380), SCTP),
        ("ssh to the node", (NODE6, 22), TCP),
        ("a NodePort elsewhere", (OTHER6, 30380), TCP),
        ("IPv4's VIP in an IPv6 packet", (Ipv4Addr::from(VIP).to_ipv6_mapped(), 80), TCP),
    ] {
        rig.passes(what, &frame(to, protocol), "pass_not_ours");
    }
    let mapped = v6(Ipv4Addr::from(OTHER).to_ipv6_mapped(), VIP6, TCP, &l4(TCP, 4000, 80));
    // A worker drops it; the kernel would send back what is for a VIP.
    rig.redirects("an IPv4 source in an IPv6 packet", &ethernet(0x86dd, &mapped), "redirect_vip");
    for (what, next) in [("GRE", 47), ("ESP", 50), ("AH", 51), ("no next header", 59)] {
        let packet = v6(OTHER6, VIP6, next, &[0; 24]);
        rig.passes(what, &ethernet(0x86dd, &packet), "pass_not_l4");
        let packet = v6(OTHER6, VIP6, DESTINATION, &extension(next, 0, 0, &[0; 24]));
        rig.passes(what, &ethernet(0x86dd, &packet), "pass_not_l4");
    }
}

#[test]
fn six_extension_headers_are_followed() {
    let rig = rig();
    let options = [(DESTINATION, 1); 6];
    for count in 1..=6 {
        rig.redirects("destination options", &behind(&options[..count]), "redirect_vip");
    }
    rig.redirects("options of 2 KiB", &behind(&[(DESTINATION, 255), (HOP_BY_HOP, 0)]), "redirect_vip");
    rig.redirects("a route at its end", &behind(&[(DESTINATION, 0), (ROUTING, 2)]), "redirect_vip");
    let whole = fragment(TCP, 0, 7, &l4(TCP, 4000, 80));
    let whole = ethernet(0x86dd, &v6(OTHER6, VIP6, FRAGMENT, &whole));
    rig.redirects("the only fragment (RFC 6946)", &whole, "redirect_vip");

    rig.passes("a seventh", &behind(&[(DESTINATION, 0); 7]), "pass_extensions");
    rig.passes("hop-by-hop options second", &behind(&[(HOP_BY_HOP, 0), (ROUTING, 0)]), "pass_extensions");
    let mut on_its_way = behind(&[(ROUTING, 2)]);
    on_its_way[14 + 40 + 3] = 1;
    rig.passes("a route not at its end", &on_its_way, "pass_extensions");
}

#[test]
fn ipv6_headers_that_contradict_themselves_go_to_the_kernel() {
    let rig = rig();
    let malformed = |what, packet: &[u8]| rig.passes(what, packet, "pass_malformed");
    let whole = behind(&[(DESTINATION, 2), (HOP_BY_HOP, 0)]);
    for len in 14..whole.len() {
        let is_told = len >= 54;
        if is_told {
            rig.passes("truncated", &whole[..len], "pass_truncated");
        } else {
            malformed("truncated", &whole[..len]);
        }
    }
    // The same with a payload length that matches the rest, so that the headers inside end early.
    for len in 14 + 40..whole.len() - 5 {
        let payload = u16::try_from(len - 54).expect("small");
        malformed("cut off", &with(whole[..len].to_vec(), 18, &payload.to_be_bytes()));
    }
    malformed("version 4 in an IPv6 frame", &with(whole.clone(), 14, &[0x40]));
    malformed("options beyond the packet", &with(whole, 14 + 40 + 1, &[30]));
    for protocol in [TCP, UDP, SCTP] {
        let headers = l4(protocol, 4000, 80).len() - 5;
        for len in 0..headers {
            let packet = v6(OTHER6, VIP6, protocol, &l4(protocol, 4000, 80)[..len]);
            malformed("an L4 header cut off", &ethernet(0x86dd, &packet));
        }
    }
}

#[test]
fn sctp_by_ipv4_goes_to_the_worker() {
    let rig = rig();
    let to = |to: [u8; 4], port| {
        ethernet(0x0800, &V4::new(OTHER.into(), to.into(), SCTP).with(&l4(SCTP, 4000, port)))
    };
    rig.redirects("VIP", &to(VIP, 5060), "redirect_vip");
    rig.redirects("NodePort", &to(NODE, 30132), "redirect_nodeport");
    rig.redirects("SNAT port", &to(SNAT, 20001), "redirect_snat_reply");
    rig.passes("another port", &to(VIP, 5061), "pass_not_ours");
    rig.passes("a UDP NodePort", &to(NODE, 30053), "pass_not_ours");
    let cut = V4::new(OTHER.into(), VIP.into(), SCTP).with(&l4(SCTP, 4000, 5060)[..11]);
    rig.passes("a header cut off", &ethernet(0x0800, &cut), "pass_malformed");
}
