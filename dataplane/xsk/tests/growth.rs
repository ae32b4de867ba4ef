//! Sets that grow while packets are steered, whatever step the process dies at.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fs, thread};

use aya::maps::{MapData, MapInfo};
use flowgate_xsk::steering::{
    ETHERTYPE_8021Q, InterfaceConfig, LinkOrigin, Reason, SetLimits, Shortfall, ShortfallCause, Steering,
    SteeringConfig, SteeringError, SteeringSet, Verdict, VipKey, VlanKey, XdpModePolicy,
};

use crate::common::{Namespace, PIN_DIR, config, counter, eventually, tcp, udp};

const VIP: [u8; 4] = [10, 96, 0, 10];
/// Maps of sets. The other maps never change their size.
const SETS: [&str; 10] = [
    "cluster_ips",
    "echo_addrs",
    "node_addrs",
    "own_addrs",
    "reply_sources",
    "service_cidrs",
    "snat_addrs",
    "vip_addrs",
    "vips",
    "vlans",
];

fn vip(n: u32) -> VipKey {
    VipKey { addr: Ipv4Addr::from(u32::from_be_bytes(VIP) + n).into(), port: 80, protocol: 17 }
}

/// Sets with this many entries each. Only the one VIP of the small set is ever sent to.
fn sets_of(count: u32, ifindex: u32) -> SteeringSet {
    let addresses = |first: [u8; 4]| -> BTreeSet<IpAddr> {
        (0..count).map(|n| Ipv4Addr::from(u32::from_be_bytes(first) + n).into()).collect()
    };
    let vlan = |n: u32| VlanKey {
        ifindex,
        ethertype: ETHERTYPE_8021Q + u16::try_from(n / 4095).expect("few"),
        id: u16::try_from(n % 4095).expect("small"),
    };
    let mut set = SteeringSet {
        vips: (0..count).map(vip).collect(),
        node_addresses: addresses([172, 16, 0, 0]),
        snat_addresses: addresses([172, 17, 0, 0]),
        own_addresses: addresses([172, 18, 0, 0]),
        cluster_ips: addresses([172, 19, 0, 0]),
        reply_sources: addresses([172, 20, 0, 0])
            .into_iter()
            .map(|addr| VipKey { addr, port: 8080, protocol: 6 })
            .collect(),
        service_cidrs: addresses([172, 21, 0, 0]).into_iter().map(|address| (address, 32)).collect(),
        vlans: (0..count).map(vlan).collect(),
        ..SteeringSet::default()
    };
    set.answer_echo();
    set
}

fn limits(each: u32) -> SetLimits {
    SetLimits {
        vips: each,
        vip_addresses: each,
        cluster_ips: each,
        reply_sources: each,
        node_addresses: each,
        snat_addresses: each,
        service_cidrs: each,
        vlans: each,
    }
}

fn attach(namespace: &Namespace, interfaces: &[&str], limits: SetLimits) -> Result<Steering, SteeringError> {
    let named = |name: &&str| InterfaceConfig { name: (*name).to_owned(), mode: XdpModePolicy::Auto };
    let config = SteeringConfig { interfaces: interfaces.iter().map(named).collect(), limits, ..config() };
    namespace.run(|| Steering::attach(&config))
}

/// The number of entries that a pinned map has room for.
fn size_of_map(namespace: &Namespace, name: &str) -> u32 {
    namespace.run(|| MapInfo::from_pin(format!("{PIN_DIR}/{name}")).expect("a map").max_entries())
}

/// Replaces maps by ones of the right size; whether some had another one.
fn grow(namespace: &Namespace, steering: &mut Steering, next: &SteeringSet) -> bool {
    let Some(resize) = steering.resize(next) else { return false };
    let resized = namespace.run(|| resize.prepare()).expect("larger maps");
    namespace.run(|| steering.switch_to(resized, next)).expect("switched");
    true
}

fn names(namespace: &Namespace) -> Vec<String> {
    let pins = namespace.pins().expect("a pin directory");
    let name = |path: &std::path::PathBuf| path.file_name().expect("a name").to_string_lossy().into_owned();
    let mut names: Vec<_> = pins.iter().map(name).collect();
    names.sort();
    names
}

