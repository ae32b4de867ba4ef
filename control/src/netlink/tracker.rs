//! The loop that follows the kernel and publishes its state.
//!
//! Neighbours, which change often, are followed event by event. Links, addresses and routes are listed anew after any
//! event about them: the kernel removes routes without an event when an interface goes down or an address is deleted,
//! so that events do not add up to the state. After lost events everything is listed anew.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use flowgate_tables::InterfaceId;
use flowgate_tables::routing::NeighbourKey;
use flowgate_tables::spec::RouteHopSpec;
use futures::StreamExt;
use futures::TryStreamExt;
use futures::channel::mpsc::UnboundedReceiver;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::neighbour::{NeighbourFlags, NeighbourState};
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::sys::SocketAddr;
use rtnetlink::{Handle, MulticastGroup};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};

use super::forwarding;
use super::kernel_state::KernelState;
use super::message;
use super::nexthops::NextHopEvents;
use super::resolve_limiter::{ResolveLimiter, Target, UnsolicitedLimiter};
use super::{NetlinkError, Resolve};
use crate::log_limit::LogLimit;
use crate::model::NetState;

type Events = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// Follows the kernel's state while [`Tracker::run`] runs.
#[derive(Debug)]
pub struct Tracker {
    names: Vec<String>,
    handle: Handle,
    events: Events,
    next_hops: NextHopEvents,
    kernel: KernelState,
    state: watch::Sender<NetState>,
    requests: mpsc::Receiver<Resolve>,
    periodic: Vec<NeighbourKey>,
    limiter: ResolveLimiter,
    unsolicited: UnsolicitedLimiter,
    /// Of requests that the kernel refuses: packets cause them.
    refusals: LogLimit,
}

impl Tracker {
    pub(super) async fn open(
        names: Vec<String>,
        requests: mpsc::Receiver<Resolve>,
    ) -> Result<(Self, watch::Receiver<NetState>), NetlinkError> {
        let (handle, events, next_hops) = connect()?;
        let (state, receiver) = watch::channel(NetState::default());
        let mut tracker = Self {
            names,
            handle,
            events,
            next_hops,
            kernel: KernelState::default(),
            state,
            requests,
            periodic: Vec::new(),
            limiter: ResolveLimiter::default(),
            unsolicited: UnsolicitedLimiter::new(Instant::now()),
            refusals: LogLimit::default(),
        };
        tracker.list(Dirty::ALL).await?;
        tracker.read_forwarding();
        tracker.publish();
        Ok((tracker, receiver))
    }

    /// Follows the kernel until all receivers of the state are dropped.
    pub async fn run(mut self) {
        let mut seconds = interval(Duration::from_secs(1));
        // After a stall (a suspended machine), no burst of the ticks that were missed.
        seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut tick = 0u64;
        let mut dirty = Dirty::default();
        let mut due: Option<Instant> = None;
        loop {
            tokio::select! {
                () = self.state.closed() => return,
                event = self.events.next() => {
                    match event {
                        Some((message, _)) => dirty.merge(self.event(message.payload)),
                        None => {
                            tracing::warn!("the netlink connection ended: reconnecting");
                            sleep(RETRY_AFTER).await;
                            // Events are lost until the new socket is subscribed.
                            dirty = Dirty::ALL;
                            match connect() {
                                Ok(connected) => (self.handle, self.events, self.next_hops) = connected,
                                Err(error) => tracing::warn!(%error, "cannot reconnect to netlink"),
                            }
                        }
                    }
                    due.get_or_insert_with(|| Instant::now() + DEBOUNCE);
                }
                // Which routes use the object is not in the event: all routes are listed.
                () = self.next_hops.next() => {
                    dirty.routes = true;
                    due.get_or_insert_with(|| Instant::now() + DEBOUNCE);
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    due = None;
                    // Events that arrive meanwhile wait in `events` and make dirty again what was just listed. So a
                    // dump that a change cut in two, which the kernel does not prevent, is repeated.
                    match self.list(dirty).await {
                        Ok(()) => dirty = Dirty::default(),
                        Err(error) => {
                            tracing::warn!(%error, "asking again");
                            due = Some(Instant::now() + RETRY_AFTER);
                        }
                    }
                    self.publish();
                }
                Some(request) = self.requests.recv() => match request {
                    Resolve::Now(wanted) => self.request_for_packets(&wanted).await,
                    Resolve::Periodic(wanted) => {
                        self.request_unresolved(&wanted).await;
                        self.periodic = wanted;
                    }
                },
                _ = seconds.tick() => {
                    self.refresh().await;
                    if self.read_forwarding() {
                        self.publish();
                    }
                    if tick.is_multiple_of(PERIOD_SECONDS) {
                        let mut wanted = self.periodic.clone();
                        wanted.extend(self.routers());
                        self.request_unresolved(&wanted).await;
                    }
                    tick += 1;
                }
            }
        }
    }

