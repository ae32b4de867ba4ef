//! Requests to the API server and what comes back, in time or not at all. Keeps no state of any object and
//! looks into none: one that is malformed must not spoil its neighbours.

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
    /// The version that the list is of.
    pub(super) version: Option<String>,
    /// What to ask the next page with.
    pub(super) next: Option<String>,
}

/// Asks for one page.
pub(super) async fn list(
    client: &Client,
    resource: &Resource,
    next: Option<String>,
    patience: Duration,
) -> Result<Page, ApiError> {
    let answer = timeout(patience, client.request_text(resource.list(next))).await;
    let text = answer.map_err(|_elapsed| ApiError::Slow(patience))??;
    let raw: RawPage = serde_json::from_str(&text).map_err(|error| ApiError::Garbled(error.to_string()))?;
    let set = |text: Option<String>| text.filter(|text| !text.is_empty());
    Ok(Page {
        items: raw.items.unwrap_or_default(),
        version: set(raw.metadata.resource_version),
        next: set(raw.metadata.next),
    })
}

/// What a watch says.
#[derive(Debug)]
pub(super) enum Event {
    /// An object is now this.
    Applied(Value),
    /// An object is gone; this is what it was.
    Deleted(Value),
    /// Nothing happened up to this version.
    Bookmark { version: String, mark: Mark },
}

/// What a bookmark stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    Version,
    /// The whole collection has been sent.
    EndOfList,
}

/// An open watch.
pub(super) struct Events {
    stream: Pin<Box<dyn AsyncBufRead + Send>>,
    line: Vec<u8>,
}

impl Events {
    /// Opens a watch; the server has accepted it when this returns.
    pub(super) async fn open(
        client: &Client,
        resource: &Resource,
        version: Option<&str>,
        lasting: Duration,
        patience: Duration,
    ) -> Result<Self, ApiError> {
        let seconds = u32::try_from(lasting.as_secs()).unwrap_or(u32::MAX).max(1);
        let answer = timeout(patience, client.request_stream(resource.watch(version, seconds))).await;
        let stream = answer.map_err(|_elapsed| ApiError::Slow(patience))??;
        Ok(Self { stream: Box::pin(stream), line: Vec::new() })
    }

    /// The next event; none when the stream has ended, in whatever way: opening it again tells why.
    pub(super) async fn next(&mut self, patience: Duration) -> Result<Option<Event>, ApiError> {
        loop {
            self.line.clear();
            match timeout(patience, self.stream.read_until(b'\n', &mut self.line)).await {
                Err(_) => return Err(ApiError::Silent(patience.as_secs())),
                Ok(Err(error)) => {
                    tracing::debug!(%error, "watch broke");
                    return Ok(None);
                }
                Ok(Ok(0)) => return Ok(None),
                // Torn off by the end of the connection.
                Ok(Ok(_)) if self.line.last() != Some(&b'\n') => return Ok(None),
                Ok(Ok(_)) if self.line.trim_ascii().is_empty() => {}
                Ok(Ok(_)) => return event(&self.line),
            }
        }
    }
}

fn event(line: &[u8]) -> Result<Option<Event>, ApiError> {
    let garbled = |reason: String| ApiError::Garbled(reason);
    let raw: RawEvent = serde_json::from_slice(line).map_err(|error| garbled(error.to_string()))?;
    match raw.kind.as_str() {
        "ADDED" | "MODIFIED" => Ok(Some(Event::Applied(raw.object))),
        "DELETED" => Ok(Some(Event::Deleted(raw.object))),
        "BOOKMARK" => {
            let version = version_of(&raw.object).ok_or_else(|| garbled("a bookmark of nothing".into()))?;
            let ends = raw.object.pointer("/metadata/annotations/k8s.io~1initial-events-end");
            let mark = if ends.is_some_and(|end| end == "true") { Mark::EndOfList } else { Mark::Version };
            Ok(Some(Event::Bookmark { version, mark }))
        }
        "ERROR" => {
            let status: Status =
                serde_json::from_value(raw.object).map_err(|error| garbled(error.to_string()))?;
            Err(status.into())
        }
        other => Err(garbled(format!("unknown event {other:?}"))),
    }
}

/// The version of an object, if it tells.
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
        let Ok(Some(Event::Bookmark { version, mark })) = read(bookmark) else { panic!("a bookmark") };
        assert_eq!((version.as_str(), mark), ("9", Mark::EndOfList));
        let gone = read(r#"{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired"}}"#);
        assert!(gone.is_err_and(|error| error.is_expired()));
        assert!(matches!(read("{\"type\":"), Err(ApiError::Garbled(_))));
    }
}
