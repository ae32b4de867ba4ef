//! Ending flows that have been silent too long. Never reads a clock: the caller hands time in.

use std::time::Duration;

use flowgate_wire::Protocol;

use crate::address::FlowAddress;
use crate::entry::{EntryIndex, Side, Tick};
use crate::state::TcpPhase;
use crate::table::FlowTable;
use crate::tags::BUCKET_SLOTS;

/// How long a flow may be silent, by protocol and phase. All are below 24 days.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP until both sides have confirmed.
    pub tcp_opening: Duration,
    /// TCP between handshake and the first FIN.
    pub tcp_established: Duration,
    /// TCP after one FIN.
    pub tcp_half_closed: Duration,
    /// TCP after both FINs.
    pub tcp_time_wait: Duration,
    /// TCP after a reset.
    pub tcp_reset: Duration,
    /// UDP while nobody has answered.
    pub udp_unanswered: Duration,
    /// UDP once both sides have sent.
    pub udp_answered: Duration,
    /// How long connections to a removed backend may go on, silent or not; none for as long as they last.
    pub drain: Option<Duration>,
}

impl Default for Timeouts {
    /// Those of netfilter where it has one (Documentation/networking/nf_conntrack-sysctl.rst), but
    /// shorter after the end of a connection, since a port of ours hangs on each flow.
    fn default() -> Self {
        Self {
            tcp_opening: Duration::from_secs(60),
            tcp_established: Duration::from_secs(5 * 24 * 3600),
            tcp_half_closed: Duration::from_secs(3600),
            tcp_time_wait: Duration::from_secs(30),
            tcp_reset: Duration::from_secs(10),
            udp_unanswered: Duration::from_secs(30),
            udp_answered: Duration::from_secs(120),
            drain: Some(Duration::from_secs(24 * 3600)),
        }
    }
}

impl Timeouts {
    /// The longest silence in milliseconds that any timeout may be set to.
    pub const MAX: Duration = Duration::from_secs(24 * 24 * 3600);

    /// How long connections to a removed backend may go on, in milliseconds.
    pub fn drain_ms(&self) -> Option<u32> {
        self.drain.map(|drain| u32::try_from(drain.min(Self::MAX).as_millis()).unwrap_or(u32::MAX / 2))
    }

    /// How long a flow in this phase may be silent, in milliseconds.
    fn allowed_ms(&self, protocol: Protocol, phase: TcpPhase, answered: bool) -> u32 {
        let allowed = match (protocol, phase) {
            (Protocol::Tcp | Protocol::Sctp, TcpPhase::SynSent | TcpPhase::SynReceived) => self.tcp_opening,
            (Protocol::Tcp | Protocol::Sctp, TcpPhase::Established) => self.tcp_established,
            (Protocol::Tcp | Protocol::Sctp, TcpPhase::HalfClosed) => self.tcp_half_closed,
            (Protocol::Tcp | Protocol::Sctp, TcpPhase::TimeWait) => self.tcp_time_wait,
            (Protocol::Tcp | Protocol::Sctp, TcpPhase::Reset) => self.tcp_reset,
            _ if answered => self.udp_answered,
            _ => self.udp_unanswered,
        };
        u32::try_from(allowed.min(Self::MAX).as_millis()).unwrap_or(u32::MAX / 2)
    }
}

/// One worker's share of the sweep: walks its buckets in small steps, over and over.
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

    /// Buckets in this share.
    pub fn len(&self) -> u32 {
        self.to - self.from
    }

    /// Whether the share has no bucket.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Looks at the next `buckets` buckets and removes flows that were silent too long, or that
    /// `is_stale` (protocol, backend) condemns. Next hops that were looked up in another routing epoch than `epoch`
    /// are forgotten, so that none is taken for a current one when epochs come round: they do after 256 route changes.
    /// Returns how many flows were removed.
    pub fn step<A: FlowAddress>(
        &mut self,
        flows: &FlowTable<A>,
        buckets: u32,
        now: Tick,
        timeouts: &Timeouts,
        epoch: u8,
        mut is_stale: impl FnMut(Protocol, u32) -> bool,
    ) -> u32 {
        let mut removed = 0;
        for _ in 0..buckets.min(self.len()) {
            for slot in flows.used_slots(self.next) {
                let index = EntryIndex(self.next * BUCKET_SLOTS + slot);
                flows.entry(index).forget_next_hop_unless(epoch);
                removed += u32::from(expire(flows, index, now, timeouts, &mut is_stale));
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
    now: Tick,
    timeouts: &Timeouts,
    is_stale: &mut impl FnMut(Protocol, u32) -> bool,
) -> bool {
    let entry = flows.entry(index);
    let Some(identity) = entry.identity() else { return false };
    let whole = flows.peer_of(entry).is_some_and(|peer| peer.peer() == index);
    if whole && identity.side == Side::Reply {
        // Its original direction decides.
        return false;
    }
    let condemned = whole && is_stale(identity.tuple.protocol, identity.backend);
    (condemned || is_expired(flows, index, now, timeouts)) && flows.remove_flow(index, &identity)
}

/// Whether both directions of the flow have been silent for longer than its phase allows.
pub(crate) fn is_expired<A: FlowAddress>(
    flows: &FlowTable<A>,
    index: EntryIndex,
    now: Tick,
    timeouts: &Timeouts,
) -> bool {
    let entry = flows.entry(index);
    let Some(identity) = entry.identity() else { return false };
    let idle = now.since(entry.last_seen());
    let Some(peer) = flows.peer_of(entry).filter(|peer| peer.peer() == index) else {
        // Half a flow: it is being inserted, or its worker died in between.
        return idle > HALF_FLOW_MS;
    };
    let idle = idle.min(now.since(peer.last_seen()));
    let reply = if identity.side == Side::Original { peer } else { entry };
    let answered = reply.counts().0 > 0;
    idle > timeouts.allowed_ms(identity.tuple.protocol, flows.phase(identity.side, entry), answered)
}

const HALF_FLOW_MS: u32 = 1_000;
