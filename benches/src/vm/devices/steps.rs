//! The steps of a device test; after each, all targets must transfer every byte.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use super::http::Connection;
use super::report::DeviceReport;
use super::test_bed::{SIDES, TestBed};
use crate::error::{Error, Result};

/// A step; returns a short description of its outcome.
type Step = fn(&mut TestBed, &mut DeviceReport) -> Result<String>;

/// All steps, in their order.
pub(super) const ALL: [(&str, Step); 9] = [
    ("start", start),
    ("bodies", bodies),
    ("hot_restart", hot_restart),
    ("link_lost", link_lost),
    ("interface_down", interface_down),
    ("reset", reset),
    ("mtu", mtu),
    ("reattach", reattach),
    ("workers", workers),
];

/// Body lengths: one byte, around segment and packet sizes, and more than any ring holds.
const BODIES: [usize; 9] = [1, 100, 1000, 1399, 1448, 1500, 10_000, 100_000, 1_000_000];
/// Body lengths after a disturbance.
const FEW_BODIES: [usize; 3] = [1, 1500, 300_000];
/// How long a link is down, and the pause after other disturbances.
const OUTAGE: Duration = Duration::from_secs(2);

fn start(bed: &mut TestBed, report: &mut DeviceReport) -> Result<String> {
    bed.start_gateway()?;
    bed.wait_until_reachable()?;
    (report.mode, report.zero_copy) = read_modes(bed)?;
    // Traffic has passed both interfaces, so that each can prove its mode.
    bed.eventually("each interface is proven", |bed| all_sockets(bed, |socket| socket["proof"] == "proven"))?;
    modes_in_words(bed, report)
}

fn modes_in_words(bed: &TestBed, report: &DeviceReport) -> Result<String> {
    let (mode, zero_copy) = read_modes(bed)?;
    report.check_modes(&mode, zero_copy)?;
    Ok(format!("{mode}, {}", if zero_copy { "zero copy" } else { "copy" }))
}

/// Reads from the kernel: `ip link` has the XDP mode, and `ss` whether UMEMs are in zero-copy mode.
fn read_modes(bed: &TestBed) -> Result<(String, bool)> {
    let mut modes = Vec::new();
    for side in SIDES {
        let name = bed.interface(side)?;
        let link = bed.machine.check(&["ip", "-d", "-j", "link", "show", "dev", &name])?;
        let link: serde_json::Value = serde_json::from_str(&link)
            .map_err(|error| Error::State(format!("`ip -j link` printed {link:?}: {error}")))?;
        // enum xdp_attach_mode of <linux/if_link.h>: XDP_ATTACHED_DRV and XDP_ATTACHED_SKB.
        modes.push(match link[0]["xdp"]["mode"].as_u64() {
            Some(1) => "native",
            Some(2) => "generic",
            _ => "no XDP",
        });
    }
    modes.dedup();
    let mode = if let [mode] = modes[..] { mode.to_owned() } else { "mixed".to_owned() };
    let zero_copy = if bed.machine.load_modules(&["xsk_diag"]).is_ok() {
        let sockets = bed.machine.check(&["ss", "--xdp", "-a", "-e"])?;
        let memories: Vec<_> = sockets.lines().filter(|line| line.contains("umem")).collect();
        !memories.is_empty() && memories.iter().all(|memory| memory.contains("zc:1"))
    } else {
        // Without xsk_diag: `show` prints what the kernel answered to each socket (XDP_OPTIONS).
        all_sockets(bed, |socket| socket["mode"] == "zero-copy")?
    };
    Ok((mode, zero_copy))
}

/// Whether the gateway shows sockets, and all of them match.
fn all_sockets(bed: &TestBed, is_so: impl Fn(&serde_json::Value) -> bool) -> Result<bool> {
    let workers = bed.workers()?;
    let mut sockets = workers.iter().filter_map(|worker| worker["queues"].as_array()).flatten().peekable();
    Ok(sockets.peek().is_some() && sockets.all(is_so))
}

fn bodies(bed: &mut TestBed, report: &mut DeviceReport) -> Result<String> {
    report.largest_mtu = 1500;
    bed.transfer(&BODIES, report)
}

/// The gateway is restarted while connections transfer; they must only pause.
fn hot_restart(bed: &mut TestBed, report: &mut DeviceReport) -> Result<String> {
    let (goes_on, done, different) = (AtomicBool::new(true), AtomicU64::new(0), AtomicU64::new(0));
    let client = bed.client.namespace.clone();
    let outcome = thread::scope(|scope| {
        for target in TestBed::targets() {
            let (client, goes_on, done, different) = (&client, &goes_on, &done, &different);
            scope.spawn(move || {
                client.enter(|| {
                    let Ok(mut connection) = Connection::open(target, OUTAGE) else {
                        different.fetch_add(1, Ordering::Relaxed);
                        return;
                    };
                    while goes_on.load(Ordering::Relaxed) {
                        done.fetch_add(1, Ordering::Relaxed);
                        if !matches!(connection.echo(200_000), Ok(true)) {
                            different.fetch_add(1, Ordering::Relaxed);
                            return;
                        }
                    }
                })
            });
        }
        thread::sleep(OUTAGE);
        let outcome = bed.stop_gateway().and_then(|()| bed.start_gateway());
        thread::sleep(OUTAGE);
        goes_on.store(false, Ordering::Relaxed);
        outcome
    });
    let (done, different) = (done.into_inner(), different.into_inner());
    report.add(done, different);
    outcome?;
    if different > 0 || done == 0 {
        return Err(Error::State(format!("{different} of {done} transfers broke")));
    }
    let adopted = bed.log().matches("adopted the flows").count();
    if adopted == 0 {
        return Err(Error::State("the second process did not adopt the flows of the first".into()));
    }
    Ok(format!("{done} transfers across it, none different"))
}

