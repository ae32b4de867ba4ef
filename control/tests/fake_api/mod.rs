//! A fake API server for list and watch: lists in pages, watches, streamed lists, bookmarks, expired versions. It
//! listens on loopback and can be set to misbehave.
#![expect(clippy::unwrap_used, reason = "whatever goes wrong in here is to fail the test")]

mod responses;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Notify, broadcast};
use tokio::task::{JoinHandle, JoinSet};

pub(crate) const SERVICES: &str = "/api/v1/services";
pub(crate) const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
pub(crate) const CIDRS: &str = "/apis/networking.k8s.io/v1/servicecidrs";
pub(crate) const NODES: &str = "/api/v1/nodes";

/// A running server; dropping it ends it.
pub(crate) struct FakeApi {
    pub(crate) state: Arc<Mutex<ServerState>>,
    address: SocketAddr,
    changed: broadcast::Sender<()>,
    hang_up: Arc<Notify>,
    running: Option<JoinHandle<()>>,
    folder: tempfile::TempDir,
}

/// What the server holds and how it behaves.
#[derive(Default)]
pub(crate) struct ServerState {
    version: u64,
    objects: BTreeMap<(String, String), Value>,
    /// What happened: version, path, event type, object.
    log: Vec<(u64, String, &'static str, Value)>,
    /// Watches from before this version are expired.
    compacted: u64,
    /// Versions are expired by HTTP status instead of by an event.
    pub(crate) expires_by_status: bool,
    pub(crate) lists: Lists,
    /// The only token that is accepted, if there is one.
    pub(crate) token: Option<String>,
    /// Paths that are answered with this status.
    pub(crate) statuses: BTreeMap<&'static str, u16>,
    /// Paths that are never answered.
    pub(crate) mute: Vec<&'static str>,
    /// Lines that watches of a path send next, as they are.
    pub(crate) raw_lines: VecDeque<(&'static str, String)>,
    /// A watch that has this many lines to send at once breaks off in the middle of the next one.
    pub(crate) breaks_after: Option<usize>,
    pub(crate) page: usize,
    /// Every request: path and query.
    pub(crate) requests: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Lists {
    /// Streamed lists are understood.
    #[default]
    Streamed,
    /// They are refused, as by a server with the feature turned off.
    Refused,
    /// The store of the server cannot do its part, which the server calls an internal error.
    Storeless,
    /// The server is older than they are: the stream begins with what there is and has no end mark.
    Unknown,
}

impl FakeApi {
    pub(crate) async fn start() -> Self {
        let (changed, _) = broadcast::channel(1024);
        let mut api = Self {
            state: Arc::new(Mutex::new(ServerState { page: 2, version: 100, ..ServerState::default() })),
            address: ([127, 0, 0, 1], 0).into(),
            changed,
            hang_up: Arc::new(Notify::new()),
            running: None,
            folder: tempfile::tempdir().unwrap(),
        };
        api.listen().await;
        api
    }

    /// Begins to listen, after a [`Self::stop`] at the same address.
    pub(crate) async fn listen(&mut self) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(self.address).unwrap();
        let listener = socket.listen(64).unwrap();
        self.address = listener.local_addr().unwrap();
        let (state, changed) = (Arc::clone(&self.state), self.changed.clone());
        self.running = Some(tokio::spawn(accept(listener, state, changed, Arc::clone(&self.hang_up))));
    }

    /// Goes away, with all connections.
    pub(crate) async fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.abort();
            let _ = running.await;
        }
    }

    /// Breaks all connections and goes on listening.
    pub(crate) fn disconnect(&self) {
        self.hang_up.notify_waiters();
    }

    /// Creates or changes an object.
    pub(crate) fn put(&self, path: &'static str, object: Value) {
        self.state.lock().unwrap().put(path, object);
        let _ = self.changed.send(());
    }

    /// Deletes an object.
    pub(crate) fn delete(&self, path: &'static str, name: &str) {
        self.state.lock().unwrap().delete(path, name);
        let _ = self.changed.send(());
    }

    /// Lets watches send a line as it is.
    pub(crate) fn send_line(&self, path: &'static str, line: impl Into<String>) {
        self.state.lock().unwrap().raw_lines.push_back((path, line.into()));
        let _ = self.changed.send(());
    }

    /// Forgets all that happened: older versions are expired.
    pub(crate) fn compact(&self) {
        let mut state = self.state.lock().unwrap();
        state.version += 1;
        state.compacted = state.version;
        state.log.clear();
    }

    /// How many requests of a path hold `part` in their query.
    pub(crate) fn asked(&self, path: &str, part: &str) -> usize {
        let state = self.state.lock().unwrap();
        state.requests.iter().filter(|request| request.starts_with(path) && request.contains(part)).count()
    }

    /// A kubeconfig for it, with the token in a file.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        let path = self.folder.path().join("kubeconfig");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": format!("http://{}", self.address)}}],
            "users": [{"name": "fake", "user": {"tokenFile": self.token_file()}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
        });
        if !self.token_file().exists() {
            std::fs::write(self.token_file(), "first").unwrap();
        }
        std::fs::write(&path, config.to_string()).unwrap();
        path
    }

    pub(crate) fn token_file(&self) -> PathBuf {
        self.folder.path().join("token")
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for FakeApi {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.abort();
        }
    }
}

impl ServerState {
    fn put(&mut self, path: &str, mut object: Value) {
        self.version += 1;
        let version = self.version;
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("resourceVersion".into(), version.to_string().into());
        }
        let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("?").to_owned();
        let before = self.objects.insert((path.to_owned(), name), object.clone());
        let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
        self.log.push((version, path.to_owned(), kind, object));
    }

    fn delete(&mut self, path: &str, name: &str) {
        self.version += 1;
        let mut object = self.objects.remove(&(path.to_owned(), name.to_owned())).unwrap();
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.log.push((self.version, path.to_owned(), "DELETED", object));
    }

    fn of(&self, path: &str) -> Vec<Value> {
        self.objects.iter().filter(|((of, _), _)| of == path).map(|(_, object)| object.clone()).collect()
    }
}

async fn accept(
    listener: TcpListener,
    state: Arc<Mutex<ServerState>>,
    changed: broadcast::Sender<()>,
    hang_up: Arc<Notify>,
) {
    // Dropping the set ends the connections.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (state, changed, hang_up) = (Arc::clone(&state), changed.clone(), Arc::clone(&hang_up));
        connections.spawn(async move {
            let hung_up = hang_up.notified();
            let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                responses::respond(request, Arc::clone(&state), changed.subscribe())
            });
            let serving =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                _ = serving => {}
                () = hung_up => {}
            }
        });
    }
}
