//! Virtual machines: other kernels, and the drivers of emulated NICs, without hardware and without KVM.
//!
//! `.ci/vm` fetches QEMU and kernels of Debian into a folder. A [`Machine`] boots one of those kernels with an
//! [`Image`], a file system in memory that holds the programs under test with their libraries. Its first process is
//! `flowgate lab guest` ([`agent`]), which does what it is told over a serial line, so that every scenario is written
//! here, on the outside, where clients and backends are. QEMU runs in a network namespace of its own; its NICs are tap
//! devices, which move to the namespaces of client and backend. Nothing outlives the process.

pub mod agent;
pub mod devices;
mod image;
mod kernel;
pub mod kernels;
mod machine;
pub mod modules;
mod test_program;

use std::path::PathBuf;

pub use image::Image;
pub use kernel::Kernel;
pub use machine::{Machine, MachineOptions, Nic};
pub use test_program::TestProgram;

/// The folder that `.ci/vm` fills, seen from the project's folder.
pub const FOLDER: &str = "target/vm";

/// Where QEMU and kernels are.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// The store in a folder.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    fn qemu(&self) -> PathBuf {
        self.folder.join("qemu/qemu")
    }

    fn kernel(&self, name: &str) -> PathBuf {
        self.folder.join("kernels").join(name)
    }
}