#[test]
fn maps_for_what_is_gone_by_the_time_they_are_ready_are_given_up() {
    let namespace = Namespace::new();
    namespace.veth("lb0", "peer0");
    let mut steering = attach(&namespace, &["lb0"], limits(65_536)).expect("attach");
    let ifindex = namespace.ifindex("lb0");
    let (small, big, bigger) = (sets_of(1, ifindex), sets_of(7000, ifindex), sets_of(20_000, ifindex));
    let prepare = |steering: &Steering, set: &SteeringSet| {
        let resize = steering.resize(set).expect("larger maps are needed");
        namespace.run(|| resize.prepare()).expect("larger maps")
    };
    steering.add_new(&big).expect_err("there is no room");
    let resized = prepare(&steering, &big);
    assert!(!steering.is_outdated(&resized, &big));
    assert!(!steering.is_outdated(&resized, &bigger), "better than what there is");
    steering.remove_stale(&small).expect("the kernel removes them");
    steering.add_new(&small).expect("it fits");
    assert!(steering.is_outdated(&resized, &small));
    namespace.run(|| steering.abandon(resized)).expect("the pins are removed");
    assert!(!names(&namespace).iter().any(|name| name.starts_with("next-")));
    assert_eq!((steering.applied(), size_of_map(&namespace, "vips")), (&small, 4096));
    // One map that is no longer needed is enough: the others are prepared anew.
    let resized = prepare(&steering, &big);
    let mut mixed = big.clone();
    mixed.reply_sources = small.reply_sources.clone();
    assert!(steering.is_outdated(&resized, &mixed));
    namespace.run(|| steering.abandon(resized)).expect("the pins are removed");
    assert!(grow(&namespace, &mut steering, &big));
    steering.add_new(&big).expect("now it fits");
    assert_eq!(steering.applied(), &big);
}

#[test]
fn very_many_entries_change_in_steps_and_come_to_the_same() {
    const COUNT: u32 = 20_000;
    let namespace = Namespace::new();
    namespace.veth("lb0", "peer0");
    let mut steering = attach(&namespace, &["lb0"], limits(65_536)).expect("attach");
    let ifindex = namespace.ifindex("lb0");
    let (small, big) = (sets_of(1, ifindex), sets_of(COUNT, ifindex));
    steering.add_new(&big).expect_err("there is no room");
    assert!(!steering.add_some(&big), "there is still none");
    assert!(grow(&namespace, &mut steering, &big));
    steering.add_new(&big).expect("now it fits");

    // All but the own addresses, which are exceptions to the others.
    let count = |steering: &Steering| {
        let set = steering.applied();
        let addresses = [&set.cluster_ips, &set.node_addresses, &set.snat_addresses, &set.echo_addresses];
        let vips = set.vips.len() + set.reply_sources.len();
        addresses.map(BTreeSet::len).iter().sum::<usize>() + vips + set.service_cidrs.len() + set.vlans.len()
    };
    let all = count(&steering);
    assert_eq!(all, 8 * COUNT as usize);
    let mut counts = vec![all];
    while steering.remove_some(&small) {
        counts.push(count(&steering));
    }
    assert!(counts.len() > 5, "{counts:?}");
    assert!(counts.windows(2).all(|pair| (1..=all / 5).contains(&(pair[0] - pair[1]))), "{counts:?}");
    steering.remove_stale(&small).expect("the kernel removes the rest");
    assert_eq!(steering.applied(), &small);

    let mut counts = vec![count(&steering)];
    while steering.add_some(&big) {
        counts.push(count(&steering));
        assert_eq!(steering.applied().own_addresses, big.own_addresses, "the exceptions come first");
    }
    assert!(counts.len() > 5, "{counts:?}");
    assert!(counts.windows(2).all(|pair| (1..=all / 5).contains(&(pair[1] - pair[0]))), "{counts:?}");
    steering.add_new(&big).expect("there is room for the rest");
    assert_eq!(steering.applied(), &big);
}