    /// Applies an event about a neighbour; for the others, returns what must be listed anew.
    fn event(&mut self, payload: NetlinkPayload<RouteNetlinkMessage>) -> Dirty {
        let NetlinkPayload::InnerMessage(inner) = payload else {
            // ENOBUFS: the socket's buffer was full and the kernel dropped events.
            return if matches!(payload, NetlinkPayload::Overrun(_)) { Dirty::ALL } else { Dirty::default() };
        };
        match inner {
            // A link that goes down or is replaced takes addresses, routes and neighbours along, not all with events.
            RouteNetlinkMessage::NewLink(_) | RouteNetlinkMessage::DelLink(_) => Dirty::ALL,
            RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_) => {
                Dirty { addresses: true, routes: true, ..Dirty::default() }
            }
            RouteNetlinkMessage::NewRoute(_) | RouteNetlinkMessage::DelRoute(_) => {
                Dirty { routes: true, ..Dirty::default() }
            }
            RouteNetlinkMessage::NewNeighbour(message) => {
                if let Some(neighbour) = message::neighbour(&message) {
                    self.kernel.put_neighbour(neighbour);
                }
                Dirty::default()
            }
            RouteNetlinkMessage::DelNeighbour(message) => {
                if let Some(neighbour) = message::neighbour(&message) {
                    self.kernel.remove_neighbour(&neighbour);
                }
                Dirty::default()
            }
            _ => Dirty::default(),
        }
    }

    /// Dumps each dirty part. Events about neighbours that are older than the dump may still be applied after it; the
    /// newest event of a neighbour comes last, so the state ends up right.
    async fn list(&mut self, dirty: Dirty) -> Result<(), NetlinkError> {
        let failed = |what| move |error| NetlinkError::Dump { what, error };
        if dirty.links {
            let all: Vec<_> =
                self.handle.link().get().execute().try_collect().await.map_err(failed("links"))?;
            self.kernel.links = all.iter().filter_map(message::link).collect();
        }
        if dirty.addresses {
            let all: Vec<_> =
                self.handle.address().get().execute().try_collect().await.map_err(failed("addresses"))?;
            self.kernel.addresses = all.iter().filter_map(message::address).collect();
        }
        if dirty.routes {
            let all: Vec<_> = self
                .handle
                .route()
                .get(RouteMessage::default())
                .execute()
                .try_collect()
                .await
                .map_err(failed("routes"))?;
            self.kernel.routes = all.iter().filter_map(message::route).collect();
        }
        if dirty.neighbours {
            let all: Vec<_> =
                self.handle.neighbours().get().execute().try_collect().await.map_err(failed("neighbours"))?;
            self.kernel.set_neighbours(all.iter().filter_map(message::neighbour).collect());
        }
        Ok(())
    }

    /// Reads which links the kernel forwards packets from; returns whether that has changed.
    fn read_forwarding(&mut self) -> bool {
        let networks = self.kernel.networks(&self.names);
        let off = forwarding::off(Path::new(SETTINGS), &self.kernel.links, &networks);
        let changed = off != self.kernel.forwarding_off;
        self.kernel.forwarding_off = off;
        changed
    }

    fn publish(&self) {
        self.state.send_if_modified(|state| {
            let next = self.kernel.net_state(&self.names, state);
            let changed = next != *state;
            *state = next;
            changed
        });
    }

    /// Requests neighbours that packets wait for: backends and routers as soon as they are wanted, all others within a limit.
    async fn request_for_packets(&mut self, wanted: &[NeighbourKey]) {
        let routers = self.routers();
        let (solicited, others): (Vec<_>, Vec<_>) =
            wanted.iter().partition(|key| self.periodic.contains(key) || routers.contains(key));
        self.request_unresolved(&solicited).await;
        let networks = self.kernel.networks(&self.names);
        for key in others {
            let ifindex = networks.get(key.egress.index()).copied().unwrap_or(0);
            // One that the kernel has an entry for takes no further room.
            let is_known = self.kernel.neighbour(ifindex, key.addr).is_some();
            let used = self.kernel.neighbour_count(key.addr.is_ipv4());
            let table_max = neighbour_table_max(key.addr.is_ipv4());
            if is_known || self.unsolicited.admit(used, table_max, Instant::now()) {
                self.request_unresolved(&[key]).await;
            }
        }
    }

    async fn request_unresolved(&mut self, wanted: &[NeighbourKey]) {
        let networks = self.kernel.networks(&self.names);
        for &NeighbourKey { egress, addr: ip } in wanted {
            let ifindex = networks.get(egress.index()).copied().unwrap_or(0);
            let resolved = self.kernel.neighbour(ifindex, ip).is_some_and(|n| n.mac.is_some());
            if ifindex != 0 && !resolved {
                self.request_resolution((ifindex, ip)).await;
            }
        }
    }

    /// Has the kernel confirm neighbours that went stale. It does not see the workers' traffic: without a request it
    /// would not notice that an address moved, and would drop the unused entry in time.
    async fn refresh(&mut self) {
        let served: HashSet<u32> = self.kernel.networks(&self.names).into_iter().collect();
        let stale: Vec<Target> = served
            .into_iter()
            .flat_map(|ifindex| self.kernel.neighbours_on(ifindex))
            .filter(|n| n.state == NeighbourState::Stale)
            .map(|n| (n.ifindex, n.ip))
            .take(REFRESHED_PER_SECOND)
            .collect();
        for target in stale {
            self.request_resolution(target).await;
        }
    }

    /// The routers of all routes: replies to clients are sent to them.
    fn routers(&self) -> Vec<NeighbourKey> {
        let state = self.state.borrow();
        let router = |hop: &RouteHopSpec| {
            let egress = u8::try_from(hop.interface).ok().map(InterfaceId)?;
            Some(NeighbourKey { egress, addr: hop.via? })
        };
        let hops = state.routes.iter().flat_map(|route| &route.hops);
        let all: HashSet<NeighbourKey> = hops.filter_map(router).collect();
        all.into_iter().collect()
    }

    /// Has the kernel resolve or confirm a neighbour as if it had a packet for it: NTF_USE calls `neigh_event_send`
    /// (net/core/neighbour.c, `neigh_add`).
    async fn request_resolution(&mut self, (ifindex, ip): Target) {
        if !self.limiter.admit((ifindex, ip), Instant::now()) {
            return;
        }
        let request = self
            .handle
            .neighbours()
            .add(ifindex, ip)
            .state(NeighbourState::None)
            .flags(NeighbourFlags::Use)
            // In place of NLM_F_EXCL, with which the kernel refuses a request for an entry that exists.
            .replace();
        if let Err(error) = request.execute().await
            && let Some(more) = self.refusals.due(Instant::now().into_std())
        {
            tracing::warn!(%ip, ifindex, %error, more, "the kernel does not resolve a neighbour");
        }
    }
}

