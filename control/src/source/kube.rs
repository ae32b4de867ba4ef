//! Source: a live Kubernetes API, by list and watch. Only reads.
//!
//! Watched are Services, EndpointSlices, ServiceCIDRs and this machine's own Node (P101), each collection by a
//! [`reflector`] of its own, with the label selectors of kube-proxy (P102, P103). The first set of objects is sent
//! once all first lists are complete (P1001). ServiceCIDRs and Nodes are optional: if the API server refuses them, or
//! does not list them in time, Services and EndpointSlices go on, with a finding that names the collection. From then
//! on changes are sent object by object, and a new list after an interruption is compared with what was known. While the
//! API server is away the last set stays in force, and the source's health has the time and the reason (P1002).
//!
//! The set is also saved to a file. After a restart what the file holds is served until the lists are complete.
//!
//! Why not kube-runtime's `watcher`: as of 5.0.0, when a watch is refused at its start with HTTP status 410 (the
//! version is too old), it tries the same version again for ever and never lists anew. It could meet the other needs
//! by other means than its defaults: an unreadable object that costs only itself (`DeserializeGuard`), time limits
//! (`Config::read_timeout`), and lists that are never older than what was seen before (`ListWatch`; its streamed lists
//! begin at version "0", which a server may answer from an old cache, so that endpoints that are gone come back).

mod access;
mod api_health;
mod backoff;
mod connection;
mod error;
mod error_chain;
mod reflector;
mod resource;
mod snapshot_file;
mod snapshot_writer;
mod store;

use std::path::PathBuf;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

pub use self::access::{Access, AccessError};
pub use self::reflector::WatchTimeouts;

use self::api_health::ApiHealth;
use self::reflector::{CollectionEvent, reflect};
use self::resource::{Necessity, Resource};
use self::snapshot_writer::SnapshotWriter;
use self::store::Store;
use super::{Snapshot, SourceEvent, SourceHealth};
use crate::clock;

/// Which cluster, and which of its objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Address and credentials of the API server.
    pub access: Access,
    /// Which Services.
    pub scope: Scope,
    /// The name of this machine's Node object; `None` watches no Node.
    pub node_name: Option<String>,
    /// The file that the last good state is saved to; `None` saves nothing.
    pub snapshot: Option<PathBuf>,
    /// Time limits and back-off.
    pub timeouts: WatchTimeouts,
}

/// Which Services, with their endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// Those that can be served (P103).
    #[default]
    Served,
    /// All: DNS also answers for headless ones, and for those that another proxy serves.
    Named,
}

/// Sends the objects of a cluster and every change, until the receiver is dropped.
pub async fn watch(config: Config, events: mpsc::Sender<SourceEvent>) {
    let resources = Resource::all(config.scope, config.node_name.as_deref());
    let collections: Vec<_> = resources.iter().map(Resource::collection).collect();
    let required = collections.iter().filter(|collection| collection.necessity == Necessity::Required);
    let required: Vec<_> = required.map(|collection| collection.kind).collect();
    let (mut writer, saved) = SnapshotWriter::begin(config.snapshot, &config.access).await;
    let mut api_health = ApiHealth::new(required, saved.as_ref().map(|saved| clock::moment(saved.at)));
    let mut health = api_health.health();
    if let Some(saved) = &saved {
        // The health first: saved objects must not pass for those of the API server.
        let snapshot = Snapshot { desired: saved.desired.clone(), ..Snapshot::default() };
        for event in [SourceEvent::Health(health.clone()), SourceEvent::Replace(snapshot)] {
            if events.send(event).await.is_err() {
                return;
            }
        }
    }
    let mut store = Store::new(saved.map(|saved| saved.desired).unwrap_or_default(), collections);
    let (sender, mut received) = mpsc::channel(BATCH_MAX);
    // Dropping the set aborts the reflectors.
    let mut reflectors = JoinSet::new();
    for resource in resources {
        reflectors.spawn(reflect(resource, config.access.clone(), config.timeouts, sender.clone()));
    }
    drop(sender);
    let mut batch = Vec::new();
    let mut patience_ends = None;
    loop {
        if store.awaits_only_optional() {
            patience_ends.get_or_insert_with(|| Instant::now() + config.timeouts.optional_wait);
        }
        tokio::select! {
            () = events.closed() => return,
            count = received.recv_many(&mut batch, BATCH_MAX) => if count == 0 { return },
            () = writer.due() => writer.save(store.desired()).await,
            () = sleep_until(patience_ends.unwrap_or_else(Instant::now)), if store.awaits_only_optional() => {
                store.stop_waiting();
            }
        }
        for CollectionEvent { kind, event } in batch.drain(..) {
            api_health.apply(kind, &event);
            store.apply(kind, event);
        }
        // Objects before health: when the health says "synced", the objects that it speaks of were sent.
        if let Some(event) = store.take_event() {
            writer.changed();
            if events.send(event).await.is_err() {
                return;
            }
        }
        let now = api_health.health();
        let is_told = store.is_complete() || now != SourceHealth::Synced;
        if now != health && is_told {
            health = now;
            if events.send(SourceEvent::Health(health.clone())).await.is_err() {
                return;
            }
        }
    }
}

/// Reads a cluster once, without the saved state.
///
/// # Errors
/// Why the API server could not be read, with what to do about it.
pub async fn read(config: Config) -> Result<Snapshot, String> {
    let (sender, mut events) = mpsc::channel(1);
    let watched = watch(Config { snapshot: None, ..config }, sender);
    let first = async {
        loop {
            match events.recv().await {
                Some(SourceEvent::Replace(snapshot)) => return Ok(snapshot),
                Some(SourceEvent::Health(SourceHealth::Stale { reason, .. })) => return Err(reason),
                Some(SourceEvent::Health(_) | SourceEvent::Change(_)) => {}
                None => return Err("the watch ended".to_owned()),
            }
        }
    };
    tokio::select! {
        outcome = first => outcome,
        () = watched => Err("the watch ended".to_owned()),
    }
}

/// The most events that are taken together; they become one event for the reconciler. Also the channel's capacity.
const BATCH_MAX: usize = 1024;
