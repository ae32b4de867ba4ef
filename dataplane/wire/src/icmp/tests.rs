use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::*;
use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{
    IcmpEchoHeader, Icmpv4Type, Icmpv6Type, PacketBuilder, PacketBuilderStep, TransportSlice, icmpv4, icmpv6,
};
use proptest::prelude::*;

const ETHER: EtherAddrs = EtherAddrs([7; 12]);

fn header(src: IpAddr, dst: IpAddr, hops: u8) -> PacketBuilderStep<etherparse::IpHeaders> {
    let builder = PacketBuilder::ethernet2([1; 6], [2; 6]);
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut ip =
                etherparse::Ipv4Header::new(0, hops, etherparse::IpNumber(0), src.octets(), dst.octets())
                    .unwrap();
            ip.dont_fragment = true;
            builder.ip(etherparse::IpHeaders::Ipv4(ip, etherparse::Ipv4Extensions::default()))
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => builder.ipv6(src.octets(), dst.octets(), hops),
        mixed => panic!("{mixed:?}"),
    }
}

fn packet<A: Address>(tuple: &FiveTuple<A>, payload: &[u8]) -> Vec<u8> {
    let builder = header(tuple.src.into(), tuple.dst.into(), 9);
    let (src, dst) = (tuple.src_port.number(), tuple.dst_port.number());
    let mut frame = Vec::new();
    match tuple.protocol {
        Protocol::Tcp => builder.tcp(src, dst, 1, 1024).write(&mut frame, payload).unwrap(),
        Protocol::Udp => builder.udp(src, dst).write(&mut frame, payload).unwrap(),
        Protocol::Sctp => {
            let mut sctp = [src.to_be_bytes(), dst.to_be_bytes()].concat();
            sctp.extend([0, 0, 0, 7, 0, 0, 0, 0]);
            sctp.extend(payload);
            let crc = crc32c::crc32c(&sctp);
            sctp[8..12].copy_from_slice(&crc.to_le_bytes());
            builder.write(&mut frame, etherparse::IpNumber::SCTP, &sctp).unwrap();
        }
    }
    frame
}

/// An error about `quote`, of one of the kinds that count.
fn error<A: Address>(src: A, dst: A, hops: u8, kind: usize, quote: &[u8]) -> Vec<u8> {
    let builder = header(src.into(), dst.into(), hops);
    let mut frame = Vec::new();
    if A::IS_V4 {
        let kinds = [
            Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded {
                next_hop_mtu: 1400,
            }),
            Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port),
            Icmpv4Type::TimeExceeded(icmpv4::TimeExceededCode::TtlExceededInTransit),
            Icmpv4Type::ParameterProblem(icmpv4::ParameterProblemHeader::PointerIndicatesError(9)),
        ];
        builder.icmpv4(kinds[kind % 4].clone()).write(&mut frame, quote).unwrap();
    } else {
        let kinds = [
            Icmpv6Type::PacketTooBig { mtu: 1400 },
            Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Port),
            Icmpv6Type::TimeExceeded(icmpv6::TimeExceededCode::HopLimitExceeded),
            Icmpv6Type::ParameterProblem(icmpv6::ParameterProblemHeader {
                code: icmpv6::ParameterProblemCode::UnrecognizedIpv6Option,
                pointer: 9,
            }),
        ];
        builder.icmpv6(kinds[kind % 4]).write(&mut frame, quote).unwrap();
    }
    frame
}

fn quoted_in<A: Address>(frame: &[u8]) -> Option<(Datagram<A>, Quoted<A>)> {
    let datagram = A::datagram(frame).unwrap();
    match Message::of(frame, &datagram) {
        Message::Error(quoted) => Some((datagram, quoted)),
        _ => None,
    }
}

/// An error to translate: its quoted packet goes from `from` to `to`, its own source from the first of `outer` to the
/// second. `cut` bytes of the transport packet are quoted behind the ports; `wrong` is flipped in the last byte.
#[derive(Debug)]
struct Case<A> {
    from: FiveTuple<A>,
    to: FiveTuple<A>,
    outer: [A; 2],
    kind: usize,
    payload: Vec<u8>,
    cut: usize,
    wrong: u8,
}

fn cases<A: Address>(address: impl Strategy<Value = A> + Clone) -> impl Strategy<Value = Case<A>> {
    let outer = [address.clone(), address.clone()];
    let payload = proptest::collection::vec(any::<u8>(), 0..64);
    (tuples(address), outer, 0..4_usize, payload, 0..100_usize, any::<u8>()).prop_map(
        |((from, to), outer, kind, payload, cut, wrong)| Case { from, to, outer, kind, payload, cut, wrong },
    )
}

