//! The control plane, whole: a source, netlink and the reconciler wired together. Decides nothing.

use std::fmt::Display;
use std::path::PathBuf;
use std::sync::Arc;

use flowgate_tables::routing::NeighbourKey;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::compile::CompileConfig;
use crate::dns;
use crate::health;
use crate::model::Desired;
use crate::netlink::{self, Netlink, NetlinkError};
use crate::reconcile::{self, Channels, Status, SyncMetrics, Update};
use crate::source::{kube, manifests};

/// Where objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A directory of manifests, watched.
    Manifests(PathBuf),
    /// The Kubernetes API, followed.
    Kubernetes(kube::Config),
}

/// What the control plane needs from the binary, besides the sink.
#[derive(Debug)]
pub struct Config {
    /// What the operator decided.
    pub compile: CompileConfig,
    /// Where objects come from.
    pub source: Source,
    /// The served interfaces, in the order of the devices; they need not exist yet.
    pub interfaces: Vec<String>,
    /// Neighbours that workers have packets for; threads send with `try_send`.
    pub requests: mpsc::Receiver<NeighbourKey>,
    /// The service discovery server, if there is to be one.
    pub dns: Option<dns::Server>,
    /// Where the state of the control plane is shown.
    pub status: watch::Sender<Status>,
    /// Where the objects of the last compilation are shown.
    pub desired: watch::Sender<Arc<Desired>>,
    /// Takes down what the reconciler does.
    pub sync_metrics: SyncMetrics,
    /// Who is told whether this machine can serve.
    pub health: health::Config,
    /// Turns true, or is dropped, when the control plane should end.
    pub shutdown: watch::Receiver<bool>,
}

/// Runs the control plane until shutdown, on one thread of any tokio runtime with io and time enabled.
///
/// The network namespace is that of the thread that calls it first. `sink` publishes; it is called with
/// each new generation, in order, and not again before it returns.
///
/// # Errors
/// [`NetlinkError`]: there is no netlink here. Everything later is shown in the status instead.
pub async fn run<E: Display>(
    config: Config,
    sink: impl AsyncFnMut(Update) -> Result<(), E>,
) -> Result<(), NetlinkError> {
    let Config {
        compile,
        source,
        interfaces,
        requests,
        dns,
        status,
        desired,
        sync_metrics,
        health,
        shutdown,
    } = config;
    let (Netlink { state: net, resolve }, tracker) = netlink::open(interfaces).await?;
    let (events, source_events) = mpsc::channel(EVENTS_WAITING);
    // Dropping the set ends the tasks.
    let mut tasks = JoinSet::new();
    tasks.spawn(tracker.run());
    match source {
        Source::Manifests(dir) => tasks.spawn(manifests::watch(dir, events)),
        Source::Kubernetes(config) => tasks.spawn(kube::watch(config, events)),
    };
    tasks.spawn(health::run(health, net.clone(), status.clone()));
    if let Some(server) = dns
        && let Err(error) = server.spawn(desired.subscribe())
    {
        tracing::error!(%error, "no thread for DNS, which does not answer");
    }
    let channels =
        Channels { source: source_events, net, requests, resolve, status, desired, sync_metrics, shutdown };
    reconcile::run(compile, channels, sink).await;
    Ok(())
}

const EVENTS_WAITING: usize = 16;
