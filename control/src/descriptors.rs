//! One budget of file descriptors for all servers of the process: the sockets on which they listen, their connections, and
//! the sockets of forwarded DNS queries. What is left belongs to the sockets of workers, netlink and the Kubernetes API,
//! which must never fail because strangers connect.
//!
//! Listeners are refused when their part is used up. Connections are never refused: when their part is full, the oldest
//! idle one of the client that has the most is closed for the new one, so that a probe is always answered.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, sleep, timeout};

/// The budget; all servers share one.
#[derive(Debug)]
pub struct DescriptorBudget {
    listeners: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    limits: DescriptorLimits,
    open: Mutex<Open>,
    shed: AtomicU64,
    accept_error_logged: Mutex<Option<Instant>>,
}

/// The parts of a budget. Each is a number of uses, which may take two descriptors each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescriptorLimits {
    /// Listening sockets that come and go with objects: health check ports of Services.
    pub listeners: usize,
    /// Connections of all servers together.
    pub connections: usize,
    /// DNS queries that wait for upstream resolvers at the same time.
    pub forwarded: usize,
}

impl DescriptorLimits {
    /// Divides what a process with `limit` descriptors (RLIMIT_NOFILE), of which `in_use` are open, can spare: half for
    /// listeners, a quarter for connections, a quarter for forwarded queries.
    pub fn divide(limit: usize, in_use: usize) -> Self {
        let spare = limit.saturating_sub(in_use).saturating_sub(KEPT_FREE);
        Self {
            // A second descriptor: the connection that a listener has accepted while it waits for room.
            listeners: (spare / 2 / 2).clamp(1, LISTENERS_MAX),
            connections: (spare / 4).clamp(CONNECTIONS_MIN, CONNECTIONS_MAX),
            // The resolver queries two upstreams at the same time.
            forwarded: (spare / 4 / 2).clamp(FORWARDED_MIN, FORWARDED_MAX),
        }
    }
}

impl Default for DescriptorLimits {
    /// For a process that may open a thousand files.
    fn default() -> Self {
        Self::divide(1024, 64)
    }
}

/// The open connections by client, and the clients by how many they have: who makes room is found without looking at all,
/// since a flood asks for it with each of its connections.
#[derive(Debug, Default)]
struct Open {
    next: u64,
    count: usize,
    clients: HashMap<Client, BTreeMap<u64, Entry>>,
    by_count: BTreeSet<(usize, Client)>,
}

/// `None`: the admin socket.
type Client = Option<IpAddr>;

/// A connection that may be told to close.
#[derive(Debug)]
struct Entry {
    requests: Arc<AtomicUsize>,
    shed: oneshot::Sender<()>,
}

impl Open {
    fn insert(&mut self, client: Client, entry: Entry) -> u64 {
        let number = self.next;
        self.next += 1;
        self.count += 1;
        self.change(client, |connections| drop(connections.insert(number, entry)));
        number
    }

    /// Takes out a connection: one without a request before one that has some, of the client that has the most, the
    /// oldest.
    fn take_one(&mut self) -> Option<Entry> {
        let idle = |&(_, client): &(usize, Client)| {
            let is_idle = |(_, entry): &(&u64, &Entry)| entry.requests.load(Ordering::Relaxed) == 0;
            let (number, _) = self.clients.get(&client)?.iter().find(is_idle)?;
            Some((client, *number))
        };
        let oldest =
            |&(_, client): &(usize, Client)| Some((client, *self.clients.get(&client)?.first_key_value()?.0));
        let greediest = || self.by_count.iter().rev();
        let (client, number) = greediest().find_map(idle).or_else(|| greediest().find_map(oldest))?;
        self.change(client, |connections| connections.remove(&number))
    }

    /// Changes the connections of a client, and keeps the counts right.
    fn change<R>(&mut self, client: Client, what: impl FnOnce(&mut BTreeMap<u64, Entry>) -> R) -> R {
        let connections = self.clients.entry(client).or_default();
        let before = connections.len();
        let result = what(connections);
        let after = connections.len();
        if after == 0 {
            self.clients.remove(&client);
        }
        if before != after {
            self.by_count.remove(&(before, client));
            if after > 0 {
                self.by_count.insert((after, client));
            }
        }
        result
    }
}

/// The right to have one listening socket.
#[derive(Debug)]
pub struct ListenerPermit {
    _permit: OwnedSemaphorePermit,
}

