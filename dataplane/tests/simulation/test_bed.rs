//! The gateway under test and its model, side by side.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use flowgate_dataplane::device::MemoryDevice;
use flowgate_dataplane::exhaustion::ExhaustionReporter;
use flowgate_dataplane::worker::{Resolver, Shared};
use flowgate_dataplane::{
    Counters, DropReason, Event, PassReason, Pipeline, PipelineConfig, RejectReason, Worker, WorkerConfig,
    WorkerNumber, WorkerSettings,
};
use flowgate_flow::{AffinityTable, FlowView, Flows, HashKey, Timeouts};
use flowgate_tables::{BackendId, InterfaceId, Publisher};
use flowgate_wire::FiveTuple;
use flowgate_wire::reject::IcmpError;

use super::held::{Held, HeldFrames, HeldPieces};
use super::spy::{Record, Spy};
use crate::model::flows::{Listed, compare};
use crate::model::packet::{Tuple, hex};
use crate::model::places::{self, Neighbour};
use crate::model::reject::{TokenBuckets, icmp_error, reject};
use crate::model::world::World;
use crate::model::{Decided, Difference, Fate, Model};

/// What a run begins with.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) world: World,
    pub(crate) timeouts: Timeouts,
    pub(crate) config: PipelineConfig,
    pub(crate) capacity_flows: u32,
    pub(crate) workers: usize,
    /// Milliseconds that have passed before the first step.
    pub(crate) age_ms: u64,
    pub(crate) key: HashKey,
}

/// One thing that happens to the gateway.
#[derive(Clone)]
pub(crate) enum Step {
    /// Time passes, frames arrive, the worker turns once.
    Turn { worker: usize, pause_ms: u64, frames: Frames },
    /// Other tables come into force.
    Publish(Arc<World>),
}

/// Frames, each with the interface that it comes or leaves by.
pub(crate) type Frames = Vec<(InterfaceId, Vec<u8>)>;

/// One worker with what the model knows of it.
struct WorkerSlot {
    worker: Worker<MemoryDevice, Spy>,
    records: Rc<RefCell<Vec<Record>>>,
    held: HeldFrames,
    held_pieces: HeldPieces,
    buckets: TokenBuckets,
}

/// Gateway and model.
pub(crate) struct TestBed {
    slots: Vec<WorkerSlot>,
    flows: Arc<Flows>,
    publisher: Publisher,
    started: Instant,
    now: u64,
    model: Model,
    asked: Arc<Mutex<Vec<Neighbour>>>,
    asked_at: Vec<(usize, Neighbour, u64)>,
}

impl TestBed {
    pub(crate) fn new(setup: &Setup) -> Self {
        let flows = Arc::new(Flows::new(setup.capacity_flows, setup.capacity_flows, setup.key).unwrap());
        let affinity = Arc::new(AffinityTable::new(8192));
        let mut publisher = Publisher::new();
        publisher.publish(setup.world.tables(&publisher.current()));
        #[expect(clippy::disallowed_methods, reason = "only differences matter")]
        let started = Instant::now();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let slot = |index| {
            let number = WorkerNumber { index, count: setup.workers };
            let records = Rc::new(RefCell::new(Vec::new()));
            let config = WorkerConfig {
                number,
                core: None,
                settings: WorkerSettings {
                    idle_before_sleep: Duration::ZERO,
                    timeouts: setup.timeouts,
                    pipeline: setup.config,
                },
            };
            let asked = Arc::clone(&asked);
            let resolver = Resolver::new(move |n: flowgate_tables::routing::NeighbourKey| {
                asked.lock().unwrap().push(Neighbour { egress: n.egress, addr: n.addr });
                true
            });
            let shared = Shared {
                flows: Arc::clone(&flows),
                affinity: Arc::clone(&affinity),
                resolver,
                exhaustion: ExhaustionReporter::default(),
                started,
            };
            let device = MemoryDevice::new(setup.world.interfaces.len(), 4096);
            let spy = Spy::new(Pipeline::new(number), Rc::clone(&records));
            let worker = Worker::new(config, shared, publisher.reader(), device, spy);
            WorkerSlot {
                worker,
                records,
                held: HeldFrames::default(),
                held_pieces: HeldPieces::default(),
                buckets: TokenBuckets::default(),
            }
        };
        let slots = (0..setup.workers).map(slot).collect();
        let model = Model::new(&setup.world, setup.timeouts, setup.config, setup.workers);
        let mut test_bed =
            Self { slots, flows, publisher, started, now: 0, model, asked, asked_at: Vec::new() };
        test_bed.grow_old(setup.age_ms);
        test_bed
    }

