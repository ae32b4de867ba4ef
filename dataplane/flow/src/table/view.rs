//! Flows for output. Takes no lock: counters of a flow that is in use may be of different moments.

use std::net::IpAddr;

use flowgate_wire::{FiveTuple, Protocol};

use super::udp::is_stream;
use super::{FlowTable, entry_index};
use crate::address::FlowAddress;
use crate::entry::{Side, Tick};
use crate::state::TcpPhase;

/// A flow for output.
#[derive(Clone, Debug)]
pub struct FlowView {
    /// The tuple of packets from the client.
    pub original: FiveTuple<IpAddr>,
    /// The tuple of packets from the backend.
    pub reply: FiveTuple<IpAddr>,
    /// The backend, as `BackendId::to_bits`.
    pub backend: u32,
    /// The phase, for TCP and SCTP.
    pub tcp_phase: Option<TcpPhase>,
    /// Whether the backend has replied.
    pub answered: bool,
    /// Whether it is UDP in both directions for longer than two seconds.
    pub is_stream: bool,
    /// When either direction last carried a packet.
    pub last_seen: Tick,
    /// Packets of the original and the reply direction, modulo 2^24.
    pub packets: [u32; 2],
    /// Bytes of IP of the original and the reply direction, modulo 2^40.
    pub bytes: [u64; 2],
}

impl<A: FlowAddress> FlowTable<A> {
    /// All flows, for output.
    pub fn flows(&self) -> impl Iterator<Item = FlowView> {
        (0..self.memory.bucket_count()).flat_map(move |bucket| {
            self.memory.tags()[bucket as usize].used().filter_map(move |slot| {
                let entry = self.entry(entry_index(bucket, slot));
                let identity = entry.identity().filter(|identity| identity.side == Side::Original)?;
                let reply = self.peer_of(entry)?;
                let reply_identity = reply.identity()?;
                let (packets, bytes) = entry.counts();
                let (reply_packets, reply_bytes) = reply.counts();
                let has_phases = identity.tuple.protocol != Protocol::Udp;
                Some(FlowView {
                    original: identity.tuple.any_family(),
                    reply: reply_identity.tuple.any_family(),
                    backend: identity.backend,
                    tcp_phase: has_phases.then(|| self.phase(Side::Original, entry)),
                    answered: reply.has_carried(),
                    is_stream: !has_phases && is_stream(entry),
                    last_seen: entry.last_seen().later(reply.last_seen()),
                    packets: [packets, reply_packets],
                    bytes: [bytes, reply_bytes],
                })
            })
        })
    }

    /// Entries in use, both directions counted.
    pub fn used_entries(&self) -> usize {
        self.memory.tags().iter().map(|tags| tags.used().count() as usize).sum()
    }
}
