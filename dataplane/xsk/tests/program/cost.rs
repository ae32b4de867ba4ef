//! What the program costs a packet. Not a test of anything: speed depends on the machine. Run it by
//! `cargo test -p flowgate-xsk --test program -- --ignored --nocapture cost`.

use super::*;

/// So many runs make one figure; the least of several is the one without disturbance.
const RUNS: u32 = 2_000_000;

#[test]
#[ignore = "prints figures, asserts nothing about them"]
fn cost_of_a_packet() {
    let rig = rig();
    for (what, packet) in [
        ("IPv4 UDP to a VIP", udp((VIP, 53), b"0123456789")),
        ("IPv4 TCP to a VIP", tcp((VIP, 80))),
        ("IPv4 SNAT reply", udp((SNAT, 20063), b"0123456789")),
        ("IPv4 UDP to nothing of ours", udp((OTHER, 9999), b"0123456789")),
    ] {
        let run = || rig.steering.probe_repeatedly(rig.ifindex, &packet, RUNS).expect("test run");
        let best = (0..7).map(|_| run().1).min();
        eprintln!("{what}: {best:?}");
    }
}
