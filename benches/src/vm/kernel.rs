//! An unpacked Debian kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use flowgate_xsk::steering::OLDEST_KERNEL;

use super::Store;
use crate::error::{Error, Result};

/// One kernel with its modules.
#[derive(Debug, Clone)]
pub struct Kernel {
    folder: PathBuf,
    release: String,
}

impl Kernel {
    /// The kernel that `.ci/vm NAME` fetched.
    pub fn open(store: &Store, name: &str) -> Result<Self> {
        let folder = store.kernel(name);
        let release = fs::read_to_string(folder.join("release")).map_err(|_missing| {
            Error::State(format!("kernel {name} is not in {}: run  .ci/vm {name}", folder.display()))
        })?;
        // `modprobe -d` needs an absolute path.
        let folder = folder.canonicalize().map_err(Error::io(format!("find {}", folder.display())))?;
        Ok(Self { folder, release: release.trim().to_owned() })
    }

    /// Its release, as in `uname -r`.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// Its version without Debian's suffix: `6.1` of 6.1.0-57-amd64.
    pub fn version(&self) -> String {
        self.release.split(['.', '-', '+']).take(2).collect::<Vec<_>>().join(".")
    }

    /// Whether the gateway supports it.
    pub(super) fn is_supported(&self) -> bool {
        let mut numbers = self.release.split(['.', '-', '+']).map_while(|part| part.parse::<u32>().ok());
        (numbers.next(), numbers.next()) >= (Some(OLDEST_KERNEL.0), Some(OLDEST_KERNEL.1))
    }

    pub(super) fn image(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    /// The folder of its modules on this machine.
    pub(super) fn modules_folder(&self) -> PathBuf {
        self.folder.join(self.modules_place())
    }

    /// The folder of its modules inside, without the leading slash.
    pub(super) fn modules_place(&self) -> PathBuf {
        Path::new("lib/modules").join(&self.release)
    }

    /// The files of these modules and their dependencies, relative to [`modules_folder`](Self::modules_folder). Built-in
    /// modules have no file; neither have missing ones, which fail when they are loaded inside.
    pub(super) fn module_files(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for name in names {
            let mut command = Command::new("modprobe");
            // Ignore the modprobe configuration of this machine, whose options would be appended to the paths.
            command.args(["-C", "/dev/null"]);
            command.arg("-d").arg(&self.folder).args(["-S", &self.release, "--show-depends", name]);
            let output = command
                .output()
                .map_err(|_missing| Error::MissingProgram { program: "modprobe".into(), package: "kmod" })?;
            let folder = self.modules_folder();
            let listed = String::from_utf8_lossy(&output.stdout).into_owned();
            let paths = listed.lines().filter_map(|line| line.strip_prefix("insmod "));
            files.extend(
                paths.filter_map(|path| Some(Path::new(path.trim()).strip_prefix(&folder).ok()?.to_owned())),
            );
        }
        files.sort_unstable();
        files.dedup();
        Ok(files)
    }
}
