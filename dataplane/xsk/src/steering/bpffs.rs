//! The directory of pins: makes sure that it is on a bpffs and that one process at a time uses it.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{io, thread};

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{FsType, statfs};

use super::SteeringError;

const BPF_FS_MAGIC: libc::c_long = 0xcafe_4a11;
const USUAL_ROOT: &str = "/sys/fs/bpf";
const LOCK_PAUSES: [Duration; 6] = [
    Duration::from_millis(1),
    Duration::from_millis(5),
    Duration::from_millis(20),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::ZERO,
];

/// The pin directory, locked as long as this value exists.
///
/// The lock (flock) is on the directory itself: it ends with the process even after a crash, leaves no file behind, and is
/// seen through every mount of this bpffs.
#[derive(Debug)]
pub(super) struct PinDir {
    path: PathBuf,
    _lock: File,
}

impl PinDir {
    /// Creates the directory, mounting a bpffs first if there is none, and locks it. Also returns a notice if it mounted one.
    pub(super) fn create(path: &Path) -> Result<(Self, Option<String>), SteeringError> {
        let failed = |source| SteeringError::PinDir { path: path.to_owned(), source };
        let root = mount_root(path)?;
        let mut notice = None;
        if !is_bpffs(&root).unwrap_or(false) {
            fs::create_dir_all(&root).map_err(failed)?;
            // A mount would hide what is in the directory, from its owner as well.
            if fs::read_dir(&root).map_err(failed)?.next().is_some() {
                return Err(failed(io::Error::other(format!(
                    "{} is no bpffs and not empty: nothing is mounted over it",
                    root.display()
                ))));
            }
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mount(Some("bpf"), &root, Some("bpf"), flags, Some("mode=0700"))
                .map_err(|errno| SteeringError::Mount { path: root.clone(), source: errno.into() })?;
            notice = Some(format!("mounted a bpffs at {}", root.display()));
        }
        fs::create_dir_all(path).map_err(failed)?;
        if !is_bpffs(path).map_err(failed)? {
            return Err(failed(io::Error::other("not on a bpffs")));
        }
        Ok((Self::lock(path)?, notice))
    }

    /// Locks an existing directory; `None` if there is none.
    pub(super) fn open(path: &Path) -> Result<Option<Self>, SteeringError> {
        match is_bpffs(path) {
            Ok(true) => Self::lock(path).map(Some),
            // A plain directory has no pins, and nothing in it may be deleted.
            Ok(false) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(SteeringError::PinDir { path: path.to_owned(), source }),
        }
    }

    fn lock(path: &Path) -> Result<Self, SteeringError> {
        let failed = |source| SteeringError::PinDir { path: path.to_owned(), source };
        let directory = File::open(path).map_err(failed)?;
        // A process that is being killed, or a child between fork and exec, can hold the lock for a moment.
        for pause in LOCK_PAUSES {
            match directory.try_lock() {
                Ok(()) => return Ok(Self { path: path.to_owned(), _lock: directory }),
                Err(TryLockError::WouldBlock) => thread::sleep(pause),
                Err(TryLockError::Error(source)) => return Err(failed(source)),
            }
        }
        Err(SteeringError::InUse { path: path.to_owned() })
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The names in the directory.
    pub(super) fn names(&self) -> Result<Vec<String>, SteeringError> {
        let failed = |source| SteeringError::PinDir { path: self.path.clone(), source };
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    /// Removes one pin, of whatever object.
    pub(super) fn remove(&self, name: &str) -> Result<(), SteeringError> {
        let path = self.file(name);
        // A bpffs can contain directories, which somebody else must have made.
        let removed = if path.is_dir() { fs::remove_dir(&path) } else { fs::remove_file(&path) };
        removed.map_err(|source| SteeringError::PinDir { path, source })
    }

    /// Removes the directory, which must be empty.
    pub(super) fn remove_dir(self) -> Result<(), SteeringError> {
        fs::remove_dir(&self.path).map_err(|source| SteeringError::PinDir { path: self.path.clone(), source })
    }
}

/// Where the bpffs that holds `path` is, or would have to be mounted.
fn mount_root(path: &Path) -> Result<PathBuf, SteeringError> {
    let refuse = |text| Err(SteeringError::PinDir { path: path.to_owned(), source: io::Error::other(text) });
    if !path.is_absolute() {
        return refuse("the pin directory must be an absolute path");
    }
    if path.starts_with(USUAL_ROOT) && path != Path::new(USUAL_ROOT) {
        return Ok(USUAL_ROOT.into());
    }
    match path.parent() {
        _ if path == Path::new(USUAL_ROOT) => {
            refuse("the pin directory must be inside the bpffs, not the bpffs")
        }
        Some(parent) if parent.parent().is_some_and(|above| above.parent().is_some()) => {
            Ok(parent.to_owned())
        }
        _ => refuse("the pin directory must be a directory inside a bpffs, like /sys/fs/bpf/flowgate"),
    }
}

fn is_bpffs(path: &Path) -> io::Result<bool> {
    Ok(statfs(path)?.filesystem_type() == FsType(BPF_FS_MAGIC))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_root_is_the_usual_one_or_the_parent() {
        let root = |path: &str| mount_root(Path::new(path)).ok().map(|root| root.display().to_string());
        assert_eq!(root("/sys/fs/bpf/flowgate").as_deref(), Some("/sys/fs/bpf"));
        assert_eq!(root("/sys/fs/bpf/a/b").as_deref(), Some("/sys/fs/bpf"));
        assert_eq!(root("/run/test/bpf/flowgate").as_deref(), Some("/run/test/bpf"));
        for bad in ["flowgate", "/", "/flowgate", "/run/flowgate", "/sys/fs/bpf"] {
            assert_eq!(root(bad), None, "{bad}");
        }
    }
}
