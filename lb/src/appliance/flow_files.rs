//! The folder of the flow tables that outlive the process: a tmpfs of its own, with huge pages if the kernel supports them.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use anyhow::Context;
use flowgate_flow::{Flows, HashKey, Origin, PersistError};
use nix::mount::{MsFlags, mount, umount};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};

use super::host;
use crate::config::Config;

/// The flow tables for IPv4 and IPv6, and where their flows come from: restored ones have to be adopted.
///
/// # Errors
/// Another process uses the tables, or there is not enough memory.
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
            // Serving without persistence is better than not serving.
            Err(error) => tracing::warn!("flows will not outlive this process: {error:#}"),
        }
    } else {
        // Left in place, these flows would be out of date when persistence is turned on again.
        remove(&config.flow_folder())?;
    }
    Ok((Flows::new(v4, v6, HashKey::random())?, [Origin::Created; 2]))
}

fn open_persistent(folder: &Path, capacities: [u32; 2]) -> anyhow::Result<(Flows, [Origin; 2])> {
    prepare(folder)?;
    Ok(Flows::persistent(capacities, HashKey::random(), folder, host::boot_id()?)?)
}

/// Removes the tables of a process that has ended, and unmounts their tmpfs.
///
/// # Errors
/// A process uses them, or the file system refuses.
pub(crate) fn remove(folder: &Path) -> anyhow::Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    Flows::remove(folder)?;
    if is_mounted(folder)? {
        umount(folder).with_context(|| format!("unmounting {}", folder.display()))?;
    }
    // Fails if the folder has other files: those stay.
    let _ = fs::remove_dir(folder);
    Ok(())
}

/// Creates the folder and mounts a tmpfs on it.
fn prepare(folder: &Path) -> anyhow::Result<()> {
    let place = folder.display();
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("creating {place}"))?;
    if !is_mounted(folder)? {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let tmpfs = |options: &str| mount(Some("flowgate"), folder, Some("tmpfs"), flags, Some(options));
        // A kernel without CONFIG_TRANSPARENT_HUGEPAGE refuses the option `huge`.
        if let Err(error) = tmpfs("mode=0700,huge=always").or_else(|_| tmpfs("mode=0700")) {
            tracing::info!(%error, "no tmpfs mounted at {place}: flows persist in the file system that is there");
        }
    }
    let kind =
        statfs(folder).with_context(|| format!("finding the file system of {place}"))?.filesystem_type();
    anyhow::ensure!(kind == TMPFS_MAGIC, "{place} is not a tmpfs: every packet would be written to a disk");
    Ok(())
}

/// Whether the folder is a mount point: it is on another device than its parent.
fn is_mounted(folder: &Path) -> anyhow::Result<bool> {
    let device = |path: &Path| {
        let meta = fs::metadata(path).with_context(|| format!("looking at {}", path.display()));
        meta.map(|meta| meta.dev())
    };
    let above = folder.parent().context("the folder of flows has no parent")?;
    Ok(device(folder)? != device(above)?)
}