#[test]
fn every_set_grows_while_packets_are_steered_and_none_is_missed() {
    const COUNT: u32 = 7000;
    let namespace = Namespace::new();
    namespace.veth("lb0", "peer0");
    namespace.veth("lb1", "peer1");
    let mut steering = attach(&namespace, &["lb0", "lb1"], limits(16_384)).expect("attach");
    let ifindex = namespace.ifindex("lb0");
    let (_pool, ports) = namespace.pool(&["lb0"]);
    steering.set_socket(ifindex, 0, ports[0].fd()).expect("a slot");
    let small = sets_of(1, ifindex);
    steering.add_new(&small).expect("it fits");
    assert!(steering.resize(&small).is_none(), "the first size is enough");

    let sender = namespace.packet_socket("peer0");
    let frame = udp((VIP, 80), b"steady");
    let stop = AtomicBool::new(false);
    let big = sets_of(COUNT, ifindex);
    let sent = thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let mut sent = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                sender.send(&frame);
                sent += 1;
            }
            sent
        });
        let missing = steering.add_new(&big).err().unwrap_or_default();
        let grown = steering.resize(&big).map(|resize| {
            let resized = namespace.run(|| resize.prepare())?;
            namespace.run(|| steering.switch_to(resized, &big))
        });
        let complete = steering.add_new(&big);
        stop.store(true, Ordering::Relaxed);
        let sent = sending.join().expect("the sender");
        let lacks = |map: &str| missing.iter().find(|lacking| lacking.map == map).expect("it is too small");
        // The addresses of those VIPs that are in the map have room.
        assert!(SETS.iter().all(|map| *map == "vip_addrs" || lacks(map).missing > 0));
        assert_eq!(lacks("vips").missing, COUNT as usize - 4096);
        assert!(matches!(lacks("vips").cause, ShortfallCause::Full));
        grown.expect("larger maps are needed").expect("switched");
        complete.expect("now it fits");
        sent
    });

    assert_eq!(steering.applied(), &big);
    for map in SETS {
        assert_eq!(size_of_map(&namespace, map), 16_384, "{map}");
    }
    assert!(steering.resize(&big).is_none(), "large enough");
    // The last frames may still be on their way.
    assert!(eventually(|| counter(&steering, Reason::RedirectVip) >= sent), "all were steered");
    for missed in [Reason::PassNotOurs, Reason::PassNoWorker, Reason::DropHeld] {
        assert_eq!(counter(&steering, missed), 0, "{missed:?} of {sent}");
    }
    assert!(!names(&namespace).iter().any(|name| name.starts_with("next-")));
    // Also the second interface runs the new program.
    let other = namespace.ifindex("lb1");
    let last = match vip(COUNT - 1).addr {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(_) => unreachable!("an IPv4 address"),
    };
    assert_eq!(steering.probe(other, &udp((last, 80), b"?")).expect("test run"), Verdict::Pass);
    assert_eq!(counter(&steering, Reason::PassNoWorker), 1, "it is ours, and has no socket there");
}

#[test]
fn a_successor_finds_the_grown_maps_and_needs_no_other_program() {
    let namespace = Namespace::new();
    namespace.veth("lb0", "peer0");
    let big = sets_of(5000, namespace.ifindex("lb0"));
    let mut first = attach(&namespace, &["lb0"], limits(65_536)).expect("attach");
    let _ = first.add_new(&big);
    assert!(grow(&namespace, &mut first, &big));
    first.add_new(&big).expect("it fits");
    let (before, pins) = (program_on(&namespace), names(&namespace));
    drop(first);
    let second = attach(&namespace, &["lb0"], limits(65_536)).expect("attach again");
    assert_eq!(second.report()[0].link, LinkOrigin::Reused);
    assert!(second.notices().is_empty(), "{:?}", second.notices());
    assert_eq!((program_on(&namespace), names(&namespace)), (before, pins));
    assert_eq!(second.applied(), &big);
    assert!(second.resize(&big).is_none());
}

