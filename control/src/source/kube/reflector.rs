//! List and watch of one collection, for ever: list, watch from the list's version, reopen the watch when it ends,
//! list anew when the version has expired. Holds no objects and knows no other collection.
//!
//! The parent module has the reasons for not using kube-runtime's `watcher`.

use std::fmt::Display;
use std::time::{Duration, SystemTime};

use kube::Client;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::access::Access;
use super::backoff::{Backoff, jittered};
use super::connection::{BookmarkKind, Event, WatchStream, list, version_of};
use super::error::ApiError;
use super::resource::{Necessity, Resource};
use crate::clock;
use crate::model::{Kind, Object};
use crate::report::{ObjectRef, Severity};
use crate::source::convert;

/// Time limits and back-off of requests to the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchTimeouts {
    /// For the response to a request: a page of a list, or the header of a watch.
    pub response: Duration,
    /// The longest a watch lasts; the server ends it, and one that it does not end is taken for dead.
    pub watch: Duration,
    /// The longest pause within a streamed list; after it the list is requested in pages.
    pub list_idle: Duration,
    /// The first wait after a failure.
    pub backoff_min: Duration,
    /// The longest wait after a failure.
    pub backoff_max: Duration,
    /// The longest wait before a collection that the server does not have is requested again.
    pub absent_retry: Duration,
    /// How long the first set of objects waits for collections without which Services can be served.
    pub optional_wait: Duration,
}

impl Default for WatchTimeouts {
    fn default() -> Self {
        Self {
            response: Duration::from_secs(30),
            // Much shorter than client-go's 5 to 10 minutes: a server that vanished without closing the connection
            // is noticed sooner.
            watch: Duration::from_secs(120),
            list_idle: Duration::from_secs(10),
            backoff_min: Duration::from_millis(250),
            backoff_max: Duration::from_secs(10),
            absent_retry: Duration::from_secs(600),
            optional_wait: Duration::from_secs(5),
        }
    }
}

/// What happened to one collection.
#[derive(Debug)]
pub(super) struct CollectionEvent {
    pub(super) kind: Kind,
    pub(super) event: WatchEvent,
}

#[derive(Debug)]
pub(super) enum WatchEvent {
    /// The whole collection; an object that is not in it is gone.
    Listed(Vec<ConvertedObject>),
    /// An object is new or different.
    Applied(ConvertedObject),
    /// An object is gone.
    Deleted(ObjectRef),
    /// A watch is open.
    Connected,
    /// The collection cannot be read.
    Disconnected { since: SystemTime, reason: String, refused: bool },
}

/// An object of the API as the model has it.
#[derive(Debug)]
pub(super) struct ConvertedObject {
    pub(super) name: ObjectRef,
    /// `None` if it was refused; the findings have the reasons.
    pub(super) object: Option<Object>,
    pub(super) findings: Vec<(Severity, String)>,
}

/// Lists and watches `resource` until the receiver of `events` is dropped.
pub(super) async fn reflect(
    resource: Resource,
    access: Access,
    timeouts: WatchTimeouts,
    events: mpsc::Sender<CollectionEvent>,
) {
    let (client, cluster, version, lists) = (None, None, None, ListMode::Streamed);
    let mut reflector = Reflector { resource, access, timeouts, events, client, cluster, version, lists };
    let mut backoff = Backoff::new(timeouts.backoff_min, timeouts.backoff_max);
    let mut absent_backoff = Backoff::new(timeouts.backoff_max, timeouts.absent_retry);
    while !reflector.events.is_closed() {
        let started = Instant::now();
        let ended = reflector.round().await;
        // A round that lasted was no part of a series of failures.
        if started.elapsed() >= timeouts.backoff_max {
            backoff.reset();
        }
        if ended.is_ok() {
            absent_backoff.reset();
        }
        match ended {
            Ok(RoundEnd::StreamingUnsupported) => {}
            // A watch that ended after a while is the normal case: it is reopened at once.
            Ok(RoundEnd::StreamEnded) if started.elapsed() >= timeouts.backoff_min => backoff.reset(),
            // A server that ends each watch at once, or expires each version at once, must not be flooded.
            Ok(RoundEnd::StreamEnded | RoundEnd::VersionExpired) => sleep(backoff.next_wait()).await,
            Err(Failure::ReceiverDropped) => return,
            Err(Failure::Api { since, error }) => {
                let (reason, refused) = (error.explain(&reflector.resource), error.is_refusal());
                if reflector.send(WatchEvent::Disconnected { since, reason, refused }).await.is_err() {
                    return;
                }
                let may_be_absent = reflector.resource.necessity != Necessity::Required;
                let backoff =
                    if may_be_absent && error.is_absent() { &mut absent_backoff } else { &mut backoff };
                sleep(backoff.next_wait()).await;
            }
        }
    }
}

