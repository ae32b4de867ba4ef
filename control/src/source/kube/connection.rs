//! List and watch requests to the API server, each with a time limit. Objects stay JSON values here: one that is
//! malformed must not spoil the page or the stream that it comes with.

use std::pin::Pin;
use std::time::Duration;

use futures::{AsyncBufRead, AsyncBufReadExt};
use kube::Client;
use kube::error::Status;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::timeout;

use super::error::ApiError;
use super::resource::Resource;

/// One page of a list.
#[derive(Debug)]
pub(super) struct Page {
    /// The objects, without their `kind`.
    pub(super) items: Vec<Value>,
    /// The resource version of the list.
    pub(super) version: Option<String>,
    /// The continue token of the next page; `None` on the last one.
    pub(super) next: Option<String>,
}

/// Requests one page.
pub(super) async fn list(
    client: &Client,
    resource: &Resource,
    next: Option<String>,
    limit: Duration,
) -> Result<Page, ApiError> {
    let response = timeout(limit, client.request_text(resource.list(next))).await;
    let text = response.map_err(|_elapsed| ApiError::Timeout(limit))??;
    let raw: RawPage = serde_json::from_str(&text).map_err(|error| ApiError::Malformed(error.to_string()))?;
    let set = |text: Option<String>| text.filter(|text| !text.is_empty());
    Ok(Page {
        items: raw.items.unwrap_or_default(),
        version: set(raw.metadata.resource_version),
        next: set(raw.metadata.next),
    })
}

/// An event of a watch.
#[derive(Debug)]
pub(super) enum Event {
    /// An object is now this.
    Applied(Value),
    /// An object is gone; this is what it was.
    Deleted(Value),
    /// There is no other event up to this version.
    Bookmark { version: String, kind: BookmarkKind },
}

/// What a bookmark marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BookmarkKind {
    /// A version from which the watch can be resumed.
    Progress,
    /// As well the end of a streamed list (annotation `k8s.io/initial-events-end`).
    EndOfList,
}

/// An open watch.
pub(super) struct WatchStream {
    stream: Pin<Box<dyn AsyncBufRead + Send>>,
    line: Vec<u8>,
}

impl WatchStream {
    /// Opens a watch, which the server is to end after `lifetime`. The server has accepted it when this returns.
    pub(super) async fn open(
        client: &Client,
        resource: &Resource,
        version: Option<&str>,
        lifetime: Duration,
        limit: Duration,
    ) -> Result<Self, ApiError> {
        // 0 would mean the server's own, longer lifetime.
        let seconds = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX).max(1);
        let response = timeout(limit, client.request_stream(resource.watch(version, seconds))).await;
        let stream = response.map_err(|_elapsed| ApiError::Timeout(limit))??;
        Ok(Self { stream: Box::pin(stream), line: Vec::new() })
    }

    /// The next event; `None` when the stream ended or broke. The reason does not matter: if it lasts, the attempt to
    /// open the watch again fails with it.
    pub(super) async fn next(&mut self, idle_max: Duration) -> Result<Option<Event>, ApiError> {
        loop {
            self.line.clear();
            match timeout(idle_max, self.stream.read_until(b'\n', &mut self.line)).await {
                Err(_) => return Err(ApiError::Idle(idle_max.as_secs())),
                Ok(Err(error)) => {
                    tracing::debug!(%error, "watch broke");
                    return Ok(None);
                }
                Ok(Ok(0)) => return Ok(None),
                // The connection ended in the middle of a line.
                Ok(Ok(_)) if self.line.last() != Some(&b'\n') => return Ok(None),
                Ok(Ok(_)) if self.line.trim_ascii().is_empty() => {}
                Ok(Ok(_)) => return event(&self.line),
            }
        }
    }
}

fn event(line: &[u8]) -> Result<Option<Event>, ApiError> {
    let malformed = |reason: String| ApiError::Malformed(reason);
    let raw: RawEvent = serde_json::from_slice(line).map_err(|error| malformed(error.to_string()))?;
    match raw.kind.as_str() {
        "ADDED" | "MODIFIED" => Ok(Some(Event::Applied(raw.object))),
        "DELETED" => Ok(Some(Event::Deleted(raw.object))),
        "BOOKMARK" => {
            let version = version_of(&raw.object).ok_or_else(|| malformed("a bookmark of nothing".into()))?;
            let ends = raw.object.pointer("/metadata/annotations/k8s.io~1initial-events-end");
            let kind = if ends.is_some_and(|end| end == "true") {
                BookmarkKind::EndOfList
            } else {
                BookmarkKind::Progress
            };
            Ok(Some(Event::Bookmark { version, kind }))
        }
        "ERROR" => {
            let status: Status =
                serde_json::from_value(raw.object).map_err(|error| malformed(error.to_string()))?;
            Err(status.into())
        }
        other => Err(malformed(format!("unknown event {other:?}"))),
    }
}

/// The resource version of an object; `None` if it has none.
pub(super) fn version_of(object: &Value) -> Option<String> {
    let version = object.pointer("/metadata/resourceVersion").and_then(Value::as_str)?;
    Some(version.to_owned()).filter(|version| !version.is_empty())
}

#[derive(Deserialize)]
struct RawPage {
    #[serde(default)]
    metadata: RawListMeta,
    items: Option<Vec<Value>>,
}

#[derive(Default, Deserialize)]
struct RawListMeta {
    #[serde(rename = "resourceVersion")]
    resource_version: Option<String>,
    #[serde(rename = "continue")]
    next: Option<String>,
}

#[derive(Deserialize)]
struct RawEvent {
    #[serde(rename = "type")]
    kind: String,
    object: Value,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_told_apart() {
        let read = |line: &str| event(line.as_bytes());
        let object = r#""object":{"metadata":{"name":"a","resourceVersion":"7"}}"#;
        for kind in ["ADDED", "MODIFIED"] {
            let Ok(Some(Event::Applied(object))) = read(&format!(r#"{{"type":"{kind}",{object}}}"#)) else {
                panic!("{kind} applies");
            };
            assert_eq!(version_of(&object).as_deref(), Some("7"));
        }
        assert!(matches!(read(&format!(r#"{{"type":"DELETED",{object}}}"#)), Ok(Some(Event::Deleted(_)))));
        let bookmark = r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"9","annotations":
            {"k8s.io/initial-events-end":"true"}}}}"#;
        let Ok(Some(Event::Bookmark { version, kind })) = read(bookmark) else { panic!("a bookmark") };
        assert_eq!((version.as_str(), kind), ("9", BookmarkKind::EndOfList));
        let gone = read(r#"{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired"}}"#);
        assert!(gone.is_err_and(|error| error.is_expired()));
        assert!(matches!(read("{\"type\":"), Err(ApiError::Malformed(_))));
    }
}
