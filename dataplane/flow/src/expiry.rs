//! The sweep: removes flows that were idle for too long; the caller passes the time in.

use flowgate_wire::Protocol;

use crate::address::FlowAddress;
use crate::entry::{EntryIndex, Side, Tick};
use crate::table::FlowTable;
use crate::tags::BUCKET_SLOTS;
use crate::timeouts::Timeouts;

/// What is the same for all entries of a step.
#[derive(Clone, Copy, Debug)]
pub struct SweepContext<'a> {
    /// The time.
    pub now: Tick,
    /// How long flows may be idle.
    pub timeouts: &'a Timeouts,
    /// The routing epoch whose next hops stay.
    pub epoch: u8,
}

/// One worker's share of the sweep: walks its buckets in small steps, round and round.
#[derive(Clone, Debug)]
pub struct Sweep {
    next: u32,
    from: u32,
    to: u32,
}

impl Sweep {
    /// The share of worker `worker` of `worker_count`.
    pub fn new<A: FlowAddress>(flows: &FlowTable<A>, worker: u32, worker_count: u32) -> Self {
        let buckets = u64::from(flows.bucket_count());
        let at = |n: u32| {
            u32::try_from(buckets * u64::from(n) / u64::from(worker_count.max(1))).unwrap_or(u32::MAX)
        };
        Self { next: at(worker), from: at(worker), to: at(worker + 1) }
    }

    /// The number of buckets in this share.
    pub fn len(&self) -> u32 {
        self.to - self.from
    }

    /// Whether the share has no bucket.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Visits the next `buckets` buckets and removes flows that were idle for too long, or whose backend `is_stale`
    /// (protocol, backend) rejects. Forgets next hops of other routing epochs. Returns the number of flows removed.
    pub fn step<A: FlowAddress>(
        &mut self,
        flows: &FlowTable<A>,
        buckets: u32,
        context: SweepContext<'_>,
        mut is_stale: impl FnMut(Protocol, u32) -> bool,
    ) -> u32 {
        let mut removed = 0;
        for _ in 0..buckets.min(self.len()) {
            for slot in flows.used_slots(self.next) {
                let index = EntryIndex(self.next * BUCKET_SLOTS + slot);
                // Epochs have eight bits: after 256 route changes a stored next hop would count as current again.
                flows.entry(index).forget_next_hop_unless(context.epoch);
                removed += u32::from(expire(flows, index, context, &mut is_stale));
            }
            self.next += 1;
            if self.next >= self.to {
                self.next = self.from;
            }
        }
        removed
    }
}

fn expire<A: FlowAddress>(
    flows: &FlowTable<A>,
    index: EntryIndex,
    context: SweepContext<'_>,
    is_stale: &mut impl FnMut(Protocol, u32) -> bool,
) -> bool {
    let entry = flows.entry(index);
    let Some(identity) = entry.identity() else { return false };
    // The peer may have been evicted or be in the middle of an insertion: then this entry is judged by itself.
    let whole = flows.peer_of(entry).is_some_and(|peer| peer.peer() == index);
    if whole && identity.side == Side::Reply {
        // The original direction is judged for both, so that a flow is visited once per round.
        return false;
    }
    // Another worker may remove the same flow now: `remove_flow` locks the entry with the tuple that was read above.
    let condemned = whole && is_stale(identity.tuple.protocol, identity.backend);
    (condemned || flows.is_entry_expired(index, context.now, context.timeouts))
        && flows.remove_flow(index, &identity)
}
