//! Packets at the rate that the kernel can take them: XDP live frames, made and sent by a program in the kernel, and a
//! sink that counts them where they arrive.
//!
//! The link's other end must have an XDP program (a gateway has one; a bare receiver gets the [`Sink`]), otherwise the
//! kernel drops every frame. What is sent is not what arrives: only the sink knows that.

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
