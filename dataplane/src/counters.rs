//! Counters of a worker. Counting is an addition to memory of its own; once per burst the values are stored where others read
//! them.

use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::utils::CachePadded;
use flowgate_wire::reject::IcmpError;

use crate::verdict::{DropReason, PassReason, RejectReason, Verdict, reasons};

reasons! {
    /// What a worker counts besides verdicts.
    Event {
        /// Packets received.
        RxPackets = "rx_packets",
        /// Bytes of frames received.
        RxBytes = "rx_bytes",
        /// Packets handed to a transmit ring.
        TxPackets = "tx_packets",
        /// Packets that found their flow.
        FlowHits = "flow_hits",
        /// Flows begun.
        FlowsOpened = "flows_opened",
        /// Flows ended by silence.
        FlowsExpired = "flows_expired",
        /// Flows replaced since their connection had ended or their backend is gone.
        FlowsReplaced = "flows_replaced",
        /// Checksums completed that a virtual device had left open.
        ChecksumsCompleted = "checksums_completed",
        /// Next hops looked up again after a route change, where the sweep had not emptied them yet.
        Rerouted = "rerouted",
        /// Source ports tried that were taken.
        SnatCollisions = "snat_collisions",
        /// Source ports taken from the flow that was unanswered or over for the longest time, since none was free.
        SnatPortsReclaimed = "snat_ports_reclaimed",
        /// Half-open connections that made room for others, since they took their share of the table.
        HalfOpenReplaced = "half_open_replaced",
        /// Flows that made room for others of the same client, since it has its share of the table.
        ClientFlowsReplaced = "client_flows_replaced",
        /// Requests to resolve a neighbour that found no room in the queue.
        ResolveOverflows = "resolve_overflows",
        /// Packets routed untranslated: from a backend whose clients keep their address, of no flow of ours.
        Routed = "routed",
        /// Refusals sent.
        RejectsSent = "rejects_sent",
        /// ICMP errors sent about packets that were too big, had no hops left, or could not be delivered.
        ErrorsSent = "errors_sent",
        /// ICMP errors about packets of flows, translated and sent on.
        IcmpErrorsTranslated = "icmp_errors_translated",
        /// Echo requests to VIPs that were answered.
        EchoesAnswered = "echoes_answered",
        /// SYNs and SYN-ACKs whose segment size was lowered.
        MssClamped = "mss_clamped",
        /// TCP resets and SCTP ABORTs that changed nothing: their number, tag or checksum is none that an endpoint would accept.
        ResetsIgnored = "resets_ignored",
        /// Other packets of connections that changed nothing, likewise.
        SegmentsIgnored = "segments_ignored",
        /// TCP resets that were taken back, since the other side went on.
        ResetsRefuted = "resets_refuted",
        /// Clients that stayed with the backend of their last connection.
        AffinityKept = "affinity_kept",
        /// Clients whose backend was forgotten since the affinity table had no room.
        AffinityEvictions = "affinity_evictions",
        /// Packets held while their next hop was resolved.
        Held = "held",
        /// Fragments forwarded, first ones included.
        FragmentsForwarded = "fragments_forwarded",
        /// Fragments held until another of their packet came.
        FragmentsAwaiting = "fragments_awaiting",
        /// Loops that brought at least one packet.
        BusyLoops = "busy_loops",
        /// Times the worker went to sleep.
        Sleeps = "sleeps",
    }
}

const COUNT: usize =
    Event::ALL.len() + DropReason::ALL.len() + PassReason::ALL.len() + RejectReason::ALL.len();

/// The counters of one worker, in its own memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters([u64; COUNT]);

impl Default for Counters {
    fn default() -> Self {
        Self([0; COUNT])
    }
}

impl Counters {
    /// Adds `n` to an event.
    #[inline]
    pub fn add(&mut self, event: Event, n: u64) {
        self.0[event.index()] += n;
    }

    /// Counts a verdict under its reason. Packets that are sent or held are counted as events by the worker.
    #[inline]
    pub fn count(&mut self, verdict: &Verdict) {
        if !matches!(verdict, Verdict::Transmit(_)) {
            self.count_unsent(verdict);
        }
    }

