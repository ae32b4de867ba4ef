//! The live Kubernetes API. Only lists and watches; never writes to the API.
//!
//! Watched are Services, EndpointSlices, ServiceCIDRs and this machine's own Node (P101), each for itself,
//! with the labels that kube-proxy honours (P102, P103). The first set of objects is sent when all lists are
//! in (P1001); from then on changes are sent object by object, and a new list after a loss is compared with
//! what was known. While the API server is away the last set stays in force, and the health says since when
//! and why (P1002).
//!
//! The set is also saved to a file. A restart begins with what the file holds until the lists are in.

mod access;
mod backoff;
mod connection;
mod error;
mod follow;
mod health;
mod resource;
mod saved;
mod saving;
mod store;

use std::path::PathBuf;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

pub use self::access::{Access, AccessError};
pub use self::follow::Pace;

use self::follow::{News, follow};
use self::health::Contacts;
use self::resource::Resource;
use self::saving::Saving;
use self::store::Store;
use super::{Snapshot, SourceEvent, SourceHealth};

/// Which cluster, and what of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where the API server is found.
    pub access: Access,
    /// Which Services.
    pub scope: Scope,
    /// The name of this machine's Node object; none if there is none to watch.
    pub node_name: Option<String>,
    /// Where the last good state is saved; none if it is not.
    pub snapshot: Option<PathBuf>,
    /// How patient to be.
    pub pace: Pace,
}

/// Which Services, with their endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// Those that can be served (P103).
    #[default]
    Served,
    /// All: DNS answers also for headless ones, and for those that another proxy serves.
    Named,
}

/// Sends the objects of a cluster and every change, until nobody listens any more.
pub async fn watch(config: Config, events: mpsc::Sender<SourceEvent>) {
    let resources = Resource::all(config.scope, config.node_name.as_deref());
    let kinds: Vec<_> = resources.iter().map(|resource| resource.kind).collect();
    let (mut saving, saved) = Saving::begin(config.snapshot, &config.access).await;
    let mut contacts = Contacts::new(kinds.iter().copied(), saved.as_ref().map(|saved| saved.at));
    let mut health = contacts.health();
    if let Some(saved) = &saved {
        // The health first: these objects must not pass for the API server's.
        let snapshot = Snapshot { desired: saved.desired.clone(), ..Snapshot::default() };
        for event in [SourceEvent::Health(health.clone()), SourceEvent::Replace(snapshot)] {
            if events.send(event).await.is_err() {
                return;
            }
        }
    }
    let mut store = Store::new(saved.map(|saved| saved.desired).unwrap_or_default(), kinds);
    let (sender, mut news) = mpsc::channel(NEWS_WAITING);
    // Dropping the set ends them.
    let mut followers = JoinSet::new();
    for resource in resources {
        followers.spawn(follow(resource, config.access.clone(), config.pace, sender.clone()));
    }
    drop(sender);
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            () = events.closed() => return,
            received = news.recv_many(&mut batch, NEWS_WAITING) => if received == 0 { return },
            () = saving.due() => saving.save(store.desired()).await,
        }
        for News { kind, what } in batch.drain(..) {
            contacts.take(kind, &what);
            store.take(kind, what);
        }
        if let Some(event) = store.event() {
            saving.changed();
            if events.send(event).await.is_err() {
                return;
            }
        }
        let now = contacts.health();
        if now != health {
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
/// Why the API server could not be heard, for whoever must mend it.
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

/// Also how many are taken together: what comes at once is told at once.
const NEWS_WAITING: usize = 1024;
