//! The folder in which flow tables outlive the process: a tmpfs of its own, with huge pages where the kernel
//! has them.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use flowgate_flow::{FlowTable, HashKey, KeepError, Keeping, Origin};
use nix::mount::{MsFlags, mount, umount};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};

use crate::config::Config;

/// The flow table, and whether its flows are those of an earlier process and have to be adopted.
///
/// # Errors
/// Another process has the table, or there is no memory for one.
pub(crate) fn open(config: &Config) -> anyhow::Result<(FlowTable, bool)> {
    if config.keep_flows {
        match open_kept(config) {
            Ok((flows, origin)) => {
                if let Origin::Replaced(misfit) = origin {
                    tracing::warn!("flows begin anew, those of the last process are of no use: {misfit}");
                }
                return Ok((flows, origin == Origin::Kept));
            }
            Err(error) if matches!(error.downcast_ref(), Some(KeepError::InUse(_))) => return Err(error),
            // Traffic matters more than what becomes of it at the next start.
            Err(error) => tracing::warn!("flows will not outlive this process: {error:#}"),
        }
    } else {
        // What is left there would be out of date by the time that flows are kept again.
        remove(&config.flow_folder)?;
    }
    Ok((FlowTable::new(config.flow_capacity, HashKey::random())?, false))
}

fn open_kept(config: &Config) -> anyhow::Result<(FlowTable, Origin)> {
    let folder = &config.flow_folder;
    prepare(folder)?;
    let keeping = Keeping { path: file(folder), boot: boot_id()? };
    Ok(FlowTable::kept(config.flow_capacity, HashKey::random(), &keeping)?)
}

/// Removes the tables of a process that has ended, and the tmpfs that was mounted for them.
///
/// # Errors
/// A process has them, or the file system refuses.
pub(crate) fn remove(folder: &Path) -> anyhow::Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    flowgate_flow::keep::remove(&file(folder))?;
    if is_mounted(folder)? {
        umount(folder).with_context(|| format!("unmounting {}", folder.display()))?;
    }
    // Somebody else's files are none of our business.
    let _ = fs::remove_dir(folder);
    Ok(())
}

fn file(folder: &Path) -> PathBuf {
    folder.join("ipv4")
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

/// Which boot of the machine this is.
fn boot_id() -> anyhow::Result<[u8; 16]> {
    let text = fs::read_to_string(BOOT_ID).with_context(|| format!("reading {BOOT_ID}"))?;
    parse_boot_id(&text).with_context(|| format!("{BOOT_ID} holds {text:?}"))
}

fn parse_boot_id(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
    (digits.len() == 32).then(|| u128::from_str_radix(&digits, 16).ok()).flatten().map(u128::to_be_bytes)
}

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_id_is_a_uuid() {
        let bytes = parse_boot_id("00112233-4455-6677-8899-aabbccddeeff\n").unwrap();
        assert_eq!(bytes[..3], [0x00, 0x11, 0x22]);
        assert_eq!(bytes[15], 0xff);
        assert_eq!(parse_boot_id("00112233-4455-6677-8899-aabbccddee"), None);
        assert_eq!(parse_boot_id("zz112233-4455-6677-8899-aabbccddeeff"), None);
    }
}
