//! The fake server's response to one request.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::stream::{self, StreamExt};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::{Request, Response};
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::{Lists, ServerState};

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

pub(super) async fn respond(
    request: Request<Incoming>,
    state: Arc<Mutex<ServerState>>,
    changed: broadcast::Receiver<()>,
) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or("").to_owned();
    let token = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    let token = token.and_then(|value| value.strip_prefix("Bearer ")).map(str::to_owned);
    let refused = {
        let mut state = state.lock().unwrap();
        state.requests.push(format!("{path}?{query}"));
        let unknown = state.token.is_some() && state.token != token;
        let status = state.statuses.iter().find(|(of, _)| **of == path).map(|(_, status)| *status);
        let mute = state.mute.iter().any(|of| *of == path);
        if mute {
            Some(0)
        } else if unknown {
            Some(401)
        } else {
            status
        }
    };
    Ok(match refused {
        Some(0) => std::future::pending().await,
        Some(code) => status(code, "told to"),
        None if parameter(&query, "watch").is_some() => watch(path, &query, state, changed),
        None => list(&path, &query, &state.lock().unwrap()),
    })
}

fn list(path: &str, query: &str, state: &ServerState) -> Response<Body> {
    let all = state.of(path);
    let from: usize = parameter(query, "continue").map_or(0, |token| token.parse().unwrap());
    let to = (from + state.page).min(all.len());
    let next = if to < all.len() { to.to_string() } else { String::new() };
    let metadata = json!({"resourceVersion": state.version.to_string(), "continue": next});
    let page = json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": all[from..to]});
    Response::new(full(page.to_string()))
}

fn watch(
    path: String,
    query: &str,
    state: Arc<Mutex<ServerState>>,
    changed: broadcast::Receiver<()>,
) -> Response<Body> {
    let version = parameter(query, "resourceVersion").unwrap_or_default();
    let wants_list = parameter(query, "sendInitialEvents").is_some();
    let mut lines = VecDeque::new();
    let start = {
        let state = state.lock().unwrap();
        if wants_list && state.lists == Lists::Refused {
            return status(
                422,
                "sendInitialEvents is forbidden for watch unless the WatchList feature is on",
            );
        }
        if wants_list && state.lists == Lists::Storeless {
            return status(500, "the required storage feature RequestWatchProgress is disabled");
        }
        if version.is_empty() {
            lines.extend(state.of(&path).into_iter().map(|object| line("ADDED", object)));
            if wants_list && state.lists == Lists::Streamed {
                lines.push_back(line("BOOKMARK", end_of_list(state.version)));
            }
            state.version
        } else {
            let version: u64 = version.parse().unwrap();
            if version < state.compacted {
                let gone = json!({"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"});
                if state.expires_by_status {
                    return status(410, "too old resource version");
                }
                lines.push_back(line("ERROR", gone));
                return Response::new(streamed(stream::iter(lines.into_iter().map(Ok)).boxed()));
            }
            version
        }
    };
    let breaks_after = state.lock().unwrap().breaks_after;
    let watch = Watch { path, state, changed, lines, sent: start, breaks_after };
    Response::new(streamed(stream::unfold(watch, Watch::step).boxed()))
}

struct Watch {
    path: String,
    state: Arc<Mutex<ServerState>>,
    changed: broadcast::Receiver<()>,
    lines: VecDeque<String>,
    sent: u64,
    breaks_after: Option<usize>,
}

impl Watch {
    async fn step(mut self) -> Option<(Result<String, std::io::Error>, Self)> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return match self.breaks_after {
                    Some(0) => {
                        // hyper drops what it has not written yet when a body fails.
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        Some((Err(std::io::Error::other("told to break")), self))
                    }
                    Some(1) => {
                        // Half of a line, and then nothing more.
                        self.breaks_after = Some(0);
                        self.lines.push_front(String::new());
                        Some((Ok(line[..line.len() / 2].to_owned()), self))
                    }
                    left => {
                        self.breaks_after = left.map(|left| left - 1);
                        Some((Ok(line), self))
                    }
                };
            }
            {
                let mut state = self.state.lock().unwrap();
                let sent = self.sent;
                let news =
                    state.log.iter().filter(|(version, path, ..)| *version > sent && *path == self.path);
                for (version, _, kind, object) in news {
                    self.lines.push_back(line(kind, object.clone()));
                    self.sent = *version;
                }
                while let Some(at) = state.raw_lines.iter().position(|(path, _)| *path == self.path) {
                    let (_, raw) = state.raw_lines.remove(at).unwrap();
                    self.lines.push_back(format!("{raw}\n"));
                }
            }
            if self.lines.is_empty() && self.changed.recv().await == Err(RecvError::Closed) {
                return None;
            }
        }
    }
}

fn end_of_list(version: u64) -> Value {
    json!({"metadata": {"resourceVersion": version.to_string(),
        "annotations": {"k8s.io/initial-events-end": "true"}}})
}

fn line(kind: &str, object: Value) -> String {
    format!("{}\n", json!({"type": kind, "object": object}))
}

fn status(code: u16, message: &str) -> Response<Body> {
    let body = json!({"kind": "Status", "status": "Failure", "code": code, "message": message});
    Response::builder().status(code).body(full(body.to_string())).unwrap()
}

fn full(text: String) -> Body {
    Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync()
}

fn streamed(lines: stream::BoxStream<'static, Result<String, std::io::Error>>) -> Body {
    let frames = lines.map(|line| line.map(|line| Frame::data(Bytes::from(line))));
    StreamBody::new(frames).boxed_unsync()
}

fn parameter(query: &str, name: &str) -> Option<String> {
    query.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name).map(
        |(_, value)| {
            assert!(name != "continue" || !value.contains('%'), "tokens are plain here");
            value.to_owned()
        },
    )
}
