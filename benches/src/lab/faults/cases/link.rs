//! Interfaces that go down, change MTU or queues, or are deleted and created again.

use std::process::Command;
use std::thread;
use std::time::Duration;

use super::disturb::disturb;
use crate::error::Result;
use crate::lab::faults::case_result::CaseResult;
use crate::lab::faults::test_bed::{TestBed, TestBedOptions};
use crate::lab::faults::{Case, CaseContext};
use crate::lab::topology::FABRIC;
use crate::netns::Namespace;

pub(super) const CASES: [Case; 4] = [
    Case { name: "link_down_up", run: link_down_up },
    Case { name: "mtu_change", run: mtu_change },
    Case { name: "interface_gone_and_back", run: interface_gone_and_back },
    Case { name: "queue_change", run: queue_change },
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

/// Jumbo frames need larger UMEM chunks: to 3000 and back.
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

fn set_queues(gateway: &Namespace, count: u32) -> Result<()> {
    let mut command = Command::new("ethtool");
    command.args(["-L", FABRIC, "rx", &count.to_string(), "tx", &count.to_string()]);
    gateway.check(command).map(drop)
}