    /// Lets the workers idle until they are this old. Ticks wrap after 49 days; a worker turns far more
    /// often than that.
    fn grow_old(&mut self, age_ms: u64) {
        while self.now < age_ms {
            self.now = age_ms.min(self.now + 20 * 24 * 3_600_000);
            for slot in &mut self.slots {
                slot.worker.poll_once(self.started + Duration::from_millis(self.now));
                slot.held.due(self.publisher.current().generation, self.now);
            }
        }
    }

    pub(crate) fn now(&self) -> u64 {
        self.now
    }

    pub(crate) fn flow_count(&self) -> usize {
        self.model.flows.0.len()
    }

    /// Lets one thing happen. Returns what was sent.
    ///
    /// # Errors
    /// The first difference from the model.
    pub(crate) fn step(&mut self, step: &Step) -> Result<Frames, Difference> {
        match step {
            Step::Publish(world) => {
                self.publisher.publish(world.tables(&self.publisher.current()));
                self.model.publish(world, self.now);
                Ok(Frames::new())
            }
            Step::Turn { worker, pause_ms, frames } => {
                self.now += pause_ms;
                self.turn(*worker, frames)
            }
        }
    }

    /// Nothing must be left of the flows once all timeouts are over.
    ///
    /// # Errors
    /// Something is.
    pub(crate) fn end(&mut self) -> Result<(), Difference> {
        for worker in (0..self.slots.len()).cycle().take(8 * self.slots.len()) {
            self.step(&Step::Turn { worker, pause_ms: 20_000, frames: vec![] })?;
        }
        match self.flows.used_entries() {
            0 => Ok(()),
            left => Err(format!("{left} entries are left of flows that are long over")),
        }
    }

    fn turn(&mut self, worker: usize, frames: &Frames) -> Result<Frames, Difference> {
        let interfaces = self.model.world.interfaces.len();
        let slot = &mut self.slots[worker];
        for (by, frame) in frames {
            slot.worker.device().deliver(*by, frame.clone());
        }
        slot.worker.poll_once(self.started + Duration::from_millis(self.now));
        let records = slot.records.take();
        let mut records = records.into_iter();
        let sent: Frames = (0..interfaces)
            .map(|i| InterfaceId(u8::try_from(i).unwrap()))
            .flat_map(|i| slot.worker.device().take_sent(i).into_iter().map(move |frame| (i, frame.0)))
            .collect();
        let table = self.table();
        let opened_before = self.opened();
        let mut wanted = Vec::new();
        for ingress in 0..interfaces {
            let arrived = frames.iter().filter(|(by, _)| by.index() == ingress);
            for (_, frame) in arrived {
                let held = Held {
                    frame: frame.clone(),
                    neighbour: Neighbour { egress: InterfaceId(0), addr: IpAddr::from([0; 4]) },
                    ingress,
                    since: self.now,
                };
                self.decided(worker, held, true, records.next(), &mut wanted)?;
            }
        }
        let generation = self.publisher.current().generation;
        for _ in 0..self.slots[worker].held.due(generation, self.now) {
            let Some(held) = self.slots[worker].held.leave() else { break };
            self.decided(worker, held, false, records.next(), &mut wanted)?;
        }
        self.revisit_pieces(worker, &mut records, &mut wanted)?;
        if let Some(record) = records.next() {
            return Err(format!("decided what was not there: {}", hex(&record.before)));
        }
        self.compare_sent(&sent, &wanted)?;
        self.compare_counts(worker)?;
        self.compare_asked(worker)?;
        let opened = self.opened() - opened_before;
        let full = self.model.counts.iter().filter_map(|c| c.get("flow_table_full")).sum::<u64>();
        let tries = usize::try_from(opened + full).unwrap();
        let Model { flows, lives, timeouts, .. } = &mut self.model;
        compare(flows, lives, timeouts, &table, (self.now, tries))?;
        let used = self.flows.used_entries();
        if used == 2 * self.model.flows.0.len() {
            return Ok(sent);
        }
        Err(format!("{used} entries for {} flows", self.model.flows.0.len()))
    }

