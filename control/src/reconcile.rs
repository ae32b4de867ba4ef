//! The loop that turns changes into published tables. A failure at any step leaves the last good tables in force.
//!
//! Values come from one source, from netlink, and from workers that have no neighbour for a packet. Changes are
//! debounced (until 10 ms were quiet, 100 ms at most; P1004), then compiled and handed to the sink.

mod background;
mod changes;
mod debounce;
mod findings;
mod publication;
mod status;
mod sync_metrics;

use std::fmt::Display;
use std::sync::Arc;

use flowgate_tables::Tables;
use flowgate_tables::routing::NeighbourKey;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

pub use self::background::Background;
use self::background::release;
pub use self::changes::Changes;
use self::debounce::Debounce;
use self::findings::Findings;
use self::publication::{Job, Outcome, Publication};
pub use self::status::Status;
pub use self::sync_metrics::{SyncKind, SyncMetrics};
use crate::compile::CompileConfig;
use crate::model::{Desired, NetState};
use crate::netlink::Resolve;
use crate::report::{Entry, Report, Severity};
use crate::source::{SourceEvent, SourceHealth};

/// A generation to publish.
#[derive(Clone, Debug)]
pub struct Update {
    /// The tables.
    pub tables: Tables,
}

/// Everything that flows into and out of the loop, besides the sink.
#[derive(Debug)]
pub struct Channels {
    /// Objects and their changes.
    pub source: mpsc::Receiver<SourceEvent>,
    /// Links, addresses, routes and neighbours.
    pub net: watch::Receiver<NetState>,
    /// Neighbours that workers have packets for.
    pub requests: mpsc::Receiver<NeighbourKey>,
    /// What to compile by. The first value is in force at the start; others take its place as they come.
    pub config: watch::Receiver<CompileConfig>,
    /// Requests to resolve neighbours.
    pub resolve: mpsc::Sender<Resolve>,
    /// Gets the state of the loop.
    pub status: watch::Sender<Status>,
    /// Gets the objects of the last compilation.
    pub desired: watch::Sender<Arc<Desired>>,
    /// Gets counts and times of syncs.
    pub sync_metrics: SyncMetrics,
    /// Turns true, or is dropped, when the loop should end.
    pub shutdown: watch::Receiver<bool>,
}

/// Runs until shutdown. The sink publishes each update; one that it refuses is offered again until it is
/// taken or a newer one takes its place. Nothing is published before the source's first set of objects.
///
/// What takes long runs on other threads, with the priority of `background`; the calling thread is never away for long.
pub async fn run<E: Display>(
    background: Background,
    channels: Channels,
    sink: impl AsyncFnMut(Update) -> Result<(), E>,
) {
    // One job at a time, and one outcome for each.
    let ((jobs, waiting_jobs), (outcomes, finished)) = (mpsc::channel(1), mpsc::channel(1));
    let publication = Publication::new(background, &channels, sink);
    tokio::select! {
        () = collect(channels, jobs, finished) => {}
        () = publication.run(waiting_jobs, outcomes) => {}
    }
}

/// The half of the loop that collects changes. Whenever there are some and the other half is idle, it gets a job.
async fn collect(channels: Channels, jobs: mpsc::Sender<Job>, mut finished: mpsc::Receiver<Outcome>) {
    let Channels { source, net, requests, config, resolve, .. } = channels;
    let Channels { status, sync_metrics, mut shutdown, .. } = channels;
    let mut state = Collector {
        desired: Arc::default(),
        findings: Findings::default(),
        stage: Stage::Waiting,
        resolve,
        status,
        sync_metrics,
    };
    let open = Open { source: true, net: true, requests: true, config: true };
    let mut inputs = Inputs { source, net, requests, config, open };
    let mut debounce = Debounce::default();
    let mut publishing = false;
    loop {
        let due = debounce.due().filter(|_| !publishing);
        // Biased: shutdown goes first, and a job that is due is not put off by more input.
        tokio::select! {
            biased;
            () = ended(&mut shutdown) => return,
            Some(outcome) = finished.recv() => {
                publishing = false;
                // A change in the meantime is a reason of its own, and sooner.
                if outcome == Outcome::Refused && debounce.due().is_none() {
                    debounce.retry(Instant::now());
                }
            }
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                debounce = Debounce::default();
                match state.stage {
                    Stage::Waiting => state.report_waiting(),
                    Stage::Serving => publishing = jobs.try_send(state.job()).is_ok(),
                }
            }
            input = inputs.next() => match input {
                Input::Source(event) => {
                    state.apply_source_event(event);
                    debounce.changed(Instant::now());
                }
                Input::Net | Input::Config => {
                    // Before the first set of objects there is nothing to compile.
                    if state.stage == Stage::Serving {
                        state.sync_metrics.queued(Instant::now());
                        debounce.changed(Instant::now());
                    }
                }
                // If netlink's channel is full the request is dropped: the next packet repeats it.
                Input::Neighbours(wanted) => drop(state.resolve.try_send(Resolve::Now(wanted))),
            },
        }
    }
}

