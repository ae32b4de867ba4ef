//! Attaching over the life of a process: start, restart, stale and foreign pins and programs, uninstall.

use std::fs::Permissions;
use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{env, fs, thread};

use aya::maps::Array;
use flowgate_xsk::FramePool;
use flowgate_xsk::steering::{
    InterfaceConfig, LinkOrigin, Reason, Steering, SteeringConfig, SteeringError, SteeringSet, Verdict,
    VipKey, XdpMode, XdpModePolicy, uninstall,
};

use crate::common::{
    self, Namespace, PIN_DIR, config, counter, eventually, small_port, small_umem, tcp, udp,
};

const VIP: [u8; 4] = [10, 96, 0, 10];
/// Environment variable with the interface for the child of the kill test.
const CHILD_OF: &str = "FLOWGATE_XSK_TEST_INTERFACE";

fn vips(ports: &[u16]) -> SteeringSet {
    let key = |port: &u16| VipKey { addr: IpAddr::from(VIP), port: *port, protocol: 6 };
    SteeringSet { vips: ports.iter().map(key).collect(), ..SteeringSet::default() }
}

/// The XDP program that `ip` reports: its mode and id.
fn program_on(namespace: &Namespace, interface: &str) -> Option<(String, String)> {
    let show = format!("link show {interface}");
    let output = namespace
        .run(|| Command::new("ip").arg("-d").args(show.split(' ')).output().expect("iproute2").stdout);
    let text = String::from_utf8_lossy(&output).into_owned();
    let mode = ["xdpgeneric", "xdp"]
        .into_iter()
        .find(|mode| text.contains(&format!("prog/{mode}")) || text.contains(&format!(" {mode} ")))?;
    let id = text.split("prog/xdp id ").nth(1)?.split_whitespace().next()?.to_owned();
    Some((mode.to_owned(), id))
}

#[test]
fn the_first_start_mounts_pins_and_attaches_in_native_mode() {
    let namespace = Namespace::new();
    namespace.veth("lb0", "peer0");
    namespace.veth("lb1", "peer1");
    let steering = namespace.attach(&["lb0", "lb1"]).expect("attach");

    assert_eq!(steering.notices(), ["mounted a bpffs at /mnt/bpf"]);
    for (report, interface) in steering.report().iter().zip(["lb0", "lb1"]) {
        assert_eq!((report.interface.as_str(), report.ifindex), (interface, namespace.ifindex(interface)));
        assert_eq!((report.mode, report.link, report.queues), (XdpMode::Native, LinkOrigin::Fresh, 1));
        assert!(report.messages.is_empty(), "{report:?}");
        assert_eq!(program_on(&namespace, interface).expect("a program").0, "xdp");
    }
    let mut pins: Vec<_> =
        namespace.pins().expect("a pin directory").iter().map(|path| path.display().to_string()).collect();
    pins.sort();
    let programs = program_pins(&namespace);
    assert_eq!(programs.len(), 2, "one for each interface: {programs:?}");
    pins.retain(|pin| !pin.contains("/program-"));
    let expected = [
        "cluster_ips",
        "counters",
        "deliveries",
        "echo_addrs",
        "fragments",
        "hold_until",
        "link-lb0",
        "link-lb1",
        "node_addrs",
        "other_stations",
        "own_addrs",
        "port_sets",
        "reply_sources",
        "service_cidrs",
        "snat_addrs",
        "stations",
        "vip_addrs",
        "vips",
        "vlans",
        "xsks",
    ];
    assert_eq!(pins, expected.map(|name| format!("{PIN_DIR}/{name}")));
}

#[test]
fn a_restart_takes_the_link_over_and_forgets_nothing_and_keeps_nothing_stale() {
    let namespace = Namespace::new();
    namespace.veth("lb0", "peer0");
    let mut first = namespace.attach(&["lb0"]).expect("attach");
    first.add_new(&vips(&[80, 81])).expect("add");
    let ifindex = namespace.ifindex("lb0");
    let before = program_on(&namespace, "lb0").expect("a program");
    drop(first);
    assert_eq!(program_on(&namespace, "lb0"), Some(before.clone()), "dropping it leaves it attached");

    let mut second = namespace.attach(&["lb0"]).expect("attach again");
    assert_eq!(second.report()[0].link, LinkOrigin::Reused);
    assert!(second.notices().is_empty(), "{:?}", second.notices());
    assert_eq!(program_on(&namespace, "lb0"), Some(before), "the same program needs no loading");
    assert_eq!(second.applied(), &vips(&[80, 81]), "what the dead process left is known");

    let next = vips(&[81, 82]);
    second.remove_stale(&next).expect("remove");
    second.add_new(&next).expect("add");
    let reason = |port| {
        let ours = |steering: &Steering| counter(steering, Reason::PassNoWorker);
        let before = ours(&second);
        assert_eq!(second.probe(ifindex, &tcp((VIP, port))).expect("test run"), Verdict::Pass);
        ours(&second) > before
    };
    assert_eq!([80, 81, 82].map(reason), [false, true, true]);
}

