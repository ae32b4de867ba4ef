//! ICMP and ICMPv6: errors about our flows, echo requests, and all the rest.

use super::*;
use frames::{
    DESTINATION, FRAGMENT, ICMP, ICMPV6, SCTP, TCP, UDP, V4, ethernet, extension, fragment, icmp, l4, v6,
};

const ROUTER: [u8; 4] = [203, 0, 113, 1];
const ROUTER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 1);

/// An error of a router about a packet of ours, with as much of it as RFC 792 requires.
fn error(kind: u8, packet: &[u8], quoted: usize) -> Vec<u8> {
    let to = <[u8; 4]>::try_from(&packet[12..16]).expect("an address");
    let quoted = &packet[..packet.len().min(quoted)];
    ethernet(0x0800, &V4::new(ROUTER.into(), to.into(), ICMP).with(&icmp(kind, quoted)))
}

fn error6(kind: u8, packet: &[u8]) -> Vec<u8> {
    let to = <[u8; 16]>::try_from(&packet[8..24]).expect("an address");
    ethernet(0x86dd, &v6(ROUTER6, to.into(), ICMPV6, &icmp(kind, packet)))
}

fn sent(from: ([u8; 4], u16), to: ([u8; 4], u16), protocol: u8) -> Vec<u8> {
    V4::new(from.0.into(), to.0.into(), protocol).with(&l4(protocol, from.1, to.1))
}

fn sent6(from: (Ipv6Addr, u16), to: (Ipv6Addr, u16), protocol: u8) -> Vec<u8> {
    v6(from.0, to.0, protocol, &l4(protocol, from.1, to.1))
}

#[test]
fn errors_about_packets_of_our_flows_go_to_the_worker() {
    let rig = rig();
    let redirects = |what, packet: &[u8]| rig.redirects(what, packet, "redirect_icmp_error");
    let (client, backend) = ((OTHER, 4000), (DNAT_ONLY, 8080));
    for (what, packet) in [
        ("an answer of a VIP", sent((VIP, 80), client, TCP)),
        ("an answer of a VIP", sent((VIP, 53), client, UDP)),
        ("an answer of a VIP", sent((VIP, 5060), client, SCTP)),
        ("an answer of a NodePort", sent((NODE, 30380), client, TCP)),
        ("a packet from a SNAT port", sent((SNAT, 20000), backend, TCP)),
        ("a packet of a client whose address is preserved", sent(client, backend, TCP)),
    ] {
        for kind in [3, 11, 12] {
            for quoted in [24, 28, 100] {
                redirects(what, &error(kind, &packet, quoted));
            }
        }
    }
    let options = V4 { options: 10, ..V4::new(VIP.into(), OTHER.into(), TCP) }.with(&l4(TCP, 80, 4000));
    redirects("IPv4 options inside", &error(3, &options, 68));
    let first = V4 { fragment: 0x2000, ..V4::new(VIP.into(), OTHER.into(), TCP) }.with(&l4(TCP, 80, 4000));
    redirects("a first fragment inside", &error(11, &first, 28));

    let (client, backend) = ((OTHER6, 4000), (DNAT_ONLY6, 8080));
    for kind in 1..=4 {
        redirects("an answer of a VIP", &error6(kind, &sent6((VIP6, 80), client, TCP)));
        redirects("an answer of a NodePort", &error6(kind, &sent6((NODE6, 30132), client, SCTP)));
        redirects("a packet from a SNAT port", &error6(kind, &sent6((SNAT6, 20063), backend, UDP)));
        redirects(
            "a packet of a client whose address is preserved",
            &error6(kind, &sent6(client, backend, TCP)),
        );
    }
    let inner = extension(FRAGMENT, 1, 0, &fragment(TCP, 1, 9, &l4(TCP, 80, 4000)));
    redirects("extension headers inside", &error6(2, &v6(VIP6, OTHER6, DESTINATION, &inner)));
}

#[test]
fn errors_about_anything_else_go_to_the_kernel() {
    let rig = rig();
    let (client, backend) = ((OTHER, 4000), (DNAT_ONLY, 8080));
    for (what, packet) in [
        ("the node's own connection", error(3, &sent((NODE, 40000), client, TCP), 28)),
        ("another port of the VIP", error(3, &sent((VIP, 81), client, TCP), 28)),
        ("the wrong way round", error(3, &sent(client, (VIP, 80), TCP), 28)),
        ("another connection of the backend", error(3, &sent(client, (DNAT_ONLY, 8081), TCP), 28)),
        ("to another than the sender", with(error(3, &sent((VIP, 80), client, TCP), 28), 30, &OTHER)),
        ("the node's own, of its backend", error(3, &sent((NODE, 40000), backend, TCP), 28)),
        ("IPv6", error6(2, &sent6((NODE6, 40000), (OTHER6, 80), TCP))),
        (
            "IPv6 of another sender",
            with(error6(2, &sent6((VIP6, 80), (OTHER6, 1), TCP)), 38, &OTHER6.octets()),
        ),
    ] {
        rig.passes(what, &packet, "pass_not_ours");
    }
    let echo = V4::new(VIP.into(), OTHER.into(), ICMP).with(&icmp(0, &[]));
    rig.passes("about an echo reply", &error(3, &echo, 28), "pass_not_l4");
    let later = V4 { fragment: 1, ..V4::new(VIP.into(), OTHER.into(), TCP) }.with(&l4(TCP, 80, 4000));
    rig.passes("about a later fragment", &error(3, &later, 28), "pass_fragment");
    let later = v6(VIP6, OTHER6, FRAGMENT, &fragment(TCP, 8, 1, &l4(TCP, 80, 4000)));
    rig.passes("about a later fragment", &error6(3, &later), "pass_fragment");
    let routed = v6(VIP6, OTHER6, 43, &extension(TCP, 2, 1, &l4(TCP, 80, 4000)));
    rig.passes("about a packet with a route", &error6(3, &routed), "pass_extensions");
}

