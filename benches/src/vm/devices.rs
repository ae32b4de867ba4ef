//! `lab vm`: tests a NIC driver. The real binary runs in a machine with two emulated NICs, with a client behind one and a
//! backend behind the other; HTTP passes through it in both families during link loss, resets, MTU changes and restarts.
//! Every byte is compared, and the XDP mode is read from the kernel.
//!
//! ```text
//! client 192.0.2.10 --- tap === NIC 192.0.2.1 machine 10.244.0.1 NIC === tap --- backend 10.244.0.11
//! ```
//! Each address also has an IPv6 one, by [`ipv6_of`](crate::lab::topology::ipv6_of).

mod http;
mod report;
mod steps;
mod test_bed;

use std::path::{Path, PathBuf};

use clap::ValueEnum;

use crate::error::{Error, Result};
use crate::lab::interrupt;
use crate::lab::output::print_progress;
use crate::loadgen::stop::Stop;
use test_bed::TestBed;

pub use report::DeviceReport;

/// The device and its configuration.
#[derive(Debug, Clone)]
pub struct DeviceOptions {
    /// Where QEMU and kernels are.
    pub store: PathBuf,
    /// The kernel, by the name that `.ci/vm` knows.
    pub kernel: String,
    /// The NIC.
    pub device: Device,
    /// Queues of each NIC, virtual CPUs, and workers.
    pub queues: u32,
    /// More lines for the section `xdp` of the configuration.
    pub xdp: String,
    /// More lines for the section `rings`.
    pub rings: String,
}

/// An emulated NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// Intel 82576, driver igb: native XDP and zero copy.
    Igb,
    /// virtio-net with a DMA device, as behind an IOMMU: native XDP and zero copy.
    VirtioNet,
    /// VMware's vmxnet3: generic XDP, because its native XDP does not survive when the interface goes down.
    Vmxnet3,
    /// Intel 82574L, driver e1000e: generic XDP.
    E1000e,
}

impl Device {
    fn name(self) -> &'static str {
        match self {
            Self::Igb => "igb",
            Self::VirtioNet => "virtio-net",
            Self::Vmxnet3 => "vmxnet3",
            Self::E1000e => "e1000e",
        }
    }

    /// The expected mode of XDP, and whether zero copy is expected.
    fn expected(self) -> (&'static str, bool) {
        match self {
            Self::Igb | Self::VirtioNet => ("native", true),
            Self::Vmxnet3 | Self::E1000e => ("generic", false),
        }
    }

    /// QEMU's device with properties.
    fn qemu(self, queues: u32) -> String {
        match self {
            Self::Igb => "igb".into(),
            // Zero copy needs DMA mapping, which virtio uses only behind an IOMMU.
            Self::VirtioNet if queues > 1 => format!(
                "virtio-net-pci,iommu_platform=on,disable-legacy=on,mq=on,vectors={}",
                // One vector per receive and transmit queue, one for control, one for configuration changes.
                2 * queues + 2
            ),
            Self::VirtioNet => "virtio-net-pci,iommu_platform=on,disable-legacy=on".into(),
            Self::Vmxnet3 => "vmxnet3".into(),
            Self::E1000e => "e1000e".into(),
        }
    }

    /// The modules of its driver; some may be built in.
    fn modules(self) -> &'static [&'static str] {
        match self {
            Self::Igb => &["igb"],
            Self::VirtioNet => &["virtio_pci", "virtio_net"],
            Self::Vmxnet3 => &["vmxnet3"],
            Self::E1000e => &["e1000e"],
        }
    }

    /// Queues of the tap device: one for each queue of virtio-net; the other devices distribute packets themselves.
    fn tap_queues(self, queues: u32) -> u32 {
        if self == Self::VirtioNet { queues } else { 1 }
    }
}

/// Boots the machine and runs all steps.
pub fn device(options: &DeviceOptions, flowgate: &Path, stop: &Stop) -> Result<DeviceReport> {
    let mut bed = TestBed::boot(options, flowgate, stop)?;
    print_progress(&format!("{} on Linux {}", options.device.name(), bed.kernel_release()));
    let expected = options.xdp.is_empty().then(|| options.device.expected());
    let mut report = DeviceReport::new(options.device.name(), bed.kernel_release(), options.queues, expected);
    for (name, step) in steps::ALL {
        interrupt::check(stop)?;
        let outcome = step(&mut bed, &mut report);
        let words = match outcome {
            Ok(words) => words,
            Err(interrupted @ Error::Interrupted) => return Err(interrupted),
            Err(error) => {
                report.fail(name);
                format!("failed: {error}\n{}", bed.state())
            }
        };
        print_progress(&format!("  {name}: {words}"));
        report.note(name, words.lines().next().unwrap_or_default());
    }
    if let Err(error) = bed.end() {
        report.fail("end");
        print_progress(&format!("  end: failed: {error}"));
    }
    Ok(report)
}