    #[cold]
    fn count_unsent(&mut self, verdict: &Verdict) {
        match *verdict {
            Verdict::Transmit(_)
            | Verdict::AwaitNeighbour(_)
            | Verdict::AwaitFragment(_)
            | Verdict::Untag
            | Verdict::Reply => {}
            Verdict::Pass(reason) => self.0[pass_index(reason)] += 1,
            Verdict::Reject(reason) => self.0[reject_index(reason)] += 1,
            Verdict::IcmpError(error) => self.0[drop_index(reason_of_error(error))] += 1,
            Verdict::Drop(reason) => self.0[drop_index(reason)] += 1,
        }
    }

    /// The count of an event.
    pub fn event(&self, event: Event) -> u64 {
        self.0[event.index()]
    }

    /// Packets dropped for this reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.0[drop_index(reason)]
    }

    /// Packets that were the kernel's business for this reason.
    pub fn passed(&self, reason: PassReason) -> u64 {
        self.0[pass_index(reason)]
    }

    /// Packets rejected for this reason.
    pub fn rejected(&self, reason: RejectReason) -> u64 {
        self.0[reject_index(reason)]
    }

    /// Packets dropped for any reason.
    pub fn dropped_total(&self) -> u64 {
        DropReason::ALL.iter().map(|reason| self.dropped(*reason)).sum()
    }

    /// The sum of both.
    #[must_use]
    pub fn plus(mut self, other: &Self) -> Self {
        self.0.iter_mut().zip(other.0).for_each(|(mine, theirs)| *mine += theirs);
        self
    }
}

/// The counters of one worker for readers in other threads, at most one burst old. On cache lines of their own, so that
/// readers do not slow the worker's other memory down.
#[derive(Debug)]
pub struct SharedCounters(CachePadded<[AtomicU64; COUNT]>);

impl Default for SharedCounters {
    fn default() -> Self {
        Self(CachePadded::new(std::array::from_fn(|_| AtomicU64::new(0))))
    }
}

impl SharedCounters {
    /// Publishes `now`. Only the worker that owns the counters calls this.
    #[inline]
    pub fn publish(&self, now: &Counters) {
        for (shared, value) in self.0.iter().zip(now.0) {
            // A load is cheaper than a store: most counters do not change in a burst, and a store would take the cache line
            // away from readers.
            if shared.load(Ordering::Relaxed) != value {
                shared.store(value, Ordering::Relaxed);
            }
        }
    }

    /// The counters as last published.
    pub fn read(&self) -> Counters {
        Counters(std::array::from_fn(|i| self.0[i].load(Ordering::Relaxed)))
    }
}

/// The drop reason under which a packet is counted that an ICMP error answers.
const fn reason_of_error(error: IcmpError) -> DropReason {
    match error {
        IcmpError::TooBig(_) => DropReason::TooBig,
        IcmpError::TimeExceeded => DropReason::TtlExpired,
        IcmpError::PortUnreachable => DropReason::NoBackend,
        IcmpError::NoRoute => DropReason::NoRoute,
        IcmpError::HostUnreachable => DropReason::NoNeighbour,
    }
}

const fn drop_index(reason: DropReason) -> usize {
    Event::ALL.len() + reason.index()
}

const fn pass_index(reason: PassReason) -> usize {
    Event::ALL.len() + DropReason::ALL.len() + reason.index()
}

const fn reject_index(reason: RejectReason) -> usize {
    Event::ALL.len() + DropReason::ALL.len() + PassReason::ALL.len() + reason.index()
}

#[cfg(test)]
mod tests {
    use super::*;
    use flowgate_tables::InterfaceId;

    #[test]
    fn every_reason_has_a_counter_of_its_own() {
        let mut counters = Counters::default();
        DropReason::ALL.iter().for_each(|reason| counters.count(&Verdict::Drop(*reason)));
        PassReason::ALL.iter().for_each(|reason| counters.count(&Verdict::Pass(*reason)));
        RejectReason::ALL.iter().for_each(|reason| counters.count(&Verdict::Reject(*reason)));
        Event::ALL.iter().for_each(|event| counters.add(*event, 1));
        counters.count(&Verdict::Transmit(InterfaceId(0)));
        assert_eq!(counters, Counters([1; COUNT]));
        let shared = SharedCounters::default();
        shared.publish(&counters);
        assert_eq!(shared.read().plus(&counters), Counters([2; COUNT]));
        assert_eq!(counters.dropped_total(), DropReason::ALL.len() as u64);
    }
}
