//! Time of the program per packet. Asserts nothing, since speed depends on the machine. Run it by
//! `cargo test -p flowgate-xsk --test program -- --ignored --nocapture cost`.

use super::*;
use frames::{DESTINATION, FRAGMENT, ICMP, TCP, UDP, V4, ethernet, extension, fragment, icmp, l4, v6};

/// Runs per figure; of several figures the smallest is the least disturbed.
const RUNS: u32 = 2_000_000;

#[test]
#[ignore = "prints figures, asserts nothing about them"]
fn cost_of_a_packet() {
    let rig = rig();
    let six = |next, payload: &[u8]| ethernet(0x86dd, &v6(OTHER6, VIP6, next, payload));
    let error = V4::new(VIP.into(), OTHER.into(), TCP).with(&l4(TCP, 80, 4000));
    let error = ethernet(0x0800, &V4::new(OTHER.into(), VIP.into(), ICMP).with(&icmp(3, &error)));
    for (what, packet) in [
        ("IPv4 UDP to a VIP", udp((VIP, 53), b"0123456789")),
        ("IPv4 TCP to a VIP", tcp((VIP, 80))),
        ("IPv4 SNAT reply", udp((SNAT, 20063), b"0123456789")),
        ("IPv4 UDP to nothing of ours", udp((OTHER, 9999), b"0123456789")),
        ("ICMP error", error),
        ("IPv6 UDP to a VIP", six(UDP, &l4(UDP, 4000, 53))),
        ("IPv6 TCP to nothing of ours", ethernet(0x86dd, &v6(OTHER6, OTHER6, TCP, &l4(TCP, 4000, 9999)))),
        ("IPv6 UDP behind an extension header", six(DESTINATION, &extension(UDP, 1, 0, &l4(UDP, 4000, 53)))),
        ("IPv6 first fragment", six(FRAGMENT, &fragment(UDP, 1, 7, &l4(UDP, 4000, 53)))),
        ("IPv6 later fragment", six(FRAGMENT, &fragment(UDP, 16, 7, b"and so on"))),
    ] {
        let run = || rig.steering.probe_repeatedly(rig.ifindex, &packet, RUNS).expect("test run");
        let best = (0..7).map(|_| run().1).min();
        eprintln!("{what}: {best:?}");
    }
}
