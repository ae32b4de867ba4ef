//! What every decision about a packet is given besides the packet. Holds references only.

use flowgate_flow::{AffinityTable, Flows, Tick, Timeouts};
use flowgate_tables::Tables;

use crate::options::Options;

/// What a burst is decided by, besides the packets themselves.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The time, one for the whole burst.
    pub now: Tick,
    /// The current generation, one for the whole burst.
    pub tables: &'a Tables,
    /// All flows.
    pub flows: &'a Flows,
    /// Which backends clients stay with.
    pub affinity: &'a AffinityTable,
    /// How long flows may be silent.
    pub timeouts: &'a Timeouts,
    /// What the operator chose.
    pub options: &'a Options,
}