/// That a translated error is the one that would have been built.
fn check<A: Address>(case: &Case<A>) {
    let Case { from, to, outer: [router, new_src], kind, payload, cut, wrong } = case;
    let (router, new_src, kind, cut) = (*router, *new_src, *kind, *cut);
    let quote = |tuple: &FiveTuple<A>| {
        let mut frame = packet(tuple, payload);
        frame.truncate(14 + A::HEADER_LEN + 4 + cut);
        frame.split_off(14)
    };
    let mut frame = error(router, from.src, 64, kind, &quote(from));
    let mut wanted = error(new_src, to.src, 63, kind, &quote(to));
    wanted[..12].copy_from_slice(&ETHER.0);
    let (datagram, quoted) = quoted_in::<A>(&frame).unwrap();
    assert_eq!(quoted.tuple, *from);
    // Damage on the way stays visible: flipped bits are in the sum after translation as before.
    let last = frame.len() - 1;
    let is_behind_headers = last >= 14 + 2 * A::HEADER_LEN + 8 + 20;
    if is_behind_headers && from.protocol != Protocol::Sctp {
        frame[last] ^= wrong;
        wanted[last] ^= wrong;
    }
    let new = TranslatedError { src: new_src, dst: to.src, about: *to };
    translate(&mut frame, &datagram, &quoted, &new, &ETHER).unwrap();
    let is_checksum_cut = match from.protocol {
        Protocol::Tcp => cut + 4 == 17,
        Protocol::Udp => cut + 4 == 7,
        Protocol::Sctp => cut + 4 < 12 + payload.len(),
    };
    if is_checksum_cut {
        // A checksum that is cut in half cannot be updated; the checksum of the message is right in any case.
        let l4 = 14 + 2 * A::HEADER_LEN + 8;
        assert_eq!(frame[l4..l4 + 4], wanted[l4..l4 + 4]);
        assert!(checksum_is_right(&frame));
    } else {
        assert_eq!(frame, wanted);
    }
}

fn checksum_is_right(frame: &[u8]) -> bool {
    let sliced = etherparse::SlicedPacket::from_ethernet(frame).unwrap();
    match (sliced.net.unwrap(), sliced.transport.unwrap()) {
        (etherparse::NetSlice::Ipv4(_), TransportSlice::Icmpv4(icmp)) => {
            icmp.header().checksum == icmp.icmp_type().calc_checksum(icmp.payload())
        }
        (etherparse::NetSlice::Ipv6(ip), TransportSlice::Icmpv6(icmp)) => {
            icmp.is_checksum_valid(ip.header().source(), ip.header().destination())
        }
        other => panic!("{other:?}"),
    }
}

fn tuples<A: Address>(
    address: impl Strategy<Value = A> + Clone,
) -> impl Strategy<Value = (FiveTuple<A>, FiveTuple<A>)> {
    let one = move || (address.clone(), address.clone(), 1_u16.., 1_u16..);
    let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    (0..3_usize, one(), one()).prop_map(move |(protocol, a, b)| {
        let tuple = |(src, dst, sp, dp): (A, A, u16, u16)| FiveTuple {
            protocol: protocols[protocol],
            src,
            dst,
            src_port: L4Port::new(sp),
            dst_port: L4Port::new(dp),
        };
        (tuple(a), tuple(b))
    })
}

fn v4() -> impl Strategy<Value = Ipv4Addr> + Clone {
    (1_u32..).prop_map(Ipv4Addr::from_bits)
}

fn v6() -> impl Strategy<Value = Ipv6Addr> + Clone {
    (1_u128..).prop_map(Ipv6Addr::from_bits)
}

proptest! {
    #[test]
    fn a_translated_error_is_as_if_built_anew_v4(case in cases(v4())) {
        check(&case);
    }

    #[test]
    fn a_translated_error_is_as_if_built_anew_v6(case in cases(v6())) {
        check(&case);
    }

    #[test]
    fn any_bytes_are_safe(mut bytes in proptest::collection::vec(any::<u8>(), 42..200), v6: bool, shape in 0..8_u8) {
        // Each higher shape passes one more check of the parser, so that random bytes reach the code behind it.
        let len = bytes.len();
        if v6 {
            bytes[14] = 0x60;
            let [high, low] = u16::try_from(len.saturating_sub(54)).unwrap().to_be_bytes();
            bytes[18..22].copy_from_slice(&[high, low, 58, 64]);
            if shape > 1 && len > 62 { bytes[54] = 1 + shape % 4; bytes[62] = 0x60; }
            if shape > 3 && len > 70 { bytes[68] = [6, 0, 44, 43][usize::from(shape % 4)]; }
            try_all::<Ipv6Addr>(&bytes);
        } else {
            bytes[14] = 0x45;
            bytes[16..18].copy_from_slice(&u16::try_from(len - 14).unwrap().to_be_bytes());
            bytes[20..24].copy_from_slice(&[0, 0, 64, 1]);
            if shape > 1 { bytes[34] = [3, 11, 12, 8][usize::from(shape % 4)]; }
            if shape > 3 && len > 51 { bytes[42] = 0x45 + shape % 3; bytes[51] = [6, 17, 132][usize::from(shape % 3)]; }
            try_all::<Ipv4Addr>(&bytes);
        }
    }
}

