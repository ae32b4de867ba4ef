//! Forwards queries for names outside of the cluster domain to upstream resolvers, with a cache and time limits.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, Record, RecordType};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts, ServerOrderingStrategy,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::system_conf::parse_resolv_conf;
use tokio::time::timeout;

use super::Counters;
use crate::descriptors::network;

/// Where other names are resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// A resolver.
    Server(SocketAddr),
    /// The name servers of a file such as `/etc/resolv.conf`, read at start. Errors in it are only logged, and this
    /// server itself is left out.
    File(PathBuf),
}

/// Why nothing can be forwarded.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// An upstream is this server: queries would go round in circles.
    #[error("DNS upstream {0} is this server itself: name another resolver, or none")]
    Ourselves(SocketAddr),
    /// The resolver could not be made.
    #[error("DNS upstreams: {0}")]
    Resolver(String),
}

/// The upstreams' response about a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UpstreamResponse {
    pub(super) code: ResponseCode,
    pub(super) answers: Vec<Record>,
    pub(super) authorities: Vec<Record>,
}

impl UpstreamResponse {
    fn failure(code: ResponseCode) -> Self {
        Self { code, answers: Vec::new(), authorities: Vec::new() }
    }
}

/// The upstream resolvers, with a cache of their responses.
pub(super) struct Forwarder {
    resolver: TokioResolver,
    slots: Arc<Slots>,
    counters: Arc<Counters>,
}

impl Forwarder {
    /// A forwarder of which at most `slots_max` queries wait at the same time.
    pub(super) fn new(
        upstreams: &[SocketAddr],
        slots_max: usize,
        counters: Arc<Counters>,
    ) -> Result<Self, ForwardError> {
        let servers = upstreams.iter().map(|upstream| {
            let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
                connection.port = upstream.port();
                connection
            });
            NameServerConfig::new(upstream.ip(), true, connections.to_vec())
        });
        let config = ResolverConfig::from_parts(None, Vec::new(), servers.collect());
        let mut options = ResolverOpts::default();
        options.timeout = UPSTREAM_TIMEOUT;
        options.attempts = UPSTREAM_RETRIES;
        options.server_ordering_strategy = ServerOrderingStrategy::QueryStatistics;
        // /etc/hosts of this machine means nothing to clients.
        options.use_hosts_file = ResolveHosts::Never;
        // Only the kernel respects the ports that are reserved for translated flows (ip_local_reserved_ports). The
        // library would pick any, and a response to a reserved port would be taken for a backend's.
        options.os_port_selection = true;
        // The response must have the whole CNAME chain (RFC 1034 section 3.6.2).
        options.preserve_intermediates = true;
        options.max_active_requests = slots_max;
        // As short as others may cache our own records: an ExternalName must not outlive its target long.
        options.positive_max_ttl = Some(CACHED_MAX);
        options.negative_max_ttl = Some(CACHED_MAX);
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        let resolver = builder.build().map_err(|error| ForwardError::Resolver(error.to_string()))?;
        Ok(Self { resolver, slots: Arc::new(Slots::new(slots_max)), counters })
    }

    /// The right to one query of this client; `None`, which is counted, if it has its share already or all are taken.
    pub(super) fn slot(&self, client: IpAddr) -> Option<Slot> {
        let slot = self.slots.take(network(client));
        slot.inspect_err(|refusal| {
            Counters::add(match refusal {
                Refusal::Overloaded => &self.counters.overloaded,
                Refusal::ClientShare => &self.counters.client_overloaded,
            });
        })
        .ok()
    }

    /// Resolves a name. Failures of the upstreams become a response with their code, or SERVFAIL.
    pub(super) async fn resolve(&self, name: Name, record_type: RecordType) -> UpstreamResponse {
        Counters::add(&self.counters.forwarded);
        match timeout(ANSWER_WITHIN, self.resolver.lookup(name.clone(), record_type)).await {
            Ok(Ok(lookup)) => {
                let message = lookup.message();
                UpstreamResponse {
                    code: message.metadata.response_code,
                    answers: message.answers.clone(),
                    authorities: Vec::new(),
                }
            }
            // NODATA and NXDOMAIN are errors to the library, but responses to the client, with their SOA record.
            Ok(Err(NetError::Dns(DnsError::NoRecordsFound(nothing)))) => UpstreamResponse {
                code: nothing.response_code,
                answers: Vec::new(),
                authorities: nothing.soa.into_iter().map(|soa| soa.into_record_of_rdata()).collect(),
            },
            Ok(Err(NetError::Dns(DnsError::ResponseCode(code)))) => UpstreamResponse::failure(code),
            Ok(Err(error)) => {
                Counters::add(&self.counters.forward_failed);
                tracing::debug!(%name, %error, "no DNS upstream answered");
                UpstreamResponse::failure(ResponseCode::ServFail)
            }
            Err(_) => {
                Counters::add(&self.counters.forward_failed);
                tracing::debug!(%name, "no DNS upstream answered in time");
                UpstreamResponse::failure(ResponseCode::ServFail)
            }
        }
    }
}

/// The queries that may wait for upstreams, shared among clients.
///
/// A client may have an eighth of what the others leave free, and always one. So one client that floods with names that
/// nobody answers gets a ninth of all, many such clients get less each, and some are left for whoever comes next.
#[derive(Debug)]
struct Slots {
    max: usize,
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    all: usize,
    by_client: HashMap<IpAddr, usize>,
}

