//! Follows one collection for ever: list, watch, and again. Keeps no object and knows no other collection.
//!
//! Own code rather than kube-runtime's watcher, for what a load balancer needs and that one does not do: an
//! object that cannot be read costs itself and not the list or the stream it is in; a list is never older
//! than what was seen before (a streamed list there starts at version "0", which may bring back endpoints
//! that are gone); an expired version ends in a new list also when the server says so by HTTP status; and
//! every wait has a limit.

use std::fmt::Display;
use std::time::{Duration, SystemTime};

use kube::Client;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::access::Access;
use super::backoff::{Backoff, jittered};
use super::connection::{Event, Events, Mark, list, version_of};
use super::error::ApiError;
use super::resource::{Presence, Resource};
use crate::model::{Kind, Object};
use crate::report::{ObjectRef, Severity};
use crate::source::convert;

/// How patient the source is with the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// An answer, or a page of a list, may take so long.
    pub answer: Duration,
    /// A watch lasts so long at most; the server ends it, and one that it does not end is dead.
    pub watch: Duration,
    /// A streamed list may pause so long before it is asked for in pages.
    pub list_silence: Duration,
    /// The first wait after a failure.
    pub shortest_wait: Duration,
    /// No wait after a failure is longer.
    pub longest_wait: Duration,
    /// A collection that the server does not have is asked for again after so long.
    pub absent: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(30),
            // Much shorter than client-go's: a server that vanished without a word is noticed sooner.
            watch: Duration::from_secs(120),
            list_silence: Duration::from_secs(10),
            shortest_wait: Duration::from_millis(250),
            longest_wait: Duration::from_secs(10),
            absent: Duration::from_secs(600),
        }
    }
}

/// News of one collection.
#[derive(Debug)]
pub(super) struct News {
    pub(super) kind: Kind,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    /// All that there is; what is not in it is gone.
    Listed(Vec<Reading>),
    /// An object is new or different.
    Applied(Reading),
    /// An object is gone.
    Deleted(ObjectRef),
    /// The server is heard.
    InTouch,
    /// The server is not heard.
    OutOfTouch { since: SystemTime, reason: String },
}

/// An object as far as it could be read.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) name: ObjectRef,
    /// None if it had to be refused.
    pub(super) object: Option<Object>,
    pub(super) findings: Vec<(Severity, String)>,
}

/// Follows `resource` until nobody listens any more.
pub(super) async fn follow(resource: Resource, access: Access, pace: Pace, news: mpsc::Sender<News>) {
    let (client, cluster, version, lists) = (None, None, None, Lists::Streamed);
    let mut follower = Follower { resource, access, pace, news, client, cluster, version, lists };
    let mut backoff = Backoff::new(pace.shortest_wait, pace.longest_wait);
    while !follower.news.is_closed() {
        let started = Instant::now();
        let ended = follower.round().await;
        if started.elapsed() >= pace.longest_wait {
            backoff.reset();
        }
        match ended {
            Ok(Ended::Unsupported) => {}
            // A watch that ran its time is simply opened again.
            Ok(Ended::Stream) if started.elapsed() >= pace.shortest_wait => backoff.reset(),
            Ok(Ended::Stream | Ended::Version) => sleep(backoff.wait()).await,
            Err(Failure::Closed) => return,
            Err(Failure::Absent) => sleep(pace.absent).await,
            Err(Failure::Api { since, error }) => {
                let reason = error.sentence(&follower.resource);
                let told = follower.tell(What::OutOfTouch { since, reason }).await;
                if told.is_err() {
                    return;
                }
                sleep(backoff.wait()).await;
            }
        }
    }
}

struct Follower {
    resource: Resource,
    access: Access,
    pace: Pace,
    news: mpsc::Sender<News>,
    /// Kept until something fails.
    client: Option<Client>,
    /// Whose versions they are.
    cluster: Option<String>,
    /// What has been told is true up to this version; none before the first list and after an expiry.
    version: Option<String>,
    lists: Lists,
}

/// How the server is asked for all there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lists {
    /// As the beginning of a watch: the server sends object by object and keeps no copy of the whole.
    Streamed,
    /// Page by page, for servers that cannot stream (before Kubernetes 1.32, as a rule).
    Paged,
}

/// How a round ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// The stream did, as streams do.
    Stream,
    /// The server has forgotten our version.
    Version,
    /// The server does not stream lists.
    Unsupported,
}

/// Why a round failed.
enum Failure {
    /// Nobody listens any more.
    Closed,
    /// The server does not have the collection, which is all right.
    Absent,
    Api {
        since: SystemTime,
        error: ApiError,
    },
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::Api { since: SystemTime::now(), error }
    }
}

impl Follower {
    /// From wherever we are to the end of one watch.
    async fn round(&mut self) -> Result<Ended, Failure> {
        let client = match self.client.take() {
            Some(client) => client,
            None => self.connect().await?,
        };
        let outcome = match (&self.version, self.lists) {
            (None, Lists::Paged) => self.list(&client).await,
            _ => self.watch(&client).await,
        };
        let Err(Failure::Api { error, .. }) = &outcome else {
            self.client = Some(client);
            return outcome;
        };
        if error.is_expired() {
            tracing::info!("{}: the version is too old, listing anew", self.resource.plural);
            self.version = None;
            return Ok(Ended::Version);
        }
        if error.is_absent() && self.resource.presence == Presence::Newer && self.version.is_none() {
            tracing::info!("the server has no {}: asking again later", self.resource.plural);
            self.tell(What::Listed(Vec::new())).await?;
            return Err(Failure::Absent);
        }
        outcome
    }

