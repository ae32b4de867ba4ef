//! Who makes room for whom, and what is counted for it.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;

const SYN: TcpFlags = TcpFlags::SYN;
const SYN_ACK: TcpFlags = TcpFlags(TcpFlags::SYN.0 | TcpFlags::ACK.0);

#[test]
fn a_full_table_evicts_datagrams_that_were_answered_once_and_never_a_stream() {
    let table = FlowTable::new(64, KEY).unwrap();
    let streams: Vec<NewFlow<Ipv4Addr>> = (0..40).map(|n| udp(n, 1000, 40_000 + n as u16)).collect();
    for flow in &streams {
        table.insert(flow, Tick(1));
        datagram(&table, &flow.reply.tuple, 1);
        datagram(&table, &flow.original.tuple, 2_100);
    }
    let mut full = 0;
    for n in 0..5_000_u32 {
        let flow = udp(100 + n, 7, 41_000 + n as u16);
        match table.insert(&flow, Tick(2_100 + n)) {
            Inserted::New(_) => datagram(&table, &flow.reply.tuple, 2_100 + n),
            Inserted::Full => full += 1,
            other => panic!("{other:?}"),
        }
    }
    for flow in &streams {
        assert!(table.lookup(&flow.original.tuple).is_some() && table.lookup(&flow.reply.tuple).is_some());
    }
    assert!(full < 5_000, "newcomers replace newcomers");
    let used = table.used_entries();
    let whole = table.flows().count();
    assert_eq!(used, 2 * whole, "no half flow is left behind");
}

#[test]
fn half_open_connections_are_counted_until_the_client_acknowledges_or_they_are_gone() {
    let table = FlowTable::new(1000, KEY).unwrap();
    for port in 0..10 {
        assert!(matches!(table.insert(&tcp(1, 1000 + port, 40_000 + port), Tick(1)), Inserted::New(_)));
    }
    table.insert(&udp(1, 999, 39_999), Tick(1));
    assert_eq!(table.half_open(), 10);
    for port in 0..8 {
        let mut talk = Talk::new(&table, &tcp(1, 1000 + port, 40_000 + port));
        talk.say(Side::Original, SYN);
        // A client that acknowledges what was not sent has completed nothing, nor has the backend's answer.
        talk.hear(Side::Original, &segment(TcpFlags::ACK, 1, 77));
        assert_eq!(talk.phase(), TcpPhase::SynSent);
        talk.say(Side::Reply, SYN_ACK);
        assert_eq!((talk.phase(), table.half_open()), (TcpPhase::SynReceived, 10 - u32::from(port.min(4))));
        if port < 4 {
            for _ in 0..2 {
                talk.say(Side::Original, TcpFlags::ACK);
                assert_eq!(talk.phase(), TcpPhase::Established);
            }
        }
    }
    assert_eq!(table.half_open(), 6);
    table.recount();
    assert_eq!(table.half_open(), 6);
    let probe = table.probe(&tuple(Protocol::Tcp, 1, 1000));
    let mut evicted = 0;
    while table.evict_half_open(&probe, Tick(2)) {
        evicted += 1;
    }
    assert_eq!(table.half_open(), 6 - evicted);
    for port in 0..10 {
        if let Some(found) = table.lookup(&tuple(Protocol::Tcp, 1, 1000 + port)) {
            table.remove(&found);
        } else {
            assert!(port >= 4, "one whose handshake is complete never makes room");
        }
    }
    assert_eq!(table.half_open(), 0);
}

#[test]
fn a_taken_reply_tells_whether_its_flow_may_make_room() {
    let table = FlowTable::new(1000, KEY).unwrap();
    table.insert(&tcp(1, 1000, 40_000), Tick(1));
    let Inserted::ReplyTaken(holder) = table.insert(&tcp(2, 1000, 40_000), Tick(5)) else { panic!("taken") };
    assert_eq!(table.evictable_idle_ms(&holder, Tick(5)), Some(4));
    let mut talk = Talk::new(&table, &tcp(1, 1000, 40_000));
    talk.say(Side::Original, SYN);
    talk.say(Side::Reply, SYN_ACK);
    holder.touch(Tick(5), 60);
    assert_eq!(table.evictable_idle_ms(&holder, Tick(6)), Some(5), "the client has been silent since");
    talk.say(Side::Original, TcpFlags::ACK);
    assert_eq!(table.evictable_idle_ms(&holder, Tick(6)), None);
}

