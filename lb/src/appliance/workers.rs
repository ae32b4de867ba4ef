//! The workers and their slots: starts and watches them and respawns those that panic. A worker that hangs is only reported,
//! since a thread cannot be ended from outside; the supervisor decides what follows.
//!
//! Order of a start: sockets are opened ([`Workers::open_slots`]), the first generation is published, the flows of an earlier
//! process are adopted, the thread starts, and its sockets enter the socket map. Only then does traffic reach it.

mod interface;
mod slot;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use flowgate_dataplane::adopt::{Adoption, adopt};
use flowgate_dataplane::watchdog::{Change, Watchdog};
use flowgate_dataplane::worker::{Resolver, Shared};
use flowgate_dataplane::{
    Counters, Pipeline, PipelineConfig, Worker, WorkerConfig, WorkerNumber, WorkerSettings,
};
use flowgate_flow::{AffinityTable, Flows, Origin};
use flowgate_tables::{InterfaceId, Publisher};
use flowgate_xsk::steering::{AttachReport, SocketMap};
use flowgate_xsk::{BindMode, ZeroCopy};

use super::exhaustion::ExhaustionLog;
use super::frames::Frames;
use super::prove::proofs::{Mode, ProofStatus, Proofs};
use super::sockets::{self, Opened};
use crate::config::Config;
use crate::process::privileges;
use slot::Stage;

pub(crate) use slot::WorkerSlot;

/// All workers.
pub(crate) struct Workers {
    pub(crate) shared: Shared,
    /// New flows that were refused, by Service.
    pub(crate) exhaustion: ExhaustionLog,
    pub(crate) slots: Vec<WorkerSlot>,
    pub(crate) restarts: Restarts,
    /// In which modes the interfaces are proven to work.
    pub(crate) proofs: Proofs,
    /// Counts of what was adopted from an earlier process.
    pub(crate) adoption: Adoption,
    config: Config,
    /// Frames and zero-copy policy with which the sockets were opened last.
    frames: Frames,
    zero_copy: ZeroCopy,
    watchdog: Watchdog,
    started: bool,
    /// Whether the flow table holds flows of an earlier process that must be adopted before the start.
    adoption_is_due: bool,
    /// Where the flow tables come from.
    pub(crate) flow_origins: [Origin; 2],
    /// Whether sockets could not be opened again after a change of the interfaces.
    pub(crate) needs_reopen: bool,
    /// The MTU of interfaces whose largest packets do not fit into a frame, as it was last told.
    too_large: BTreeMap<String, u32>,
    /// Frames that were lost with sockets of single interfaces.
    lost_frames: usize,
}

/// How often workers were replaced, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Restarts {
    /// One panicked.
    pub(crate) panic: u64,
    /// An interface has fewer queues than there are workers, or zero copy is no longer possible: all workers.
    pub(crate) interface: u64,
    /// An interface lost packets in its mode: all workers.
    pub(crate) fallback: u64,
}

/// What starting a worker needs of the appliance's other parts.
pub(crate) struct StartContext<'a> {
    pub(crate) attached: &'a [AttachReport],
    pub(crate) publisher: &'a Publisher,
    pub(crate) map: SocketMap,
}

impl Workers {
    /// Workers without sockets: [`Self::open_slots`] comes next.
    ///
    /// # Errors
    /// There are fewer queues than workers, or no frame is long enough.
    pub(crate) fn new(
        config: &Config,
        attached: &[AttachReport],
        (flows, origins): (Flows, [Origin; 2]),
        resolver: Resolver,
        started: Instant,
    ) -> anyhow::Result<Self> {
        if let Some(fewest) = sockets::workers_possible(attached) {
            anyhow::ensure!(
                config.workers.count <= fewest,
                "workers.count is {}, but an interface has {fewest} queues: each worker needs one of each",
                config.workers.count
            );
        }
        let affinity = Arc::new(AffinityTable::new(config.flows.affinity_capacity));
        let exhaustion = ExhaustionLog::default();
        let proofs = Proofs::load(config);
        Ok(Self {
            shared: Shared {
                flows: Arc::new(flows),
                affinity,
                resolver,
                exhaustion: exhaustion.reporter(),
                started,
            },
            exhaustion,
            slots: Vec::new(),
            restarts: Restarts::default(),
            proofs,
            adoption: Adoption::default(),
            config: config.clone(),
            frames: sockets::choose_frames(config, attached, config.xdp.zero_copy)?,
            zero_copy: config.xdp.zero_copy,
            watchdog: Watchdog::new(config.workers.hang),
            started: false,
            adoption_is_due: origins.contains(&Origin::Restored),
            flow_origins: origins,
            needs_reopen: false,
            too_large: BTreeMap::new(),
            lost_frames: 0,
        })
    }

