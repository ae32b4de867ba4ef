//! ICMP, and packets whose headers are unusual or wrong.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Conversation, Step, below, either, pick};
use crate::lab::compare_nft::packet::{Checksum, Content, Header, IcmpError, Link, Shape};
use crate::lab::compare_nft::reading::End;
use crate::lab::compare_nft::services;
use crate::lab::faults::random::Random;
use crate::lab::topology::{GATEWAY_FABRIC, GATEWAY_UPLINK, ipv6_of};

/// Sources that no packet on a link may have (RFC 1122 section 3.2.1.3, RFC 4291 section 2.5 to 2.7).
const MARTIANS: [Ipv4Addr; 6] = [
    Ipv4Addr::new(127, 0, 0, 1),
    Ipv4Addr::new(0, 0, 0, 0),
    Ipv4Addr::new(224, 0, 0, 5),
    Ipv4Addr::new(255, 255, 255, 255),
    Ipv4Addr::new(239, 1, 2, 3),
    Ipv4Addr::new(127, 255, 0, 9),
];
const MARTIANS_V6: [Ipv6Addr; 4] = [
    Ipv6Addr::UNSPECIFIED,
    Ipv6Addr::LOCALHOST,
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1),
];

/// An ICMP error about the last packet that the sender received, or an echo request.
pub(super) fn control(v4: bool, random: &mut Random) -> Step {
    let sender = either(random);
    let shape = Shape { dont_fragment: false, ..Shape::default() };
    if below(random, 6) == 0 {
        let content = Content::Echo { payload_len: below(random, 200) };
        return Step { sender: End::Client, kind: "echo request", content, shape };
    }
    let (kind, code, word) = if v4 {
        pick(random, &[(3, 0, 0), (3, 1, 0), (3, 3, 0), (3, 4, 1300), (3, 13, 0), (11, 0, 0), (12, 0, 0)])
    } else {
        pick(random, &[(1, 0, 0), (1, 1, 0), (1, 4, 0), (2, 0, 1300), (3, 0, 0), (4, 0, 0)])
    };
    let header_len = if v4 { 20 } else { 40 };
    let (name, quote_len) = match below(random, 8) {
        0 => ("ICMP error without ports", header_len + below(random, 4)),
        1..4 => ("ICMP error", header_len + 8),
        _ => ("ICMP error", 500),
    };
    let content = Content::Error(IcmpError { kind, code, word, quote_len });
    if below(random, 10) == 0 {
        let shape = Shape { checksum: Checksum::Wrong, ..shape };
        return Step { sender, kind: "ICMP error with a wrong checksum", content, shape };
    }
    Step { sender, kind: name, content, shape }
}

/// Headers for a packet of the conversation, and what is special about them.
pub(super) fn shape(conversation: &Conversation, step: &Step, random: &mut Random) -> (&'static str, Shape) {
    let v4 = conversation.client.is_ipv4();
    let right = Shape::default();
    match below(random, 4) {
        0 => link(right, random),
        1 => source(conversation, step, right, random),
        2 if v4 => options(right, random),
        2 => extensions(right, random),
        _ => header(v4, right, random),
    }
}

fn link(right: Shape, random: &mut Random) -> (&'static str, Shape) {
    let (kind, link) = pick(
        random,
        &[
            ("frame for another station", Link::OtherStation),
            ("broadcast frame", Link::Broadcast),
            ("multicast frame", Link::Multicast),
            ("priority tag", Link::Tagged(3 << 13)),
            ("tag of a VLAN that is not there", Link::Tagged(77)),
            ("padding", Link::Padded(9)),
        ],
    );
    (kind, Shape { link, ..right })
}

fn source(
    conversation: &Conversation,
    step: &Step,
    right: Shape,
    random: &mut Random,
) -> (&'static str, Shape) {
    let v4 = conversation.client.is_ipv4();
    let of = |address: Ipv4Addr| -> IpAddr { if v4 { address.into() } else { ipv6_of(address).into() } };
    let (kind, forged) = match below(random, 4) {
        0 => ("own address as source", of(pick(random, &[GATEWAY_UPLINK, GATEWAY_FABRIC]))),
        1 if step.sender == End::Client => ("VIP as source", conversation.target.ip()),
        _ if v4 => ("martian source", pick(random, &MARTIANS).into()),
        _ => ("martian source", pick(random, &MARTIANS_V6).into()),
    };
    (kind, Shape { forged: Some(forged), ..right })
}

