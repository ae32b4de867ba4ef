//! What a gateway leaves behind when it is told to leave: nothing.

use std::process::Command;

use crate::error::Result;
use crate::lab::faults::figures::Figures;
use crate::lab::faults::rig::Rig;

/// Ends the gateway, detaches it, and looks for what is left in its namespaces.
pub(super) fn check(rig: Rig, figures: &mut Figures) -> Result<()> {
    let Rig { gateway, topology, .. } = rig;
    let folder = gateway.socket_path();
    let flows = folder.with_file_name("flows").to_string_lossy().into_owned();
    gateway.detach()?;
    let links = topology.gateway().ip("-details link show")?;
    figures.expect(!links.contains("xdp"), || format!("XDP programs are left:\n{links}"));
    let mut pins = Command::new("find");
    // The kernel's own iterators are in every bpffs.
    pins.args(["/sys/fs/bpf", "-mindepth", "1", "-not", "-name", "*.debug"]);
    let pins = topology.gateway().check(pins)?;
    figures.expect(pins.trim().is_empty(), || format!("pins are left:\n{pins}"));
    let mut mounts = Command::new("cat");
    mounts.arg("/proc/self/mounts");
    let mounts = topology.gateway().check(mounts)?;
    figures.expect(!mounts.contains(&flows), || format!("the flow tables are left mounted on {flows}"));
    Ok(())
}
