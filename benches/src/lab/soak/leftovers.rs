//! After `flowgate detach` nothing of a gateway may be left.

use std::process::Command;

use crate::error::Result;
use crate::lab::faults::case_result::CaseResult;
use crate::lab::faults::test_bed::TestBed;

/// Ends and detaches the gateway, then looks for XDP programs, pins and mounts in its namespaces.
pub(super) fn check(bed: TestBed, result: &mut CaseResult) -> Result<()> {
    let TestBed { gateway, topology, .. } = bed;
    let folder = gateway.socket_path();
    let flows = folder.with_file_name("flows").to_string_lossy().into_owned();
    gateway.detach()?;
    let links = topology.gateway().ip("-details link show")?;
    result.expect(!links.contains("xdp"), || format!("XDP programs are left:\n{links}"));
    let mut pins = Command::new("find");
    // Every bpffs holds the kernel's own iterators.
    pins.args(["/sys/fs/bpf", "-mindepth", "1", "-not", "-name", "*.debug"]);
    let pins = topology.gateway().check(pins)?;
    result.expect(pins.trim().is_empty(), || format!("pins are left:\n{pins}"));
    let mut mounts = Command::new("cat");
    mounts.arg("/proc/self/mounts");
    let mounts = topology.gateway().check(mounts)?;
    result.expect(!mounts.contains(&flows), || format!("the flow tables are left mounted on {flows}"));
    Ok(())
}
