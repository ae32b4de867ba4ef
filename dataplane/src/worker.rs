//! The loop of one worker: receive a burst, decide, send, and housekeeping in between.
//!
//! The only place on the packet path that reads a clock. The loop polls while frames arrive; after a short idle time it sleeps
//! in the kernel until the next frame. Neighbours are resolved, events logged and tables published by other threads.

mod held;
mod outcomes;
mod reject;
mod settings;
mod sweeping;
mod vlan;

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded};
use flowgate_flow::{AffinityTable, Flows, Tick};
use flowgate_tables::routing::NeighbourKey;
use flowgate_tables::{InterfaceId, TablesReader};

use crate::burst::{BURST, RxChecksums, WorkerNumber};
use crate::counters::{Counters, Event, SharedCounters};
use crate::device::Device;
use crate::exhaustion::ExhaustionReporter;
use crate::pipeline::{Context, Process};
use crate::verdict::{DropReason, PassReason, Verdict};
use held::{FOR_FRAGMENT, FOR_NEIGHBOUR, Held, HeldForFragment, HeldForNeighbour};
use outcomes::{Arrival, Outcomes};
use reject::Rejects;
pub use settings::{WorkerConfig, WorkerSettings};
use sweeping::Sweeping;

/// What workers share.
#[derive(Clone, Debug)]
pub struct Shared {
    /// The flow tables of both families.
    pub flows: Arc<Flows>,
    /// Session affinity: the bindings of clients to backends.
    pub affinity: Arc<AffinityTable>,
    /// Where neighbours are requested to be resolved.
    pub resolver: Resolver,
    /// Where new flows that were refused for lack of a resource are reported.
    pub exhaustion: ExhaustionReporter,
    /// The time that ticks are counted from.
    pub started: Instant,
}

/// Where workers request the resolution of neighbours. They call it between bursts, so it must not block.
#[derive(Clone)]
pub struct Resolver(Arc<dyn Fn(NeighbourKey) -> bool + Send + Sync>);

impl Resolver {
    /// Requests by `request`, which returns false when its queue is full.
    pub fn new(request: impl Fn(NeighbourKey) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(request))
    }

    /// Requests the resolution of a neighbour; false when the queue of requests is full. A worker calls this at most once
    /// per neighbour and tenth of a second.
    pub fn resolve(&self, neighbour: NeighbourKey) -> bool {
        (self.0)(neighbour)
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

/// The state of a running worker for other threads.
#[derive(Debug, Default)]
pub struct WorkerState {
    /// Its counters.
    pub counters: SharedCounters,
    heartbeat: AtomicU64,
    /// [`STOP`] and [`ORDER`]: one byte, so that the loop looks at one.
    signal: AtomicU8,
    running_cpu: AtomicU64,
    #[cfg(feature = "lab")]
    fault: crate::fault::Injected,
}

impl WorkerState {
    /// Grows with every loop. A worker whose heartbeat stands still hangs or is dead.
    pub fn heartbeat(&self) -> u64 {
        self.heartbeat.load(Ordering::Relaxed)
    }

    /// Injects a fault, for tests.
    #[cfg(feature = "lab")]
    pub fn inject(&self, fault: crate::fault::Fault) {
        self.fault.set(fault);
    }

    /// The core that it is pinned to; `None` if it does not run yet or is not pinned.
    pub fn core(&self) -> Option<u64> {
        self.running_cpu.load(Ordering::Relaxed).checked_sub(1)
    }
}

/// A change of the device, which the worker carries out between two bursts.
type Order<D> = Box<dyn FnOnce(&mut D) + Send>;

/// Handle of a running worker.
pub struct WorkerHandle<D> {
    /// Its number.
    pub number: WorkerNumber,
    /// Its state.
    pub state: Arc<WorkerState>,
    orders: Arc<Mutex<Vec<Order<D>>>>,
    settings: Sender<WorkerSettings>,
    thread: JoinHandle<D>,
}

impl<D> fmt::Debug for WorkerHandle<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerHandle").field("number", &self.number).finish_non_exhaustive()
    }
}

impl<D> WorkerHandle<D> {
    /// Whether its thread has ended, by request or by a panic.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Gives it other settings, which are in force once it has slept, within a tenth of a second. False if it has not taken the
    /// last ones yet.
    pub fn configure(&self, settings: WorkerSettings) -> bool {
        self.settings.try_send(settings).is_ok()
    }

    /// Requests it to stop, without waiting.
    pub fn request_stop(&self) {
        self.state.signal.fetch_or(STOP, Ordering::Relaxed);
    }

