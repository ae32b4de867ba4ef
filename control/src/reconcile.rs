//! The loop that turns changes into published tables. Never drops the last good state.
//!
//! Values come in from one source, from netlink and from workers that miss a neighbour. Changes are coalesced
//! until it was quiet for 10 ms, but never longer than 100 ms, then compiled and handed to the sink.

mod changes;
mod status;
mod sync_metrics;

use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use flowgate_tables::Tables;
use flowgate_tables::routing::NeighbourKey;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

pub use self::changes::Changes;
pub use self::status::Status;
pub use self::sync_metrics::{SyncKind, SyncMetrics};
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
    /// What was wrong with the objects they were compiled from.
    pub report: Arc<Report>,
}

/// Everything that flows into and out of the loop, besides the sink.
#[derive(Debug)]
pub struct Channels {
    /// What the source says.
    pub source: mpsc::Receiver<SourceEvent>,
    /// The network.
    pub net: watch::Receiver<NetState>,
    /// Neighbours that workers have packets for.
    pub requests: mpsc::Receiver<NeighbourKey>,
    /// Requests to resolve neighbours.
    pub resolve: mpsc::Sender<Resolve>,
    /// Where the state of the loop is shown.
    pub status: watch::Sender<Status>,
    /// Where the objects of the last compilation are shown.
    pub desired: watch::Sender<Arc<Desired>>,
    /// Takes down what the loop does.
    pub sync_metrics: SyncMetrics,
    /// Turns true, or is dropped, when the loop should end.
    pub shutdown: watch::Receiver<bool>,
}

/// Runs until shutdown. The sink publishes each update; one that it refuses is offered again until it is
/// taken or a newer one takes its place. Nothing is published before the source has spoken.
pub async fn run<E: Display>(
    config: CompileConfig,
    channels: Channels,
    sink: impl AsyncFnMut(Update) -> Result<(), E>,
) {
    let Channels {
        mut source,
        mut net,
        mut requests,
        resolve,
        status,
        desired: shown_desired,
        sync_metrics,
        mut shutdown,
    } = channels;
    let net_state = net.borrow_and_update().clone();
    let mut state = Reconciler {
        compiler: Compiler::new(config),
        desired: Arc::default(),
        findings: Vec::new(),
        stage: Stage::Waiting,
        net: net_state,
        published_generation: None,
        sink,
        resolve,
        periodic: Vec::new(),
        status,
        shown_desired,
        sync_metrics,
    };
    let mut debounce = Debounce::default();
    let (mut source_open, mut net_open, mut requests_open) = (true, true, true);
    loop {
        let due = debounce.due();
        tokio::select! {
            biased;
            () = ended(&mut shutdown) => return,
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                debounce = Debounce::default();
                if state.stage == Stage::Waiting {
                    state.report_waiting();
                } else if state.compile().await == PublishOutcome::Refused {
                    debounce.retry(Instant::now());
                }
            }
            event = source.recv(), if source_open => match event {
                Some(event) => {
                    state.source_event(event);
                    debounce.changed(Instant::now());
                }
                None => source_open = false,
            },
            changed = net.changed(), if net_open => match changed {
                Ok(()) => {
                    state.net = net.borrow_and_update().clone();
                    if state.stage == Stage::Serving {
                        state.sync_metrics.queued(Instant::now());
                        debounce.changed(Instant::now());
                    }
                }
                Err(_) => net_open = false,
            },
            request = requests.recv(), if requests_open => match request {
                Some(first) => {
                    let mut wanted = vec![first];
                    while let Ok(more) = requests.try_recv() {
                        wanted.push(more);
                    }
                    wanted.sort_unstable();
                    wanted.dedup();
                    // When netlink is behind, the next packet asks again.
                    let _ = state.resolve.try_send(Resolve::Now(wanted));
                }
                None => requests_open = false,
            },
        }
    }
}

/// Waits until the end is asked for, or whoever could ask is gone.
async fn ended(shutdown: &mut watch::Receiver<bool>) {
    let _ = shutdown.wait_for(|end| *end).await;
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
    periodic: Vec<NeighbourKey>,
    status: watch::Sender<Status>,
    shown_desired: watch::Sender<Arc<Desired>>,
    sync_metrics: SyncMetrics,
}