/// Opens one socket for events and one for requests: a flood of events must not overflow the buffer that responses
/// arrive in.
fn connect() -> Result<(Handle, Events, NextHopEvents), NetlinkError> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Neigh,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
    ];
    let (monitor, multicast_handle, events) = rtnetlink::new_multicast_connection(&groups)?;
    tokio::spawn(async move {
        monitor.await;
        // A connection ends once its last handle is dropped, hence not before.
        drop(multicast_handle);
    });
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    Ok((handle, events, NextHopEvents::open()?))
}

/// The most entries that the kernel's neighbour table of a family has. All network namespaces share it, and only the first one
/// shows the setting; it is 1024 unless somebody changed it (`arp_tbl` in net/ipv4/arp.c, `nd_tbl` in net/ipv6/ndisc.c).
fn neighbour_table_max(v4: bool) -> usize {
    let family = if v4 { "ipv4" } else { "ipv6" };
    let setting = fs::read_to_string(format!("{SETTINGS}/{family}/neigh/default/gc_thresh3"));
    setting.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(1024)
}

/// What must be listed anew.
#[derive(Clone, Copy, Debug, Default)]
struct Dirty {
    links: bool,
    addresses: bool,
    routes: bool,
    neighbours: bool,
}

impl Dirty {
    const ALL: Self = Self { links: true, addresses: true, routes: true, neighbours: true };

    const fn merge(&mut self, other: Self) {
        self.links |= other.links;
        self.addresses |= other.addresses;
        self.routes |= other.routes;
        self.neighbours |= other.neighbours;
    }
}

/// Events come in bursts: they are collected for this long before the state is published.
const DEBOUNCE: Duration = Duration::from_millis(5);
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Settings of the network namespace of the thread that reads them.
const SETTINGS: &str = "/proc/sys/net";
/// How often backends and routers that are not resolved are requested again.
const PERIOD_SECONDS: u64 = 5;
/// The most stale neighbours that are refreshed per second.
const REFRESHED_PER_SECOND: usize = 256;
