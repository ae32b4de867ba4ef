//! The server's sockets and thread, and the task that updates the zone.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use socket2::SockRef;
use tokio::sync::watch;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, sleep};

use super::forward::{self, ForwardError, Forwarder, Upstream};
use super::rate_limit::{RateLimit, RateLimiter};
use super::respond::{Responder, ZoneState};
use super::zone::{BadDomain, Zone};
use super::{Counters, tcp, udp};
use crate::descriptors::DescriptorBudget;
use crate::model::Desired;

/// The operator's decisions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where to listen, over UDP and TCP. The kernel picks the source address of UDP responses, so on a host with
    /// several addresses each must be named instead of the unspecified one.
    pub listen: Vec<SocketAddr>,
    /// The cluster domain.
    pub domain: String,
    /// The TTL of the records, in seconds.
    pub ttl_s: u32,
    /// Resolvers for other names; if empty those are refused.
    pub upstreams: Vec<Upstream>,
    /// Limits responses over UDP; `None`: all are sent.
    pub rate_limit: Option<RateLimit>,
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// The cluster domain cannot be one.
    #[error("DNS: {0}")]
    Domain(#[from] BadDomain),
    /// The upstreams cannot be used.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// An address cannot be listened on.
    #[error("DNS cannot listen on {addr} over {transport}: {source}{}", remedy(source))]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// `UDP` or `TCP`.
        transport: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A socket failed later.
    #[error("the DNS server ended: {0}")]
    Ended(String),
}

/// A server with bound sockets that does not answer yet.
pub struct Server {
    sockets: Vec<(UdpSocket, TcpListener)>,
    zone: Zone,
    upstreams: Vec<SocketAddr>,
    rate_limit: Option<RateLimit>,
    counters: Arc<Counters>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("sockets", &self.sockets).finish_non_exhaustive()
    }
}

impl Server {
    /// Opens the sockets, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`DnsError`], for the first thing that is wrong. A file of upstreams that cannot be used is only
    /// warned of: the cluster's own names do not need it.
    pub fn bind(config: &Config) -> Result<Self, DnsError> {
        let servers = config.listen.iter().map(SocketAddr::ip).filter(|ip| !ip.is_unspecified());
        // The serial number must not go back when the process restarts (RFC 1982), so it begins with the time.
        let serial = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let zone = Zone::new(&config.domain, config.ttl_s, servers.collect())?
            .with_serial(u32::try_from(serial).unwrap_or(u32::MAX));
        let sockets = config.listen.iter().map(|&addr| bind(addr)).collect::<Result<Vec<_>, _>>()?;
        let listening: Vec<SocketAddr> =
            sockets.iter().filter_map(|(udp, _)| udp.local_addr().ok()).collect();
        let upstreams = forward::addresses(&config.upstreams, &listening)?;
        let rate_limit = config.rate_limit;
        Ok(Self { sockets, zone, upstreams, rate_limit, counters: Arc::default() })
    }

