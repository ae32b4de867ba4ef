//! Interfaces that lose their link, change, or vanish and come back.

use std::process::Command;
use std::thread;
use std::time::Duration;

use super::disturb::disturb;
use crate::error::Result;
use crate::lab::faults::figures::Figures;
use crate::lab::faults::rig::{Rig, RigOptions};
use crate::lab::faults::{Case, Setting};
use crate::lab::topology::FABRIC;
use crate::netns::Namespace;

pub(super) const CASES: [Case; 4] = [
    Case { name: "link_down_up", run: link_down_up },
    Case { name: "mtu_change", run: mtu_change },
    Case { name: "interface_gone_and_back", run: interface_gone_and_back },
    Case { name: "queue_change", run: queue_change },
];

/// How long the interface is away.
const AWAY: Duration = Duration::from_millis(500);

fn link_down_up(setting: &Setting<'_>, figures: &mut Figures) -> Result<()> {
    let rig = Rig::usual(setting)?;
    let gateway = rig.topology.gateway().clone();
    // The kernel forgets IPv6 addresses of a link that goes down otherwise; routers are set up like this.
    gateway.sysctl(&format!("net/ipv6/conf/{FABRIC}/keep_addr_on_down"), "1")?;
    disturb(setting, figures, rig, |_| {
        gateway.ip(&format!("link set {FABRIC} down"))?;
        thread::sleep(AWAY);
        gateway.ip(&format!("link set {FABRIC} up"))?;
        Ok(())
    })
}

/// Frames that need chunks of another size, and back.
fn mtu_change(setting: &Setting<'_>, figures: &mut Figures) -> Result<()> {
    let rig = Rig::usual(setting)?;
    disturb(setting, figures, rig, |rig| {
        rig.topology.set_fabric_mtu(3000)?;
        thread::sleep(2 * AWAY);
        rig.topology.set_fabric_mtu(1500)
    })
}

fn interface_gone_and_back(setting: &Setting<'_>, figures: &mut Figures) -> Result<()> {
    let rig = Rig::usual(setting)?;
    disturb(setting, figures, rig, |rig| rig.topology.replug_fabric(AWAY))
}

/// A second queue opens under load. The kernel refuses to close one that a socket is bound to.
fn queue_change(setting: &Setting<'_>, figures: &mut Figures) -> Result<()> {
    let options = RigOptions { queues: 2, ..RigOptions::default() };
    let rig = Rig::build(setting, options, |topology| set_queues(topology.gateway(), 1))?;
    let gateway = rig.topology.gateway().clone();
    let mut refused = None;
    disturb(setting, figures, rig, |_| {
        refused = set_queues(&gateway, 2).err();
        thread::sleep(2 * AWAY);
        Ok(())
    })?;
    if let Some(reason) = refused {
        figures.skip(format!("this kernel does not change queues while XDP is on: {reason}"));
    }
    Ok(())
}

fn set_queues(gateway: &Namespace, count: u32) -> Result<()> {
    let mut command = Command::new("ethtool");
    command.args(["-L", FABRIC, "rx", &count.to_string(), "tx", &count.to_string()]);
    gateway.check(command).map(drop)
}
