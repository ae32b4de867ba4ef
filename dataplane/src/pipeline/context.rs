//! What decisions about a packet need besides the packet: references that hold for a whole burst.

use flowgate_flow::{AffinityTable, Flows, Tick, Timeouts};
use flowgate_tables::{InterfaceId, Tables};

use crate::burst::RxChecksums;
use crate::counters::Counters;
use crate::pipeline_config::PipelineConfig;

/// What a burst is decided by.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The time, the same for the whole burst.
    pub now: Tick,
    /// The generation of the tables, the same for the whole burst.
    pub tables: &'a Tables,
    /// The flow tables of both families.
    pub flows: &'a Flows,
    /// Session affinity: the bindings of clients to backends.
    pub affinity: &'a AffinityTable,
    /// Idle timeouts of flows.
    pub timeouts: &'a Timeouts,
    /// The operator's choices about single packets.
    pub config: &'a PipelineConfig,
    /// The interface by which each frame of the burst came in; one is enough if it is the same for all.
    pub ingress: &'a [InterfaceId],
}

impl Context<'_> {
    /// The interface by which the frame at this position of the burst came in.
    pub(super) fn ingress_of(&self, position: usize) -> InterfaceId {
        self.ingress.get(position).or_else(|| self.ingress.first()).copied().unwrap_or(InterfaceId(0))
    }
}

/// What the slow path of one packet works with: one argument in place of three. The fast path takes them one by one, so
/// that they stay in registers.
#[derive(Debug)]
pub(super) struct SlowPath<'a> {
    pub(super) context: &'a Context<'a>,
    pub(super) counters: &'a mut Counters,
    /// What the device promises about the checksums of received frames.
    pub(super) checksums: RxChecksums,
    /// The interface by which the packet came in.
    pub(super) ingress: InterfaceId,
}