    /// Has the worker change its device, without waiting: within a tenth of a second, after it has served what was received
    /// until then. A worker that has ended drops the order.
    pub fn order(&self, order: impl FnOnce(&mut D) + Send + 'static) {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(order));
        // After the order is in the list, so that the worker finds it there.
        self.state.signal.fetch_or(ORDER, Ordering::Release);
    }

    /// Stops it and waits until it has; returns its device, or `None` if the worker panicked.
    pub fn stop(self) -> Option<D> {
        self.request_stop();
        self.thread.join().ok()
    }
}

/// One worker: a device, a pipeline, and the loop that joins them.
pub struct Worker<D: Device, P> {
    config: WorkerConfig,
    /// Other settings, when the operator changes some. The sender is kept for the handle.
    settings: (Sender<WorkerSettings>, Receiver<WorkerSettings>),
    shared: Shared,
    device: D,
    orders: Arc<Mutex<Vec<Order<D>>>>,
    process: P,
    tables: TablesReader,
    state: Arc<WorkerState>,
    counters: Counters,
    sweeping: Sweeping,
    frames: Vec<D::Frame>,
    /// The interface by which each of `frames` came in.
    ingress: Box<[InterfaceId; BURST]>,
    /// Frames of the burst whose priority tags came off, each with its interface.
    untagged: Vec<(D::Frame, InterfaceId)>,
    held_for_neighbour: HeldForNeighbour<D::Frame>,
    held_for_fragment: HeldForFragment<D::Frame>,
    /// The generation of the tables by which held frames were decided last.
    held_generation: u64,
    resolve_limiter: ResolveLimiter,
    rejects: Rejects,
}

impl<D, P> Worker<D, P>
where
    D: Device + Send + 'static,
    P: Process + Send + 'static,
    D::Frame: Send,
{
    /// Starts the worker on a thread of its own. `confine` is called there before the first packet, to give up what a worker
    /// does not need.
    ///
    /// # Errors
    /// The operating system refuses a thread.
    pub fn spawn(self, confine: fn()) -> std::io::Result<WorkerHandle<D>> {
        let (number, state, orders) = (self.config.number, Arc::clone(&self.state), Arc::clone(&self.orders));
        let settings = self.settings.0.clone();
        let builder = thread::Builder::new().name(format!("worker-{}", number.index));
        let thread = builder.spawn(move || self.run(confine))?;
        Ok(WorkerHandle { number, state, orders, settings, thread })
    }

    fn run(mut self, confine: fn()) -> D {
        if let Some(core) = self.config.core
            && core_affinity::set_for_current(core_affinity::CoreId { id: core })
        {
            // Plus one, so that zero means not pinned.
            self.state.running_cpu.store(core as u64 + 1, Ordering::Relaxed);
        }
        confine();
        let mut last_frame = now();
        loop {
            match self.state.signal.load(Ordering::Relaxed) {
                0 => {}
                signal if signal & STOP != 0 => break,
                _ => self.carry_out_orders(),
            }
            #[cfg(feature = "lab")]
            self.state.fault.strike();
            // Read once per iteration: a clock read costs as much as a packet.
            let time = now();
            if self.poll_once(time) {
                last_frame = time;
            } else if time.duration_since(last_frame) >= self.config.settings.idle_before_sleep {
                self.counters.add(Event::Sleeps, 1);
                self.publish_counters();
                // New tables release held packets, and no frame wakes the worker for them.
                self.device.wait(if self.held_for_neighbour.is_empty() { SLEEP } else { SHORT_SLEEP });
            }
        }
        self.publish_counters();
        self.device
    }

    #[cold]
    fn carry_out_orders(&mut self) {
        self.state.signal.fetch_and(!ORDER, Ordering::Acquire);
        let orders = std::mem::take(&mut *self.orders.lock().unwrap_or_else(PoisonError::into_inner));
        for order in orders {
            // An order may close sockets: what they have received is served first. Others may go on to receive meanwhile.
            for _ in 0..BURSTS_BEFORE_ORDER {
                if !self.poll_once(now()) {
                    break;
                }
            }
            order(&mut self.device);
        }
    }
}

impl<D: Device, P> fmt::Debug for Worker<D, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("config", &self.config).finish_non_exhaustive()
    }
}

impl<D: Device, P: Process> Worker<D, P> {
    /// A worker that is not running yet.
    pub fn new(config: WorkerConfig, shared: Shared, tables: TablesReader, device: D, process: P) -> Self {
        let sweeping = Sweeping::new(&shared.flows, config.number);
        Self {
            config,
            settings: bounded(1),
            shared,
            device,
            orders: Arc::default(),
            process,
            tables,
            state: Arc::new(WorkerState::default()),
            counters: Counters::default(),
            sweeping,
            frames: Vec::with_capacity(BURST),
            ingress: Box::new([InterfaceId(0); BURST]),
            untagged: Vec::with_capacity(BURST),
            held_for_neighbour: HeldForNeighbour::new(FOR_NEIGHBOUR),
            held_for_fragment: HeldForFragment::new(FOR_FRAGMENT),
            held_generation: 0,
            resolve_limiter: ResolveLimiter::default(),
            rejects: Rejects::default(),
        }
    }

