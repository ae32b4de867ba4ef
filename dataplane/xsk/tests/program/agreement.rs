//! The program against its model: random frames, whole, mutated and truncated, get the same decision from both.

use std::collections::BTreeSet;
use std::time::Duration;

use flowgate_xsk::steering::{ETHERTYPE_8021Q, Reason, StationKey, VlanKey};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, RngSeed, TestRunner};

use super::*;
use frames::{
    DESTINATION, FRAGMENT, HOP_BY_HOP, ICMP, ICMPV6, ROUTING, SCTP, TCP, UDP, V4, ethernet, extension,
    fragment, icmp, l4, tagged, v6,
};

/// Few enough for a second or two: the program forgets fragments after 60 s, and the model does not.
const CASES: u32 = 6000;
const LONG: Duration = Duration::from_secs(3600);

/// State of the slot, which decides what happens to a frame that is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Socket,
    Empty,
    InGrace,
}

/// One end of a packet, in both families.
#[derive(Debug, Clone, Copy)]
struct End {
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    port: u16,
}

/// What is between an IPv6 header and the upper layer.
#[derive(Debug, Clone, Copy)]
enum Extra {
    Options { kind: u8, len: u8, left: u8 },
    Fragment { offset: u16, id: u32 },
}

#[derive(Debug, Clone)]
struct Recipe {
    six: bool,
    protocol: u8,
    from: End,
    to: End,
    /// IPv4: flags and offset.
    fragment: u16,
    id: u16,
    options: u8,
    extras: Vec<Extra>,
    /// The packet is put into an ICMP message of this type.
    error: Option<u8>,
    /// Whether the message is sent to the source of the packet.
    to_sender: bool,
    /// The packet is an ICMP message of this type.
    message: Option<u8>,
    tags: Vec<(u16, u16)>,
    station: [u8; 6],
    changes: Vec<(Index, u8)>,
    cut: Option<Index>,
}

impl Recipe {
    fn frame(&self) -> Vec<u8> {
        let (ethertype, packet) = if self.six { (0x86dd, self.packet6()) } else { (0x0800, self.packet4()) };
        let mut frame = ethernet(ethertype, &packet);
        for &(ethertype, id) in &self.tags {
            frame = tagged(ethertype, id, &frame);
        }
        frame[..6].copy_from_slice(&self.station);
        for (at, value) in &self.changes {
            // Only headers matter, and most of them fit into 120 bytes.
            let end = frame.len().min(120);
            frame[12 + at.index(end - 12)] = *value;
        }
        if let Some(cut) = &self.cut {
            frame.truncate(14 + cut.index(frame.len() - 14));
        }
        frame
    }

    fn upper(&self) -> (u8, Vec<u8>) {
        let icmp_protocol = if self.six { ICMPV6 } else { ICMP };
        match self.message {
            Some(kind) => (icmp_protocol, icmp(kind, b"?")),
            None if [TCP, UDP, SCTP].contains(&self.protocol) => {
                (self.protocol, l4(self.protocol, self.from.port, self.to.port))
            }
            None => (self.protocol, vec![0; 24]),
        }
    }

    fn packet4(&self) -> Vec<u8> {
        let (protocol, payload) = self.upper();
        let header = V4::new(self.from.v4, self.to.v4, protocol);
        let packet =
            V4 { fragment: self.fragment, id: self.id, options: self.options, ..header }.with(&payload);
        let Some(kind) = self.error else { return packet };
        let to = if self.to_sender { self.from.v4 } else { self.to.v4 };
        V4::new(OTHER.into(), to, ICMP).with(&icmp(kind, &packet))
    }

    fn packet6(&self) -> Vec<u8> {
        let (mut next, mut payload) = self.upper();
        for extra in &self.extras {
            (next, payload) = match *extra {
                Extra::Options { kind, len, left } => (kind, extension(next, len, left, &payload)),
                Extra::Fragment { offset, id } => (FRAGMENT, fragment(next, offset, id, &payload)),
            };
        }
        let mut packet = v6(self.from.v6, self.to.v6, next, &payload);
        // That of neighbour discovery and of MLD among them.
        packet[7] = [64, 255, 1, 64][usize::from(self.id % 4)];
        let Some(kind) = self.error else { return packet };
        let to = if self.to_sender { self.from.v6 } else { self.to.v6 };
        v6(OTHER6, to, ICMPV6, &icmp(kind, &packet))
    }
}