#[test]
fn an_interface_that_is_not_configured_any_more_is_detached() {
    let namespace = Namespace::new();
    namespace.veth("lb0", "peer0");
    namespace.veth("lb1", "peer1");
    drop(namespace.attach(&["lb0", "lb1"]).expect("attach"));
    let steering = namespace.attach(&["lb1"]).expect("attach one");
    assert_eq!(steering.notices(), ["removed link-lb0: that interface is not configured any more"]);
    assert_eq!(program_on(&namespace, "lb0"), None);
    assert!(program_on(&namespace, "lb1").is_some());
}

#[test]
fn a_second_live_process_is_refused() {
    let namespace = Namespace::new();
    namespace.veth("lb0", "peer0");
    let first = namespace.attach(&["lb0"]).expect("attach");
    let error = namespace.attach(&["lb0"]).expect_err("the first one runs");
    assert!(matches!(error, SteeringError::InUse { .. }), "{error:?}");
    assert!(error.to_string().starts_with("another flowgate runs on /mnt/bpf/flowgate"), "{error}");
    let error = namespace.run(|| uninstall(PIN_DIR.as_ref())).expect_err("the first one runs");
    assert!(matches!(error, SteeringError::InUse { .. }), "{error:?}");
    drop(first);
    namespace.attach(&["lb0"]).expect("the first one is gone");
}

#[test]
fn the_program_of_another_version_is_replaced_and_its_pin_removed() {
    let namespace = Namespace::new();
    namespace.veth("lb0", "peer0");
    drop(namespace.attach(&["lb0"]).expect("attach"));
    let before = program_on(&namespace, "lb0").expect("a program");
    let pinned = program_pins(&namespace);
    namespace.run(|| {
        fs::rename(format!("{PIN_DIR}/{}", pinned[0]), format!("{PIN_DIR}/program-another")).expect("move");
    });
    let steering = namespace.attach(&["lb0"]).expect("attach again");
    assert_eq!(steering.report()[0].link, LinkOrigin::Reused);
    assert_ne!(program_on(&namespace, "lb0").expect("a program"), before);
    assert_eq!(program_pins(&namespace), pinned);
}

/// The names of the pinned programs.
fn program_pins(namespace: &Namespace) -> Vec<String> {
    let names = namespace.pins().expect("a pin directory").into_iter();
    let names = names.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()));
    let mut programs: Vec<_> = names.filter(|name| name.starts_with("program-")).collect();
    programs.sort();
    programs
}

#[test]
fn a_pin_of_the_wrong_shape_is_replaced_with_a_message() {
    let namespace = Namespace::new();
    namespace.veth("lb0", "peer0");
    drop(namespace.attach(&["lb0"]).expect("attach"));
    namespace.run(|| {
        // A map of another shape, a link in a map's place, and a map in the link's place.
        fs::remove_file(format!("{PIN_DIR}/vips")).expect("unpin");
        fs::remove_file(format!("{PIN_DIR}/counters")).expect("unpin");
        fs::rename(format!("{PIN_DIR}/node_addrs"), format!("{PIN_DIR}/vips")).expect("move");
        fs::rename(format!("{PIN_DIR}/link-lb0"), format!("{PIN_DIR}/counters")).expect("move");
        fs::rename(format!("{PIN_DIR}/snat_addrs"), format!("{PIN_DIR}/link-lb0")).expect("move");
    });
    let mut steering = namespace.attach(&["lb0"]).expect("attach over the mess");
    let notices = steering.notices().to_vec();
    assert_eq!(notices.len(), 2, "{notices:?}");
    assert!(notices.iter().all(|text| text.contains("is not the map this version uses")), "{notices:?}");
    assert_eq!(steering.report()[0].messages, ["replaced the pinned link: it was not a link"]);
    steering.add_new(&vips(&[80])).expect("the maps work");
}