#[test]
fn flows_are_counted_by_client_and_by_backend_and_block_of_ports() {
    let table = FlowTable::new(1000, KEY).unwrap();
    let client = tuple(Protocol::Udp, 1, 0).src;
    for n in 0..20 {
        table.insert(&udp(1, 1000 + n, 40_190 + n), Tick(1));
    }
    table.insert(&udp(2, 1000, 41_000), Tick(1));
    // What is not inserted is not counted.
    assert!(matches!(table.insert(&udp(1, 2000, 40_190), Tick(1)), Inserted::ReplyTaken(_)));
    assert!(matches!(table.insert(&udp(1, 1000, 50_000), Tick(1)), Inserted::Existing(_)));
    let in_block = |port| table.flows_in_port_block(client, &reply_tuple(Protocol::Udp, port).reversed());
    let counts = |table: &FlowTable<Ipv4Addr>| (table.flows_of(client), in_block(40_190), in_block(40_192));
    // 40,192 is the first port of a block.
    assert_eq!(counts(&table), (20, 2, 18));
    assert_eq!(table.flows_in_port_block(client, &reply_tuple(Protocol::Tcp, 40_192).reversed()), 0);
    for by_reply in [true, false] {
        let flow = udp(1, 1000 + u16::from(by_reply), 40_190 + u16::from(by_reply));
        let direction = if by_reply { flow.reply } else { flow.original };
        assert!(table.remove(&table.lookup(&direction.tuple).unwrap()));
    }
    assert_eq!(counts(&table), (18, 0, 18));
    table.recount();
    assert_eq!(counts(&table), (18, 0, 18));
    let timeouts = Timeouts::default();
    Sweep::new(&table, 0, 1).step(&table, u32::MAX, at(100_000, &timeouts, 0), |_, _| false);
    assert_eq!(counts(&table), (0, 0, 0));
}

#[test]
fn all_addresses_of_a_64_bit_prefix_are_one_client() {
    let table = FlowTable::<Ipv6Addr>::new(1000, KEY).unwrap();
    let addr = |text: &str| text.parse::<Ipv6Addr>().unwrap();
    for n in 0..10_u16 {
        let (src_port, dst_port) = (L4Port::new(1000), L4Port::new(80));
        let src = addr(&format!("2001:db8::{n}:{n}"));
        let original =
            FiveTuple { protocol: Protocol::Tcp, src, dst: addr("2001:db8:1::1"), src_port, dst_port };
        let reply = FiveTuple {
            src: addr("2001:db8:2::1"),
            dst: addr("2001:db8:2::2"),
            src_port: L4Port::new(80),
            dst_port: L4Port::new(40_000 + n),
            ..original
        };
        let direction = |from: FiveTuple<_>, to: FiveTuple<_>| Direction {
            tuple: from,
            translation: Translation::between(&from, &to.reversed()),
            next_hop: NextHopRef::NONE,
        };
        let flow =
            NewFlow { original: direction(original, reply), reply: direction(reply, original), backend: 1 };
        assert!(matches!(table.insert(&flow, Tick(1)), Inserted::New(_)));
    }
    assert_eq!(table.flows_of(addr("2001:db8::ffff")), 10);
    assert_eq!(table.flows_of(addr("2001:db8:0:1::1")), 0);
}

/// Established flows of three clients in a full table, idle for as long as their age.
#[test]
fn a_newcomer_takes_the_longest_idle_flow_of_the_client_with_the_most_flows() {
    let established = |client, port: u16, snat_port, now| {
        let flow = udp(client, port, snat_port);
        (flow, now)
    };
    let table = FlowTable::new(64, KEY).unwrap();
    let begin = |(flow, now): (NewFlow<Ipv4Addr>, u32)| {
        let inserted = matches!(table.insert(&flow, Tick(now)), Inserted::New(_));
        if inserted {
            datagram(&table, &flow.reply.tuple, now);
            datagram(&table, &flow.reply.tuple, now + 2_100);
        }
        inserted
    };
    let small: Vec<_> = (0..20).map(|n| established(1, 1000 + n, 40_000 + n, 0)).collect();
    assert!(small.iter().all(|flow| begin(*flow)));
    let mut large = Vec::new();
    for n in 0..200 {
        let flow = established(2, 1000 + n, 41_000 + n, 10_000 + u32::from(n));
        if begin(flow) {
            large.push(flow.0);
        }
    }
    assert!(large.len() > 40 && large.len() < 200, "the table is full: {}", large.len());
    let of = |client| table.flows_of(tuple(Protocol::Udp, client, 0).src) as usize;
    // Not yet idle: nobody gives way.
    assert!(matches!(table.insert(&udp(3, 1, 50_000), Tick(13_000)), Inserted::Full) || of(2) == large.len());
    let mut begun = 0;
    for n in 0..15 {
        begun += usize::from(begin(established(3, 1000 + n, 42_000 + n, 60_000)));
    }
    assert!(begun >= 14, "{begun}");
    assert_eq!(of(1), 20, "the client with fewer flows lost none");
    assert!(of(2) < large.len());
    // The largest user itself takes nothing from anybody.
    let before = table.used_entries();
    let again = (0..50).filter(|n| begin(established(2, 3000 + n, 43_000 + n, 90_000))).count();
    assert_eq!(of(1), 20);
    assert_eq!(table.used_entries(), before + 2 * again);
}