    /// Fragments whose datagram is known better now are decided again, and each may tell more about others.
    fn revisit_pieces(
        &mut self,
        worker: usize,
        records: &mut impl Iterator<Item = Record>,
        wanted: &mut Frames,
    ) -> Result<(), Difference> {
        loop {
            for name in std::mem::take(&mut self.model.woken[worker]) {
                self.slots[worker].held_pieces.wake(name);
            }
            let Some(held) = self.slots[worker].held_pieces.leave() else { break };
            self.decided(worker, held, false, records.next(), wanted)?;
        }
        for _ in 0..self.slots[worker].held_pieces.expire(self.now) {
            self.model.count(worker, "fragment_no_first");
        }
        Ok(())
    }

    fn opened(&self) -> u64 {
        self.model.counts.iter().filter_map(|counts| counts.get("flows_opened")).sum()
    }

    /// Judges one decision, and what must become of the frame.
    fn decided(
        &mut self,
        worker: usize,
        held: Held,
        is_new: bool,
        record: Option<Record>,
        wanted: &mut Frames,
    ) -> Result<(), Difference> {
        let record = record.ok_or_else(|| format!("not decided: {}", hex(&held.frame)))?;
        if record.before != held.frame {
            return Err(format!("decided {} before {}", hex(&record.before), hex(&held.frame)));
        }
        let Record { before, after, verdict } = &record;
        let decided = Decided { worker, now: self.now, before, after, verdict: *verdict };
        let fate = self.model.judge(&decided).map_err(|what| format!("{what}\n  frame {}", hex(before)))?;
        let slot = &mut self.slots[worker];
        match fate {
            Fate::Sent(egress) => wanted.push((egress, record.after)),
            Fate::Ends => {}
            Fate::Answered => {
                wanted.push((InterfaceId(u8::try_from(held.ingress).unwrap()), record.after));
            }
            Fate::Refused => match reject(before, &mut slot.buckets, self.now) {
                Some(answer) => {
                    wanted.push((InterfaceId(u8::try_from(held.ingress).unwrap()), answer));
                    self.model.count(worker, "rejects_sent");
                }
                None => self.model.count(worker, "reject_unanswered"),
            },
            Fate::Reported(problem) => {
                let own = &self.model.world.interfaces[held.ingress].addresses;
                if let Some(answer) = icmp_error(before, problem, own, &mut slot.buckets, self.now) {
                    wanted.push((InterfaceId(u8::try_from(held.ingress).unwrap()), answer));
                    self.model.count(worker, "errors_sent");
                }
            }
            Fate::AwaitsFirst(name) => match slot.held_pieces.admit(held, name, self.now) {
                Ok(()) if is_new => self.model.count(worker, "fragments_awaiting"),
                Ok(()) => {}
                Err(reason) => self.model.count(worker, reason),
            },
            Fate::Waits(neighbour) => {
                self.asked_at.push((worker, neighbour, u64::MAX));
                let ingress = held.ingress;
                let is_told =
                    self.now - held.since >= 1000 && places::has_failed(&self.model.world, neighbour);
                if !is_told && slot.held.admit(Held { neighbour, ..held }, self.now) {
                    if is_new {
                        self.model.count(worker, "held");
                    }
                    return Ok(());
                }
                self.model.count(worker, "no_neighbour");
                let own = &self.model.world.interfaces[ingress].addresses;
                if is_told
                    && let Some(answer) =
                        icmp_error(before, IcmpError::HostUnreachable, own, &mut slot.buckets, self.now)
                {
                    wanted.push((InterfaceId(u8::try_from(ingress).unwrap()), answer));
                    self.model.count(worker, "errors_sent");
                }
            }
        }
        Ok(())
    }

