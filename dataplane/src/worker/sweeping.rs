//! The sweep: removes flows that were idle for too long or whose backend is gone, and clears next hops of earlier routes.

use flowgate_flow::{Flows, Sweep, SweepContext, Tick, Timeouts};
use flowgate_tables::{BackendId, Tables};
use flowgate_wire::Protocol;
use hashbrown::HashMap;

use super::WorkerNumber;

/// One worker's share of the sweeps over both flow tables, and the removed backends that still have flows.
#[derive(Debug)]
pub(super) struct Sweeping {
    v4: Sweep,
    v6: Sweep,
    swept_at: Tick,
    generation: u64,
    /// Buckets still to be swept in a hurry, since the new tables may lack backends.
    urgent: u32,
    draining: Draining,
}

impl Sweeping {
    pub(super) fn new(flows: &Flows, worker: WorkerNumber) -> Self {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let (index, workers) = (count(worker.index), count(worker.count));
        Self {
            v4: Sweep::new(&flows.v4, index, workers),
            v6: Sweep::new(&flows.v6, index, workers),
            swept_at: Tick::default(),
            generation: 0,
            urgent: 0,
            draining: Draining::default(),
        }
    }

    /// Milliseconds since the last step.
    pub(super) fn since_last(&self, now: Tick) -> u32 {
        now.since(self.swept_at)
    }

    /// Sweeps as many buckets as are due since the last step; returns the number of removed flows.
    pub(super) fn step(&mut self, flows: &Flows, tables: &Tables, now: Tick, timeouts: &Timeouts) -> u32 {
        let elapsed_ms = self.since_last(now);
        self.swept_at = now;
        if tables.generation != self.generation {
            self.generation = tables.generation;
            // The whole share once, in a hurry: P801 ends UDP flows to removed endpoints at once, not within 16 s.
            self.urgent = self.len();
        }
        // In proportion to the time that has passed: a worker that slept or was busy catches up.
        let regular = u64::from(self.len()) * u64::from(elapsed_ms) / SWEEP_MS + 1;
        let regular = u32::try_from(regular).unwrap_or(u32::MAX);
        let urgent = self.urgent.min(URGENT_BUCKETS_PER_MS.saturating_mul(elapsed_ms));
        let buckets = regular.max(urgent);
        self.urgent = self.urgent.saturating_sub(buckets);
        // Both tables are done at the same time, whatever their sizes.
        let of_v6 = u64::from(buckets) * u64::from(self.v6.len()) / u64::from(self.len().max(1)) + 1;
        let of_v6 = u32::try_from(of_v6).unwrap_or(u32::MAX);
        let Self { v4, v6, draining, .. } = self;
        draining.forget_finished(now, timeouts);
        let mut is_over =
            |protocol: Protocol, backend| draining.is_over(tables, protocol, backend, now, timeouts);
        let context = SweepContext { now, timeouts, epoch: tables.routing.epoch() };
        v4.step(&flows.v4, buckets, context, &mut is_over) + v6.step(&flows.v6, of_v6, context, &mut is_over)
    }

    /// Buckets of both shares.
    fn len(&self) -> u32 {
        self.v4.len() + self.v6.len()
    }
}

/// Removed backends that still have flows, each with the time since when.
#[derive(Debug)]
struct Draining {
    since: HashMap<u32, Tick>,
}

impl Default for Draining {
    fn default() -> Self {
        Self { since: HashMap::with_capacity(DRAINING_MAX) }
    }
}

impl Draining {
    /// Whether a flow to this backend ends now. P801: UDP flows to a removed endpoint end at once, since their clients would not
    /// notice that it is gone; connections may finish until the deadline.
    fn is_over(
        &mut self,
        tables: &Tables,
        protocol: Protocol,
        backend: u32,
        now: Tick,
        timeouts: &Timeouts,
    ) -> bool {
        if tables.services.backends().is_current(BackendId::from_bits(backend)) {
            return false;
        }
        if protocol == Protocol::Udp {
            return true;
        }
        let Some(allowed_ms) = timeouts.drain_ms() else { return false };
        match self.since.get(&backend) {
            // Counted from the first sweep that met the backend, up to SWEEP_MS after its removal: workers need not be told
            // when that was.
            Some(since) => now.since(*since) > allowed_ms,
            None => {
                // When the map is full, the deadline starts at a later sweep, once another backend is done.
                if self.since.len() < DRAINING_MAX {
                    self.since.insert(backend, now);
                }
                false
            }
        }
    }

    /// Forgets backends all of whose flows must have been swept: two sweeps after the deadline.
    fn forget_finished(&mut self, now: Tick, timeouts: &Timeouts) {
        if let Some(allowed_ms) = timeouts.drain_ms() {
            let last = allowed_ms.saturating_add(2 * u32::try_from(SWEEP_MS).unwrap_or(u32::MAX));
            self.since.retain(|_, since| now.since(*since) <= last);
        }
    }
}

/// The whole table is swept once in this time, in ms. A flow outlives its timeout by at most as much.
const SWEEP_MS: u64 = 16_000;

/// Buckets per ms of a hurried sweep, after new tables: some tens of microseconds per step.
const URGENT_BUCKETS_PER_MS: u32 = 64;

/// Maximum number of removed backends whose deadlines are tracked at the same time.
const DRAINING_MAX: usize = 4096;
