//! Listening sockets that are retried until they can be bound; a failure stops nothing else.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::time::sleep;

use super::HttpResponse;
use crate::descriptors::DescriptorBudget;
use crate::report::{Entry, Severity};

/// A server whose address is in the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Server {
    /// What it is for, as in "cannot listen for ...".
    pub purpose: &'static str,
    /// The configuration key of its address.
    pub key: &'static str,
}

/// Listens and serves until dropped. `report` gets what is wrong with the servers for a purpose: an entry while the
/// address cannot be bound, which is tried again every five seconds, and none once it is.
pub async fn serve<H, F>(
    server: Server,
    address: SocketAddr,
    budget: &Arc<DescriptorBudget>,
    report: impl Fn(&'static str, Vec<Entry>),
    handler: H,
) where
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = HttpResponse>,
{
    let listener = loop {
        match bind(address) {
            Ok(listener) => break listener,
            Err(error) => {
                let Server { purpose, key } = server;
                let reason = format!(
                    "{address}: cannot listen for {purpose}: {error}: free the address or change {key}; tried \
                     again every {} s",
                    RETRY_AFTER.as_secs()
                );
                let entry = Entry { severity: Severity::Error, place: None, object: None, reason };
                report(purpose, vec![entry]);
            }
        }
        sleep(RETRY_AFTER).await;
    };
    report(server.purpose, Vec::new());
    tracing::info!(%address, "listening for {}", server.purpose);
    super::serve(listener, budget, handler).await;
}

/// A listening socket. One for an IPv6 address takes no IPv4 connections: those have a socket of their own.
///
/// # Errors
/// The error of the system call that failed.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Else connections of a predecessor in TIME_WAIT would block the address for a minute.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// How long to wait before an address that could not be bound is tried again.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(5);
/// Connections that the kernel holds until they are accepted: those of a flood and, behind them, that of a probe.
const BACKLOG: i32 = 1024;

#[cfg(test)]
mod tests {
    use hyper::StatusCode;
    use tokio::sync::watch;

    use super::*;
    use crate::http;
    use crate::http::tests::get;

    const SERVER: Server = Server { purpose: "tests", key: "test.listen" };

    #[tokio::test]
    async fn a_taken_address_is_named_with_the_key_and_served_once_it_is_free() {
        let taken = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = taken.local_addr().unwrap();
        let (shown, mut seen) = watch::channel(Vec::new());
        let serving = tokio::spawn(async move {
            let ok =
                |_: Request<Incoming>| std::future::ready(http::response(StatusCode::OK, http::TEXT, "ok"));
            let report = |_, findings| drop(shown.send_replace(findings));
            serve(SERVER, address, &http::tests::budget(8), report, ok).await;
        });
        let reason = seen.wait_for(|findings| !findings.is_empty()).await.unwrap()[0].reason.clone();
        assert!(reason.starts_with(&format!("{address}: cannot listen for tests: ")), "{reason}");
        assert!(reason.contains("change test.listen"), "{reason}");
        drop(taken);
        seen.wait_for(Vec::is_empty).await.unwrap();
        assert!(get(address, "/").await.unwrap().ends_with("ok"));
        serving.abort();
    }
}