    async fn connect(&mut self) -> Result<Client, ApiError> {
        let (client, cluster) = self.access.client().await?;
        if self.cluster.as_ref() != Some(&cluster) {
            // Versions of one cluster mean nothing to another.
            (self.cluster, self.version) = (Some(cluster), None);
        }
        Ok(client)
    }

    /// All pages; told only when the last one is in.
    async fn list(&mut self, client: &Client) -> Result<Ended, Failure> {
        let mut readings = Vec::new();
        let mut next = None;
        loop {
            let page = list(client, &self.resource, next, self.pace.answer).await?;
            readings.extend(page.items.into_iter().map(|item| read(self.resource.kind, item)));
            next = page.next;
            if next.is_none() {
                let unversioned = || ApiError::Garbled("the list has no resourceVersion".into());
                self.version = Some(page.version.ok_or_else(unversioned)?);
                self.tell(What::Listed(readings)).await?;
                return self.watch(client).await;
            }
        }
    }

    async fn watch(&mut self, client: &Client) -> Result<Ended, Failure> {
        let lasting = jittered(self.pace.watch);
        let version = self.version.as_deref();
        let opened = Events::open(client, &self.resource, version, lasting, self.pace.answer).await;
        let mut events = match opened {
            Err(error) if version.is_none() && error.is_unsupported() => {
                return Ok(self.list_by_pages(&error));
            }
            opened => opened?,
        };
        if self.version.is_none()
            && let Some(ended) = self.receive_list(&mut events).await?
        {
            return Ok(ended);
        }
        self.tell(What::InTouch).await?;
        // A server that means to end the watch has done so by then.
        let patience = lasting + self.pace.answer;
        let mut heard = SystemTime::now();
        loop {
            let event = match events.next(patience).await {
                Ok(Some(event)) => event,
                Ok(None) => return Ok(Ended::Stream),
                Err(error @ ApiError::Silent(_)) => return Err(Failure::Api { since: heard, error }),
                Err(error) => return Err(error.into()),
            };
            heard = SystemTime::now();
            match event {
                Event::Applied(object) => {
                    let version = version_of(&object);
                    self.tell(What::Applied(read(self.resource.kind, object))).await?;
                    self.reached(version);
                }
                Event::Deleted(object) => {
                    let version = version_of(&object);
                    self.tell(What::Deleted(name_of(self.resource.kind, &object))).await?;
                    self.reached(version);
                }
                Event::Bookmark { version, .. } => self.reached(Some(version)),
            }
        }
    }

    /// The beginning of a streamed list up to its end mark; how it ended if there is no such mark.
    async fn receive_list(&mut self, events: &mut Events) -> Result<Option<Ended>, Failure> {
        let mut readings = Vec::new();
        loop {
            match events.next(self.pace.list_silence).await {
                Ok(Some(Event::Applied(object))) => readings.push(read(self.resource.kind, object)),
                Ok(Some(Event::Bookmark { version, mark: Mark::EndOfList })) => {
                    self.version = Some(version);
                    self.tell(What::Listed(readings)).await?;
                    return Ok(None);
                }
                // A server that does not know about streamed lists goes on with what happens next.
                Ok(Some(Event::Bookmark { mark: Mark::Version, .. } | Event::Deleted(_)))
                | Err(ApiError::Silent(_)) => {
                    return Ok(Some(self.list_by_pages(&"no end of the list was announced")));
                }
                Ok(None) => return Err(ApiError::Broken.into()),
                Err(error) if error.is_unsupported() => return Ok(Some(self.list_by_pages(&error))),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn list_by_pages(&mut self, why: &dyn Display) -> Ended {
        tracing::info!(
            "{}: the server does not stream lists ({why}), asking for pages",
            self.resource.plural
        );
        self.lists = Lists::Paged;
        Ended::Unsupported
    }

    /// An object that is too malformed to have a version leaves the one before.
    fn reached(&mut self, version: Option<String>) {
        if version.is_some() {
            self.version = version;
        }
    }

    async fn tell(&self, what: What) -> Result<(), Failure> {
        let news = News { kind: self.resource.kind, what };
        self.news.send(news).await.map_err(|_unheard| Failure::Closed)
    }
}

fn read(kind: Kind, value: Value) -> Reading {
    let name = name_of(kind, &value);
    let (object, findings) = convert::object(kind, &name, value);
    Reading { name, object, findings }
}

fn name_of(kind: Kind, value: &Value) -> ObjectRef {
    let text = |path: &str| value.pointer(path).and_then(Value::as_str).unwrap_or("");
    let namespace = if kind.is_namespaced() { text("/metadata/namespace") } else { "" };
    ObjectRef::new(kind.name(), namespace, text("/metadata/name"))
}