#[test]
fn an_error_that_ends_early_goes_to_the_kernel() {
    let rig = rig();
    let packet = V4 { options: 2, ..V4::new(VIP.into(), OTHER.into(), TCP) }.with(&l4(TCP, 80, 4000));
    for quoted in 0..32 {
        rig.passes("quotes too little", &error(3, &packet, quoted), "pass_malformed");
    }
    let packet = v6(VIP6, OTHER6, DESTINATION, &extension(UDP, 0, 0, &l4(UDP, 53, 4000)));
    for quoted in 24..52 {
        let mut short = error6(1, &packet);
        short.truncate(14 + 48 + quoted);
        let payload = u16::try_from(8 + quoted).expect("small");
        rig.passes("quotes too little", &with(short, 18, &payload.to_be_bytes()), "pass_malformed");
    }
    let version = with(error(3, &packet, 100), 42, &[0x65]);
    rig.passes("quotes another family", &version, "pass_malformed");
    for len in 0..8 {
        let short = V4::new(ROUTER.into(), VIP.into(), ICMP).with(&icmp(3, &[])[..len]);
        rig.passes("an ICMP header cut off", &ethernet(0x0800, &short), "pass_malformed");
        let short = v6(ROUTER6, VIP6, ICMPV6, &icmp(1, &[])[..len]);
        rig.passes("an ICMPv6 header cut off", &ethernet(0x86dd, &short), "pass_malformed");
    }
}

#[test]
fn echo_requests_go_to_the_worker_where_it_answers_them() {
    let mut rig = rig();
    let ping = |to: [u8; 4]| ethernet(0x0800, &V4::new(OTHER.into(), to.into(), ICMP).with(&icmp(8, b"?")));
    let ping6 = |to| ethernet(0x86dd, &v6(OTHER6, to, ICMPV6, &icmp(128, b"?")));
    rig.passes("before it is asked for", &ping(VIP), "pass_not_ours");
    rig.passes("before it is asked for", &ping6(VIP6), "pass_not_ours");
    rig.serve(SteeringSet::answer_echo);
    rig.redirects("to the VIP", &ping(VIP), "redirect_echo");
    rig.redirects("to the VIP", &ping6(VIP6), "redirect_echo");
    rig.passes("to the node", &ping(NODE), "pass_not_ours");
    rig.passes("to the node", &ping6(NODE6), "pass_not_ours");
    rig.passes("a reply", &with(ping(VIP), 34, &[0]), "pass_not_l4");
    rig.passes("a reply", &with(ping6(VIP6), 54, &[129]), "pass_not_l4");
    rig.redirects("a fragmented request", &with(ping(VIP), 20, &[0x20, 0]), "redirect_echo");
    rig.redirects("its end", &with(ping(VIP), 20, &[0, 1]), "redirect_fragment");
    let part =
        |to, offset, id, kind| v6(OTHER6, to, FRAGMENT, &fragment(ICMPV6, offset, id, &icmp(kind, b"?")));
    rig.redirects("a fragmented request", &ethernet(0x86dd, &part(VIP6, 1, 7, 128)), "redirect_echo");
    rig.redirects("an end that comes first", &ethernet(0x86dd, &part(VIP6, 8, 8, 0)), "redirect_fragment");
    rig.passes("a fragmented reply", &ethernet(0x86dd, &part(VIP6, 1, 9, 129)), "pass_fragment");
    rig.passes("to the node", &ethernet(0x86dd, &part(NODE6, 1, 7, 128)), "pass_not_ours");
    rig.passes("to the node, its end", &ethernet(0x86dd, &part(NODE6, 8, 7, 0)), "pass_fragment");
    rig.serve(|set| set.echo_addresses.clear());
    rig.passes("afterwards", &ping(VIP), "pass_not_ours");
}

#[test]
fn neighbour_discovery_and_other_messages_go_to_the_kernel() {
    let mut rig = rig();
    rig.serve(SteeringSet::answer_echo);
    // MLD, router and neighbour discovery, redirects, and unassigned types.
    for kind in [0, 5, 127, 130, 131, 132, 133, 134, 135, 136, 137, 143, 255] {
        for to in [VIP6, NODE6, "ff02::1".parse().expect("an address")] {
            let message = v6(OTHER6, to, ICMPV6, &icmp(kind, &VIP6.octets()));
            rig.passes("ICMPv6", &ethernet(0x86dd, &message), "pass_not_l4");
        }
    }
    let listener = extension(ICMPV6, 0, 0, &icmp(131, &VIP6.octets()));
    rig.passes("MLD", &ethernet(0x86dd, &v6(OTHER6, VIP6, 0, &listener)), "pass_not_l4");
    for kind in [0, 4, 5, 9, 10, 13, 17] {
        let message = V4::new(OTHER.into(), VIP.into(), ICMP).with(&icmp(kind, &[0; 40]));
        rig.passes("ICMP", &ethernet(0x0800, &message), "pass_not_l4");
    }
}
