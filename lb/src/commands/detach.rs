//! `flowgate detach`: removes what a stopped flowgate left in place for its successor.

use std::process::ExitCode;

use anyhow::Context;
use flowgate_xsk::steering;

use crate::appliance::{flow_files, prove, source_ports};
use crate::config::Config;

/// Removes program, maps, links, flow tables, proofs and port reservations.
///
/// # Errors
/// A process still uses them, or the kernel refuses.
#[expect(clippy::print_stdout, reason = "the summary goes to stdout")]
pub(crate) fn detach(config: &Config) -> anyhow::Result<ExitCode> {
    let removed = steering::uninstall(&config.xdp.pin_dir).context("detaching")?;
    flow_files::remove(&config.flow_folder()).context("removing the flows")?;
    prove::remove(config).context("removing the proofs of the interfaces")?;
    source_ports::release(config)?;
    println!("detached from {} interfaces, removed {} maps", removed.links, removed.maps);
    Ok(ExitCode::SUCCESS)
}
