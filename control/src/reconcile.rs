//! The loop that turns changes into published tables. A failure at any step leaves the last good tables in force.
//!
//! Values come from one source, from netlink, and from workers that have no neighbour for a packet. Changes are
//! debounced (until 10 ms were quiet, 100 ms at most; P1004), then compiled and handed to the sink.

mod changes;
mod debounce;
mod status;
mod sync_metrics;

use std::fmt::Display;
use std::sync::Arc;

use flowgate_tables::Tables;
use flowgate_tables::routing::NeighbourKey;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

pub use self::changes::Changes;
use self::debounce::Debounce;
pub use self::status::Status;
pub use self::sync_metrics::{SyncKind, SyncMetrics};
use crate::clock;
use crate::compile::{CompileConfig, Compiler, unresolved_next_hops};
use crate::model::{Desired, NetState};
use crate::netlink::Resolve;
use crate::report::{Entry, Report, Severity};
use crate::source::{SourceEvent, SourceHealth};

/// A generation to publish.
#[derive(Clone, Debug)]
pub struct Update {
    /// The tables.
    pub tables: Tables,
    /// What is wrong with the objects that they were compiled from.
    pub report: Arc<Report>,
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
pub async fn run<E: Display>(channels: Channels, sink: impl AsyncFnMut(Update) -> Result<(), E>) {
    let Channels { source, mut net, requests, mut config, resolve, .. } = channels;
    let Channels { status, desired, sync_metrics, mut shutdown, .. } = channels;
    let mut state = Reconciler {
        compiler: Compiler::new(config.borrow_and_update().clone()),
        desired: Arc::default(),
        findings: Vec::new(),
        stage: Stage::Waiting,
        net: net.borrow_and_update().clone(),
        published_generation: None,
        sink,
        resolve,
        periodic: Vec::new(),
        status,
        shown_desired: desired,
        sync_metrics,
    };
    let open = Open { source: true, net: true, requests: true, config: true };
    let mut inputs = Inputs { source, net, requests, config, open };
    let mut debounce = Debounce::default();
    loop {
        let due = debounce.due();
        // Biased: shutdown goes first, and a compilation that is due is not put off by more input.
        tokio::select! {
            biased;
            () = ended(&mut shutdown) => return,
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                debounce = Debounce::default();
                if state.stage == Stage::Waiting {
                    state.report_waiting();
                } else if state.compile_and_publish().await == PublishOutcome::Refused {
                    debounce.retry(Instant::now());
                }
            }
            input = inputs.next() => match input {
                Input::Source(event) => {
                    state.apply_source_event(event);
                    debounce.changed(Instant::now());
                }
                Input::Net(net) => {
                    state.net = net;
                    // Before the first set of objects there is nothing to compile.
                    if state.stage == Stage::Serving {
                        state.sync_metrics.queued(Instant::now());
                        debounce.changed(Instant::now());
                    }
                }
                Input::Config(config) => {
                    state.compiler.reconfigure(config);
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
    Net(NetState),
    Config(CompileConfig),
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
                    Ok(()) => return Input::Net(self.net.borrow_and_update().clone()),
                    Err(_) => self.open.net = false,
                },
                changed = self.config.changed(), if self.open.config => match changed {
                    Ok(()) => return Input::Config(self.config.borrow_and_update().clone()),
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

struct Reconciler<S> {
    compiler: Compiler,
    desired: Arc<Desired>,
    findings: Vec<Entry>,
    stage: Stage,
    net: NetState,
    /// The last generation that the sink took.
    published_generation: Option<u64>,
    sink: S,
    resolve: mpsc::Sender<Resolve>,
    /// The neighbours that netlink requests periodically.
    periodic: Vec<NeighbourKey>,
    status: watch::Sender<Status>,
    shown_desired: watch::Sender<Arc<Desired>>,
    sync_metrics: SyncMetrics,
}

/// Whether there is a set of objects to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// P1001: nothing is published; what a predecessor published stays as it is.
    Waiting,
    Serving,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PublishOutcome {
    Published,
    Refused,
}

impl<S, E: Display> Reconciler<S>
where
    S: AsyncFnMut(Update) -> Result<(), E>,
{
    fn apply_source_event(&mut self, event: SourceEvent) {
        match event {
            SourceEvent::Replace(snapshot) => {
                self.stage = Stage::Serving;
                let changes = Changes::between(&self.desired, &snapshot.desired);
                self.sync_metrics.changed(&changes, Instant::now());
                // To the compiler the same `Arc` means unchanged objects.
                if snapshot.desired != *self.desired {
                    self.desired = Arc::new(snapshot.desired);
                }
                self.findings = snapshot.findings;
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
        let report = Arc::new(Report { entries: self.entries(Report::default()) });
        self.status.send_modify(|status| status.report = report);
    }

    async fn compile_and_publish(&mut self) -> PublishOutcome {
        let began = Instant::now();
        let (tables, compiled) = self.compiler.compile(&self.desired, &self.net);
        let report = Arc::new(Report { entries: self.entries(compiled) });
        let outcome = if self.published_generation == Some(tables.generation) {
            Ok(())
        } else {
            let update = Update { tables: tables.clone(), report: Arc::clone(&report) };
            (self.sink)(update).await.map_err(|error| error.to_string())
        };
        self.count_sync(began, &outcome);
        let published = outcome.is_ok() && self.published_generation != Some(tables.generation);
        if published {
            self.published_generation = Some(tables.generation);
        }
        let refused = outcome.as_ref().err().cloned();
        // After the sink: a generation that the status shows is in force.
        self.status.send_if_modified(|status| {
            let mut next = Status { report, refused, ..status.clone() };
            if published {
                next.generation = tables.generation;
                next.last_change = Some(clock::now());
            }
            let changed = next != *status;
            *status = next;
            changed
        });
        self.request_resolution(&tables);
        // DNS and health ports follow after forwarding: a name that is answered leads to an address that is served.
        self.shown_desired.send_if_modified(|shown| {
            let changed = !Arc::ptr_eq(shown, &self.desired);
            shown.clone_from(&self.desired);
            changed
        });
        if outcome.is_ok() { PublishOutcome::Published } else { PublishOutcome::Refused }
    }

    fn count_sync(&self, began: Instant, outcome: &Result<(), String>) {
        let kind = if self.published_generation.is_none() { SyncKind::Full } else { SyncKind::Partial };
        match outcome {
            Ok(()) => self.sync_metrics.synced(began.elapsed(), kind),
            Err(_) => self.sync_metrics.refused(),
        }
    }

    /// All findings: those of the source, of the compilation, and of the source's health.
    fn entries(&self, compiled: Report) -> Vec<Entry> {
        let mut entries = self.findings.clone();
        entries.extend(compiled.entries);
        if let SourceHealth::Stale { reason, .. } = &self.status.borrow().source {
            let consequence = match self.stage {
                Stage::Waiting => "nothing is served before it was read once",
                Stage::Serving => "the last good state stays in force",
            };
            let reason = format!("{reason}; {consequence}");
            entries.push(Entry { severity: Severity::Error, place: None, object: None, reason });
        }
        entries
    }

    /// Has the next hops of all backends resolved before the first packet needs them.
    fn request_resolution(&mut self, tables: &Tables) {
        let wanted = unresolved_next_hops(tables);
        // If netlink's channel is full, the list stays as it was and is sent after the next compilation.
        if wanted != self.periodic && self.resolve.try_send(Resolve::Periodic(wanted.clone())).is_ok() {
            self.periodic = wanted;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::source::Snapshot;

    #[tokio::test]
    async fn p1001_nothing_is_published_before_the_first_whole_set_but_it_is_said_why() {
        let (events, source) = mpsc::channel(1);
        let (_net, net) = watch::channel(NetState::default());
        let (_requests, requests) = mpsc::channel(1);
        let (resolve, _resolutions) = mpsc::channel(1);
        let (status, mut shown) = watch::channel(Status::default());
        let (_shutdown, shutdown) = watch::channel(false);
        let (published, mut publications) = mpsc::unbounded_channel();
        let (_config, config) = watch::channel(CompileConfig::default());
        let (desired, sync_metrics) = (watch::channel(Arc::default()).0, SyncMetrics::default());
        let channels =
            Channels { source, net, requests, config, resolve, status, desired, sync_metrics, shutdown };
        let running = run(channels, async move |update: Update| published.send(update.tables));
        let driven = async {
            let stale = SourceHealth::Stale { since: SystemTime::UNIX_EPOCH, reason: "no answer".into() };
            events.send(SourceEvent::Health(stale)).await.expect("it runs");
            let said =
                shown.wait_for(|status| !status.report.entries.is_empty()).await.expect("it runs").clone();
            assert_eq!(
                said.report.to_string(),
                "error: no answer; nothing is served before it was read once\n"
            );
            assert!(publications.try_recv().is_err());
            events.send(SourceEvent::Replace(Snapshot::default())).await.expect("it runs");
            assert!(publications.recv().await.is_some());
        };
        tokio::select! {
            () = running => panic!("it runs until shutdown"),
            driven = tokio::time::timeout(Duration::from_secs(60), driven) => driven.unwrap(),
        }
    }
}
