//! Packets at the highest rate of the kernel: XDP live frames, generated and sent by a BPF program, and a sink that counts
//! them where they arrive.
//!
//! The other end of the veth pair must have an XDP program (a gateway has one; a bare receiver gets the [`Sink`]),
//! otherwise the kernel drops every frame. The sender does not notice drops: only the sink counts what arrives.

mod frame;
mod generator;
mod next_hop;
mod sink;

use crate::error::{Error, Result};

pub use frame::{FlowRange, MacAddr, PacketKind};
pub use generator::{Generator, PacketOptions, PacketReport, run};
pub use next_hop::{NextHop, resolve};
pub use sink::{Sink, SinkAction, SinkCounters, SinkOptions, SinkRate};

/// The index of an interface in the calling thread's namespace.
fn interface_index(name: &str) -> Result<u32> {
    nix::net::if_::if_nametoindex(name).map_err(Error::errno(format!("find interface {name}")))
}