fn end() -> impl Strategy<Value = End> {
    let addresses =
        [(VIP, VIP6), (NODE, NODE6), (OTHER, OTHER6), (DNAT_ONLY, DNAT_ONLY6), (UNALLOCATED, UNALLOCATED6)];
    let mapped = (OTHER, Ipv4Addr::from(VIP).to_ipv6_mapped());
    let ports = vec![80, 53, 5060, 443, 8080, 30380, 30053, 30132, 20000, 20010, 20063, 22];
    (prop_oneof![20 => select(addresses.to_vec()), 1 => Just(mapped)], select(ports))
        .prop_map(|((v4, v6), port)| End { v4: v4.into(), v6, port })
}

fn extra() -> impl Strategy<Value = Extra> {
    let offset = select(vec![0_u16, 1, 8, 9, 0xfff8]);
    prop_oneof![
        3 => (select(vec![HOP_BY_HOP, ROUTING, DESTINATION]), 0..4_u8, select(vec![0, 0, 0, 1_u8]))
            .prop_map(|(kind, len, left)| Extra::Options { kind, len, left }),
        2 => (offset, 0..4_u32).prop_map(|(offset, id)| Extra::Fragment { offset, id }),
    ]
}

/// Mostly `None`, sometimes a value.
fn sometimes<T: Clone + std::fmt::Debug>(of: impl Strategy<Value = T>) -> impl Strategy<Value = Option<T>> {
    prop::option::weighted(0.25, of)
}

fn recipe() -> impl Strategy<Value = Recipe> {
    let errors = select(vec![1_u8, 2, 3, 4, 5, 8, 11, 12, 128]);
    let messages = select(vec![0_u8, 3, 8, 128, 129, 135, 143, 160]);
    let tags = select(vec![
        vec![],
        vec![],
        vec![],
        vec![(ETHERTYPE_8021Q, 100)],
        vec![(0x88a8, 200)],
        vec![(ETHERTYPE_8021Q, 200)],
        vec![(ETHERTYPE_8021Q, 100), (0x88a8, 200)],
        vec![(ETHERTYPE_8021Q, 0x6000)],
        vec![(0x88a8, 0)],
        vec![(ETHERTYPE_8021Q, 100), (0x88a8, 0x2000)],
        vec![(ETHERTYPE_8021Q, 0), (ETHERTYPE_8021Q, 0)],
        vec![(ETHERTYPE_8021Q, 100), (ETHERTYPE_8021Q, 0), (ETHERTYPE_8021Q, 0)],
    ]);
    let stations = prop_oneof![
        10 => Just(STATION),
        1 => Just(VLAN_STATION),
        1 => select(vec![[2, 9, 9, 9, 9, 9], [0xff; 6], [0x01, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]]),
    ];
    let packet = (
        any::<bool>(),
        select(vec![TCP, TCP, UDP, UDP, SCTP, 47]),
        end(),
        end(),
        select(vec![0_u16, 0, 0, 0x4000, 0x2000, 0x2001, 0x0001, 0x1fff, 0x8000]),
        0..4_u16,
        select(vec![0_u8, 0, 0, 1, 10]),
        sometimes(prop::collection::vec(extra(), 0..8)).prop_map(Option::unwrap_or_default),
    );
    let around = (
        sometimes(errors),
        prop::bool::weighted(0.8),
        prop::option::weighted(0.05, messages),
        tags,
        stations,
        sometimes(prop::collection::vec((any::<Index>(), any::<u8>()), 0..4))
            .prop_map(Option::unwrap_or_default),
        prop::option::weighted(0.1, any::<Index>()),
    );
    (packet, around).prop_map(|((six, protocol, from, to, fragment, id, options, extras), around)| {
        let (error, to_sender, message, tags, station, changes, cut) = around;
        Recipe {
            six,
            protocol,
            from,
            to,
            fragment,
            id,
            options,
            extras,
            error,
            to_sender,
            message,
            tags,
            station,
            changes,
            cut,
        }
    })
}

/// The Ethernet address of the interface, and that of its VLAN 100.
const STATION: [u8; 6] = [2, 0, 0, 0, 0, 2];
const VLAN_STATION: [u8; 6] = [2, 0, 0, 0, 0, 100];
const UNALLOCATED: [u8; 4] = [198, 18, 3, 4];
const UNALLOCATED6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xcccc, 0, 0, 0, 0, 0, 0x34);