/// The maps of the version before IPv6 was steered: three port sets, and none of the maps added since.
#[test]
fn the_pins_of_an_earlier_version_are_replaced_or_added_and_the_others_kept() {
    let namespace = Namespace::new();
    namespace.veth("lb0", "peer0");
    let mut first = namespace.attach(&["lb0"]).expect("attach");
    first.add_new(&vips(&[80])).expect("add");
    let old = program_on(&namespace, "lb0");
    drop(first);
    namespace.run(|| {
        for added in ["echo_addrs", "fragments", "hold_until", "port_sets", "vip_addrs", "vlans"] {
            fs::remove_file(format!("{PIN_DIR}/{added}")).expect("unpin");
        }
        let port_sets = Array::<_, [u8; 8192]>::create(3, 0).expect("a map");
        port_sets.pin(format!("{PIN_DIR}/port_sets")).expect("pinned");
    });
    let mut steering = namespace.attach(&["lb0"]).expect("attach over the old pins");
    let notices = steering.notices();
    assert_eq!(notices, [format!("replaced {PIN_DIR}/port_sets: it is not the map this version uses")]);
    assert_eq!(steering.report()[0].link, LinkOrigin::Reused);
    assert_eq!(steering.applied(), &vips(&[80]), "the VIPs are still there");
    assert_eq!(namespace.pins().expect("pins").len(), 20);
    assert_ne!(program_on(&namespace, "lb0"), old, "the old program reads maps that are no longer pinned");

    // The VIP's address follows from its ports, although the old version had no map for it.
    steering.remove_stale(&vips(&[80])).expect("remove");
    steering.add_new(&vips(&[80])).expect("add");
    let mut later = udp((VIP, 80), b"and so on");
    later[21] = 2; // the fragment's offset
    steering.probe(namespace.ifindex("lb0"), &later).expect("test run");
    assert_eq!(counter(&steering, Reason::PassFragment), 0, "a fragment to the VIP is ours");
    assert_eq!(counter(&steering, Reason::PassNoWorker), 1);
}

#[test]
fn vlans_of_an_interface_that_is_not_configured_any_more_are_forgotten() {
    let namespace = Namespace::new();
    namespace.veth("lb0", "peer0");
    namespace.veth("lb1", "peer1");
    let (lb0, lb1) = (namespace.ifindex("lb0"), namespace.ifindex("lb1"));
    let mut set = vips(&[80]);
    set.serve_vlans([(lb0, 1), (lb1, 4094)]);
    let mut steering = namespace.attach(&["lb0", "lb1"]).expect("attach");
    steering.add_new(&set).expect("add");
    assert_eq!(steering.applied(), &set);
    drop(steering);
    let steering = namespace.attach(&["lb0", "lb1"]).expect("attach again");
    assert_eq!(steering.applied(), &set, "what the dead process left is known");
    drop(steering);
    let steering = namespace.attach(&["lb0"]).expect("attach one");
    set.vlans.retain(|vlan| vlan.ifindex == lb0);
    assert_eq!(steering.applied(), &set);
}

#[test]
fn a_foreign_program_is_named_and_left_alone() {
    let namespace = Namespace::new();
    namespace.veth("lb0", "peer0");
    namespace.veth("lb1", "peer1");
    let pass = common::program(2);
    let ifindex = namespace.ifindex("lb1");
    let foreign = namespace.run(|| common::attach(&pass, ifindex));
    let before = program_on(&namespace, "lb1").expect("a program");

    let error = namespace.attach(&["lb0", "lb1"]).expect_err("lb1 is taken");
    let text = error.to_string();
    assert!(text.starts_with(&format!("interface lb1 already runs XDP program {} ()", before.1)), "{text}");
    assert_eq!(program_on(&namespace, "lb1"), Some(before));
    assert_eq!(program_on(&namespace, "lb0"), None, "what the failed call attached is gone again");
    assert_eq!(namespace.pins(), None, "and so are its pins");
    assert!(!is_bpffs_mounted(&namespace), "and so is the bpffs");
    drop(foreign);
}

fn is_bpffs_mounted(namespace: &Namespace) -> bool {
    namespace
        .run(|| fs::read_to_string("/proc/thread-self/mounts").expect("procfs").contains(" /mnt/bpf bpf "))
}