    /// Continues the counters of the worker that it replaces, so that metrics do not go backwards.
    #[must_use]
    pub fn counting_from(mut self, counters: Counters) -> Self {
        self.counters = counters;
        self.state.counters.publish(&counters);
        self
    }

    /// Its state, for other threads.
    pub fn state(&self) -> Arc<WorkerState> {
        Arc::clone(&self.state)
    }

    /// Its device.
    pub fn device(&mut self) -> &mut D {
        &mut self.device
    }

    /// One iteration of the loop: a burst from each queue and a step of housekeeping. True if a frame was received.
    pub fn poll_once(&mut self, time: Instant) -> bool {
        let now = tick(time, self.shared.started);
        let mut received = false;
        // One burst per queue and iteration, so that a busy interface does not starve the others.
        for queue in 0..self.device.rx_queues() {
            received |= self.burst(queue, now);
        }
        self.revisit_held_for_neighbour(now);
        self.revisit_held_for_fragment(now);
        // After all queues: one wakeup of the kernel per interface then sends what came in by any of them.
        self.device.flush();
        if received {
            self.counters.add(Event::BusyLoops, 1);
        }
        self.housekeeping(now);
        self.publish_counters();
        received
    }

    fn burst(&mut self, queue: usize, now: Tick) -> bool {
        self.device.rx_burst(queue, &mut self.frames);
        let received = !self.frames.is_empty();
        if received {
            let bytes: usize = self.frames.iter_mut().map(|frame| frame.as_mut().len()).sum();
            self.counters.add(Event::RxPackets, self.frames.len() as u64);
            self.counters.add(Event::RxBytes, bytes as u64);
            let device = self.device.interface(queue);
            let routing = &self.tables.current().routing;
            self.ingress[..self.frames.len()].fill(device);
            // Only then are headers read here; otherwise the first touch is the pipeline's, after its prefetch.
            if routing.has_vlans() {
                for (frame, ingress) in self.frames.iter_mut().zip(self.ingress.iter_mut()) {
                    *ingress = vlan::untag(frame, device, routing);
                }
            }
            self.decide(self.device.checksums(queue), now, Arrival::JustNow);
        }
        received
    }

    /// Decides about the frames of a burst and carries the verdicts out.
    fn decide(&mut self, checksums: RxChecksums, now: Tick, arrival: Arrival) {
        // On the stack: a verdict is a few bytes, and 64 of them stay in the first-level cache.
        let mut verdicts = [Verdict::Pass(PassReason::NotOurs); BURST];
        let verdicts = &mut verdicts[..self.frames.len()];
        let context = Context {
            now,
            tables: self.tables.current(),
            flows: &self.shared.flows,
            affinity: &self.shared.affinity,
            timeouts: &self.config.settings.timeouts,
            config: &self.config.settings.pipeline,
            ingress: &*self.ingress,
        };
        // The tables were borrowed once: all packets of the burst are decided by the same generation.
        self.process.process(&mut self.frames, checksums, &context, &mut self.counters, verdicts);
        let mut outcomes = Outcomes {
            device: &mut self.device,
            routing: &context.tables.routing,
            counters: &mut self.counters,
            held_for_neighbour: &mut self.held_for_neighbour,
            held_for_fragment: &mut self.held_for_fragment,
            rejects: &mut self.rejects,
            untagged: &mut self.untagged,
            checksums,
            arrival,
            now,
        };
        for ((frame, verdict), &ingress) in self.frames.drain(..).zip(verdicts).zip(&*self.ingress) {
            match *verdict {
                Verdict::Transmit(egress) => outcomes.send(egress, frame),
                ref other => outcomes.execute(other, frame, ingress),
            }
        }
        if !self.untagged.is_empty() {
            self.decide_untagged(checksums, now, arrival);
        }
    }

    /// Decides about the frames of the burst whose priority tags came off.
    #[cold]
    fn decide_untagged(&mut self, checksums: RxChecksums, now: Tick, arrival: Arrival) {
        for ((frame, interface), ingress) in self.untagged.drain(..).zip(self.ingress.iter_mut()) {
            self.frames.push(frame);
            *ingress = interface;
        }
        // Once more only: none of them has a tag any more.
        self.decide(checksums, now, arrival);
    }