/// A set with something in every field, and addresses in more than one of them.
fn everything(set: &mut SteeringSet, ifindex: u32) {
    for addr in [IpAddr::from(NODE), IpAddr::from(NODE6)] {
        set.vips.insert(VipKey { addr, port: 443, protocol: 6 });
    }
    set.answer_echo();
    set.cluster_ips = [IpAddr::from(VIP), IpAddr::from(NODE6)].into();
    set.service_cidrs = [(IpAddr::from([198, 18, 0, 0]), 16)].into();
    set.service_cidrs.insert((Ipv6Addr::new(0xfd00, 0xcccc, 0, 0, 0, 0, 0, 0).into(), 112));
    set.serve_vlans([(ifindex, 100)]);
    set.vlans.insert(VlanKey { ifindex, ethertype: 0x88a8, id: 200 });
    set.stations.insert(StationKey { ifindex, vlan: 0, address: STATION });
    set.stations.insert(StationKey { ifindex, vlan: 100, address: VLAN_STATION });
}

/// Runs random frames through both, and returns the reasons that occurred.
fn agree(slot: Slot) -> BTreeSet<&'static str> {
    let mut rig = rig();
    let ifindex = rig.ifindex;
    rig.serve(|set| everything(set, ifindex));
    if slot != Slot::Socket {
        rig.steering.sockets().clear_all().expect("clear");
    }
    if slot == Slot::InGrace {
        rig.steering.set_grace_period(LONG).expect("grace");
    }
    let set = rig.steering.applied().clone();
    let (mut known, mut seen) = (model::Fragments::new(), BTreeSet::new());
    // The seed is fixed, so that a failure can be reproduced.
    let config =
        Config { cases: CASES, rng_seed: RngSeed::Fixed(1), failure_persistence: None, ..Config::default() };
    let (known, seen_here) = (std::cell::RefCell::new(&mut known), std::cell::RefCell::new(&mut seen));
    TestRunner::new(config)
        .run(&recipe(), |recipe| {
            let frame = recipe.frame();
            let decided = model::decide(&set, ifindex, &mut known.borrow_mut(), &frame);
            let expected = match (decided.starts_with("redirect_"), slot) {
                (true, Slot::Socket) => (Verdict::Redirect, decided),
                (true, Slot::Empty) => (Verdict::Pass, "pass_no_worker"),
                (true, Slot::InGrace) => (Verdict::Drop, "drop_held"),
                (false, _) => (Verdict::Pass, decided),
            };
            seen_here.borrow_mut().insert(expected.1);
            prop_assert_eq!(rig.fate(&frame), expected, "{:02x?}", frame);
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{slot:?}: {error}"));
    seen
}

impl Rig {
    /// The verdict on a frame, and the one counter that was incremented.
    fn fate(&self, frame: &[u8]) -> (Verdict, &'static str) {
        let before = self.steering.counters().expect("counters");
        let verdict = self.steering.probe(self.ifindex, frame).expect("test run");
        let after = self.steering.counters().expect("counters");
        let mut up = before.iter().zip(&after).filter(|(before, after)| before != after);
        let (before, after) = up.next().expect("every packet is counted");
        assert_eq!((after.1 - before.1, up.next()), (1, None), "and counted once");
        (verdict, after.0.name())
    }
}

#[test]
fn program_and_model_agree_with_a_socket() {
    let seen = agree(Slot::Socket);
    let elsewhere = ["pass_no_worker", "drop_held"];
    let expected: BTreeSet<_> =
        Reason::ALL.map(Reason::name).into_iter().filter(|name| !elsewhere.contains(name)).collect();
    assert_eq!(seen, expected, "the frames are worth something only if every reason comes up");
}

#[test]
fn program_and_model_agree_without_a_socket_and_nothing_is_dropped() {
    let seen = agree(Slot::Empty);
    assert!(seen.iter().all(|reason| reason.starts_with("pass_")), "{seen:?}");
    assert!(seen.contains("pass_no_worker"));
}

#[test]
fn program_and_model_agree_while_it_holds_and_only_what_is_ours_is_dropped() {
    let seen = agree(Slot::InGrace);
    assert!(seen.contains("drop_held") && seen.contains("pass_not_ours"), "{seen:?}");
}
