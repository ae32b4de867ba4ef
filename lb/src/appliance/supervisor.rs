//! The supervisor owns workers and publishing. It checks periodically what may break while traffic flows, and carries out
//! the requests of other tasks one after the other, so that nothing needs a lock. While all workers are healthy it extends
//! the grace period, during which the XDP program drops traffic instead of passing it to the kernel: should the process end
//! suddenly, the next one still finds its connections.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flowgate_control::Status;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

use super::Appliance;
use super::interfaces::Interfaces;
use super::prove::{self, Prover};
use super::reexec::ExecHistory;

/// Owns what serves.
pub(crate) struct Supervisor {
    pub(crate) appliance: Appliance,
    requests: mpsc::Receiver<Request>,
    prover: Prover,
    outputs: SupervisorOutputs,
    exec_history: ExecHistory,
    grace_set_at: Option<Instant>,
    interfaces_checked_at: Option<Instant>,
    interfaces: Interfaces,
}

/// Where the supervisor shows what is wrong.
pub(crate) struct SupervisorOutputs {
    /// For the health server.
    pub(crate) unhealthy_reasons: watch::Sender<Arc<[String]>>,
    /// For `flowgate show` and the log.
    pub(crate) status: watch::Sender<Status>,
}

/// An operation on the appliance, with the sender for its result.
type Request = Box<dyn FnOnce(&mut Appliance)>;

/// How other tasks send requests to the supervisor.
#[derive(Clone)]
pub(crate) struct SupervisorHandle {
    requests: mpsc::Sender<Request>,
}

/// The supervisor has ended, since the process is ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("flowgate is ending")]
pub(crate) struct ShuttingDown;

impl SupervisorHandle {
    /// Runs an operation in the supervisor and returns its result. It must be quick: workers are not watched meanwhile.
    ///
    /// # Errors
    /// [`ShuttingDown`].
    pub(crate) async fn request<R: 'static>(
        &self,
        what: impl FnOnce(&mut Appliance) -> R + 'static,
    ) -> Result<R, ShuttingDown> {
        let (reply, result) = oneshot::channel();
        let request: Request = Box::new(move |appliance| {
            // The receiver is gone if the request was cancelled.
            let _ = reply.send(what(appliance));
        });
        self.requests.send(request).await.map_err(|_closed| ShuttingDown)?;
        result.await.map_err(|_closed| ShuttingDown)
    }

    /// Looks at the appliance as [`request`](Self::request) does, for people and programs that ask: a defect of the view
    /// does not end the process.
    ///
    /// # Errors
    /// [`ViewError`].
    pub(crate) async fn view<R: 'static>(
        &self,
        look: impl FnOnce(&mut Appliance) -> R + 'static,
    ) -> Result<R, ViewError> {
        let guarded = move |appliance: &mut Appliance| catch_unwind(AssertUnwindSafe(|| look(appliance)));
        self.request(guarded).await?.map_err(|_panic| ViewError::Panicked)
    }
}

/// Why a view of the appliance cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ViewError {
    /// The supervisor has ended.
    #[error(transparent)]
    ShuttingDown(#[from] ShuttingDown),
    /// The view panicked.
    #[error("this view failed, see flowgate's log")]
    Panicked,
}

impl Supervisor {
    pub(crate) fn new(
        appliance: Appliance,
        outputs: SupervisorOutputs,
        exec_history: ExecHistory,
    ) -> (Self, SupervisorHandle) {
        let (sender, requests) = mpsc::channel(REQUESTS_WAITING);
        let interfaces = Interfaces::attached(appliance.publishing.steering.report());
        let supervisor = Self {
            appliance,
            requests,
            prover: Prover::default(),
            outputs,
            exec_history,
            grace_set_at: None,
            interfaces_checked_at: None,
            interfaces,
        };
        (supervisor, SupervisorHandle { requests: sender })
    }

