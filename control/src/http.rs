//! A small HTTP/1 server for probes and metrics. Request bodies are not read.
//!
//! Its users may face a hostile network, so everything is bounded: the number of connections by the budget that all servers
//! share ([`crate::descriptors`]), the bytes of a header and the time for it, the time for one exchange. A connection carries
//! one exchange.

pub mod listen;
pub mod metrics;

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::descriptors::{Admission, DescriptorBudget};

/// A response with its whole body.
pub type HttpResponse = Response<Full<Bytes>>;

/// A response of one content type, which browsers are told not to guess (`nosniff`).
pub fn response(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> HttpResponse {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Adds a header with a number.
#[must_use]
pub fn with_number(mut response: HttpResponse, name: &'static str, number: usize) -> HttpResponse {
    response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from(number));
    response
}

/// The response to an unknown path; `known` names those that exist.
pub fn not_found(known: &str) -> HttpResponse {
    response(StatusCode::NOT_FOUND, TEXT, format!("not found; there is {known}\n"))
}

/// Answers every request with `handler` until dropped, which ends the connections too.
pub async fn serve<H, F>(listener: TcpListener, budget: &Arc<DescriptorBudget>, handler: H)
where
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = HttpResponse>,
{
    let mut connections = FuturesUnordered::new();
    // Goes on where it was after each turn of the loop: a connection that waits for room is not lost.
    let mut accepting = pin!(accept(&listener, budget));
    loop {
        tokio::select! {
            (stream, admission) = &mut accepting => {
                connections.push(serve_connection(stream, admission, &handler));
                accepting.set(accept(&listener, budget));
            }
            Some(()) = connections.next(), if !connections.is_empty() => {}
        }
    }
}

async fn accept(listener: &TcpListener, budget: &Arc<DescriptorBudget>) -> (TcpStream, Admission) {
    loop {
        match listener.accept().await {
            Ok((stream, client)) => return (stream, budget.admit(Some(client.ip())).await),
            Err(error) => budget.accept_failed(&error).await,
        }
    }
}

async fn serve_connection<H, F>(stream: TcpStream, mut admission: Admission, handler: &H)
where
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = HttpResponse>,
{
    let requests = admission.requests();
    let service = service_fn(|request| {
        requests.fetch_add(1, Ordering::Relaxed);
        let response = handler(request);
        async move { Ok::<_, Infallible>(response.await) }
    });
    let mut builder = http1::Builder::new();
    builder
        // One exchange per connection: an idle client cannot hold one of the few connections.
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_MAX)
        .max_headers(HEADERS_MAX)
        .max_buf_size(BUFFER_MAX_BYTES);
    let exchange = timeout(EXCHANGE_MAX, builder.serve_connection(TokioIo::new(stream), service));
    // The exchange is dropped, and its descriptor closed, before the admission is.
    tokio::select! {
        outcome = exchange => {
            if let Ok(Err(error)) = outcome {
                tracing::debug!(%error, "a connection ended early");
            }
        }
        () = admission.shed() => {}
    }
}

/// The content type of plain text.
pub const TEXT: &str = "text/plain; charset=utf-8";
/// The content type of JSON.
pub const JSON: &str = "application/json";

const HEADERS_MAX: usize = 64;
const BUFFER_MAX_BYTES: usize = 16 * 1024;
/// Load balancers and the kubelet send theirs at once.
const HEADER_MAX: Duration = Duration::from_secs(1);
const EXCHANGE_MAX: Duration = Duration::from_secs(10);