struct Reflector {
    resource: Resource,
    access: Access,
    timeouts: WatchTimeouts,
    events: mpsc::Sender<CollectionEvent>,
    /// Reused until something fails.
    client: Option<Client>,
    /// The cluster that `version` is of.
    cluster: Option<String>,
    /// Events up to this resource version were sent; `None` before the first list and after an expiry.
    version: Option<String>,
    lists: ListMode,
}

/// How the whole collection is requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ListMode {
    /// As the beginning of a watch: the server sends object by object and holds no copy of the whole.
    Streamed,
    /// Page by page, for servers that cannot stream lists (most before Kubernetes 1.32).
    Paged,
}

/// How a round ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RoundEnd {
    /// The watch's stream ended or broke.
    StreamEnded,
    /// The server no longer has the changes since our version.
    VersionExpired,
    /// The server does not stream lists.
    StreamingUnsupported,
}

/// Why a round failed.
enum Failure {
    ReceiverDropped,
    Api { since: SystemTime, error: ApiError },
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::Api { since: clock::now(), error }
    }
}

impl Reflector {
    /// A list if there is no version to watch from, then one watch to its end.
    async fn round(&mut self) -> Result<RoundEnd, Failure> {
        let client = match self.client.take() {
            Some(client) => client,
            None => self.connect().await?,
        };
        let outcome = match (&self.version, self.lists) {
            (None, ListMode::Paged) => self.list(&client).await,
            _ => self.watch(&client).await,
        };
        // After an error the client is dropped: the next one has a new connection and fresh credentials.
        let Err(Failure::Api { error, .. }) = &outcome else {
            self.client = Some(client);
            return outcome;
        };
        // As an event of the stream or as HTTP status when the watch is opened: servers do both.
        if error.is_expired() {
            tracing::info!("{}: the version is too old, listing anew", self.resource.plural);
            self.version = None;
            return Ok(RoundEnd::VersionExpired);
        }
        outcome
    }

    async fn connect(&mut self) -> Result<Client, ApiError> {
        let (client, cluster) = self.access.client().await?;
        if self.cluster.as_ref() != Some(&cluster) {
            // The kubeconfig names another cluster now, to which the versions of the old one mean nothing.
            (self.cluster, self.version) = (Some(cluster), None);
        }
        Ok(client)
    }

    /// Requests all pages and watches from there. Nothing is sent before the last page: half a list would look as if
    /// the other objects were gone.
    async fn list(&mut self, client: &Client) -> Result<RoundEnd, Failure> {
        let mut objects = Vec::new();
        let mut next = None;
        loop {
            let page = list(client, &self.resource, next, self.timeouts.response).await?;
            objects.extend(page.items.into_iter().map(|item| convert_object(self.resource.kind, item)));
            next = page.next;
            if next.is_none() {
                let unversioned = || ApiError::Malformed("the list has no resourceVersion".into());
                self.version = Some(page.version.ok_or_else(unversioned)?);
                self.send(WatchEvent::Listed(objects)).await?;
                return self.watch(client).await;
            }
        }
    }

