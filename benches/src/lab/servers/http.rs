//! An HTTP server for tests: `/` returns the name of the backend, `/bytes/N` N bytes of
//! [`Pattern::HTTP`](crate::pattern::Pattern::HTTP), `/echo` the body of the request.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::{Ipv6Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::{BodyExt as _, Collected};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::HeaderValue;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::{ClientsSeen, ServerThread, tcp_listener};
use crate::clock;
use crate::error::{Error, Result};
use crate::netns::Namespace;
use crate::pattern::Pattern;

/// The response header that names the backend.
pub const BACKEND_HEADER: &str = "x-backend";

/// How a server behaves.
#[derive(Debug, Clone)]
pub struct HttpServerOptions {
    /// The name of the backend.
    pub name: String,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Delay of each response.
    pub delay: Duration,
    /// Flip a bit of this byte of each `/bytes/N` body, to test that clients notice it.
    pub corrupt_byte: Option<u64>,
}

impl HttpServerOptions {
    /// A correct server without delay on every address of both families.
    pub fn new(name: &str, port: u16) -> Self {
        let listen = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        Self { name: name.to_owned(), listen, delay: Duration::ZERO, corrupt_byte: None }
    }
}

/// A running server; stopped when dropped.
#[derive(Debug)]
pub struct HttpServer {
    shared: Arc<Shared>,
    drain: watch::Sender<bool>,
    thread: ServerThread,
}

#[derive(Debug)]
struct Shared {
    name: HeaderValue,
    greeting: Bytes,
    delay_us: AtomicU64,
    corrupt_byte: Option<u64>,
    clients: ClientsSeen,
    requests: AtomicU64,
    open: AtomicU64,
}

impl HttpServer {
    /// Starts a server in a namespace; it accepts connections when this returns.
    pub fn start(namespace: &Namespace, options: HttpServerOptions) -> Result<Self> {
        let name = HeaderValue::from_str(&options.name);
        let name = name.map_err(|error| {
            Error::Option(format!("{:?} is not a valid backend name: {error}", options.name))
        })?;
        let listener = tcp_listener(namespace, options.listen)?;
        let shared = Arc::new(Shared {
            name,
            greeting: Bytes::from(format!("{}\n", options.name)),
            delay_us: AtomicU64::new(micros(options.delay)),
            corrupt_byte: options.corrupt_byte,
            clients: ClientsSeen::default(),
            requests: AtomicU64::new(0),
            open: AtomicU64::new(0),
        });
        let (drain, draining) = watch::channel(false);
        let thread = ServerThread::start(namespace, &format!("http-{}", options.name), {
            let shared = Arc::clone(&shared);
            |stopped| async move {
                let listener = TcpListener::from_std(listener).expect("the listener is non-blocking");
                serve(listener, shared, draining, stopped).await;
            }
        })?;
        Ok(Self { shared, drain, thread })
    }

    /// The addresses that connected.
    pub fn clients(&self) -> &ClientsSeen {
        &self.shared.clients
    }

    /// Requests answered so far.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Currently open connections.
    pub fn open_connections(&self) -> u64 {
        self.shared.open.load(Ordering::Relaxed)
    }

    /// Changes the delay of responses.
    pub fn set_delay(&self, delay: Duration) {
        self.shared.delay_us.store(micros(delay), Ordering::Relaxed);
    }

    /// Stops accepting, closes each connection after its current response, and waits for that, at most `limit`. Returns how
    /// many connections were cut off.
    pub fn drain(mut self, limit: Duration) -> u64 {
        self.drain.send_replace(true);
        let deadline = clock::now() + limit;
        while self.open_connections() > 0 && clock::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        let left = self.open_connections();
        self.thread.stop();
        left
    }
}