#[test]
fn another_flowgate_that_serves_the_interface_is_named_by_its_process() {
    let namespace = Namespace::new();
    namespace.veth("lb0", "peer0");
    namespace.veth("lb1", "peer1");
    let theirs = SteeringConfig {
        pin_dir: "/mnt/bpf/theirs".into(),
        interfaces: vec![InterfaceConfig { name: "lb1".into(), mode: XdpModePolicy::Generic }],
        ..config()
    };
    let other = namespace.run(|| Steering::attach(&theirs)).expect("another flowgate");
    let before = program_on(&namespace, "lb1").expect("a program");
    let text = namespace.attach(&["lb0", "lb1"]).expect_err("lb1 is taken").to_string();
    let expected = format!("interface lb1 is served by another flowgate, process {} (", std::process::id());
    assert!(text.starts_with(&expected), "{text}");
    assert_eq!(program_on(&namespace, "lb1"), Some(before));
    assert_eq!(program_on(&namespace, "lb0"), None, "what the failed call attached is gone again");
    assert_eq!(namespace.pins(), None, "and so are its pins");
    assert!(is_bpffs_mounted(&namespace), "the other one uses it");
    drop(other);
}

#[test]
fn what_lost_its_pins_is_taken_over_when_no_process_serves_it() {
    let namespace = Namespace::new();
    namespace.veth("lb0", "peer0");
    namespace.veth("lb1", "peer1");
    let mut first = namespace.attach(&["lb0", "lb1"]).expect("attach");
    first.add_new(&vips(&[80, 81])).expect("add");
    first.probe(namespace.ifindex("lb0"), &tcp((VIP, 80))).expect("test run");
    let before = ["lb0", "lb1"].map(|interface| program_on(&namespace, interface));
    drop(first);
    // The bpffs with the pins stays mounted, but out of sight.
    let elsewhere = namespace.with_other_mounts();
    assert_eq!(elsewhere.pins(), None);

    let second = elsewhere.attach(&["lb0", "lb1"]).expect("attach where no pins are");
    let notices = second.notices();
    for interface in ["lb0", "lb1"] {
        let told = |notice: &&String| {
            notice.contains(&format!("of {interface}, which an earlier flowgate attached"))
        };
        assert_eq!(notices.iter().filter(told).count(), 1, "{notices:?}");
    }
    assert!(second.report().iter().all(|report| report.link == LinkOrigin::Reused), "{second:?}");
    assert_eq!(second.applied(), &vips(&[80, 81]), "what the dead process left is known");
    assert_eq!(counter(&second, Reason::PassNoWorker), 1, "its counters go on");
    assert_eq!(elsewhere.pins().expect("pins").len(), 22);
    drop(second);
    let third = elsewhere.attach(&["lb0", "lb1"]).expect("attach again");
    assert!(third.notices().is_empty(), "{:?}", third.notices());
    assert!(before.iter().all(Option::is_some));
}

#[test]
fn pins_that_are_lost_while_the_process_runs_are_made_again() {
    let namespace = Namespace::new();
    namespace.veth("lb0", "peer0");
    let mut first = namespace.attach(&["lb0"]).expect("attach");
    first.add_new(&vips(&[80])).expect("add");
    let mend = |steering: &Steering| namespace.run(|| steering.mend_pins()).expect("mended");
    assert_eq!(mend(&first), Vec::<String>::new());
    let before = program_on(&namespace, "lb0");
    namespace.run(|| {
        for pin in ["vips", "counters", "link-lb0"] {
            fs::remove_file(format!("{PIN_DIR}/{pin}")).expect("unpinned");
        }
    });
    let mut mended = mend(&first);
    mended.sort();
    assert_eq!(mended, ["counters", "link-lb0", "vips"]);

    for lose in [&["rm", "-r", PIN_DIR][..], &["umount", "-l", "/mnt/bpf"]] {
        let mut command = Command::new(lose[0]);
        command.args(&lose[1..]);
        let lost = namespace.run(|| command.status().expect("a command"));
        assert!(lost.success() && namespace.pins().is_none());
        assert_eq!(mend(&first).len(), 20, "18 maps, a program and a link");
        let error = namespace.attach(&["lb0"]).expect_err("it is locked again");
        assert!(matches!(error, SteeringError::InUse { .. }), "{error:?}");
    }
    drop(first);
    let second = namespace.attach(&["lb0"]).expect("attach again");
    assert_eq!(second.report()[0].link, LinkOrigin::Reused);
    assert_eq!((second.applied(), program_on(&namespace, "lb0")), (&vips(&[80]), before));
}

