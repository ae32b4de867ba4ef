//! The folder in which flow tables outlive the process: a tmpfs of its own, with huge pages where the kernel
//! has them.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use anyhow::Context;
use flowgate_flow::{Flows, HashKey, Origin, PersistError};
use nix::mount::{MsFlags, mount, umount};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};

use super::host;
use crate::config::Config;

/// The flow tables, and where their flows come from: those of an earlier process have to be adopted.
///
/// # Errors
/// Another process has the tables, or there is no memory for them.
pub(crate) fn open(config: &Config) -> anyhow::Result<(Flows, [Origin; 2])> {
    let (v4, v6) = (config.flows.capacity, config.flows.capacity_v6);
    if config.flows.keep {
        match open_persistent(&config.flow_folder(), [v4, v6]) {
            Ok((flows, origins)) => {
                for (family, origin) in ["IPv4", "IPv6"].into_iter().zip(origins) {
                    if let Origin::Replaced(incompatible) = origin {
                        tracing::warn!(
                            "flows of {family} begin anew, the last process left some of no use: {incompatible}"
                        );
                    }
                }
                return Ok((flows, origins));
            }
            Err(error) if matches!(error.downcast_ref(), Some(PersistError::InUse(_))) => return Err(error),
            // Traffic matters more than what becomes of it at the next start.
            Err(error) => tracing::warn!("flows will not outlive this process: {error:#}"),
        }
    } else {
        // What is left there would be out of date by the time that flows are kept again.
        remove(&config.flow_folder())?;
    }
    Ok((Flows::new(v4, v6, HashKey::random())?, [Origin::Created; 2]))
}

fn open_persistent(folder: &Path, capacities: [u32; 2]) -> anyhow::Result<(Flows, [Origin; 2])> {
    prepare(folder)?;
    Ok(Flows::persistent(capacities, HashKey::random(), folder, host::boot_id()?)?)
}

/// Removes the tables of a process that has ended, and the tmpfs that was mounted for them.
///
/// # Errors
/// A process has them, or the file system refuses.
pub(crate) fn remove(folder: &Path) -> anyhow::Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    Flows::remove(folder)?;
    if is_mounted(folder)? {
        umount(folder).with_context(|| format!("unmounting {}", folder.display()))?;
    }
    // Somebody else's files are none of our business.
    let _ = fs::remove_dir(folder);
    Ok(())
}

/// Makes the folder, in memory.
fn prepare(folder: &Path) -> anyhow::Result<()> {
    let place = folder.display();
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("making {place}"))?;
    if !is_mounted(folder)? {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let tmpfs = |options: &str| mount(Some("flowgate"), folder, Some("tmpfs"), flags, Some(options));
        // A kernel without huge pages for files refuses the option.
        if let Err(error) = tmpfs("mode=0700,huge=always").or_else(|_| tmpfs("mode=0700")) {
            tracing::info!(%error, "no tmpfs mounted at {place}: flows are kept in what is there");
        }
    }
    let kind = statfs(folder).with_context(|| format!("asking what {place} is"))?.filesystem_type();
    anyhow::ensure!(kind == TMPFS_MAGIC, "{place} is no tmpfs: every packet would be written to a disk");
    Ok(())
}

/// Whether something is mounted at the folder itself.
fn is_mounted(folder: &Path) -> anyhow::Result<bool> {
    let device = |path: &Path| {
        let meta = fs::metadata(path).with_context(|| format!("looking at {}", path.display()));
        meta.map(|meta| meta.dev())
    };
    let above = folder.parent().context("the folder of flows has no parent")?;
    Ok(device(folder)? != device(above)?)
}