#[test]
fn a_process_that_dies_while_maps_grow_leaves_what_its_successor_takes_over() {
    let namespace = Namespace::new();
    namespace.veth("lb0", "peer0");
    let ifindex = namespace.ifindex("lb0");
    let small = sets_of(3000, ifindex);
    let big = sets_of(3900, ifindex);
    let rename = |from: String, to: String| {
        namespace.run(|| fs::rename(format!("{PIN_DIR}/{from}"), format!("{PIN_DIR}/{to}")).expect("moved"));
    };
    // Each time the process dies after another number of pins was replaced; after the last one the growth is complete.
    for replaced in [0, 1, 4, SETS.len()] {
        let mut steering = attach(&namespace, &["lb0"], limits(65_536)).expect("attach");
        steering.remove_stale(&small).expect("remove");
        steering.add_new(&small).expect("it fits");
        steering.add_new(&big).expect("it fits as well");
        let prepared =
            namespace.run(|| steering.resize(&big).expect("nearly full").prepare()).expect("prepared");
        drop(prepared);
        for map in &SETS[..replaced] {
            rename(format!("next-{map}"), (*map).to_owned());
        }
        drop(steering);
        let successor = attach(&namespace, &["lb0"], limits(65_536)).expect("it takes over");
        assert_eq!(successor.report()[0].link, LinkOrigin::Reused, "{replaced} pins");
        assert_eq!(successor.applied(), &big, "{replaced} pins");
        assert!(!names(&namespace).iter().any(|name| name.starts_with("next-")), "{replaced} pins");
        let before = counter(&successor, Reason::PassNoWorker);
        successor.probe(ifindex, &udp((VIP, 80), b"?")).expect("test run");
        assert_eq!(counter(&successor, Reason::PassNoWorker), before + 1, "{replaced} pins: still ours");
        drop(successor);
        namespace.run(|| flowgate_xsk::steering::uninstall(Path::new(PIN_DIR))).expect("uninstalled");
    }
}

#[test]
fn a_process_that_dies_between_links_and_pins_leaves_old_maps_that_hold_the_same() {
    let namespace = Namespace::new();
    namespace.veth("lb0", "peer0");
    let ifindex = namespace.ifindex("lb0");
    let set = sets_of(3900, ifindex);
    let mut steering = attach(&namespace, &["lb0"], limits(65_536)).expect("attach");
    steering.add_new(&set).expect("it fits");
    let old: Vec<_> = namespace.run(|| {
        SETS.iter().map(|map| (map, MapData::from_pin(format!("{PIN_DIR}/{map}")).expect("a map"))).collect()
    });
    assert!(grow(&namespace, &mut steering, &set));
    drop(steering);
    namespace.run(|| {
        for (map, data) in old {
            fs::remove_file(format!("{PIN_DIR}/{map}")).expect("unpinned");
            data.pin(format!("{PIN_DIR}/{map}")).expect("pinned");
        }
    });
    let successor = attach(&namespace, &["lb0"], limits(65_536)).expect("it takes over");
    assert_eq!(successor.report()[0].link, LinkOrigin::Reused);
    assert_eq!(successor.applied(), &set);
    successor.probe(ifindex, &tcp((VIP, 80))).expect("test run");
    successor.probe(ifindex, &udp((VIP, 80), b"?")).expect("test run");
    assert_eq!(counter(&successor, Reason::PassNoWorker), 1);
}

#[test]
fn growth_that_fails_leaves_everything_as_it_was() {
    let namespace = Namespace::new();
    namespace.veth("lb0", "peer0");
    let set = sets_of(3900, namespace.ifindex("lb0"));
    let mut steering = attach(&namespace, &["lb0"], limits(65_536)).expect("attach");
    steering.add_new(&set).expect("it fits");
    let before = (program_on(&namespace), names(&namespace));
    // A pin that cannot be made, since a folder with something in it has its name.
    namespace.run(|| fs::create_dir_all(format!("{PIN_DIR}/next-vips/taken"))).expect("a folder");
    let refused = namespace.run(|| steering.resize(&set).expect("nearly full").prepare());
    assert!(matches!(refused, Err(SteeringError::PinDir { .. })), "{:?}", refused.err());
    namespace.run(|| fs::remove_dir_all(format!("{PIN_DIR}/next-vips"))).expect("removed");
    assert_eq!((program_on(&namespace), names(&namespace)), before);
    assert_eq!(steering.applied(), &set);
    assert!(grow(&namespace, &mut steering, &set), "and it can be tried again");
}