    async fn watch(&mut self, client: &Client) -> Result<RoundEnd, Failure> {
        // Jitter, so that the watches of many gateways do not all end at the same time.
        let lifetime = jittered(self.timeouts.watch);
        let version = self.version.as_deref();
        let opened =
            WatchStream::open(client, &self.resource, version, lifetime, self.timeouts.response).await;
        let mut events = match opened {
            Err(error) if version.is_none() && error.is_unsupported() => {
                return Ok(self.switch_to_pages(&error));
            }
            opened => opened?,
        };
        if self.version.is_none()
            && let Some(ended) = self.receive_list(&mut events).await?
        {
            return Ok(ended);
        }
        self.send(WatchEvent::Connected).await?;
        // The server was told to end the watch after `lifetime`: one that is silent for longer is dead.
        let idle_max = lifetime + self.timeouts.response;
        let mut last_event = clock::now();
        loop {
            let event = match events.next(idle_max).await {
                Ok(Some(event)) => event,
                Ok(None) => return Ok(RoundEnd::StreamEnded),
                Err(error @ ApiError::Idle(_)) => return Err(Failure::Api { since: last_event, error }),
                Err(error) => return Err(error.into()),
            };
            last_event = clock::now();
            // The version advances only after the event was sent: a watch that is reopened from it may repeat an
            // event but cannot miss one.
            match event {
                Event::Applied(object) => {
                    let version = version_of(&object);
                    self.send(WatchEvent::Applied(convert_object(self.resource.kind, object))).await?;
                    self.advance_to(version);
                }
                Event::Deleted(object) => {
                    let version = version_of(&object);
                    self.send(WatchEvent::Deleted(name_of(self.resource.kind, &object))).await?;
                    self.advance_to(version);
                }
                Event::Bookmark { version, .. } => self.advance_to(Some(version)),
            }
        }
    }

    /// Receives a streamed list up to the bookmark that ends it. Returns how the round ended if there is none.
    async fn receive_list(&mut self, events: &mut WatchStream) -> Result<Option<RoundEnd>, Failure> {
        let mut objects = Vec::new();
        loop {
            match events.next(self.timeouts.list_idle).await {
                Ok(Some(Event::Applied(object))) => objects.push(convert_object(self.resource.kind, object)),
                Ok(Some(Event::Bookmark { version, kind: BookmarkKind::EndOfList })) => {
                    self.version = Some(version);
                    self.send(WatchEvent::Listed(objects)).await?;
                    return Ok(None);
                }
                // A server that ignores `sendInitialEvents` sends the objects and goes on with later changes,
                // without the bookmark in between: then the end of the list is unknown.
                Ok(Some(Event::Bookmark { kind: BookmarkKind::Progress, .. } | Event::Deleted(_)))
                | Err(ApiError::Idle(_)) => {
                    return Ok(Some(self.switch_to_pages(&"no end of the list was announced")));
                }
                Ok(None) => return Err(ApiError::ListCutOff.into()),
                Err(error) if error.is_unsupported() => return Ok(Some(self.switch_to_pages(&error))),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn switch_to_pages(&mut self, why: &dyn Display) -> RoundEnd {
        tracing::info!(
            "{}: the server does not stream lists ({why}), asking for pages",
            self.resource.plural
        );
        self.lists = ListMode::Paged;
        RoundEnd::StreamingUnsupported
    }

    /// The version of an event's object; an object that is too malformed to have one leaves the last version.
    fn advance_to(&mut self, version: Option<String>) {
        if version.is_some() {
            self.version = version;
        }
    }

    async fn send(&self, event: WatchEvent) -> Result<(), Failure> {
        let event = CollectionEvent { kind: self.resource.kind, event };
        self.events.send(event).await.map_err(|_closed| Failure::ReceiverDropped)
    }
}

fn convert_object(kind: Kind, value: Value) -> ConvertedObject {
    let name = name_of(kind, &value);
    let (object, findings) = convert::accepted_object(kind, &name, value);
    ConvertedObject { name, object, findings }
}

fn name_of(kind: Kind, value: &Value) -> ObjectRef {
    let text = |path: &str| value.pointer(path).and_then(Value::as_str).unwrap_or("");
    let namespace = if kind.is_namespaced() { text("/metadata/namespace") } else { "" };
    ObjectRef::new(kind.name(), namespace, text("/metadata/name"))
}
