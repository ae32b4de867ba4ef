//! Why the XDP program or its maps could not be set up or changed, worded for the operator.

use std::io;
use std::path::PathBuf;

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;

/// Why steering could not be set up or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SteeringError {
    /// No interface, or more than the socket map has room for.
    #[error("{count} interfaces configured: at least 1 and at most {most}")]
    Interfaces {
        /// Interfaces configured.
        count: usize,
        /// Interfaces possible.
        most: u32,
    },
    /// An interface appears twice.
    #[error("interface {interface} is configured twice")]
    Twice {
        /// The interface.
        interface: String,
    },
    /// There is no such device in this network namespace.
    #[error("there is no interface {interface} here")]
    NoInterface {
        /// The interface.
        interface: String,
    },
    /// The kernel cannot verify the program.
    #[error(
        "{kernel} is older than {oldest}, the oldest kernel that can run Flowgate's XDP program (it is tried on {tried} \
         and newer): nothing was attached, run a newer kernel on this node"
    )]
    Kernel {
        /// This kernel.
        kernel: String,
        /// The oldest that can verify the program.
        oldest: String,
        /// The oldest that Flowgate is tested on.
        tried: String,
    },
    /// The pin directory cannot be used.
    #[error("cannot use {} for pins: {source}", path.display())]
    PinDir {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No bpffs could be mounted.
    #[error("cannot mount a bpffs at {}: {source} (needs CAP_SYS_ADMIN; or mount -t bpf bpf {})", path.display(), path.display())]
    Mount {
        /// Where.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Another process uses the pin directory.
    #[error("another flowgate runs on {}: stop it first, or give this one its own pin directory", path.display())]
    InUse {
        /// The pin directory.
        path: PathBuf,
    },
    /// Somebody else's XDP program is on the interface.
    #[error(
        "interface {interface} already runs XDP program {program_id} ({program_name}), which is not ours: remove it \
         (see bpftool net and ip link set dev {interface} xdp off) or choose another interface"
    )]
    ForeignProgram {
        /// The interface.
        interface: String,
        /// The program's id.
        program_id: u32,
        /// The program's name, empty when it has none.
        program_name: String,
    },
    /// Flowgate's own program is on the interface, and another process serves it.
    #[error(
        "interface {interface} is served by another flowgate, {by}: stop it first, or choose another interface"
    )]
    ServedElsewhere {
        /// The interface.
        interface: String,
        /// The process.
        by: String,
    },
    /// Flowgate's own program is on the interface, without pins, and cannot be taken over.
    #[error(
        "interface {interface} runs program {program_id} of an earlier flowgate, whose pins were lost, and it cannot be \
         taken over: {source} (needs CAP_SYS_ADMIN; see bpftool link to detach it)"
    )]
    PinsLost {
        /// The interface.
        interface: String,
        /// The program's id.
        program_id: u32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel refused something about an interface's attachment.
    #[error("cannot {action} the XDP program of {interface}: {source}")]
    Attach {
        /// The interface.
        interface: String,
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The entries of a map cannot be read or changed.
    #[error("cannot {action} the entries of map {map} of the XDP program: {source}")]
    Entries {
        /// The map.
        map: &'static str,
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A device was created anew while new maps were prepared for the ones before.
    #[error("the interfaces changed while larger maps were prepared: they are prepared again")]
    InterfacesChanged,
    /// There is no slot for this interface and queue.
    #[error("no socket slot for device {ifindex} queue {queue}: not attached, or a queue beyond the map")]
    NoSlot {
        /// The device.
        ifindex: u32,
        /// The queue.
        queue: u32,
    },
    /// The embedded object lacks the program: it was built wrong.
    #[error("the embedded object has no program flowgate_steer")]
    NoProgram,
    /// The object could not be loaded.
    #[error("cannot load the XDP program: {0}")]
    Load(#[from] EbpfError),
    /// The verifier refused the program.
    #[error(
        "{kernel} refused the XDP program {program}, so all traffic passes to the kernel: report it to the maintainers \
         of Flowgate (see its README) with {log}: {source}"
    )]
    Refused {
        /// This kernel.
        kernel: String,
        /// The program.
        program: &'static str,
        /// Where the verifier's log is.
        log: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel did not load the program, for a reason that is not in the program.
    #[error("the kernel refused the XDP program: {0}")]
    Program(#[from] ProgramError),
    /// The monotonic clock cannot be read.
    #[error("cannot read CLOCK_MONOTONIC, which says until when packets are held: {0}")]
    Clock(nix::errno::Errno),
    /// A map operation failed.
    #[error("cannot change a map of the XDP program: {0}")]
    Map(#[from] MapError),
}
