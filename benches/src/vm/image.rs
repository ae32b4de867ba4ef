//! The initramfs of a machine: programs, libraries and modules, packed as the kernel expects it
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::Kernel;
use crate::error::{Error, Result};
use crate::lab::scratch;
use crate::netns::find_program;

/// The path of the init process.
pub(super) const FLOWGATE: &str = "/usr/bin/flowgate";

/// An initramfs under construction.
pub struct Image {
    folder: TempDir,
}

impl Image {
    /// An image with the `flowgate` binary as init, `ip` and `modprobe`.
    pub fn new(flowgate: &Path) -> Result<Self> {
        let image = Self { folder: scratch::folder("image")? };
        for folder in
            ["usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "dev", "proc", "sys", "run", "tmp", "mnt", "etc"]
        {
            image.make_folder(folder)?;
        }
        for name in ["bin", "sbin", "lib", "lib64"] {
            let link = image.path(name);
            symlink(format!("usr/{name}"), &link).map_err(Error::io(format!("make {}", link.display())))?;
        }
        image.program(flowgate, FLOWGATE)?;
        image.programs(&["ip", "modprobe"])?;
        Ok(image)
    }

    /// Adds programs of this machine at the same paths.
    pub fn programs(&self, names: &[&str]) -> Result<()> {
        for name in names {
            let path = find_program(name).ok_or_else(|| Error::MissingProgram {
                program: (*name).into(),
                package: package_of(name),
            })?;
            self.program(&path, &path.to_string_lossy())?;
        }
        Ok(())
    }

    /// Adds a program at `place`, stripped, with its libraries.
    pub fn program(&self, path: &Path, place: &str) -> Result<()> {
        let target = self.path(place);
        self.make_folder_of(&target)?;
        let strip = Command::new("strip").arg("-o").arg(&target).arg(path).stderr(Stdio::null()).status();
        if !strip.is_ok_and(|status| status.success()) {
            copy(path, &target)?;
        }
        for library in libraries(path)? {
            let target = self.path(&library.to_string_lossy());
            if !target.exists() {
                self.make_folder_of(&target)?;
                copy(&library, &target)?;
            }
        }
        Ok(())
    }

    /// Adds modules with their dependencies and the index files of modprobe.
    pub fn modules(&self, kernel: &Kernel, names: &[&str]) -> Result<()> {
        let (from, to) = (kernel.modules_folder(), self.folder.path().join(kernel.modules_place()));
        fs::create_dir_all(&to).map_err(Error::io(format!("make {}", to.display())))?;
        let lists = fs::read_dir(&from).map_err(Error::io(format!("list {}", from.display())))?;
        for list in
            lists.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with("modules."))
        {
            copy(&list.path(), &to.join(list.file_name()))?;
        }
        for file in kernel.module_files(names)? {
            let target = to.join(&file);
            self.make_folder_of(&target)?;
            copy(&from.join(&file), &target)?;
        }
        Ok(())
    }

    /// Packs it into a file that is removed with the result.
    pub fn pack(self) -> Result<PackedImage> {
        let packed = scratch::folder("initrd")?;
        let path = packed.path().join("initrd");
        let file = File::create(&path).map_err(Error::io(format!("make {}", path.display())))?;
        // cpio reads one name per line; no name here has a line break.
        let list =
            Command::new("find").arg(".").current_dir(self.folder.path()).stdout(Stdio::piped()).spawn();
        let mut list = list.map_err(Error::io("run find"))?;
        let names = list.stdout.take().expect("it was piped");
        let mut cpio = Command::new("cpio");
        cpio.args(["--create", "--quiet", "--format=newc", "--owner=0:0"]);
        cpio.current_dir(self.folder.path()).stdin(names).stdout(file);
        let status = cpio.status().map_err(|_missing| Error::MissingProgram {
            program: "cpio".into(),
            package: package_of("cpio"),
        })?;
        let listed = list.wait().map_err(Error::io("wait for find"))?;
        if !(status.success() && listed.success()) {
            return Err(Error::State(format!("cpio could not pack {}: {status}", path.display())));
        }
        Ok(PackedImage { path, _folder: packed })
    }

    fn path(&self, place: &str) -> PathBuf {
        self.folder.path().join(place.trim_start_matches('/'))
    }

    fn make_folder(&self, place: &str) -> Result<()> {
        let path = self.path(place);
        fs::create_dir_all(&path).map_err(Error::io(format!("make {}", path.display())))
    }

    fn make_folder_of(&self, target: &Path) -> Result<()> {
        let folder = target.parent().unwrap_or(target);
        fs::create_dir_all(folder).map_err(Error::io(format!("make {}", folder.display())))
    }
}

/// A packed image; the file is removed when dropped.
pub struct PackedImage {
    pub(super) path: PathBuf,
    _folder: TempDir,
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(drop).map_err(Error::io(format!("copy {} to {}", from.display(), to.display())))
}

/// The shared libraries of a program with its loader; empty for a static one.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().map_err(Error::io("run ldd"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if let Some(missing) = text.lines().find(|line| line.contains("not found")) {
        let reason = io::Error::new(io::ErrorKind::NotFound, missing.trim().to_owned());
        return Err(Error::io(format!("find the libraries of {}", program.display()))(reason));
    }
    Ok(library_paths(&text))
}

/// `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)`, or the path alone.
fn library_paths(listed: &str) -> Vec<PathBuf> {
    let path =
        |line: &str| line.split_ascii_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    listed.lines().filter_map(path).collect()
}

fn package_of(program: &str) -> &'static str {
    match program {
        "ip" | "ss" | "tc" => "iproute2",
        "modprobe" => "kmod",
        "ethtool" => "ethtool",
        "setpriv" | "taskset" => "util-linux",
        "readlink" => "coreutils",
        "cpio" => "cpio",
        _ => "the package that has it",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_what_ldd_lists_with_a_path() {
        let listed = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibelf.so.1 => /lib/x86_64-linux-gnu/libelf.so.1 (0x7f)\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x7f)\n";
        let paths = library_paths(listed);
        assert_eq!(
            paths,
            ["/lib/x86_64-linux-gnu/libelf.so.1", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from)
        );
        assert_eq!(library_paths("\tstatically linked\n"), Vec::<PathBuf>::new());
    }
}
