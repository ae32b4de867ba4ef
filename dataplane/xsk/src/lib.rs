//! The floor of the data plane: AF_XDP sockets as safe types, and the XDP program that steers packets to them.
//!
//! * [`steering`] loads and attaches the XDP program, keeps its maps equal to what Flowgate serves, and puts sockets
//!   into its socket map.
//! * [`FramePool`], [`XskSocket`] and [`Frame`] are one worker's packet memory, its (interface, queue) sockets and one
//!   packet. A [`Frame`] is the only way to a chunk of the memory and moves: whoever gave it away cannot touch it.
//!
//! This crate knows bytes, not headers: it must never parse a packet in Rust, never import another crate of the
//! workspace, and never read a clock but the one that the program goes by (`steering/grace.rs`). It is the only place for unsafe code about sockets and packet memory.
//!
//! # A frame cannot be used after it was handed over
//!
//! ```compile_fail,E0382
//! fn send(port: &mut flowgate_xsk::XskSocket, mut frame: flowgate_xsk::Frame) {
//!     let _ = port.tx_push(frame);
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
mod missing_feature;
mod poll;
mod pool;
mod region;
mod rx_vlan_offload;
mod socket;
pub mod steering;
mod sys;
mod umem;

pub use driver::Driver;
pub use frame::{Frame, FrameTooLong};
pub use missing_feature::MissingFeature;
pub use poll::{Poller, Readiness};
pub use pool::{AuditError, FrameAudit, FramePool};
pub use rx_vlan_offload::RxVlanOffload;
pub use socket::{BURST, LinkState, RefusedReason, TxRefused, WakeCounters, XdpStatistics, XskSocket};
pub use umem::{BindMode, BusyPoll, KERNEL_HEADROOM, UmemConfig, XskError, XskSocketConfig, ZeroCopy};