#[test]
fn a_map_at_its_limit_is_named_with_what_is_missing_and_everything_else_is_applied() {
    let namespace = Namespace::new();
    namespace.veth("lb0", "peer0");
    let ifindex = namespace.ifindex("lb0");
    let limits = SetLimits { vips: 10, service_cidrs: 20, ..limits(65_536) };
    let mut steering = attach(&namespace, &["lb0"], limits).expect("attach");
    let next = sets_of(30, ifindex);
    let missing = steering.add_new(&next).expect_err("two maps are too small");
    let lacks = |map| -> Vec<&Shortfall> { missing.iter().filter(|lacks| lacks.map == map).collect() };
    assert_eq!((lacks("vips")[0].missing, lacks("vips")[0].capacity), (20, 10));
    assert_eq!(lacks("vips")[0].first, "10.96.0.20 port 80/UDP");
    assert_eq!((lacks("service_cidrs")[0].missing, lacks("service_cidrs")[0].capacity), (10, 20));
    assert!(lacks("vip_addrs").is_empty(), "the addresses of VIPs that are in the map have room");
    assert!(steering.resize(&next).is_none(), "a limit is a limit");
    let applied = steering.applied();
    assert_eq!((applied.vips.len(), applied.service_cidrs.len()), (10, 20));
    let without = |set: &SteeringSet| SteeringSet {
        vips: BTreeSet::new(),
        service_cidrs: BTreeSet::new(),
        echo_addresses: BTreeSet::new(),
        ..set.clone()
    };
    assert_eq!(without(applied), without(&next), "everything else");

    // Who has room keeps it, and what becomes free is given to the others.
    let mut fewer = next.clone();
    fewer.vips = next.vips.iter().copied().skip(5).collect();
    steering.remove_stale(&fewer).expect("remove");
    let _ = steering.add_new(&fewer);
    let expected: BTreeSet<_> = next.vips.iter().copied().skip(5).take(10).collect();
    assert_eq!(steering.applied().vips, expected);
}

#[test]
fn while_an_own_address_has_no_room_nothing_is_added_that_could_redirect_its_traffic() {
    let namespace = Namespace::new();
    namespace.veth("lb0", "peer0");
    let limits = SetLimits { node_addresses: 2, ..limits(65_536) };
    let mut steering = attach(&namespace, &["lb0"], limits).expect("attach");
    let mut next = sets_of(3, namespace.ifindex("lb0"));
    next.node_addresses.clear();
    next.snat_addresses.clear();
    let missing = steering.add_new(&next).expect_err("three own addresses");
    let maps: BTreeSet<_> = missing.iter().map(|lacks| lacks.map).collect();
    assert_eq!(maps, ["cluster_ips", "own_addrs", "reply_sources", "service_cidrs"].into());
    assert_eq!(steering.applied().vips, next.vips);
    next.own_addresses.pop_last();
    steering.add_new(&next).expect("now everything may be added");
    assert_eq!(steering.applied(), &next);
}

#[test]
fn a_lowered_limit_shrinks_maps_without_a_gap() {
    let namespace = Namespace::new();
    namespace.veth("lb0", "peer0");
    let set = sets_of(5000, namespace.ifindex("lb0"));
    let mut first = attach(&namespace, &["lb0"], limits(65_536)).expect("attach");
    let _ = first.add_new(&set);
    assert!(grow(&namespace, &mut first, &set));
    first.add_new(&set).expect("it fits");
    assert_eq!(size_of_map(&namespace, "vips"), 8192);
    drop(first);
    let mut second = attach(&namespace, &["lb0"], limits(6000)).expect("attach again");
    assert_eq!(second.applied(), &set, "nothing was forgotten");
    assert!(grow(&namespace, &mut second, &set));
    assert_eq!(size_of_map(&namespace, "vips"), 6000);
    assert_eq!(second.applied(), &set);
}

/// The id of the program on lb0, as `ip` reports it.
fn program_on(namespace: &Namespace) -> String {
    let output = namespace
        .run(|| Command::new("ip").args(["-d", "link", "show", "lb0"]).output().expect("iproute2").stdout);
    let text = String::from_utf8_lossy(&output).into_owned();
    text.split("prog/xdp id ").nth(1).expect("a program").split_whitespace().next().expect("an id").to_owned()
}