    /// Supervises until a worker hangs and the process should be executed again; returns the number of the worker.
    pub(crate) async fn until_a_worker_hangs(&mut self) -> usize {
        // After a long operation the ticks that were missed are not made up for.
        let every = |period| {
            let mut ticks = tokio::time::interval(period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        };
        let (mut checks, mut proofs) = (every(CHECK_EVERY), every(prove::CHECK_EVERY));
        loop {
            tokio::select! {
                _ = checks.tick() => {
                    if let Some(worker) = self.check() {
                        return worker;
                    }
                }
                _ = proofs.tick() => self.prover.look(&mut self.appliance, now()),
                found = self.prover.found() => self.prover.conclude(&mut self.appliance, found),
                Some(request) = self.requests.recv() => request(&mut self.appliance),
            }
        }
    }

    fn check(&mut self) -> Option<usize> {
        // Not the time that the tick returns, which is when it was due: if it is late, workers would seem to hang.
        let now = now();
        if let Some(worker) = self.check_workers(now) {
            return Some(worker);
        }
        if self.interfaces_checked_at.is_none_or(|at| now.duration_since(at) >= INTERFACES_EVERY) {
            self.interfaces_checked_at = Some(now);
            self.interfaces.check(&mut self.appliance);
        }
        self.prolong_grace(now);
        self.report_exhaustion(now);
        self.appliance.publishing.follow_up(now);
        self.report_maps();
        publish_unhealthy_reasons(&self.appliance, &self.outputs.unhealthy_reasons);
        self.appliance.publishing.publisher.collect();
        None
    }

    /// Logs which Services have new flows refused, and the remedy.
    fn report_exhaustion(&mut self, now: Instant) {
        let tables = self.appliance.publishing.publisher.current();
        for warning in self.appliance.workers.exhaustion.take_warnings(&tables, now) {
            tracing::warn!("{warning}");
        }
    }

    /// Shows what the BPF maps lack.
    fn report_maps(&self) {
        let findings = self.appliance.publishing.findings();
        Status::show_listener_findings(&self.outputs.status, "maps of the XDP program", findings);
    }

    fn check_workers(&mut self, now: Instant) -> Option<usize> {
        let Appliance { workers, publishing } = &mut self.appliance;
        let hanging = workers.watch(&publishing.start_context(), now);
        let worker = hanging.first().copied()?;
        if self.exec_history.within_limit() {
            return Some(worker);
        }
        tracing::error!("this happens again and again: the process goes on without this worker");
        None
    }

    /// Extends the grace period while all workers are healthy. If one stays dead or hangs the period runs out, and the XDP
    /// program passes its traffic to the kernel.
    fn prolong_grace(&mut self, now: Instant) {
        let due = self.grace_set_at.is_none_or(|at| now.duration_since(at) >= GRACE_EVERY);
        let grace = self.appliance.workers.grace();
        if grace.is_zero() || !due || !self.appliance.workers.are_healthy() {
            return;
        }
        self.grace_set_at = Some(now);
        if let Err(error) = self.appliance.publishing.steering.set_grace_period(grace) {
            tracing::error!(%error, "the grace period cannot be extended: the next restart may break connections");
        }
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Gives the reasons for which workers or maps are unhealthy to the health server.
fn publish_unhealthy_reasons(
    Appliance { workers, publishing }: &Appliance,
    unhealthy_reasons: &watch::Sender<Arc<[String]>>,
) {
    let states = (0..workers.slots.len()).map(|index| (index, workers.state(index)));
    let unwell = states
        .filter(|(_, state)| ["hanging", "dead"].contains(state))
        .map(|(index, state)| format!("worker {index} is {state}: its traffic passes to the kernel"));
    let no_sockets = workers.needs_reopen.then(|| "no sockets after a change of the interfaces".to_owned());
    let reports = publishing.steering.report();
    let names = || reports.iter().map(|report| &*report.interface).collect::<Vec<_>>().join(", ");
    let is_without = reports.iter().all(|report| report.queues == 0);
    let no_interface = is_without.then(|| format!("no interface to serve exists, waiting for {}", names()));
    let unwell = unwell.chain(no_sockets).chain(no_interface);
    let unwell: Arc<[String]> = unwell.chain(publishing.unhealthy_reasons()).collect();
    unhealthy_reasons.send_if_modified(|shown| {
        let changed = *shown != unwell;
        *shown = unwell;
        changed
    });
}

/// How often heartbeats are checked and retired generations freed.
const CHECK_EVERY: Duration = Duration::from_millis(100);
/// How often the devices are checked.
const INTERFACES_EVERY: Duration = Duration::from_millis(200);
/// How often the grace period is extended.
const GRACE_EVERY: Duration = Duration::from_millis(500);
/// Length of the request queue; a sender waits while it is full.
const REQUESTS_WAITING: usize = 64;