    /// Decides about held packets again once the tables have changed, and drops those that were held for too long.
    fn revisit_held_for_neighbour(&mut self, now: Tick) {
        // A resolved neighbour comes as a new generation of the tables: there is no other signal.
        let generation = self.tables.current().generation;
        if generation != self.held_generation {
            self.held_generation = generation;
            self.held_for_neighbour.wake_all();
        }
        // One that is too old is decided once more too: it is not admitted again and so counted as dropped.
        while let Some(held) =
            self.held_for_neighbour.pop_ready().or_else(|| self.held_for_neighbour.pop_expired(now))
        {
            self.decide_again(held, now);
        }
    }

    /// Decides about held fragments again whose first has arrived, and drops those that were held for too long.
    fn revisit_held_for_fragment(&mut self, now: Tick) {
        loop {
            // In a loop: a fragment that is decided here may make others ready in turn.
            let queue = &mut self.held_for_fragment;
            self.process.drain_ready(|of| queue.wake(of));
            let Some(held) = self.held_for_fragment.pop_ready() else { break };
            self.decide_again(held, now);
        }
        while let Some(Held { frame, .. }) = self.held_for_fragment.pop_expired(now) {
            self.counters.count(&Verdict::Drop(DropReason::FragmentNoFirst));
            self.device.recycle(frame);
        }
    }

    fn decide_again<K>(
        &mut self,
        Held { frame, checksums, ingress, since, .. }: Held<D::Frame, K>,
        now: Tick,
    ) {
        self.frames.push(frame);
        self.ingress[0] = ingress;
        self.decide(checksums, now, Arrival::Held { since });
    }

    fn housekeeping(&mut self, now: Tick) {
        let (resolver, limiter, counters) =
            (&self.shared.resolver, &mut self.resolve_limiter, &mut self.counters);
        self.process.drain_requests(|neighbour| {
            if limiter.admits(neighbour, now) && !resolver.resolve(neighbour) {
                counters.add(Event::ResolveOverflows, 1);
            }
        });
        self.process.drain_exhaustions(|exhaustion| self.shared.exhaustion.report(exhaustion));
        // Ticks are milliseconds: at full load most iterations end here.
        if self.sweeping.since_last(now) == 0 {
            return;
        }
        if let Ok(settings) = self.settings.1.try_recv() {
            self.config.settings = settings;
        }
        if cfg!(debug_assertions) {
            self.device.assert_no_leak(self.held_for_neighbour.len() + self.held_for_fragment.len());
        }
        let removed = self.sweeping.step(
            &self.shared.flows,
            self.tables.current(),
            now,
            &self.config.settings.timeouts,
        );
        self.counters.add(Event::FlowsExpired, u64::from(removed));
    }

    fn publish_counters(&self) {
        // Relaxed stores: readers need each value whole, and no order among them.
        self.state.counters.publish(&self.counters);
        self.state.heartbeat.fetch_add(1, Ordering::Relaxed);
    }
}

/// The neighbours requested lately: a flood of packets must not become a flood of requests.
#[derive(Debug, Default)]
struct ResolveLimiter {
    lately: [Option<(NeighbourKey, Tick)>; 32],
    next: usize,
}

impl ResolveLimiter {
    fn admits(&mut self, neighbour: NeighbourKey, now: Tick) -> bool {
        let lately =
            |(other, at): (NeighbourKey, Tick)| other == neighbour && now.since(at) < REQUEST_AGAIN_MS;
        if self.lately.iter().flatten().copied().any(lately) {
            return false;
        }
        self.lately[self.next] = Some((neighbour, now));
        self.next = (self.next + 1) % self.lately.len();
        true
    }
}

/// The time in ticks since `started`.
pub fn tick(time: Instant, started: Instant) -> Tick {
    let ms = time.duration_since(started).as_millis() & u128::from(u32::MAX);
    Tick(u32::try_from(ms).expect("masked to 32 bits"))
}

#[expect(clippy::disallowed_methods, reason = "the worker loop is where time comes in")]
fn now() -> Instant {
    Instant::now()
}

/// Bits of [`WorkerState::signal`]: end; look at the orders.
const STOP: u8 = 1;
const ORDER: u8 = 2;

/// Most bursts of each queue that are served before an order: twice a receive ring of usual length.
const BURSTS_BEFORE_ORDER: usize = 64;

/// A neighbour is requested again after this time in ms.
const REQUEST_AGAIN_MS: u32 = 100;

/// Maximum sleep while packets are held: the tables that release them arrive without a frame.
const SHORT_SLEEP: Duration = Duration::from_millis(1);

/// Maximum sleep of an idle worker, which wakes to expire flows and to move its heartbeat.
const SLEEP: Duration = Duration::from_millis(100);
