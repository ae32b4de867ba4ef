//! AF_XDP sockets and packet memory as safe types, and the XDP program that redirects packets to them.
//!
//! Read `socket.rs` first, an AF_XDP socket with its four rings, then `region.rs`, who owns which chunk of the memory; for the
//! XDP program `bpf/steer.bpf.c`, then [`steering`], which loads and attaches it and fills its maps.
//!
//! [`FramePool`], [`XskSocket`] and [`Frame`] are one worker's packet memory, its sockets, and one packet. A frame moves:
//! after it was handed over it cannot be used. Ids like P505 in comments are behaviours of `control/KUBERNETES.md`.
//!
//! The only crate with unsafe code for sockets and packet memory. It must not parse packets in Rust, import other crates of
//! the workspace, or read clocks, except the one that ends the grace period (`steering/grace.rs`).
//!
//! # A frame cannot be used after it was handed over
//!
//! ```compile_fail,E0382
//! fn send(socket: &mut flowgate_xsk::XskSocket, mut frame: flowgate_xsk::Frame) {
//!     let _ = socket.tx_push(frame);
//!     frame.as_mut()[0] = 1; // the kernel may be reading it: value used after move
//! }
//! ```
//!
//! ```compile_fail,E0382
//! fn free(pool: &mut flowgate_xsk::FramePool, frame: flowgate_xsk::Frame) {
//!     pool.recycle(frame);
//!     pool.recycle(frame); // the same chunk twice in the pool
//! }
//! ```
//!
//! ```compile_fail,E0599
//! fn copy(frame: &flowgate_xsk::Frame) -> flowgate_xsk::Frame {
//!     frame.clone() // two owners of one chunk
//! }
//! ```

mod driver;
mod frame;
mod host_clock;
mod memory;
mod missing_feature;
mod poll;
mod pool;
mod region;
mod ring;
mod rx_vlan_offload;
mod socket;
pub mod steering;
mod sys;
mod umem;

pub use driver::Driver;
pub use frame::{Frame, FrameTooLong};
pub use host_clock::host_monotonic;
pub use memory::{OpenedSockets, PacketMemory};
pub use missing_feature::MissingFeature;
pub use poll::{Poller, Readiness};
pub use pool::{AuditError, FrameAudit, FramePool};
pub use rx_vlan_offload::RxVlanOffload;
pub use socket::{BURST, LinkState, RefusedReason, TxRefused, WakeCounters, XdpStatistics, XskSocket};
pub use umem::{BindMode, BusyPoll, KERNEL_HEADROOM, UmemConfig, XskError, XskSocketConfig, ZeroCopy};
