//! The half of the loop that compiles and publishes, one set of objects after the other, while the other half goes on to
//! collect changes. What takes long runs on other threads.
//!
//! Routes and neighbours do not wait for Services: if the network changes while Services are compiled, its tables are
//! published with the last Services.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use flowgate_tables::Tables;
use flowgate_tables::routing::NeighbourKey;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep};

use super::background::{Background, release};
use super::status::Status;
use super::sync_metrics::{SyncKind, SyncMetrics};
use super::{Channels, Update};
use crate::clock;
use crate::compile::{
    CompileConfig, CompiledServices, NetworkPart, ServicePart, assemble, unresolved_next_hops,
};
use crate::model::{Desired, NetState};
use crate::netlink::Resolve;
use crate::report::{Entry, Report};

/// What is to be put in force.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) desired: Arc<Desired>,
    /// What the source found.
    pub(super) findings: Vec<Arc<Entry>>,
    /// What is wrong with the source itself.
    pub(super) of_source: Option<Entry>,
}

/// What came of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Published,
    /// The sink refused the tables: they are to be offered again.
    Refused,
    /// Compiling panicked: it would again, until something changes.
    Failed,
}

/// Compiles and publishes.
pub(super) struct Publication<S> {
    config: Arc<CompileConfig>,
    configs: watch::Receiver<CompileConfig>,
    background: Background,
    /// `None` while a thread has it, and after a panic.
    service_part: Option<ServicePart>,
    network: NetworkPart,
    /// The objects of the present job.
    desired: Arc<Desired>,
    compiled: CompiledServices,
    /// The newest tables; the sink may have refused them.
    tables: Tables,
    report: Arc<Report>,
    /// The last generation that the sink took.
    published_generation: Option<u64>,
    sink: S,
    net: watch::Receiver<NetState>,
    resolve: mpsc::Sender<Resolve>,
    /// The neighbours that netlink requests periodically.
    periodic: Vec<NeighbourKey>,
    status: watch::Sender<Status>,
    shown_desired: watch::Sender<Arc<Desired>>,
    sync_metrics: SyncMetrics,
}

/// Compiled Services, and what compiles the next ones.
struct Compiled {
    service_part: ServicePart,
    services: CompiledServices,
    report: Arc<Report>,
}