/// RFC 791 section 3.1, RFC 7126.
fn options(right: Shape, random: &mut Random) -> (&'static str, Shape) {
    let choices: [(&str, &[u8]); 12] = [
        ("harmless IP options", &[1, 1, 1, 0]),
        ("harmless IP options", &[148, 4, 0, 0]),
        ("record route", &[7, 7, 4, 0, 0, 0, 0, 0]),
        ("timestamp option", &[68, 8, 5, 0, 0, 0, 0, 0]),
        ("loose source route", &[131, 7, 4, 10, 244, 0, 11, 0]),
        ("strict source route", &[137, 7, 4, 10, 244, 0, 11, 0]),
        ("source route at its end", &[131, 7, 8, 10, 244, 0, 11, 0]),
        ("broken IP options", &[7, 40, 4, 0]),
        ("broken IP options", &[1, 1, 1, 148]),
        ("broken IP options", &[148, 1, 0, 0]),
        ("unknown IP option", &[30, 4, 0, 0]),
        ("security option", &[130, 4, 171, 0]),
    ];
    let (kind, bytes) = pick(random, &choices);
    (kind, Shape { options: bytes.to_vec(), ..right })
}

/// RFC 8200 section 4.
fn extensions(right: Shape, random: &mut Random) -> (&'static str, Shape) {
    let padding = vec![0, 0, 1, 4, 0, 0, 0, 0];
    let address = ipv6_of(services::BACKEND).octets();
    let routing = |kind: u8, left: u8| [&[0, 2, kind, left, 0, 0, 0, 0][..], &address].concat();
    let choices = [
        ("hop-by-hop options", vec![(0, padding.clone())]),
        ("destination options", vec![(60, padding.clone())]),
        ("both kinds of options", vec![(0, padding.clone()), (60, padding.clone())]),
        ("atomic fragment", vec![(44, vec![0, 0, 0, 0, 1, 2, 3, 4])]),
        ("routing header with a segment left", vec![(43, routing(0, 1))]),
        ("routing header with a segment left", vec![(43, routing(4, 1))]),
        ("routing header at its end", vec![(43, routing(0, 0))]),
        ("hop-by-hop options out of place", vec![(60, padding.clone()), (0, padding)]),
        ("option that discards", vec![(60, vec![0, 0, 0x5e, 4, 0, 0, 0, 0])]),
        ("hop-by-hop option that discards", vec![(0, vec![0, 0, 0x5e, 4, 0, 0, 0, 0])]),
    ];
    let (kind, extensions) = choices[below(random, choices.len())].clone();
    (kind, Shape { extensions, ..right })
}

fn header(v4: bool, right: Shape, random: &mut Random) -> (&'static str, Shape) {
    match below(random, if v4 { 11 } else { 7 }) {
        0 => ("last hop", Shape { ttl: 1, ..right }),
        1 => ("no hops left", Shape { ttl: 0, ..right }),
        2 => ("two hops left", Shape { ttl: 2, ..right }),
        3 => ("type of service", Shape { tos: 0xb9, ..right }),
        4 => ("IP length beyond the frame", Shape { header: Header::LengthBeyondFrame, ..right }),
        5 => ("IP length below the headers", Shape { header: Header::ShortTotalLength, ..right }),
        6 => ("wrong IP version", Shape { header: Header::OtherVersion, ..right }),
        7 => ("without DF", Shape { dont_fragment: false, ..right }),
        8 => ("wrong IP checksum", Shape { header: Header::WrongChecksum, ..right }),
        9 => ("IP header length below 20", Shape { header: Header::ShortHeaderLength, ..right }),
        _ => ("reserved flag", Shape { header: Header::ReservedFlag, ..right }),
    }
}
