//! An independent watcher that records when each version of a slice arrived.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::TryStreamExt as _;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::{Api, Client, ResourceExt as _};

use crate::clock;
use crate::error::{Error, Result};
use crate::lab::kubernetes::{ApiClient, ApiThread};

const EVENT_LIMIT: Duration = Duration::from_secs(20);

/// The recorded events; watches until dropped.
pub(super) struct SliceEvents {
    times: Arc<EventTimes>,
    _thread: ApiThread,
}

#[derive(Default)]
struct EventTimes {
    by_version: Mutex<HashMap<String, Instant>>,
    changed: Condvar,
}

impl SliceEvents {
    /// Starts watching the slices with this label.
    pub(super) fn start(client: &ApiClient, label: &'static str) -> Result<Self> {
        let times = Arc::new(EventTimes::default());
        let thread = client.spawn("slice-events", {
            let times = Arc::clone(&times);
            move |client, mut stopped| async move {
                tokio::select! {
                    () = follow(client, label, &times) => {}
                    _ = stopped.wait_for(|stop| *stop) => {}
                }
            }
        })?;
        Ok(Self { times, _thread: thread })
    }

    /// Waits for the event of this version; returns when it arrived.
    pub(super) fn await_version(&self, version: &str) -> Result<Instant> {
        let deadline = clock::now() + EVENT_LIMIT;
        let mut events = self.times.by_version.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(at) = events.get(version) {
                return Ok(*at);
            }
            let left = deadline.saturating_duration_since(clock::now());
            if left.is_zero() {
                return Err(Error::Timeout {
                    what: format!("the watch event of version {version}"),
                    after: EVENT_LIMIT,
                    hint: "check that the API server runs".into(),
                });
            }
            let waited = self.times.changed.wait_timeout(events, left);
            events = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Watches until cancelled; a watch that ends or fails is started again.
async fn follow(client: Client, label: &str, times: &EventTimes) {
    let slices: Api<EndpointSlice> = Api::default_namespaced(client);
    loop {
        // An event missed between two watches shows as a timeout in `await_version`.
        let _ = follow_once(&slices, label, times).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn follow_once(slices: &Api<EndpointSlice>, label: &str, times: &EventTimes) -> kube::Result<()> {
    let list = slices.list_metadata(&ListParams::default().labels(label)).await?;
    let version = list.metadata.resource_version.unwrap_or_default();
    let events = slices.watch(&WatchParams::default().labels(label), &version).await?;
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.try_next().await? {
        if let WatchEvent::Added(slice) | WatchEvent::Modified(slice) = event {
            let at = clock::now();
            let version = slice.resource_version().unwrap_or_default();
            times.by_version.lock().unwrap_or_else(PoisonError::into_inner).insert(version, at);
            times.changed.notify_all();
        }
    }
    Ok(())
}