    /// Opens the sockets of all queues of the attached interfaces, in the modes in which the interfaces are known to work; on an
    /// error everything stays as it is.
    ///
    /// # Errors
    /// What is missing, with its interface and queue.
    pub(crate) fn open_slots(&mut self, attached: &[AttachReport]) -> anyhow::Result<()> {
        let (wanted, possible) = (self.config.workers.count, sockets::workers_possible(attached));
        let count = match wanted {
            0 => possible.unwrap_or(1),
            wanted => possible.map_or(wanted, |possible| wanted.min(possible)),
        };
        let cores = sockets::choose_cores(&self.config, count)?;
        self.proofs.forget_others(attached);
        let zero_copy = self.proofs.zero_copy();
        let frames = sockets::choose_frames(&self.config, attached, zero_copy)?;
        if let Some(reason) = &frames.why_copy {
            tracing::warn!("AF_XDP works in copy mode: {reason}");
        }
        let mut slots = Vec::new();
        for (index, core) in cores.into_iter().enumerate() {
            let number = WorkerNumber { index, count };
            let Opened { device, sockets, room } = sockets::open(&self.config, attached, number, &frames)?;
            slots.push(WorkerSlot {
                number,
                core,
                sockets,
                room: Some(room),
                stage: Stage::Ready(device),
                counted: Counters::default(),
                panics: VecDeque::new(),
            });
        }
        // Counters only grow: those of slots that no longer exist are added to the last one.
        for (index, slot) in std::mem::take(&mut self.slots).into_iter().enumerate() {
            let target = index.min(slots.len() - 1);
            slots[target].counted = slots[target].counted.plus(&slot.counted);
            slots[target].panics.extend(slot.panics);
        }
        self.slots = slots;
        self.lost_frames = 0;
        (self.frames, self.zero_copy) = (frames, zero_copy);
        self.warn_of_shortages(attached);
        Ok(())
    }

    /// Starts the workers and gives them their traffic. Does nothing after the first call. The first generation must have been
    /// published: adoption matches flows with its backends.
    ///
    /// # Errors
    /// The kernel refuses a thread or a slot.
    pub(crate) fn start(&mut self, context: &StartContext<'_>) -> anyhow::Result<()> {
        if self.started {
            return Ok(());
        }
        // Adoption needs the flow table for itself, so it comes before any worker starts.
        if std::mem::take(&mut self.adoption_is_due) {
            self.adoption =
                adopt(&self.shared.flows, &self.shared.affinity, &context.publisher.current().services);
            let Adoption { flows, without_backend, bindings, cleared } = self.adoption;
            tracing::info!(
                flows,
                without_backend,
                bindings,
                cleared,
                "adopted the flows of the previous process"
            );
        }
        self.started = true;
        self.start_all(context)
    }

    /// Starts a worker in every slot that has sockets.
    ///
    /// # Errors
    /// The first one; the other workers are started nevertheless, and [`watch`](Self::watch) tries again.
    fn start_all(&mut self, context: &StartContext<'_>) -> anyhow::Result<()> {
        // `fold` does not stop at an error.
        let slots = 0..self.slots.len();
        slots.map(|index| self.start_one(index, context)).fold(Ok(()), Result::and)
    }

    fn start_one(&mut self, index: usize, context: &StartContext<'_>) -> anyhow::Result<()> {
        let settings = self.settings();
        let slot = &mut self.slots[index];
        let Stage::Ready(device) = std::mem::replace(&mut slot.stage, Stage::Empty) else { return Ok(()) };
        let config = WorkerConfig { number: slot.number, core: slot.core, settings };
        let (shared, pipeline) = (self.shared.clone(), Pipeline::new(slot.number));
        let worker = Worker::new(config, shared, context.publisher.reader(), device, pipeline);
        let confine = privileges::worker_thread(&self.config.privileges);
        let handle = worker.counting_from(slot.counted).spawn(confine);
        slot.stage = Stage::Running(handle.with_context(|| format!("starting worker {index}"))?);
        let connected = slot.sockets.iter().try_for_each(|socket| {
            let connected = socket.connect(&context.map);
            connected.with_context(|| format!("{} queue {}", socket.interface, socket.queue))
        });
        if connected.is_err() {
            // A worker without traffic would look healthy. Without one, `watch` starts another in its place.
            slot.teardown();
        }
        connected
    }