    /// Where it listens.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.sockets.iter().filter_map(|(udp, _)| udp.local_addr().ok()).collect()
    }

    /// The counters.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Serves on a thread of its own until the sender of the desired state is dropped. Errors are logged. `confine` is called
    /// there first, to give up privileges.
    ///
    /// # Errors
    /// The runtime or the thread could not be made.
    pub fn spawn(
        self,
        confine: fn(),
        desired: watch::Receiver<Arc<Desired>>,
        budget: Arc<DescriptorBudget>,
    ) -> io::Result<thread::JoinHandle<()>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new().name("flowgate-dns".to_owned()).spawn(move || {
            confine();
            if let Err(error) = runtime.block_on(self.serve(desired, budget)) {
                tracing::error!("{error}");
            }
            runtime.shutdown_background();
        })
    }

    /// Serves until the sender of the desired state is dropped. The receiver's first value does not count: before the
    /// first change every name of the cluster domain is answered with SERVFAIL. Connections and forwarded queries are
    /// within the budget.
    ///
    /// # Errors
    /// [`DnsError`]: the sockets or the resolver cannot be used.
    pub async fn serve(
        self,
        desired: watch::Receiver<Arc<Desired>>,
        budget: Arc<DescriptorBudget>,
    ) -> Result<(), DnsError> {
        let state = ZoneState { zone: self.zone, is_synced: false };
        let forwarder = if self.upstreams.is_empty() {
            None
        } else {
            let slots_max = budget.limits().forwarded;
            Some(Arc::new(Forwarder::new(&self.upstreams, slots_max, Arc::clone(&self.counters))?))
        };
        let responder =
            Responder { state: Arc::new(ArcSwap::from_pointee(state)), forwarder, counters: self.counters };
        let limiter =
            self.rate_limit.map(|limit| Arc::new(Mutex::new(RateLimiter::new(limit, Instant::now()))));
        // Dropping the set aborts the tasks.
        let mut servers = JoinSet::new();
        for (over_udp, over_tcp) in self.sockets {
            let unusable = |error: io::Error| DnsError::Ended(error.to_string());
            let socket = tokio::net::UdpSocket::from_std(over_udp).map_err(unusable)?;
            servers.spawn(udp::serve(socket, responder.clone(), limiter.clone()));
            let listener = tokio::net::TcpListener::from_std(over_tcp).map_err(unusable)?;
            servers.spawn(tcp::accept(listener, responder.clone(), Arc::clone(&budget)));
        }
        tokio::select! {
            () = follow(&responder.state, desired) => Ok(()),
            // They never end by themselves.
            Some(ended) = servers.join_next() => {
                Err(DnsError::Ended(ended.err().map_or_else(String::new, |error| error.to_string())))
            }
        }
    }
}

/// Updates the zone with each change. Changes that come during an update are part of the next.
async fn follow(state: &ArcSwap<ZoneState>, mut desired: watch::Receiver<Arc<Desired>>) {
    let mut before = Arc::new(Desired::default());
    while desired.changed().await.is_ok() {
        let after = Arc::clone(&desired.borrow_and_update());
        let last = state.load_full();
        let (old, new) = (Arc::clone(&before), Arc::clone(&after));
        // On another thread: this one answers queries meanwhile.
        match spawn_blocking(move || last.zone.updated(&old, &new)).await {
            Ok(zone) => {
                state.store(Arc::new(ZoneState { zone, is_synced: true }));
                before = after;
            }
            // `before` stays, so the next update includes this change.
            Err(error) => tracing::error!(%error, "the DNS zone was not renewed and stays as it was"),
        }
        sleep(BETWEEN_CHANGES).await;
    }
}

fn bind(addr: SocketAddr) -> Result<(UdpSocket, TcpListener), DnsError> {
    let mut tries = if addr.port() == 0 { ANY_PORT_TRIES } else { 1 };
    loop {
        let bound = bind_both(addr);
        tries -= 1;
        // Port 0: the port that the kernel chose for UDP may be taken for TCP.
        if bound.is_ok() || tries == 0 {
            return bound;
        }
    }
}

fn bind_both(addr: SocketAddr) -> Result<(UdpSocket, TcpListener), DnsError> {
    let failed = |transport, addr| move |source| DnsError::Bind { addr, transport, source };
    let udp = UdpSocket::bind(addr).map_err(failed("UDP", addr))?;
    let bound = udp.local_addr().map_err(failed("UDP", addr))?;
    let tcp = TcpListener::bind(bound).map_err(failed("TCP", bound))?;
    // Longer than the default: connections of a flood wait there, and behind them those of real clients.
    SockRef::from(&tcp).listen(BACKLOG).map_err(failed("TCP", bound))?;
    udp.set_nonblocking(true).map_err(failed("UDP", bound))?;
    tcp.set_nonblocking(true).map_err(failed("TCP", bound))?;
    Ok((udp, tcp))
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => ": another server has it, stop that one or change dns.listen",
        io::ErrorKind::AddrNotAvailable => ": no interface has this address, change dns.listen",
        io::ErrorKind::PermissionDenied => ": ports below 1024 need CAP_NET_BIND_SERVICE",
        _ => "",
    }
}

/// The shortest time between updates of the zone.
const BETWEEN_CHANGES: Duration = Duration::from_millis(10);
const ANY_PORT_TRIES: usize = 8;
const BACKLOG: i32 = 1024;
