//! The grace period: what is ours is dropped while no socket is there.

use std::time::Duration;

use super::*;
use frames::{ICMP, ICMPV6, TCP, UDP, V4, ethernet, icmp, l4, v6};

const LONG: Duration = Duration::from_secs(3600);

fn ours() -> Vec<Vec<u8>> {
    let error = V4::new(OTHER.into(), VIP.into(), ICMP);
    let error = error.with(&icmp(3, &V4::new(VIP.into(), OTHER.into(), TCP).with(&l4(TCP, 80, 4000))));
    let later = V4 { fragment: 2, ..V4::new(OTHER.into(), VIP.into(), UDP) }.with(b"and so on");
    vec![
        tcp((VIP, 80)),
        udp((NODE, 30053), b"?"),
        tcp((SNAT, 20000)),
        ethernet(0x86dd, &v6(OTHER6, VIP6, TCP, &l4(TCP, 4000, 80))),
        ethernet(0x86dd, &v6(OTHER6, VIP6, ICMPV6, &icmp(128, &[]))),
        ethernet(0x0800, &error),
        ethernet(0x0800, &later),
    ]
}

#[test]
fn what_is_ours_is_dropped_without_a_socket_only_within_the_grace_period() {
    let mut rig = rig();
    rig.serve(SteeringSet::answer_echo);
    rig.steering.set_grace_period(LONG).expect("grace");
    rig.redirects("a socket is there", &tcp((VIP, 80)), "redirect_vip");

    rig.steering.sockets().clear_all().expect("clear");
    for packet in ours() {
        rig.expect("ours, in grace", &packet, Verdict::Drop, "drop_held");
    }
    rig.passes("ssh to the node", &tcp((NODE, 22)), "pass_not_ours");
    rig.passes("a packet cut off", &tcp((VIP, 80))[..40], "pass_truncated");
    rig.passes("ARP", &ethernet(0x0806, &[0; 46]), "pass_not_ip");
    let own = V4 { fragment: 2, ..V4::new(OTHER.into(), NODE.into(), UDP) }.with(b"and so on");
    rig.passes("a fragment to the node", &ethernet(0x0800, &own), "pass_fragment");

    rig.steering.set_grace_period(Duration::ZERO).expect("end it");
    for packet in ours() {
        rig.passes("ours, no grace", &packet, "pass_no_worker");
    }
}

#[test]
fn the_grace_period_outlives_the_process_and_ends_by_itself() {
    let mut rig = rig();
    rig.steering.set_grace_period(LONG).expect("grace");
    drop(rig.steering);
    rig.namespace.run(|| drop(rig.sockets.take()));
    rig.steering = rig.namespace.attach(&["lb0"]).expect("the next process");
    rig.expect("in grace since before", &tcp((VIP, 80)), Verdict::Drop, "drop_held");

    rig.steering.set_grace_period(Duration::from_millis(50)).expect("grace");
    assert!(eventually(|| {
        rig.steering.probe(rig.ifindex, &tcp((VIP, 80))).expect("test run") == Verdict::Pass
    }));
    rig.passes("from then on", &tcp((VIP, 80)), "pass_no_worker");
}
