//! Listening sockets that come when they can. Never gives up, and never stops anything else.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::sleep;

use super::http::{self, Answer};
use crate::reconcile::Status;
use crate::report::{Entry, Severity};

/// A server with one address from the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Server {
    /// What it is for, as in "cannot listen for ...".
    pub purpose: &'static str,
    /// The configuration key of its address.
    pub key: &'static str,
}

/// Listens and serves until dropped. While the address is not to be had this is said in the status, and tried
/// again every five seconds.
pub async fn serve<H, F>(server: Server, address: SocketAddr, status: &watch::Sender<Status>, handler: H)
where
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Answer>,
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
                status.send_if_modified(|status| status.set_listener_findings(server.purpose, vec![entry]));
            }
        }
        sleep(RETRY_AFTER).await;
    };
    status.send_if_modified(|status| status.set_listener_findings(server.purpose, Vec::new()));
    tracing::info!(%address, "listening for {}", server.purpose);
    http::serve(listener, handler).await;
}

/// A listening socket. One for an IPv6 address takes no IPv4 connections: those have a socket of their own.
///
/// # Errors
/// What the kernel says.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Else connections that a predecessor closed would keep the address taken for a minute.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// An address that was not to be had is tried again after so long.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(5);
const BACKLOG: i32 = 128;

#[cfg(test)]
mod tests {
    use hyper::StatusCode;

    use super::*;
    use crate::health::http::tests::get;

    const SERVER: Server = Server { purpose: "tests", key: "test.listen" };

    #[tokio::test]
    async fn a_taken_address_is_named_with_the_key_and_served_once_it_is_free() {
        let taken = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = taken.local_addr().unwrap();
        let (status, mut seen) = watch::channel(Status::default());
        let serving = tokio::spawn(async move {
            let ok =
                |_: Request<Incoming>| std::future::ready(http::answer(StatusCode::OK, http::TEXT, "ok"));
            serve(SERVER, address, &status, ok).await;
        });
        let said = seen.wait_for(|status| status.findings().next().is_some()).await.unwrap();
        let reason = said.findings().next().unwrap().reason.clone();
        drop(said);
        assert!(reason.starts_with(&format!("{address}: cannot listen for tests: ")), "{reason}");
        assert!(reason.contains("change test.listen"), "{reason}");
        drop(taken);
        seen.wait_for(|status| status.findings().next().is_none()).await.unwrap();
        assert!(get(address, "/").await.unwrap().ends_with("ok"));
        serving.abort();
    }
}