/// Returns when shutdown is requested, or its sender is dropped.
async fn ended(shutdown: &mut watch::Receiver<bool>) {
    let _ = shutdown.wait_for(|end| *end).await;
}

/// The channels that the loop waits for. One that is closed is no longer waited for; the others go on.
struct Inputs {
    source: mpsc::Receiver<SourceEvent>,
    net: watch::Receiver<NetState>,
    requests: mpsc::Receiver<NeighbourKey>,
    config: watch::Receiver<CompileConfig>,
    open: Open,
}

/// Which channels have senders.
struct Open {
    source: bool,
    net: bool,
    requests: bool,
    config: bool,
}

enum Input {
    Source(SourceEvent),
    /// Links, addresses, routes or neighbours changed.
    Net,
    /// The configuration changed.
    Config,
    /// Each neighbour once, ascending.
    Neighbours(Vec<NeighbourKey>),
}

impl Inputs {
    /// The next value of any channel; pending when all are closed. Cancel safe: nothing is awaited between receiving
    /// a value and returning it.
    async fn next(&mut self) -> Input {
        loop {
            tokio::select! {
                biased;
                event = self.source.recv(), if self.open.source => match event {
                    Some(event) => return Input::Source(event),
                    None => self.open.source = false,
                },
                changed = self.net.changed(), if self.open.net => match changed {
                    Ok(()) => return Input::Net,
                    Err(_) => self.open.net = false,
                },
                changed = self.config.changed(), if self.open.config => match changed {
                    Ok(()) => return Input::Config,
                    Err(_) => self.open.config = false,
                },
                request = self.requests.recv(), if self.open.requests => match request {
                    Some(first) => {
                        let mut wanted = vec![first];
                        while let Ok(more) = self.requests.try_recv() {
                            wanted.push(more);
                        }
                        wanted.sort_unstable();
                        wanted.dedup();
                        return Input::Neighbours(wanted);
                    }
                    None => self.open.requests = false,
                },
                else => std::future::pending().await,
            }
        }
    }
}

/// What was received so far.
struct Collector {
    desired: Arc<Desired>,
    findings: Findings,
    stage: Stage,
    resolve: mpsc::Sender<Resolve>,
    status: watch::Sender<Status>,
    sync_metrics: SyncMetrics,
}

/// Whether there is a set of objects to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// P1001: nothing is published; what a predecessor published stays as it is.
    Waiting,
    Serving,
}

impl Collector {
    fn apply_source_event(&mut self, event: SourceEvent) {
        match event {
            SourceEvent::Replace(snapshot) => {
                self.stage = Stage::Serving;
                let changes = Changes::between(&self.desired, &snapshot.desired);
                self.sync_metrics.changed(&changes, Instant::now());
                // To the compiler the same `Arc` means unchanged objects.
                if snapshot.desired != *self.desired {
                    release(std::mem::replace(&mut self.desired, Arc::new(snapshot.desired)));
                }
                self.findings = snapshot.findings.into_iter().collect();
                let objects = self.desired.counts();
                self.status.send_modify(|status| {
                    status.received = true;
                    (status.objects, status.ignored_objects) = (objects, snapshot.ignored);
                    if status.source == SourceHealth::Starting {
                        status.source = SourceHealth::Synced;
                    }
                });
            }
            SourceEvent::Change(changes) => {
                let counted = changes::apply(&mut self.desired, &mut self.findings, changes);
                self.sync_metrics.changed(&counted, Instant::now());
                let objects = self.desired.counts();
                self.status.send_modify(|status| status.objects = objects);
            }
            SourceEvent::Health(health) => self.status.send_modify(|status| status.source = health),
        }
    }

    /// Reports why nothing is served yet.
    fn report_waiting(&self) {
        let mut entries: Vec<Entry> = self.findings.all().iter().map(|entry| Entry::clone(entry)).collect();
        entries.extend(self.of_source());
        let report = Arc::new(Report { entries });
        self.status.send_modify(|status| status.report = report);
    }

    /// All that was received, to be put in force.
    fn job(&self) -> Job {
        self.sync_metrics.begun();
        Job { desired: Arc::clone(&self.desired), findings: self.findings.all(), of_source: self.of_source() }
    }

    /// What is wrong with the source, and what follows.
    fn of_source(&self) -> Option<Entry> {
        let SourceHealth::Stale { reason, .. } = &self.status.borrow().source else { return None };
        let consequence = match self.stage {
            Stage::Waiting => "nothing is served before it was read once",
            Stage::Serving => "the last good state stays in force",
        };
        let reason = format!("{reason}; {consequence}");
        Some(Entry { severity: Severity::Error, place: None, object: None, reason })
    }
}

#[cfg(test)]
mod tests;