#[test]
fn a_pin_directory_that_others_can_change_is_not_used() {
    let namespace = Namespace::new();
    namespace.veth("lb0", "peer0");
    drop(namespace.attach(&["lb0"]).expect("attach"));
    let refused = || namespace.attach(&["lb0"]).expect_err("not trusted").to_string();
    let own = |user: u32| namespace.run(|| chown(PIN_DIR, Some(user), None).expect("chown"));
    let permit =
        |mode| namespace.run(|| fs::set_permissions(PIN_DIR, Permissions::from_mode(mode)).expect("chmod"));
    own(1000);
    assert!(refused().contains("it belongs to user 1000"), "{}", refused());
    own(0);
    permit(0o777);
    assert!(refused().contains("others can write to it (mode 0777)"), "{}", refused());
    permit(0o700);
    let error = namespace.run(|| {
        fs::rename(PIN_DIR, "/mnt/bpf/real").expect("moved");
        symlink("/mnt/bpf/real", PIN_DIR).expect("a symbolic link");
        let config = SteeringConfig {
            interfaces: vec![InterfaceConfig { name: "lb0".into(), mode: XdpModePolicy::Auto }],
            ..config()
        };
        let error = Steering::attach(&config).expect_err("not trusted").to_string();
        fs::remove_file(PIN_DIR).expect("unlinked");
        fs::rename("/mnt/bpf/real", PIN_DIR).expect("moved back");
        error
    });
    assert!(error.contains("it is a symbolic link"), "{error}");
    namespace.attach(&["lb0"]).expect("as it was");
}

#[test]
fn a_start_that_is_undone_leaves_nothing_of_its_own_and_everything_of_its_predecessor() {
    let namespace = Namespace::new();
    namespace.veth("lb0", "peer0");
    namespace.veth("lb1", "peer1");
    let steering = namespace.attach(&["lb0"]).expect("attach");
    namespace.run(|| steering.undo());
    assert_eq!((namespace.pins(), program_on(&namespace, "lb0")), (None, None));
    assert!(!is_bpffs_mounted(&namespace));

    drop(namespace.attach(&["lb0"]).expect("a start that succeeds"));
    let before = (namespace.pins(), program_on(&namespace, "lb0"));
    let steering = namespace.attach(&["lb0", "lb1"]).expect("attach");
    assert!(program_on(&namespace, "lb1").is_some());
    namespace.run(|| steering.undo());
    let sorted = |pins: Option<Vec<_>>| {
        let mut pins = pins.expect("pins");
        pins.sort();
        pins
    };
    let after = (namespace.pins(), program_on(&namespace, "lb0"));
    assert_eq!((sorted(after.0), after.1), (sorted(before.0), before.1));
    assert_eq!(program_on(&namespace, "lb1"), None);
}

#[test]
fn a_link_whose_device_is_gone_is_replaced() {
    let namespace = Namespace::new();
    namespace.veth("lb0", "peer0");
    drop(namespace.attach(&["lb0"]).expect("attach"));
    namespace.ip("link del lb0");
    namespace.veth("lb0", "peer0");
    let steering = namespace.attach(&["lb0"]).expect("attach to the new device");
    assert_eq!(steering.report()[0].link, LinkOrigin::Fresh);
    assert_eq!(steering.report()[0].messages, ["replaced the pinned link: its device is gone"]);
    assert!(program_on(&namespace, "lb0").is_some());
}

#[test]
fn a_driver_without_native_xdp_falls_back_with_a_message() {
    let namespace = Namespace::new();
    // A veth rejects native XDP if packets of its peer might not fit into a page (veth_xdp_set).
    namespace.veth("lb0", "peer0");
    namespace.ip("link set peer0 mtu 9000");
    namespace.ip("link set lb0 mtu 9000");
    let steering = namespace.attach(&["lb0"]).expect("attach");
    let report = &steering.report()[0];
    assert_eq!((report.mode, report.link), (XdpMode::Generic, LinkOrigin::Fresh));
    assert!(report.messages[0].starts_with("native XDP was refused"), "{report:?}");
    drop(steering);

    let steering = namespace.attach(&["lb0"]).expect("attach again");
    assert_eq!(
        (steering.report()[0].mode, steering.report()[0].link),
        (XdpMode::Generic, LinkOrigin::Reused)
    );
    drop(steering);

    let error = namespace.attach_as(&["lb0"], XdpModePolicy::Native).expect_err("native or nothing");
    assert!(error.to_string().starts_with("cannot attach in native mode the XDP program of lb0"), "{error}");
}

