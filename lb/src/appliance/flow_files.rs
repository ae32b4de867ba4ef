//! The folder of the flow tables that outlive the process: a tmpfs of its own, with huge pages if the kernel supports them.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use anyhow::Context;
use flowgate_flow::{Flows, HashKey, Origin, PersistError};
use nix::mount::{MsFlags, mount, umount};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::unistd::geteuid;

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
    check_owner(folder)?;
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

/// Flow tables are adopted, so nobody else may be able to put some into the folder.
fn check_owner(folder: &Path) -> anyhow::Result<()> {
    let place = folder.display();
    let meta = fs::symlink_metadata(folder).with_context(|| format!("looking at {place}"))?;
    let (owner, mode) = (meta.uid(), meta.mode() & 0o7777);
    anyhow::ensure!(
        !meta.is_symlink(),
        "{place} is a symbolic link, and flows are only kept in a real folder"
    );
    anyhow::ensure!(
        owner == 0 || owner == geteuid().as_raw(),
        "{place} belongs to user {owner}, who could have put flows into it: remove it"
    );
    anyhow::ensure!(
        mode & 0o022 == 0,
        "others can write to {place} (mode {mode:04o}), and could have put flows into it: chmod go-w"
    );
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

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_folder_that_others_can_change_keeps_no_flows() {
        let above = tempfile::tempdir().unwrap();
        let folder = above.path().join("flows");
        fs::create_dir(&folder).unwrap();
        let checked = |mode| {
            fs::set_permissions(&folder, Permissions::from_mode(mode)).unwrap();
            check_owner(&folder).map_err(|error| error.to_string())
        };
        assert_eq!(checked(0o700), Ok(()));
        assert_eq!(checked(0o755), Ok(()));
        let place = folder.display();
        assert_eq!(
            checked(0o775),
            Err(format!(
                "others can write to {place} (mode 0775), and could have put flows into it: chmod go-w"
            ))
        );
        let link = above.path().join("link");
        symlink(&folder, &link).unwrap();
        let refused = check_owner(&link).unwrap_err().to_string();
        assert!(
            refused.ends_with("is a symbolic link, and flows are only kept in a real folder"),
            "{refused}"
        );
        if geteuid().is_root() {
            std::os::unix::fs::chown(&folder, Some(1000), None).unwrap();
            assert!(checked(0o700).unwrap_err().contains("belongs to user 1000"));
        }
    }
}