/// A connection within the budget. Its descriptor must be closed before this is dropped.
#[derive(Debug)]
pub struct Admission {
    budget: Arc<DescriptorBudget>,
    client: Client,
    number: u64,
    requests: Arc<AtomicUsize>,
    shed: oneshot::Receiver<()>,
    _permit: OwnedSemaphorePermit,
}

impl DescriptorBudget {
    /// A budget of which nothing is used.
    pub fn new(limits: DescriptorLimits) -> Arc<Self> {
        Arc::new(Self {
            listeners: Arc::new(Semaphore::new(limits.listeners)),
            connections: Arc::new(Semaphore::new(limits.connections)),
            limits,
            open: Mutex::default(),
            shed: AtomicU64::new(0),
            accept_error_logged: Mutex::default(),
        })
    }

    /// Its parts.
    pub const fn limits(&self) -> DescriptorLimits {
        self.limits
    }

    /// The right to one more listening socket; `None` if all are taken.
    pub fn listener(&self) -> Option<ListenerPermit> {
        let permit = Arc::clone(&self.listeners).try_acquire_owned().ok()?;
        Some(ListenerPermit { _permit: permit })
    }

    /// Admits a connection that was just accepted; `None` is a client on this machine's admin socket. If there is no
    /// room, another connection is told to close, and this returns once one has.
    pub async fn admit(self: &Arc<Self>, client: Option<IpAddr>) -> Admission {
        let permit = loop {
            if let Ok(permit) = Arc::clone(&self.connections).try_acquire_owned() {
                break permit;
            }
            self.shed_one();
            // The thread of that connection may be busy just now: then another one makes room.
            let room = Arc::clone(&self.connections).acquire_owned();
            if let Ok(permit) = timeout(SHED_WITHIN, room).await {
                break permit.expect("the semaphore is never closed");
            }
        };
        let (sender, shed) = oneshot::channel();
        let (client, requests) = (client.map(network), Arc::default());
        let entry = Entry { requests: Arc::clone(&requests), shed: sender };
        let number = self.lock().insert(client, entry);
        Admission { budget: Arc::clone(self), client, number, requests, shed, _permit: permit }
    }

    /// Connections that are open now.
    pub fn open_connections(&self) -> usize {
        self.lock().count
    }

    /// Listening sockets that are open now, of those that come and go with objects.
    pub fn open_listeners(&self) -> usize {
        self.limits.listeners - self.listeners.available_permits()
    }

    /// Connections that were closed to make room for newer ones.
    pub fn shed_total(&self) -> u64 {
        self.shed.load(Ordering::Relaxed)
    }