/// The cable is unplugged and plugged in again, on one side and then on the other.
fn link_lost(bed: &mut TestBed, report: &mut DeviceReport) -> Result<String> {
    for index in 0..SIDES.len() {
        bed.machine.monitor(&format!("set_link device{index} off"))?;
        thread::sleep(OUTAGE);
        bed.machine.monitor(&format!("set_link device{index} on"))?;
    }
    bed.wait_until_reachable()?;
    bed.transfer(&FEW_BODIES, report)
}

/// The interfaces are taken down and up again.
fn interface_down(bed: &mut TestBed, report: &mut DeviceReport) -> Result<String> {
    for side in SIDES {
        let name = bed.interface(side)?;
        bed.machine.ip(&format!("link set {name} down"))?;
        thread::sleep(OUTAGE);
        bed.machine.ip(&format!("link set {name} up"))?;
    }
    bed.wait_until_reachable()?;
    bed.transfer(&FEW_BODIES, report)
}

/// The driver is reset while the gateway runs: with ethtool, or by unbinding it from the device.
fn reset(bed: &mut TestBed, report: &mut DeviceReport) -> Result<String> {
    let limit = Duration::from_secs(30);
    let mut how = "ethtool -r";
    for side in SIDES {
        let name = bed.interface(side)?;
        if bed.machine.run(&["ethtool", "-r", &name], limit)?.code == Some(0) {
            continue;
        }
        how = "driver unbound and bound";
        let device = bed.machine.check(&["readlink", "-f", &format!("/sys/class/net/{name}/device")])?;
        let driver = bed.machine.check(&["readlink", "-f", &format!("{}/driver", device.trim())])?;
        let (device, driver) = (device.trim().rsplit('/').next().unwrap_or_default(), driver.trim());
        bed.machine.write(&format!("{driver}/unbind"), device)?;
        thread::sleep(OUTAGE);
        bed.machine.write(&format!("{driver}/bind"), device)?;
    }
    thread::sleep(OUTAGE);
    bed.address_inside()?;
    bed.wait_until_reachable()?;
    let words = bed.transfer(&FEW_BODIES, report)?;
    Ok(format!("{how}: {words}"))
}

/// A larger MTU while the gateway runs; if the driver refuses that under XDP, between two runs.
fn mtu(bed: &mut TestBed, report: &mut DeviceReport) -> Result<String> {
    const LARGE: u32 = 3000;
    for (host, side) in [(&bed.client, SIDES[0]), (&bed.backend, SIDES[1])] {
        host.namespace.ip(&format!("link set {} mtu {LARGE}", side.tap))?;
    }
    let set = |bed: &TestBed| {
        SIDES.iter().try_for_each(|side| {
            let name = bed.interface(*side)?;
            bed.machine.ip(&format!("link set {name} mtu {LARGE}")).map(drop)
        })
    };
    let mut how = "while it runs".to_owned();
    if let Err(error) = set(bed) {
        how = format!("between two runs ({})", error.to_string().trim());
        bed.stop_gateway()?;
        bed.detach()?;
        set(bed)?;
        bed.start_gateway()?;
    }
    bed.wait_until_reachable()?;
    report.largest_mtu = LARGE;
    let words = bed.transfer(&[1, 2948, 3000, 300_000, 1_000_000], report)?;
    let modes = modes_in_words(bed, report)?;
    Ok(format!("{LARGE} {how}, {modes}: {words}"))
}

/// The program is detached and attached again.
fn reattach(bed: &mut TestBed, report: &mut DeviceReport) -> Result<String> {
    bed.stop_gateway()?;
    bed.detach()?;
    for side in SIDES {
        let name = bed.interface(side)?;
        let link = bed.machine.ip(&format!("-d link show dev {name}"))?;
        if link.contains("prog/xdp") {
            return Err(Error::State(format!("after `flowgate detach` a program is left: {link}")));
        }
    }
    bed.start_gateway()?;
    bed.wait_until_reachable()?;
    let words = bed.transfer(&FEW_BODIES, report)?;
    Ok(format!("{}: {words}", modes_in_words(bed, report)?))
}

/// With several queues, every worker must receive packets: RSS spreads this many connections over all queues.
fn workers(bed: &mut TestBed, report: &mut DeviceReport) -> Result<String> {
    let before: Vec<_> = bed.workers()?.iter().map(|worker| worker["rx_packets"].as_u64()).collect();
    for _ in 0..8 {
        bed.transfer(&[1], report)?;
    }
    let after = bed.workers()?;
    let used =
        after.iter().zip(&before).filter(|(worker, before)| worker["rx_packets"].as_u64() > **before).count();
    (report.workers, report.workers_used) = (after.len(), used);
    if used < after.len() {
        return Err(Error::State(format!("of {} workers {used} received packets", after.len())));
    }
    Ok(format!("{used} of {}", after.len()))
}
