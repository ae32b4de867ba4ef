//! Interfaces that go down, change MTU, queues, addresses or routes, or are deleted and created again. Flows that a change
//! does not concern lose nothing: numbered datagrams show it.

use std::process::Command;
use std::thread;
use std::time::Duration;

use super::disturb::disturb;
use crate::error::Result;
use crate::lab::faults::case_result::CaseResult;
use crate::lab::faults::test_bed::{DATAGRAMS, TestBed, TestBedOptions};
use crate::lab::faults::{Case, CaseContext};
use crate::lab::topology::{FABRIC, Link, UPLINK};
use crate::loadgen::progress::ProgressOutput;
use crate::loadgen::stop::Stop;
use crate::loadgen::udp::{self, UdpOptions};
use crate::netns::Namespace;

pub(super) const CASES: [Case; 6] = [
    Case { name: "link_down_up", run: link_down_up },
    Case { name: "mtu_change", run: mtu_change },
    Case { name: "interface_gone_and_back", run: interface_gone_and_back },
    Case { name: "queue_change", run: queue_change },
    Case { name: "mtu_steps", run: mtu_steps },
    Case { name: "link_changes", run: link_changes },
];

/// How long the interface is down or missing.
const OUTAGE: Duration = Duration::from_millis(500);

fn link_down_up(context: &CaseContext<'_>, result: &mut CaseResult) -> Result<()> {
    let bed = TestBed::with_defaults(context)?;
    let gateway = bed.topology.gateway().clone();
    // Otherwise the kernel deletes the IPv6 addresses of a link that goes down; routers set this.
    gateway.sysctl(&format!("net/ipv6/conf/{FABRIC}/keep_addr_on_down"), "1")?;
    disturb(context, result, bed, |_| {
        gateway.ip(&format!("link set {FABRIC} down"))?;
        thread::sleep(OUTAGE);
        gateway.ip(&format!("link set {FABRIC} up"))?;
        Ok(())
    })
}

/// Packets that may be longer than a frame: to 3000 and back.
fn mtu_change(context: &CaseContext<'_>, result: &mut CaseResult) -> Result<()> {
    let bed = TestBed::with_defaults(context)?;
    disturb(context, result, bed, |bed| {
        bed.topology.set_fabric_mtu(3000)?;
        thread::sleep(2 * OUTAGE);
        bed.topology.set_fabric_mtu(1500)
    })
}

fn interface_gone_and_back(context: &CaseContext<'_>, result: &mut CaseResult) -> Result<()> {
    let bed = TestBed::with_defaults(context)?;
    disturb(context, result, bed, |bed| bed.topology.replug_fabric(OUTAGE))
}

/// A second queue is added under load. (The kernel refuses to remove one that a socket is bound to.)
fn queue_change(context: &CaseContext<'_>, result: &mut CaseResult) -> Result<()> {
    let options = TestBedOptions { queues: 2, ..TestBedOptions::default() };
    let bed = TestBed::build(context, options, |topology| set_queues(topology.gateway(), 1))?;
    let gateway = bed.topology.gateway().clone();
    let mut refused = None;
    disturb(context, result, bed, |_| {
        refused = set_queues(&gateway, 2).err();
        thread::sleep(2 * OUTAGE);
        Ok(())
    })?;
    if let Some(reason) = refused {
        result.skip(format!("this kernel does not change queues while XDP is on: {reason}"));
    }
    Ok(())
}

/// MTUs that the frames hold: no flow loses anything.
fn mtu_steps(context: &CaseContext<'_>, result: &mut CaseResult) -> Result<()> {
    let bed = TestBed::with_defaults(context)?;
    let gateway = bed.topology.gateway().clone();
    without_loss(context, result, bed, || {
        for interface in [UPLINK, FABRIC] {
            for mtu in [1499, 1500, 1700, 1500] {
                gateway.ip(&format!("link set {interface} mtu {mtu}"))?;
                thread::sleep(OUTAGE / 2);
            }
        }
        Ok(())
    })
}

/// All that can happen to an interface, while the flows of the others go on.
fn link_changes(context: &CaseContext<'_>, result: &mut CaseResult) -> Result<()> {
    let far = Namespace::new("side")?;
    let options = TestBedOptions { interfaces: vec![SIDE.into()], ..TestBedOptions::default() };
    let bed = TestBed::build(context, options, |topology| plug_side(&far, topology.gateway()))?;
    let gateway = bed.topology.gateway().clone();
    without_loss(context, result, bed, || {
        for step in [
            format!("link set {SIDE} mtu 9000"),
            format!("addr add 198.51.100.77/24 dev {SIDE}"),
            "route add 203.0.113.0/24 via 198.51.100.10".to_owned(),
            "route del 203.0.113.0/24".to_owned(),
            format!("addr del 198.51.100.77/24 dev {SIDE}"),
            format!("link set {SIDE} down"),
            format!("link set {SIDE} up"),
            format!("link del {SIDE}"),
        ] {
            gateway.ip(&step)?;
            thread::sleep(OUTAGE);
        }
        plug_side(&far, &gateway)?;
        thread::sleep(2 * OUTAGE);
        Ok(())
    })
}

/// A third interface of the gateway.
const SIDE: &str = "side0";

fn plug_side(far: &Namespace, gateway: &Namespace) -> Result<()> {
    Link { queues: 1, mtu: None }.connect(far, "eth0", gateway, SIDE)?;
    far.ip("addr add 198.51.100.10/24 dev eth0")?;
    gateway.ip(&format!("addr add 198.51.100.1/24 dev {SIDE}")).map(drop)
}

/// [`disturb`], while numbered datagrams flow of which none may be lost.
fn without_loss(
    context: &CaseContext<'_>,
    result: &mut CaseResult,
    bed: TestBed,
    change: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let mut lost = None;
    let client = bed.client().clone();
    disturb(context, result, bed, |_| {
        let mut options = UdpOptions::new(DATAGRAMS.into(), DATAGRAM_RATE, DATAGRAM_TIME);
        // A datagram may wait where many tests run.
        options.grace = Duration::from_secs(2);
        let load = client.spawn_thread("datagrams", move || {
            udp::run(&options, ProgressOutput::Nothing, &Stop::default())
        })?;
        thread::sleep(OUTAGE);
        change()?;
        let report = load.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        lost = Some((report.sent, report.lost));
        Ok(())
    })?;
    let (sent, lost) = lost.unwrap_or_default();
    result.record("datagrams", sent);
    result.record("datagrams_lost", lost);
    result.expect(sent > 0 && lost == 0, || format!("{lost} of {sent} datagrams were lost"));
    Ok(())
}

const DATAGRAM_RATE: u32 = 2000;
const DATAGRAM_TIME: Duration = Duration::from_secs(8);

fn set_queues(gateway: &Namespace, count: u32) -> Result<()> {
    let mut command = Command::new("ethtool");
    command.args(["-L", FABRIC, "rx", &count.to_string(), "tx", &count.to_string()]);
    gateway.check(command).map(drop)
}