async fn serve(
    listener: TcpListener,
    shared: Arc<Shared>,
    mut draining: watch::Receiver<bool>,
    mut stopped: watch::Receiver<bool>,
) {
    let accept = async {
        loop {
            // EMFILE is temporary; the connection stays in the backlog.
            let Ok((stream, peer)) = listener.accept().await else {
                sleep(Duration::from_millis(10)).await;
                continue;
            };
            shared.clients.note(peer.ip());
            shared.open.fetch_add(1, Ordering::Relaxed);
            let (shared, draining) = (Arc::clone(&shared), draining.clone());
            tokio::task::spawn_local(async move {
                serve_connection(stream, &shared, draining).await;
                shared.open.fetch_sub(1, Ordering::Relaxed);
            });
        }
    };
    let mut drain_signal = draining.clone();
    tokio::select! {
        () = accept => {}
        _ = drain_signal.wait_for(|drain| *drain) => {}
        _ = stopped.wait_for(|stop| *stop) => return,
    }
    drop(listener);
    // The tasks of draining connections need this thread until the owner stops it.
    draining.mark_unchanged();
    // The sender lives until the thread is joined, so this cannot fail before the stop.
    let _ = stopped.wait_for(|stop| *stop).await;
}

async fn serve_connection(stream: TcpStream, shared: &Arc<Shared>, mut draining: watch::Receiver<bool>) {
    // Otherwise Nagle delays small responses. An error means that the peer is gone.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| respond(request, Arc::clone(shared)));
    let connection =
        http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let drained = tokio::select! {
        // How the client ends its connection does not matter.
        _ = connection.as_mut() => false,
        _ = draining.wait_for(|drain| *drain) => true,
    };
    if drained {
        connection.as_mut().graceful_shutdown();
        // `drain` has its own limit; this one only removes stuck peers.
        let _ = timeout(Duration::from_secs(60), poll_fn(|context| connection.as_mut().poll(context))).await;
    }
}

async fn respond(request: Request<Incoming>, shared: Arc<Shared>) -> Result<Response<Answer>, Infallible> {
    let delay = Duration::from_micros(shared.delay_us.load(Ordering::Relaxed));
    if !delay.is_zero() {
        sleep(delay).await;
    }
    shared.requests.fetch_add(1, Ordering::Relaxed);
    if request.uri().path() == "/echo" {
        // If the body ends early the connection is broken, and the answer does not matter.
        let body = request.into_body().collect().await.map(Collected::to_bytes).unwrap_or_default();
        return Ok(named(Response::new(Answer::text(body)), &shared));
    }
    let path = request.uri().path();
    let (status, answer) = match path.strip_prefix("/bytes/").map(str::parse) {
        Some(Ok(len)) => (StatusCode::OK, Answer::bytes(len, shared.corrupt_byte)),
        Some(Err(_)) => (StatusCode::NOT_FOUND, Answer::text(Bytes::from("/bytes/N needs a number\n"))),
        None if path == "/" => (StatusCode::OK, Answer::text(shared.greeting.clone())),
        None => (StatusCode::NOT_FOUND, Answer::text(Bytes::from("there are /, /bytes/N and /echo\n"))),
    };
    let mut response = Response::new(answer);
    *response.status_mut() = status;
    Ok(named(response, &shared))
}

fn named(mut response: Response<Answer>, shared: &Shared) -> Response<Answer> {
    response.headers_mut().insert(BACKEND_HEADER, shared.name.clone());
    response
}

/// A response body, generated while it is sent.
struct Answer {
    text: Option<Bytes>,
    offset: u64,
    left: u64,
    corrupt_byte: Option<u64>,
}

impl Answer {
    const CHUNK_LEN: u64 = 16 * 1024;

    fn text(text: Bytes) -> Self {
        Self { text: Some(text), offset: 0, left: 0, corrupt_byte: None }
    }

    fn bytes(len: u64, corrupt_byte: Option<u64>) -> Self {
        Self { text: None, offset: 0, left: len, corrupt_byte }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(text) = self.text.take() {
            return Poll::Ready(Some(Ok(Frame::data(text))));
        }
        let len = self.left.min(Self::CHUNK_LEN);
        if len == 0 {
            return Poll::Ready(None);
        }
        let mut chunk = Pattern::HTTP.bytes(self.offset, usize::try_from(len).expect("a chunk is small"));
        let corrupt = self.corrupt_byte.and_then(|place| place.checked_sub(self.offset));
        if let Some(byte) = corrupt.and_then(|place| chunk.get_mut(usize::try_from(place).ok()?)) {
            *byte ^= 1;
        }
        self.offset += len;
        self.left -= len;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(chunk)))))
    }

    fn is_end_stream(&self) -> bool {
        self.text.is_none() && self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        let text_len = self.text.as_ref().map_or(0, Bytes::len);
        SizeHint::with_exact(self.left + u64::try_from(text_len).expect("a length fits 64 bits"))
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