fn try_all<A: Address>(frame: &[u8]) {
    let Ok(datagram) = A::datagram(frame) else { return };
    let mut out = frame.to_vec();
    match Message::of(frame, &datagram) {
        Message::Error(quoted) => {
            let new =
                TranslatedError { src: datagram.dst, dst: datagram.src, about: quoted.tuple.reversed() };
            let before = out.len();
            let done = translate(&mut out, &datagram, &quoted, &new, &ETHER);
            assert_eq!(done.is_some(), datagram.ttl > 0);
            assert_eq!(out.len(), before);
            if done.is_some() {
                let (_, after) = quoted_in::<A>(&out).expect("an error still");
                assert_eq!(after.tuple, new.about);
            }
        }
        Message::EchoRequest => drop(reply_to_echo(&mut out, &datagram)),
        Message::Other => {}
    }
    let mut out = frame.to_vec();
    assert_eq!(route(&mut out, &datagram, &ETHER).is_some(), datagram.ttl > 0);
}

fn tuple4(text: &str) -> FiveTuple<Ipv4Addr> {
    let (src, dst) = text.split_once(' ').unwrap();
    let (src, dst): (std::net::SocketAddrV4, std::net::SocketAddrV4) =
        (src.parse().unwrap(), dst.parse().unwrap());
    FiveTuple {
        protocol: Protocol::Udp,
        src: *src.ip(),
        dst: *dst.ip(),
        src_port: L4Port::new(src.port()),
        dst_port: L4Port::new(dst.port()),
    }
}

#[test]
fn options_and_extension_headers_of_the_quoted_packet_are_skipped() {
    let tuple = tuple4("192.0.2.1:4000 10.0.0.1:53");
    let mut quote = packet(&tuple, b"question").split_off(14);
    quote.splice(20..20, [1, 1, 1, 1]);
    quote[0] = 0x46;
    let (_, quoted) = quoted_in::<Ipv4Addr>(&error(tuple.dst, tuple.src, 64, 1, &quote)).unwrap();
    assert_eq!(quoted.tuple, tuple);

    let ip = |text: &str| text.parse::<Ipv6Addr>().unwrap();
    let tuple = FiveTuple {
        protocol: Protocol::Udp,
        src: ip("2001:db8::1"),
        dst: ip("2001:db8::2"),
        src_port: L4Port::new(4000),
        dst_port: L4Port::new(53),
    };
    let plain = packet(&tuple, b"question").split_off(14);
    let with = |extensions: &[u8], first: u8| {
        let mut quote = plain.clone();
        quote[6] = first;
        quote.splice(40..40, extensions.iter().copied());
        quoted_in::<Ipv6Addr>(&error(tuple.dst, tuple.src, 64, 0, &quote)).map(|(_, quoted)| quoted.tuple)
    };
    let hop_by_hop_and_options = [60, 0, 1, 4, 0, 0, 0, 0, 17, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(with(&hop_by_hop_and_options, 0), Some(tuple));
    assert_eq!(with(&[17, 0, 0, 1, 0, 0, 0, 9], 44), Some(tuple), "a first fragment has ports");
    assert_eq!(with(&[17, 0, 0, 9, 0, 0, 0, 9], 44), None, "a later one has none");
    assert_eq!(with(&[17, 0, 0, 0, 0, 0, 0, 0], 43), Some(tuple), "a route at its end");
    assert_eq!(with(&[17, 0, 0, 1, 0, 0, 0, 0], 43), None, "a route that goes on");
}

#[test]
fn a_quoted_datagram_without_checksum_stays_without() {
    let (from, to) = (tuple4("192.0.2.1:4000 10.0.0.1:53"), tuple4("203.0.113.9:1 198.51.100.7:2"));
    let mut quote = packet(&from, b"x").split_off(14);
    quote[26..28].copy_from_slice(&[0, 0]);
    let mut frame = error(from.dst, from.src, 64, 1, &quote);
    let (datagram, quoted) = quoted_in::<Ipv4Addr>(&frame).unwrap();
    let new = TranslatedError { src: to.dst, dst: to.src, about: to };
    translate(&mut frame, &datagram, &quoted, &new, &ETHER).unwrap();
    assert_eq!(frame[68..70], [0, 0]);
    assert!(checksum_is_right(&frame));
}

#[test]
fn an_echo_request_becomes_its_answer() {
    let echo = IcmpEchoHeader { id: 7, seq: 9 };
    let (client, vip) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(10, 96, 0, 1));
    let build = |src: Ipv4Addr, dst: Ipv4Addr, kind: Icmpv4Type, hops| {
        let mut frame = Vec::new();
        header(src.into(), dst.into(), hops).icmpv4(kind).write(&mut frame, b"abcde").unwrap();
        frame
    };
    let mut frame = build(client, vip, Icmpv4Type::EchoRequest(echo), 3);
    let mut wanted = build(vip, client, Icmpv4Type::EchoReply(echo), 64);
    wanted[..12].copy_from_slice(&[[1; 6], [2; 6]].concat());
    // The builder's addresses have the group bit set.
    for frame in [&mut frame, &mut wanted] {
        frame[..12].iter_mut().for_each(|byte| *byte <<= 1);
    }
    let datagram = Ipv4Addr::datagram(&frame).unwrap();
    assert_eq!(Message::of(&frame, &datagram), Message::EchoRequest);
    reply_to_echo(&mut frame, &datagram).unwrap();
    assert_eq!(frame, wanted);

    let ip = |text: &str| text.parse::<Ipv6Addr>().unwrap();
    let (client, vip) = (ip("2001:db8::1"), ip("fd00::1"));
    let build = |src: Ipv6Addr, dst: Ipv6Addr, kind: Icmpv6Type, hops| {
        let mut frame = Vec::new();
        header(src.into(), dst.into(), hops).icmpv6(kind).write(&mut frame, b"abcde").unwrap();
        frame[..12].iter_mut().for_each(|byte| *byte <<= 1);
        frame
    };
    let mut frame = build(client, vip, Icmpv6Type::EchoRequest(echo), 3);
    let datagram = Ipv6Addr::datagram(&frame).unwrap();
    assert_eq!(Message::of(&frame, &datagram), Message::EchoRequest);
    reply_to_echo(&mut frame, &datagram).unwrap();
    assert_eq!(frame[12..], build(vip, client, Icmpv6Type::EchoReply(echo), 64)[12..]);
}