#[cfg(test)]
pub(crate) mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::sleep;

    use super::*;
    use crate::descriptors::DescriptorLimits;

    /// One exchange; the whole response, header and body.
    pub(crate) async fn ask(address: SocketAddr, request: &str) -> std::io::Result<String> {
        let exchange = async {
            let mut stream = TcpStream::connect(address).await?;
            stream.write_all(request.as_bytes()).await?;
            let mut text = String::new();
            stream.read_to_string(&mut text).await?;
            Ok(text)
        };
        timeout(Duration::from_secs(30), exchange).await.map_err(std::io::Error::other)?
    }

    /// The response to GET.
    pub(crate) async fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
        ask(address, &format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n")).await
    }

    /// Repeats a GET until its outcome is as wanted, and returns that.
    pub(crate) async fn get_until(
        address: SocketAddr,
        path: &str,
        what: &str,
        wanted: impl Fn(&std::io::Result<String>) -> bool,
    ) -> std::io::Result<String> {
        let repeated = async {
            loop {
                let outcome = get(address, path).await;
                if wanted(&outcome) {
                    return outcome;
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        let outcome = timeout(Duration::from_secs(20), repeated).await;
        outcome.unwrap_or_else(|_| panic!("{address} is not {what}"))
    }

    /// Addresses on loopback that are free just now.
    pub(crate) fn free_addresses<const N: usize>() -> [SocketAddr; N] {
        let taken = [(); N].map(|()| listen::bind(([127, 0, 0, 1], 0).into()).unwrap());
        taken.map(|listener| listener.local_addr().unwrap())
    }

    /// A budget of so many connections.
    pub(crate) fn budget(connections: usize) -> Arc<DescriptorBudget> {
        DescriptorBudget::new(DescriptorLimits { connections, ..DescriptorLimits::default() })
    }

    async fn server() -> (SocketAddr, tokio::task::JoinHandle<()>) {
        server_with(budget(CONNECTIONS)).await
    }

    async fn server_with(budget: Arc<DescriptorBudget>) -> (SocketAddr, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let handler = |request: Request<Incoming>| {
            std::future::ready(response(StatusCode::OK, TEXT, request.uri().path().to_owned()))
        };
        (address, tokio::spawn(async move { serve(listener, &budget, handler).await }))
    }

    const CONNECTIONS: usize = 64;

    #[tokio::test]
    async fn any_method_is_answered_and_head_without_a_body() {
        let (address, server) = server().await;
        assert!(get(address, "/a").await.unwrap().ends_with("\r\n\r\n/a"));
        let head = ask(address, "HEAD /a HTTP/1.1\r\nHost: test\r\n\r\n").await.unwrap();
        assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
        let odd = "PURGE /b HTTP/1.1\r\nHost: test\r\nContent-Length: 3\r\n\r\nabc";
        assert!(ask(address, odd).await.unwrap().ends_with("/b"));
        server.abort();
    }

    #[tokio::test]
    async fn what_is_no_http_or_too_long_ends_its_connection_only() {
        let (address, server) = server().await;
        for bad in
            ["\0\u{1}\u{2}\r\n\r\n".to_owned(), format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(100_000))]
        {
            // A refusal, or a connection that is reset while the request is still being written.
            let refused = ask(address, &bad).await.map_or(true, |text| !text.starts_with("HTTP/1.1 200"));
            assert!(refused);
        }
        assert!(get(address, "/a").await.unwrap().ends_with("/a"));
        server.abort();
    }

    /// Whether the connection is closed, by an end or a reset, within a while.
    async fn is_closed(stream: &mut TcpStream) -> bool {
        let end = timeout(Duration::from_secs(20), stream.read(&mut [0; 512])).await;
        matches!(end, Ok(Ok(0) | Err(_)))
    }

    #[tokio::test]
    async fn clients_that_say_nothing_or_half_a_header_never_keep_others_out() {
        let budget = budget(CONNECTIONS);
        let (address, server) = server_with(Arc::clone(&budget)).await;
        let mut silent = Vec::new();
        for n in 0..4 * CONNECTIONS {
            let mut stream = TcpStream::connect(address).await.unwrap();
            if n % 2 == 0 {
                stream.write_all(b"GET / HTTP/1.1\r\nHost: ").await.unwrap();
            }
            silent.push(stream);
            if n % 32 == 0 {
                assert!(get(address, "/probe").await.unwrap().ends_with("/probe"), "{n}");
            }
            assert!(budget.open_connections() <= CONNECTIONS);
        }
        assert!(is_closed(&mut silent[0]).await, "the oldest made room");
        assert!(budget.shed_total() > 0);
        server.abort();
    }

    #[tokio::test]
    async fn a_header_that_is_not_whole_within_a_second_ends_its_connection() {
        let budget = budget(CONNECTIONS);
        let (address, server) = server_with(Arc::clone(&budget)).await;
        let mut slow = TcpStream::connect(address).await.unwrap();
        // A byte now and then, as slow loris does: each of them must not grant more time.
        let trickle = async {
            loop {
                if slow.write_all(b"G").await.is_err() {
                    return;
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(Duration::from_secs(20), trickle).await.expect("the connection is closed");
        assert!(is_closed(&mut slow).await);
        assert_eq!(budget.shed_total(), 0, "it was its time, not want of room");
        server.abort();
    }

    #[tokio::test]
    async fn a_server_that_is_dropped_takes_its_connections_along() {
        let (address, server) = server().await;
        let mut open = TcpStream::connect(address).await.unwrap();
        get(address, "/a").await.unwrap();
        server.abort();
        let _ = server.await;
        let mut byte = [0];
        // Closed or reset, but not left hanging.
        let end = timeout(Duration::from_secs(5), open.read(&mut byte)).await.unwrap();
        assert!(matches!(end, Ok(0) | Err(_)));
        assert!(TcpStream::connect(address).await.is_err());
    }
}