    fn compare_sent(&self, sent: &Frames, wanted: &Frames) -> Result<(), Difference> {
        for i in 0..self.model.world.interfaces.len() {
            let by = |all: &Frames| -> Vec<Vec<u8>> {
                all.iter().filter(|(by, _)| by.index() == i).map(|(_, frame)| frame.clone()).collect()
            };
            let (sent, wanted) = (by(sent), by(wanted));
            if sent != wanted {
                let text = |frames: &[Vec<u8>]| frames.iter().map(|f| hex(f)).collect::<Vec<_>>().join(" ");
                return Err(format!("interface {i} sent\n  {}\nnot\n  {}", text(&sent), text(&wanted)));
            }
        }
        Ok(())
    }

    fn compare_counts(&self, worker: usize) -> Result<(), Difference> {
        let counters = self.slots[worker].worker.state().counters.read();
        let wanted = &self.model.counts[worker];
        for (name, count) in counted(&counters) {
            let wanted = wanted.get(name).copied().unwrap_or(0);
            if count != wanted {
                return Err(format!("{name} counted {count} times, not {wanted}"));
            }
        }
        Ok(())
    }

    /// Whoever is waited for must have been asked for, now or within the last tenth of a second.
    fn compare_asked(&mut self, worker: usize) -> Result<(), Difference> {
        let now = self.now;
        for neighbour in self.asked.lock().unwrap().drain(..) {
            if !self.asked_at.iter().any(|(w, n, _)| (*w, *n) == (worker, neighbour)) {
                return Err(format!("asked for {neighbour:?}, whom nobody waits for"));
            }
            self.asked_at.retain(|(w, n, _)| (*w, *n) != (worker, neighbour));
            self.asked_at.push((worker, neighbour, now));
        }
        let lately = |neighbour: &Neighbour| {
            let of =
                |(w, n, at): &&(usize, Neighbour, u64)| *w == worker && n == neighbour && *at != u64::MAX;
            self.asked_at.iter().find(of).is_some_and(|(.., at)| now - at < 100)
        };
        let waited: Vec<_> =
            self.asked_at.iter().filter(|(w, _, at)| *w == worker && *at == u64::MAX).collect();
        if let Some((_, neighbour, _)) = waited.iter().find(|(_, neighbour, _)| !lately(neighbour)) {
            return Err(format!("nobody asked for {neighbour:?}"));
        }
        self.asked_at.retain(|(.., at)| *at != u64::MAX);
        Ok(())
    }

    fn table(&self) -> Vec<Listed> {
        let tables = self.publisher.current();
        let backend = |bits| {
            let backend = tables.services.backends().get(BackendId::from_bits(bits))?;
            Some(SocketAddr::new(backend.addr, backend.port.number()))
        };
        let list = |view: FlowView| Listed {
            original: plain(&view.original),
            reply: plain(&view.reply),
            backend: backend(view.backend),
            phase: view.tcp_phase.map(|phase| phase.name()),
            answered: view.answered,
            is_stream: view.is_stream,
            last: view.last_seen.0,
            packets: view.packets,
            bytes: view.bytes,
        };
        self.flows.views().map(list).collect()
    }
}

fn plain(tuple: &FiveTuple<IpAddr>) -> Tuple {
    Tuple {
        protocol: tuple.protocol,
        src: SocketAddr::new(tuple.src, tuple.src_port.number()),
        dst: SocketAddr::new(tuple.dst, tuple.dst_port.number()),
    }
}

/// The counts that the model keeps too.
fn counted(counters: &Counters) -> impl Iterator<Item = (&'static str, u64)> {
    let events = [
        Event::FlowHits,
        Event::FlowsOpened,
        Event::FlowsReplaced,
        Event::Routed,
        Event::RejectsSent,
        Event::Held,
        Event::ErrorsSent,
        Event::FragmentsForwarded,
        Event::FragmentsAwaiting,
        Event::IcmpErrorsTranslated,
        Event::EchoesAnswered,
        Event::ResetsIgnored,
        Event::SegmentsIgnored,
        Event::ResetsRefuted,
    ];
    let events = events.into_iter().map(|event| (event.name(), counters.event(event)));
    let drops = DropReason::ALL.iter().map(|reason| (reason.name(), counters.dropped(*reason)));
    let passes = PassReason::ALL.iter().map(|reason| (reason.name(), counters.passed(*reason)));
    let rejects = RejectReason::ALL.iter().map(|reason| (reason.name(), counters.rejected(*reason)));
    events.chain(drops).chain(passes).chain(rejects)
}