impl<S, E: Display> Publication<S>
where
    S: AsyncFnMut(Update) -> Result<(), E>,
{
    pub(super) fn new(background: Background, channels: &Channels, sink: S) -> Self {
        let mut configs = channels.config.clone();
        let (config, tables) = (Arc::new(configs.borrow_and_update().clone()), Tables::empty());
        Self {
            network: NetworkPart::compile(&Desired::default(), &NetState::default(), &config, &tables),
            desired: Arc::default(),
            compiled: CompiledServices::of(&tables),
            config,
            configs,
            background,
            service_part: None,
            tables,
            report: Arc::default(),
            published_generation: None,
            sink,
            net: channels.net.clone(),
            resolve: channels.resolve.clone(),
            periodic: Vec::new(),
            status: channels.status.clone(),
            shown_desired: channels.desired.clone(),
            sync_metrics: channels.sync_metrics.clone(),
        }
    }

    /// Does one job after the other, until the sender or receiver is dropped.
    pub(super) async fn run(mut self, mut jobs: mpsc::Receiver<Job>, outcomes: mpsc::Sender<Outcome>) {
        while let Some(job) = jobs.recv().await {
            let outcome = self.sync(job).await;
            if outcomes.send(outcome).await.is_err() {
                return;
            }
        }
    }

    async fn sync(&mut self, job: Job) -> Outcome {
        let began = Instant::now();
        release(std::mem::replace(&mut self.desired, Arc::clone(&job.desired)));
        if self.configs.has_changed().unwrap_or(false) {
            self.config = Arc::new(self.configs.borrow_and_update().clone());
            // What is remembered follows from the old one. Ids of Services and backends stay, so that flows go on.
            release(self.service_part.take());
        }
        let kind = if self.published_generation.is_none() { SyncKind::Full } else { SyncKind::Partial };
        let net = self.compile_network().await;
        let mut compiling = self.compile_services(job, net);
        let compiled = loop {
            tokio::select! {
                biased;
                compiled = &mut compiling => break compiled,
                // P1001: the network alone is no whole set.
                () = changed(&mut self.net), if self.published_generation.is_some() => {
                    self.publish_network().await;
                }
            }
        };
        let outcome = match compiled {
            Ok(compiled) => self.publish_services(compiled).await,
            Err(panic) => {
                let reason = format!(
                    "compiling failed, which is a defect of flowgate, and is tried again after the next change: {panic}"
                );
                tracing::error!("{reason}");
                self.show(Offered::Refused(reason), Arc::clone(&self.report));
                Outcome::Failed
            }
        };
        match outcome {
            Outcome::Published => self.sync_metrics.synced(began.elapsed(), kind),
            Outcome::Refused | Outcome::Failed => self.sync_metrics.refused(),
        }
        // DNS and health ports follow after forwarding: a name that is answered leads to an address that is served.
        if !Arc::ptr_eq(&self.shown_desired.borrow(), &self.desired) {
            release(self.shown_desired.send_replace(Arc::clone(&self.desired)));
        }
        self.request_resolution().await;
        outcome
    }

    /// Compiles the network's part from the newest state, which is returned.
    async fn compile_network(&mut self) -> NetState {
        let net = self.net.borrow_and_update().clone();
        let (config, state, previous) = (Arc::clone(&self.config), net.clone(), self.tables.clone());
        let desired = Arc::clone(&self.desired);
        let compiling = spawn_blocking(move || NetworkPart::compile(&desired, &state, &config, &previous));
        match compiling.await {
            Ok(network) => self.network = network,
            Err(panic) => tracing::error!("compiling routes failed, which is a defect of flowgate: {panic}"),
        }
        net
    }

    /// Compiles Services in the background; the network's part comes first, since source addresses are among what
    /// Services are checked against.
    fn compile_services(&mut self, job: Job, net: NetState) -> JoinHandle<Compiled> {
        let fresh = || ServicePart::new(Arc::clone(&self.config), &self.tables);
        let mut service_part = self.service_part.take().unwrap_or_else(fresh);
        let NetworkPart { snat, entries, .. } = self.network.clone();
        let last_report = Arc::clone(&self.report);
        self.background.spawn(move || {
            let services = service_part.compile(&job.desired, &net, &snat);
            let mut all: Vec<Entry> = job.findings.iter().map(|entry| Entry::clone(entry)).collect();
            service_part.report_into(&mut all, &entries);
            all.extend(job.of_source);
            let report = Report { entries: all };
            // Whoever follows the report compares pointers first.
            let report = if report == *last_report { last_report } else { Arc::new(report) };
            Compiled { service_part, services, report }
        })
    }

    async fn publish_services(&mut self, compiled: Compiled) -> Outcome {
        let Compiled { service_part, services, report } = compiled;
        self.service_part = Some(service_part);
        release(std::mem::replace(&mut self.compiled, services));
        let offered = self.offer().await;
        let outcome = match &offered {
            Offered::Refused(_) => Outcome::Refused,
            Offered::Taken | Offered::Known => Outcome::Published,
        };
        let before = std::mem::replace(&mut self.report, report);
        self.show(offered, Arc::clone(&self.report));
        release(before);
        outcome
    }

    /// Publishes the newest network with the last Services.
    async fn publish_network(&mut self) {
        self.compile_network().await;
        match self.offer().await {
            // The tables are offered again with the Services that are being compiled.
            Offered::Refused(reason) => tracing::debug!("routes are not published yet: {reason}"),
            offered => self.show(offered, Arc::clone(&self.report)),
        }
        self.request_resolution().await;
    }

    /// Offers both parts to the sink, unless it has them already.
    async fn offer(&mut self) -> Offered {
        let next = assemble(&self.tables, &self.network, &self.compiled);
        release(std::mem::replace(&mut self.tables, next));
        let generation = self.tables.generation;
        if self.published_generation == Some(generation) {
            return Offered::Known;
        }
        match (self.sink)(Update { tables: self.tables.clone() }).await {
            Ok(()) => {
                self.published_generation = Some(generation);
                Offered::Taken
            }
            Err(error) => Offered::Refused(error.to_string()),
        }
    }

    /// Shows what became of the newest tables. To be called after the sink: a generation that the status shows is in force.
    fn show(&self, offered: Offered, report: Arc<Report>) {
        let (refused, generation) = match offered {
            Offered::Refused(reason) => (Some(reason), None),
            Offered::Taken => (None, Some(self.tables.generation)),
            Offered::Known => (None, None),
        };
        self.status.send_if_modified(|status| {
            let changed = generation.is_some() || status.refused != refused || status.report != report;
            (status.report, status.refused) = (report, refused);
            if let Some(generation) = generation {
                status.generation = generation;
                status.last_change = Some(clock::now());
            }
            changed
        });
    }

    /// Has the next hops of all backends resolved before the first packet needs them.
    async fn request_resolution(&mut self) {
        let tables = self.tables.clone();
        let Ok(wanted) = spawn_blocking(move || unresolved_next_hops(&tables)).await else { return };
        // If netlink's channel is full, the list stays as it was and is sent after the next compilation.
        if wanted != self.periodic && self.resolve.try_send(Resolve::Periodic(wanted.clone())).is_ok() {
            self.periodic = wanted;
        }
    }
}

/// What the sink did with tables.
enum Offered {
    Taken,
    /// Nothing: it has them already.
    Known,
    /// It refused them, for this reason.
    Refused(String),
}

/// Returns soon after the network changed: several changes tend to come together.
async fn changed(net: &mut watch::Receiver<NetState>) {
    if net.changed().await.is_err() {
        std::future::pending().await
    }
    sleep(NETWORK_QUIET).await;
}

/// The wait after a change of the network while Services are compiled.
const NETWORK_QUIET: Duration = Duration::from_millis(10);