    /// What an accept loop does after an error. A client that went away is nothing. Any other error, most likely EMFILE,
    /// leaves the connection in the backlog, and accepting again at once would spin: this makes room and waits. It logs
    /// once a minute for all servers.
    pub async fn accept_failed(&self, error: &io::Error) {
        if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) {
            return;
        }
        let now = Instant::now();
        let is_due = {
            let mut logged = self.accept_error_logged.lock().unwrap_or_else(PoisonError::into_inner);
            let is_due = logged.is_none_or(|at| now.duration_since(at) >= LOG_EVERY);
            if is_due {
                *logged = Some(now);
            }
            is_due
        };
        if is_due {
            tracing::warn!(
                %error,
                "a connection to one of the servers of this process cannot be accepted yet; if files are short, raise \
                 the limit of open files (LimitNOFILE)"
            );
        }
        self.shed_one();
        sleep(ACCEPT_PAUSE).await;
    }

    /// Tells one connection to close, if there is any that was not told before.
    fn shed_one(&self) {
        let taken = self.lock().take_one();
        if let Some(entry) = taken {
            self.shed.fetch_add(1, Ordering::Relaxed);
            // The receiver is gone if the connection ends just now: that makes room too.
            let _ = entry.shed.send(());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Admission {
    /// The requests of this connection that are being answered; while there are any it is not idle.
    pub fn requests(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.requests)
    }

    /// Returns when this connection has to close for a newer one.
    pub async fn shed(&mut self) {
        // The sender lives until it is used, or until this is dropped.
        let _ = (&mut self.shed).await;
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut open = self.budget.lock();
        open.count -= 1;
        // It is no longer there if it was told to close.
        open.change(self.client, |connections| drop(connections.remove(&self.number)));
    }
}

/// A client, as far as shares go: its IPv4 address, or the network of 64 bits in which an IPv6 client chooses its address
/// itself.
pub(crate) fn network(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(addr) => Ipv6Addr::from_bits(addr.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

/// Descriptors that are left to sockets of workers, netlink, the API and files.
pub const KEPT_FREE: usize = 128;
/// Health check ports of 8,192 Services in both families: as many as NodePorts by default, three times over.
const LISTENERS_MAX: usize = 16_384;
/// A connection may take some ten kilobytes of memory.
const CONNECTIONS_MAX: usize = 1024;
const CONNECTIONS_MIN: usize = 16;
const FORWARDED_MAX: usize = 512;
const FORWARDED_MIN: usize = 8;
const SHED_WITHIN: Duration = Duration::from_millis(20);
const LOG_EVERY: Duration = Duration::from_secs(60);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn budget(connections: usize) -> Arc<DescriptorBudget> {
        DescriptorBudget::new(DescriptorLimits { listeners: 2, connections, forwarded: 8 })
    }

    fn client(last: u8) -> Option<IpAddr> {
        Some([192, 0, 2, last].into())
    }

    /// Whether the connection has been told to close.
    fn is_shed(admission: &mut Admission) -> bool {
        admission.shed().now_or_never().is_some()
    }

    #[test]
    fn the_parts_never_exceed_what_the_process_may_open() {
        for limit in [1024, 4096, 65_536, 524_288, 1 << 20] {
            let in_use = 200;
            let DescriptorLimits { listeners, connections, forwarded } =
                DescriptorLimits::divide(limit, in_use);
            assert!(2 * listeners + connections + 2 * forwarded + in_use + KEPT_FREE <= limit, "{limit}");
        }
        let short = DescriptorLimits::divide(64, 200);
        assert!(
            short.listeners > 0 && short.connections > 0 && short.forwarded > 0,
            "something is always served"
        );
    }

    #[tokio::test]
    async fn the_oldest_idle_connection_makes_room_for_a_new_one() {
        let budget = budget(3);
        let mut first = budget.admit(client(1)).await;
        let (mut second, third) = (budget.admit(client(1)).await, budget.admit(client(1)).await);
        first.requests().fetch_add(1, Ordering::Relaxed);
        let (waiting, ()) = tokio::join!(budget.admit(client(1)), async {
            tokio::task::yield_now().await;
            assert!(is_shed(&mut second) && !is_shed(&mut first), "the first has a request");
            assert_eq!(budget.open_connections(), 3, "never more than the limit");
            drop(second);
        });
        assert_eq!((budget.open_connections(), budget.shed_total()), (3, 1));
        drop((first, third, waiting));
        assert_eq!(budget.open_connections(), 0);
        let open = budget.lock();
        assert!(open.clients.is_empty() && open.by_count.is_empty(), "nothing is remembered: {open:?}");
    }

    #[tokio::test]
    async fn a_client_with_one_connection_keeps_it_while_another_has_many() {
        let budget = budget(4);
        let mut probe = budget.admit(client(9)).await;
        let mut flood = Vec::new();
        for _ in 0..3 {
            flood.push(budget.admit(client(1)).await);
        }
        for _ in 0..10 {
            let (newest, ()) = tokio::join!(budget.admit(client(1)), async {
                tokio::task::yield_now().await;
                assert!(is_shed(&mut flood[0]));
                flood.remove(0);
            });
            flood.push(newest);
        }
        assert!(!is_shed(&mut probe));
    }

    #[tokio::test]
    async fn with_requests_on_all_connections_the_oldest_makes_room() {
        let budget = budget(2);
        let mut open = [budget.admit(client(1)).await, budget.admit(client(1)).await];
        for admission in &open {
            admission.requests().fetch_add(1, Ordering::Relaxed);
        }
        budget.shed_one();
        assert!(is_shed(&mut open[0]) && !is_shed(&mut open[1]));
        budget.shed_one();
        assert!(is_shed(&mut open[1]), "the first is on its way out already");
    }

    #[test]
    fn listeners_beyond_their_part_are_refused_until_one_closes() {
        let budget = budget(1);
        let both = (budget.listener().unwrap(), budget.listener().unwrap());
        assert!(budget.listener().is_none());
        assert_eq!(budget.open_listeners(), 2);
        drop(both);
        assert!(budget.listener().is_some());
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_client() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(network(ip("2001:db8::1")), network(ip("2001:db8::ffff:1")));
        assert_ne!(network(ip("2001:db8::1")), network(ip("2001:db8:0:1::1")));
        assert_eq!(network(ip("192.0.2.1")), ip("192.0.2.1"));
    }
}