#[test]
fn detaching_and_uninstalling_leave_nothing() {
    let namespace = Namespace::new();
    namespace.veth("lb0", "peer0");
    let steering = namespace.attach(&["lb0"]).expect("attach");
    let removed = namespace.run(|| steering.detach()).expect("detach");
    assert_eq!((removed.links, removed.maps), (1, 18));
    assert_eq!((namespace.pins(), program_on(&namespace, "lb0")), (None, None));

    drop(namespace.attach(&["lb0"]).expect("attach"));
    let removed = namespace.run(|| uninstall(PIN_DIR.as_ref())).expect("uninstall");
    assert_eq!((removed.links, removed.maps), (1, 18));
    assert_eq!((namespace.pins(), program_on(&namespace, "lb0")), (None, None));
    let again = namespace.run(|| uninstall(PIN_DIR.as_ref())).expect("nothing to do is fine");
    assert_eq!((again.links, again.maps), (0, 0));
}

#[test]
fn mistakes_in_the_configuration_are_named() {
    let namespace = Namespace::new();
    let error = |interfaces: &[&str]| namespace.attach(interfaces).expect_err("a mistake").to_string();
    assert_eq!(error(&[]), "0 interfaces configured: at least 1 and at most 16");
    assert_eq!(error(&["lo", "lo"]), "interface lo is configured twice");
}

#[test]
fn an_interface_that_does_not_exist_is_attached_once_it_does() {
    let namespace = Namespace::new();
    namespace.veth("lb0", "peer0");
    let mut steering = namespace.attach(&["late0", "lb0"]).expect("attach");
    let queues =
        |steering: &Steering| steering.report().iter().map(|report| report.queues > 0).collect::<Vec<_>>();
    assert_eq!(queues(&steering), [false, true]);
    namespace.veth("late0", "peer1");
    namespace.run(|| steering.reattach()).expect("attached");
    assert_eq!(queues(&steering), [true, true]);
    assert!(program_on(&namespace, "late0").is_some());
}

/// The process that the test below starts and kills: attached, serving, with a socket in its slot.
#[test]
#[ignore = "the child of the test below"]
fn child_that_serves_until_killed() {
    // Started by hand among the ignored tests, it has nothing to do.
    let Ok(interface) = env::var(CHILD_OF) else { return };
    let config = SteeringConfig {
        interfaces: vec![InterfaceConfig { name: interface.clone(), mode: XdpModePolicy::Auto }],
        ..config()
    };
    let mut steering = Steering::attach(&config).expect("attach");
    steering.add_new(&vips(&[80])).expect("add");
    let (_pool, ports) = FramePool::new(&small_umem(), &[small_port(&interface)]).expect("a pool");
    steering.set_socket(steering.report()[0].ifindex, 0, ports[0].fd()).expect("a slot");
    eprintln!("\nserving");
    thread::sleep(Duration::from_secs(60));
}

#[test]
fn a_killed_process_leaves_traffic_to_the_kernel_and_is_replaced_without_cleaning_up() {
    let namespace = Namespace::new();
    namespace.veth("lb0", "peer0");
    let mut child = namespace.run(|| {
        Command::new(env::current_exe().expect("this test"))
            .args(["--ignored", "--exact", "lifecycle::child_that_serves_until_killed", "--nocapture"])
            .env(CHILD_OF, "lb0")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the child")
    });
    let stderr = child.stderr.take().expect("piped");
    assert!(
        BufReader::new(stderr).lines().any(|line| line.is_ok_and(|line| line == "serving")),
        "the child died"
    );
    let serving = program_on(&namespace, "lb0").expect("a program");
    child.kill().expect("SIGKILL");
    child.wait().expect("reaped");
    assert_eq!(program_on(&namespace, "lb0"), Some(serving), "still attached");

    let ifindex = namespace.ifindex("lb0");
    let steering = namespace.attach(&["lb0"]).expect("no cleaning up needed");
    assert_eq!(steering.report()[0].link, LinkOrigin::Reused);
    assert_eq!(steering.applied(), &vips(&[80]));
    assert_eq!(
        steering.probe(ifindex, &tcp((VIP, 80))).expect("test run"),
        Verdict::Pass,
        "nobody in the slot"
    );
    assert_eq!(counter(&steering, Reason::PassNoWorker), 1);

    // The kernel frees the queue of the dead socket a moment later, from a work queue; binding waits for it.
    let (_pool, ports) = namespace.pool(&["lb0"]);
    steering.set_socket(ifindex, 0, ports[0].fd()).expect("a slot");
    assert!(eventually(|| {
        steering.probe(ifindex, &tcp((VIP, 80))).expect("test run") == Verdict::Redirect
    }));
}