/// Whether there is a set of objects to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// P1001: nothing is published, whatever a predecessor left stays as it is.
    Waiting,
    Serving,
}

/// What became of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PublishOutcome {
    Published,
    Refused,
}

impl<S, E: Display> Reconciler<S>
where
    S: AsyncFnMut(Update) -> Result<(), E>,
{
    fn source_event(&mut self, event: SourceEvent) {
        match event {
            SourceEvent::Replace(snapshot) => {
                self.stage = Stage::Serving;
                let changes = Changes::between(&self.desired, &snapshot.desired);
                self.sync_metrics.changed(&changes, Instant::now());
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

    /// Shows why there is nothing yet.
    fn report_waiting(&self) {
        let report = Arc::new(Report { entries: self.entries(Report::default()) });
        self.status.send_modify(|status| status.report = report);
    }

    async fn compile(&mut self) -> PublishOutcome {
        let began = Instant::now();
        let (tables, compiled) = self.compiler.compile(&self.desired, &self.net);
        let report = Arc::new(Report { entries: self.entries(compiled) });
        let outcome = if self.published_generation == Some(tables.generation) {
            Ok(())
        } else {
            let update = Update { tables: tables.clone(), report: Arc::clone(&report) };
            (self.sink)(update).await.map_err(|error| error.to_string())
        };
        self.observe(began, &outcome);
        let published = outcome.is_ok() && self.published_generation != Some(tables.generation);
        if published {
            self.published_generation = Some(tables.generation);
        }
        let refused = outcome.as_ref().err().cloned();
        self.status.send_if_modified(|status| {
            let mut next = Status { report, refused, ..status.clone() };
            if published {
                next.generation = tables.generation;
                next.last_change = Some(SystemTime::now());
            }
            let changed = next != *status;
            *status = next;
            changed
        });
        self.request_resolution(&tables);
        self.shown_desired.send_if_modified(|shown| {
            let changed = !Arc::ptr_eq(shown, &self.desired);
            shown.clone_from(&self.desired);
            changed
        });
        if outcome.is_ok() { PublishOutcome::Published } else { PublishOutcome::Refused }
    }

    fn observe(&self, began: Instant, outcome: &Result<(), String>) {
        let kind = if self.published_generation.is_none() { SyncKind::Full } else { SyncKind::Partial };
        match outcome {
            Ok(()) => self.sync_metrics.synced(began.elapsed(), kind),
            Err(_) => self.sync_metrics.refused(),
        }
    }

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
        if wanted != self.periodic && self.resolve.try_send(Resolve::Periodic(wanted.clone())).is_ok() {
            self.periodic = wanted;
        }
    }
}

/// When to compile: after a pause, but not too late.
#[derive(Clone, Copy, Debug, Default)]
struct Debounce {
    times: Option<(Instant, Instant)>,
}

impl Debounce {
    fn changed(&mut self, now: Instant) {
        let first = self.times.map_or(now, |(first, _)| first);
        self.times = Some((first, now));
    }

    fn retry(&mut self, now: Instant) {
        let at = now + RETRY_AFTER;
        self.times = Some((at, at));
    }

    fn due(&self) -> Option<Instant> {
        self.times.map(|(first, last)| (last + QUIET).min(first + LATEST))
    }
}

/// Changes are coalesced until none came for this long.
const QUIET: Duration = Duration::from_millis(10);
/// Changes that never pause are compiled after so long all the same.
const LATEST: Duration = Duration::from_millis(100);
/// A sink that refused an update is asked again after so long.
const RETRY_AFTER: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
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
        let (desired, sync_metrics) = (watch::channel(Arc::default()).0, SyncMetrics::default());
        let channels = Channels { source, net, requests, resolve, status, desired, sync_metrics, shutdown };
        let running = run(CompileConfig::default(), channels, async move |update: Update| {
            published.send(update.tables)
        });
        let told = async {
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
            told = tokio::time::timeout(Duration::from_secs(60), told) => told.unwrap(),
        }
    }
}