    /// Takes over what a running worker can: its settings, when it counts as hanging, and the grace period.
    pub(crate) fn reconfigure(&mut self, config: &Config) {
        let hang = config.workers.hang;
        if hang != self.config.workers.hang {
            self.watchdog = Watchdog::new(hang);
        }
        (self.config.workers.hang, self.config.xdp.grace) = (hang, config.xdp.grace);
        self.config.workers.idle_before_sleep = config.workers.idle_before_sleep;
        (self.config.flows, self.config.pipeline) = (config.flows, config.pipeline);
        let settings = self.settings();
        for (worker, slot) in self.slots.iter().enumerate() {
            if let Stage::Running(handle) = &slot.stage
                && !handle.configure(settings)
            {
                tracing::error!(
                    worker,
                    "the worker does not take its new settings: it gets them when it is restarted"
                );
            }
        }
    }

    /// The part of a worker's configuration that may change while it runs.
    fn settings(&self) -> WorkerSettings {
        let largest_packet = u16::try_from(self.largest_packet()).unwrap_or(u16::MAX);
        WorkerSettings {
            idle_before_sleep: self.config.workers.idle_before_sleep,
            timeouts: self.config.flows.timeouts(),
            pipeline: PipelineConfig { largest_packet, ..self.config.pipeline },
        }
    }

    /// For how long the XDP program drops our traffic for a successor when this process ends.
    pub(crate) fn grace(&self) -> Duration {
        self.config.xdp.grace
    }

    /// Respawns workers that have panicked, and returns those that have begun to hang, whose traffic passes to the kernel.
    pub(crate) fn watch(&mut self, context: &StartContext<'_>, now: Instant) -> Vec<usize> {
        if !self.started {
            return Vec::new();
        }
        if !self.needs_reopen {
            (0..self.slots.len()).for_each(|index| self.respawn(index, context, now));
        }
        let heartbeats: Vec<_> = self.slots.iter().map(WorkerSlot::heartbeat).collect();
        let mut hanging = Vec::new();
        for change in self.watchdog.look(&heartbeats, now) {
            match change {
                Change::Hangs(worker) => {
                    tracing::error!(worker, "worker hangs");
                    self.slots[worker]
                        .for_each_socket("take its traffic away", |s| s.disconnect(&context.map));
                    hanging.push(worker);
                }
                Change::Recovers(worker) => {
                    tracing::info!(worker, "worker makes progress again and gets its traffic back");
                    self.slots[worker].for_each_socket("give its traffic back", |s| s.connect(&context.map));
                }
            }
        }
        hanging
    }

    /// Starts another worker in the slot of one that has panicked or could not be started, unless that happened too often.
    fn respawn(&mut self, index: usize, context: &StartContext<'_>, now: Instant) {
        let slot = &mut self.slots[index];
        match &slot.stage {
            Stage::Running(handle) if !handle.is_finished() => return,
            Stage::Ready(_) => return,
            Stage::Running(_) | Stage::Empty => {}
        }
        if matches!(slot.stage, Stage::Empty) && !slot.may_try_again(now) {
            return;
        }
        match slot.stage {
            Stage::Running(_) => tracing::error!(worker = index, "worker has panicked"),
            // The last attempt found no socket or thread for it.
            Stage::Ready(_) | Stage::Empty => tracing::warn!(worker = index, "the worker is started again"),
        }
        let mut frames = self.frames.clone();
        if frames.zero_copy == ZeroCopy::Auto && slot.sockets.iter().any(|s| s.mode == BindMode::Copy) {
            // These devices have refused zero copy already; another attempt only takes time.
            frames.zero_copy = ZeroCopy::Off;
        }
        slot.teardown();
        slot.panics.push_back(now);
        if !slot.may_try_again(now) {
            tracing::error!(worker = index, "no other worker takes its place: too many have failed");
            return;
        }
        let opened = sockets::open(&self.config, context.attached, slot.number, &frames);
        let replaced = opened.and_then(|Opened { device, sockets, room }| {
            let slot = &mut self.slots[index];
            (slot.stage, slot.sockets, slot.room) = (Stage::Ready(device), sockets, Some(room));
            self.start_one(index, context)
        });
        match replaced {
            Ok(()) => {
                self.restarts.panic += 1;
                tracing::info!(worker = index, "the worker has been replaced");
            }
            Err(error) => {
                self.slots[index].teardown();
                tracing::error!(worker = index, "the worker cannot be replaced yet: {error:#}");
            }
        }
    }

    /// Opens all sockets again after interfaces have changed, with as many workers as their queues allow.
    ///
    /// # Errors
    /// What is missing, with its interface and queue. Then no worker runs until another call succeeds. If zero copy is
    /// demanded and would lose packets, all workers go on unchanged.
    pub(crate) fn reopen(&mut self, context: &StartContext<'_>) -> anyhow::Result<()> {
        // Checked before the workers stop: what cannot be served must not interrupt the other interfaces.
        sockets::choose_frames(&self.config, context.attached, self.proofs.zero_copy())?;
        self.pause()?;
        self.open_slots(context.attached)?;
        self.restarts.interface += 1;
        self.resume(context)
    }