/// The right to have one query wait for upstreams.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Arc<Slots>,
    client: IpAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// All are taken.
    Overloaded,
    /// The client has its share.
    ClientShare,
}

impl Slots {
    fn new(max: usize) -> Self {
        Self { max, used: Mutex::default() }
    }

    fn take(self: &Arc<Self>, client: IpAddr) -> Result<Slot, Refusal> {
        let mut used = self.lock();
        let free = self.max.saturating_sub(used.all);
        if free == 0 {
            return Err(Refusal::Overloaded);
        }
        let of_client = used.by_client.entry(client).or_default();
        if *of_client >= (free / CLIENT_SHARE).max(1) {
            return Err(Refusal::ClientShare);
        }
        *of_client += 1;
        used.all += 1;
        Ok(Slot { slots: Arc::clone(self), client })
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut used = self.slots.lock();
        used.all -= 1;
        if let Some(of_client) = used.by_client.get_mut(&self.client) {
            *of_client -= 1;
            if *of_client == 0 {
                used.by_client.remove(&self.client);
            }
        }
    }
}

/// The addresses of the upstreams, each once. This server is left out if a file names it, and an error if named
/// directly.
pub(super) fn addresses(
    upstreams: &[Upstream],
    listening: &[SocketAddr],
) -> Result<Vec<SocketAddr>, ForwardError> {
    let mut all: Vec<SocketAddr> = Vec::new();
    for upstream in upstreams {
        match upstream {
            Upstream::Server(server) if is_one_of(*server, listening) => {
                return Err(ForwardError::Ourselves(*server));
            }
            Upstream::Server(server) => all.push(*server),
            Upstream::File(path) => {
                let mut servers = read(path).unwrap_or_else(|error| {
                    tracing::warn!("DNS upstreams of {}: {error}: name resolvers by address", path.display());
                    Vec::new()
                });
                servers.retain(|&server| {
                    let own = is_one_of(server, listening);
                    if own {
                        tracing::warn!("DNS upstreams of {}: {server} is this server", path.display());
                    }
                    !own
                });
                all.extend(servers);
            }
        }
    }
    let mut once = Vec::new();
    all.retain(|server| {
        let first = !once.contains(server);
        once.push(*server);
        first
    });
    Ok(all)
}

fn read(path: &Path) -> io::Result<Vec<SocketAddr>> {
    let (config, _) = parse_resolv_conf(std::fs::read(path)?).map_err(io::Error::other)?;
    Ok(config.name_servers().iter().map(|server| SocketAddr::new(server.ip, DNS_PORT)).collect())
}

fn is_one_of(server: SocketAddr, listening: &[SocketAddr]) -> bool {
    listening.iter().any(|own| {
        // A server on the unspecified address listens on every address of this host.
        let any = own.ip().is_unspecified();
        own.port() == server.port() && (own.ip() == server.ip() || any && is_local(server))
    })
}

/// Whether it is an address of this host: only those can be bound.
fn is_local(server: SocketAddr) -> bool {
    UdpSocket::bind(SocketAddr::new(server.ip(), 0)).is_ok()
}

/// The port of DNS.
pub const DNS_PORT: u16 = 53;
/// Resolvers of clients give up after five seconds (resolv.conf(5)): the failure must reach them before.
const ANSWER_WITHIN: Duration = Duration::from_millis(4500);
const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(2);
const UPSTREAM_RETRIES: usize = 1;
/// A client may have the free slots divided by this.
const CLIENT_SHARE: usize = 8;
const CACHED_MAX: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    fn client(n: u8) -> IpAddr {
        [192, 0, 2, n].into()
    }

    fn take_all(slots: &Arc<Slots>, client: IpAddr) -> Vec<Slot> {
        std::iter::from_fn(|| slots.take(client).ok()).collect()
    }

    #[test]
    fn one_client_gets_a_ninth_and_its_slots_come_back() {
        let slots = Arc::new(Slots::new(512));
        let taken = take_all(&slots, client(1));
        assert_eq!(taken.len(), 57);
        assert_eq!(slots.take(client(1)).unwrap_err(), Refusal::ClientShare);
        drop(taken);
        assert_eq!(take_all(&slots, client(1)).len(), 57);
        assert!(slots.lock().by_client.is_empty(), "nothing is remembered of clients without queries");
    }

    #[test]
    fn twenty_greedy_clients_leave_room_for_the_next_one() {
        let slots = Arc::new(Slots::new(512));
        let taken: Vec<_> = (1..=20).flat_map(|n| take_all(&slots, client(n))).collect();
        assert!(taken.len() < 512, "{}", taken.len());
        assert!(slots.take(client(200)).is_ok());
    }

    #[test]
    fn when_all_are_taken_nobody_gets_one() {
        let slots = Arc::new(Slots::new(8));
        let taken: Vec<_> = (1..=8).map(|n| slots.take(client(n)).unwrap()).collect();
        assert_eq!(slots.take(client(9)).unwrap_err(), Refusal::Overloaded);
        drop(taken);
        assert!(slots.take(client(9)).is_ok());
    }
}
