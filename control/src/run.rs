//! The whole control plane: source, netlink, reconciler, DNS and health servers, wired together.

use std::fmt::Display;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use flowgate_tables::routing::NeighbourKey;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::compile::CompileConfig;
use crate::descriptors::DescriptorBudget;
use crate::model::Desired;
use crate::netlink::{self, Netlink, NetlinkError};
use crate::reconcile::{self, Background, Channels, Status, SyncMetrics, Update};
use crate::servers::Servers;
use crate::source::{kube, manifests};
use crate::{dns, health, http};

/// Where objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A watched directory of manifests.
    Manifests(PathBuf),
    /// The Kubernetes API.
    Kubernetes(kube::Config),
}

/// Everything the control plane needs from the binary, besides the sink.
#[derive(Debug)]
pub struct Config {
    /// The operator's decisions about compiling, which may change.
    pub compile: watch::Receiver<CompileConfig>,
    /// How compiling shares the machine with the workers.
    pub background: Background,
    /// Where objects come from.
    pub source: Source,
    /// The served interfaces, in the order of the devices; they need not exist yet.
    pub interfaces: Vec<String>,
    /// Neighbours that workers have packets for; threads send with `try_send`.
    pub requests: mpsc::Receiver<NeighbourKey>,
    /// The DNS server; `None` runs none.
    pub dns: Option<dns::Server>,
    /// Gets the state of the control plane.
    pub status: watch::Sender<Status>,
    /// Gets the objects of the last compilation.
    pub desired: watch::Sender<Arc<Desired>>,
    /// Gets counts and times of syncs.
    pub sync_metrics: SyncMetrics,
    /// The servers for health probes.
    pub health: health::Config,
    /// The metrics server.
    pub metrics: http::metrics::Config,
    /// The file descriptors that all servers share.
    pub budget: Arc<DescriptorBudget>,
    /// What the threads of servers call first, to give up privileges.
    pub confine_server: fn(),
    /// Turns true, or is dropped, when the control plane should end.
    pub shutdown: watch::Receiver<bool>,
}

/// Runs the control plane until shutdown, on one thread of any tokio runtime with io and time enabled.
///
/// Netlink sockets belong to the network namespace of the calling thread. `sink` publishes; it is called with each new
/// generation, in order, and not again before it returns.
///
/// # Errors
/// [`NetlinkError`]: the kernel's state cannot be read at the start. Later failures are retried and logged.
pub async fn run<E: Display>(
    config: Config,
    sink: impl AsyncFnMut(Update) -> Result<(), E>,
) -> Result<(), NetlinkError> {
    let Config {
        compile,
        background,
        source,
        interfaces,
        requests,
        dns,
        status,
        desired,
        sync_metrics,
        health,
        metrics,
        budget,
        confine_server,
        shutdown,
    } = config;
    let (Netlink { state: net, resolve }, tracker) = netlink::open(interfaces).await?;
    let (events, source_events) = mpsc::channel(EVENTS_WAITING);
    // Dropping the set aborts the tasks.
    let mut tasks = JoinSet::new();
    tasks.spawn(tracker.run());
    match source {
        Source::Manifests(dir) => tasks.spawn(manifests::watch(dir, events)),
        Source::Kubernetes(config) => tasks.spawn(kube::watch(config, events)),
    };
    tasks.spawn(show_life(sync_metrics.clone()));
    let servers =
        Servers { health, metrics, budget: Arc::clone(&budget), net: net.clone(), status: status.clone() };
    // Dropping it ends the servers.
    let _servers = servers.spawn(confine_server).inspect_err(|error| {
        tracing::error!(%error, "no thread for the HTTP servers: neither probes nor metrics are answered");
    });
    if let Some(server) = dns
        && let Err(error) = server.spawn(confine_server, desired.subscribe(), budget)
    {
        tracing::error!(%error, "no thread for DNS, which does not answer");
    }
    let channels = Channels {
        source: source_events,
        net,
        requests,
        config: compile,
        resolve,
        status,
        desired,
        sync_metrics,
        shutdown,
    };
    reconcile::run(background, channels, sink).await;
    Ok(())
}

/// Shows to the threads of probes that this one goes on.
async fn show_life(sync_metrics: SyncMetrics) {
    loop {
        sync_metrics.alive(Instant::now());
        sleep(SHOW_LIFE_EVERY).await;
    }
}

const SHOW_LIFE_EVERY: Duration = Duration::from_secs(1);
const EVENTS_WAITING: usize = 16;