    /// Stops all workers and closes their sockets, until new ones are opened and [`Self::resume`] is called.
    ///
    /// # Errors
    /// A worker does not stop.
    pub(crate) fn pause(&mut self) -> anyhow::Result<()> {
        self.request_stop();
        for (worker, slot) in self.slots.iter_mut().enumerate() {
            anyhow::ensure!(slot.has_stopped_within(STOP_LIMIT), "worker {worker} does not stop");
            slot.teardown();
        }
        self.watchdog = Watchdog::new(self.config.workers.hang);
        self.needs_reopen = true;
        Ok(())
    }

    /// Starts workers on the sockets that were opened after a pause.
    ///
    /// # Errors
    /// The kernel refuses a thread or a slot.
    pub(crate) fn resume(&mut self, context: &StartContext<'_>) -> anyhow::Result<()> {
        self.needs_reopen = false;
        if self.started { self.start_all(context) } else { Ok(()) }
    }

    /// Closes the sockets of slots without a worker.
    pub(crate) fn close(&mut self) {
        self.slots
            .iter_mut()
            .filter(|slot| matches!(slot.stage, Stage::Ready(_)))
            .for_each(WorkerSlot::teardown);
    }

    /// Whether all sockets are open, with the zero-copy policy that follows from the proofs.
    pub(crate) fn is_open_as_planned(&self) -> bool {
        let is_open = |slot: &WorkerSlot| !matches!(slot.stage, Stage::Empty);
        self.slots.iter().all(is_open) && self.zero_copy == self.proofs.zero_copy()
    }

    /// Whether the workers have been started, which the first generation does.
    pub(crate) fn have_started(&self) -> bool {
        self.started
    }

    /// Whether the workers have been started and have sockets.
    pub(crate) fn is_serving(&self) -> bool {
        self.started && !self.needs_reopen
    }

    /// Sends a frame by the socket of a slot whose worker has not started.
    ///
    /// # Errors
    /// There is no such slot, or its ring is full.
    pub(crate) fn send(&mut self, interface: InterfaceId, frame: &[u8]) -> io::Result<()> {
        let ready = self.slots.iter_mut().find_map(|slot| match &mut slot.stage {
            Stage::Ready(device) => Some(device),
            Stage::Running(_) | Stage::Empty => None,
        });
        let sent = ready.map(|device| device.send_bytes(interface, frame));
        sent.ok_or(io::ErrorKind::NotConnected)?.map_err(|not_sent| io::Error::other(format!("{not_sent:?}")))
    }

    /// The mode in which an interface works; `None`: it has no sockets.
    pub(crate) fn mode(&self, interface: &str) -> Option<Mode> {
        let mut sockets = self.slots.iter().flat_map(|slot| &slot.sockets);
        let socket = sockets.find(|socket| socket.interface == interface)?;
        Some(Mode::of(socket.xdp, socket.mode))
    }

    /// The proof of an interface, for people.
    pub(crate) fn proof(&self, interface: &str) -> ProofStatus {
        self.proofs.shown(interface, self.mode(interface), self.chunk_len())
    }

    /// Length of a frame in bytes.
    pub(crate) fn chunk_len(&self) -> u32 {
        self.frames.chunk_len
    }

    /// Whether every slot has a worker that makes progress.
    pub(crate) fn are_healthy(&self) -> bool {
        (0..self.slots.len()).all(|worker| self.state(worker) == "running")
    }

    /// `starting`, `running`, `hanging` or `dead`.
    pub(crate) fn state(&self, worker: usize) -> &'static str {
        match &self.slots[worker].stage {
            Stage::Ready(_) => "starting",
            Stage::Running(handle) if handle.is_finished() => "dead",
            Stage::Running(_) if self.watchdog.is_hanging(worker) => "hanging",
            Stage::Running(_) => "running",
            Stage::Empty => "dead",
        }
    }

    /// The cores that workers are bound to.
    pub(crate) fn cores(&self) -> Vec<usize> {
        self.slots.iter().filter_map(|slot| slot.core).collect()
    }

    fn request_stop(&self) {
        for slot in &self.slots {
            if let Stage::Running(handle) = &slot.stage {
                handle.request_stop();
            }
        }
    }

    /// Stops all workers and waits for them, except for those that hang.
    pub(crate) fn stop(mut self) {
        self.request_stop();
        for (worker, slot) in self.slots.iter_mut().enumerate() {
            if !self.watchdog.is_hanging(worker) && slot.has_stopped_within(STOP_LIMIT) {
                slot.teardown();
            } else {
                tracing::error!(worker, "the worker does not stop: its thread ends with the process");
            }
        }
    }
}

/// How long a stop waits for a worker. One that sleeps wakes after 100 ms at most.
const STOP_LIMIT: Duration = Duration::from_secs(2);
