//! The directory of pins: makes sure that it is on a bpffs and that one process at a time uses it.

use std::fs::{self, DirBuilder, File, Metadata, TryLockError};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use std::{io, thread};

use nix::mount::{MsFlags, mount, umount};
use nix::sys::statfs::{FsType, statfs};
use nix::unistd::geteuid;

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
    lock: Mutex<File>,
    /// Where [`create`](Self::create) mounted a bpffs.
    mounted: Option<PathBuf>,
}

impl PinDir {
    /// Creates the directory, mounting a bpffs first if there is none, and locks it. Also returns a notice if it mounted one.
    ///
    /// # Errors
    /// Then a bpffs that was mounted is unmounted again.
    pub(super) fn create(path: &Path) -> Result<(Self, Option<String>), SteeringError> {
        let root = mount_root(path)?;
        let mounted = mount_bpffs(path, &root)?.then_some(root);
        match Self::create_within(path) {
            Ok(lock) => {
                let notice = mounted.as_ref().map(|root| format!("mounted a bpffs at {}", root.display()));
                Ok((Self { path: path.to_owned(), lock: Mutex::new(lock), mounted }, notice))
            }
            Err(error) => {
                if let Some(root) = mounted {
                    unmount(&root);
                }
                Err(error)
            }
        }
    }

    /// Creates and locks the directory within a bpffs.
    fn create_within(path: &Path) -> Result<File, SteeringError> {
        let failed = |source| SteeringError::PinDir { path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        if !is_bpffs(path).map_err(failed)? {
            return Err(failed(io::Error::other("not on a bpffs")));
        }
        Self::lock(path)
    }

    /// Locks an existing directory; `None` if there is none.
    pub(super) fn open(path: &Path) -> Result<Option<Self>, SteeringError> {
        match is_bpffs(path) {
            Ok(true) => Self::lock(path)
                .map(|lock| Some(Self { path: path.to_owned(), lock: Mutex::new(lock), mounted: None })),
            // A plain directory has no pins, and nothing in it may be deleted.
            Ok(false) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(SteeringError::PinDir { path: path.to_owned(), source }),
        }
    }

    fn lock(path: &Path) -> Result<File, SteeringError> {
        let failed = |source| SteeringError::PinDir { path: path.to_owned(), source };
        let directory = open_trusted(path).map_err(failed)?;
        // A process that is being killed, or a child between fork and exec, can hold the lock for a moment.
        for pause in LOCK_PAUSES {
            match directory.try_lock() {
                Ok(()) => return Ok(directory),
                Err(TryLockError::WouldBlock) => thread::sleep(pause),
                Err(TryLockError::Error(source)) => return Err(failed(source)),
            }
        }
        Err(SteeringError::InUse { path: path.to_owned() })
    }

    /// Makes the directory anew if it was removed, or the bpffs was unmounted, and locks it.
    pub(super) fn restore(&self) -> Result<(), SteeringError> {
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let place = |meta: Metadata| (meta.dev(), meta.ino());
        if let (Ok(locked), Ok(present)) = (lock.metadata(), fs::metadata(&self.path))
            && place(locked) == place(present)
        {
            return Ok(());
        }
        mount_bpffs(&self.path, &mount_root(&self.path)?)?;
        *lock = Self::create_within(&self.path)?;
        Ok(())
    }

    /// Unmounts the bpffs if this process mounted it. To be called when the directory is removed.
    pub(super) fn unmount(self) {
        let Self { lock, mounted, .. } = self;
        // An open file would keep the mount busy.
        drop(lock);
        if let Some(root) = mounted {
            unmount(&root);
        }
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

    /// Gives a pin another name, in place of the pin that has it.
    pub(super) fn rename(&self, from: &str, to: &str) -> Result<(), SteeringError> {
        let path = self.file(to);
        fs::rename(self.file(from), &path).map_err(|source| SteeringError::PinDir { path, source })
    }

    /// Removes the directory, which must be empty.
    pub(super) fn remove_dir(&self) -> Result<(), SteeringError> {
        fs::remove_dir(&self.path).map_err(|source| SteeringError::PinDir { path: self.path.clone(), source })
    }
}

/// Mounts a bpffs at the root unless there is one; whether it did. `path` is the pin directory, for errors.
fn mount_bpffs(path: &Path, root: &Path) -> Result<bool, SteeringError> {
    let failed = |source| SteeringError::PinDir { path: path.to_owned(), source };
    if is_bpffs(root).unwrap_or(false) {
        return Ok(false);
    }
    fs::create_dir_all(root).map_err(failed)?;
    // A mount would hide what is in the directory, from its owner as well.
    if fs::read_dir(root).map_err(failed)?.next().is_some() {
        return Err(failed(io::Error::other(format!(
            "{} is no bpffs and not empty: nothing is mounted over it",
            root.display()
        ))));
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), root, Some("bpf"), flags, Some("mode=0700"))
        .map_err(|errno| SteeringError::Mount { path: root.to_owned(), source: errno.into() })?;
    Ok(true)
}

/// Unmounts what was mounted by a start that failed. Its error is the one to report, so this one is ignored.
fn unmount(root: &Path) {
    let _ = umount(root);
}

/// Opens the directory if nobody else can have put something into it: a map or a link in it is taken for our own.
fn open_trusted(path: &Path) -> io::Result<File> {
    let refuse = |why: String| Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    if fs::symlink_metadata(path)?.is_symlink() {
        return refuse(
            "it is a symbolic link, and pins are only taken from a directory of root: remove it".into(),
        );
    }
    let directory =
        File::options().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(path)?;
    let (owner, mode) = directory.metadata().map(|meta| (meta.uid(), meta.mode() & 0o7777))?;
    if owner != 0 && owner != geteuid().as_raw() {
        return refuse(format!(
            "it belongs to user {owner}, who could have put other maps into it: remove it, or choose another xdp.pin_dir"
        ));
    }
    if mode & 0o022 != 0 {
        return refuse(format!(
            "others can write to it (mode {mode:04o}), and could have put other maps into it: remove it, or take their \
             permission away (chmod go-w)"
        ));
    }
    Ok(directory)
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
