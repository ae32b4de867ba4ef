//! Virtual machines: other kernels, and the drivers of emulated NICs, without hardware and without KVM.
//!
//! `.ci/vm` fetches QEMU and Debian kernels into a folder. A [`Machine`] boots one of those kernels with an [`Image`], an
//! initramfs with the programs under test and their libraries. Its init process is `flowgate lab guest` ([`agent`]),
//! which executes requests from a serial line, so that scenarios are written on the host, where clients and backends are.
//! QEMU runs in its own network namespace; its NICs are tap devices, which move to the namespaces of client and backend.
//! Nothing outlives the process.

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

/// The folder that `.ci/vm` fills, relative to the root of the repository.
pub const FOLDER: &str = "target/vm";

/// The folder of QEMU and kernels.
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