#[test]
fn nobody_answers_the_echo_request_of_a_group_or_with_options() {
    let build = |src: [u8; 4]| {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([4; 6], [2; 6])
            .ipv4(src, [10, 96, 0, 1], 64)
            .icmpv4_echo_request(1, 1)
            .write(&mut frame, b"")
            .unwrap();
        frame
    };
    let answered = |frame: &mut Vec<u8>| {
        let datagram = Ipv4Addr::datagram(frame).unwrap();
        reply_to_echo(frame, &datagram).is_some()
    };
    assert!(answered(&mut build([192, 0, 2, 1])));
    assert!(!answered(&mut build([224, 0, 0, 1])));
    assert!(!answered(&mut build([255; 4])));
    let mut to_all = build([192, 0, 2, 1]);
    to_all[0] = 0xff;
    assert!(!answered(&mut to_all));
    let mut with_options = build([192, 0, 2, 1]);
    with_options.splice(34..34, [1, 1, 1, 1]);
    with_options[14] = 0x46;
    with_options[17] += 4;
    assert!(!answered(&mut with_options));
}

#[test]
fn other_messages_are_the_hosts() {
    let tuple = tuple4("192.0.2.1:4000 10.0.0.1:53");
    let quote = packet(&tuple, b"").split_off(14);
    for kind in [0, 4, 5, 9, 10, 13, 14] {
        let mut frame = error(tuple.dst, tuple.src, 64, 0, &quote);
        frame[34] = kind;
        assert!(quoted_in::<Ipv4Addr>(&frame).is_none(), "type {kind}");
    }
    let mut other_protocol = error(tuple.dst, tuple.src, 64, 0, &quote);
    assert!(quoted_in::<Ipv4Addr>(&other_protocol).is_some());
    other_protocol[23] = 47;
    assert!(quoted_in::<Ipv4Addr>(&other_protocol).is_none(), "not ICMP");
    let portless = |protocol: u8| {
        let mut quote = quote.clone();
        quote[9] = protocol;
        quoted_in::<Ipv4Addr>(&error(tuple.dst, tuple.src, 64, 0, &quote)).is_some()
    };
    assert!(portless(6) && portless(132) && !portless(1) && !portless(50));
}
