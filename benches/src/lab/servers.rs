//! Servers of the lab, each a thread in the namespace of its backend. They answer with their name, so that clients know
//! which backend answered, and count the source addresses of their clients.

pub mod echo;
pub mod http;
pub mod nginx;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
};
use tokio::sync::watch;

use crate::error::{Error, Result};
use crate::netns::Namespace;

/// The source addresses of clients, with the number of connections (TCP) or datagrams (UDP) of each.
#[derive(Debug, Clone, Default)]
pub struct ClientsSeen {
    counts: Arc<Mutex<BTreeMap<IpAddr, u64>>>,
}

impl ClientsSeen {
    /// The current counts.
    pub fn snapshot(&self) -> BTreeMap<IpAddr, u64> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The sum of all counts.
    pub fn total(&self) -> u64 {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).values().sum()
    }

    fn note(&self, client: IpAddr) {
        // A socket for both families sees IPv4 addresses as IPv6 ones (RFC 3493 section 3.7).
        let client = client.to_canonical();
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner).entry(client).or_default() += 1;
    }
}

/// A server thread; stopped when dropped.
#[derive(Debug)]
struct ServerThread {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl ServerThread {
    /// Runs `serve` on its own runtime in the namespace.
    fn start<F: Future<Output = ()>>(
        namespace: &Namespace,
        name: &str,
        serve: impl FnOnce(watch::Receiver<bool>) -> F + Send + 'static,
    ) -> Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Error::io(format!("make the runtime of server {name}")))?;
        let thread = namespace.spawn_thread(name, move || {
            let tasks = tokio::task::LocalSet::new();
            runtime.block_on(tasks.run_until(serve(stopped)));
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Stops the server and waits for its thread.
    fn stop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            // A panic has been printed, and clients have noticed.
            let _ = thread.join();
        }
    }
}

impl Drop for ServerThread {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A listening socket in the namespace, with a backlog for thousands of simultaneous connects.
fn tcp_listener(namespace: &Namespace, address: SocketAddr) -> Result<TcpListener> {
    let open = move || -> nix::Result<TcpListener> {
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let socket =
            socket(family, SockType::Stream, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &SockaddrStorage::from(address))?;
        listen(&socket, Backlog::new(4096)?)?;
        Ok(TcpListener::from(socket))
    };
    namespace
        .run(open)
        .map_err(Error::errno(format!("listen on {address} in namespace {}", namespace.label())))
}
