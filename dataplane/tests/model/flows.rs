//! Connection tracking as the RFCs have it, in a list.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use flowgate_flow::Timeouts;
use flowgate_tables::spec::RouteHopSpec;
use flowgate_wire::Protocol;

use super::packet::{Flags, Tuple};
use super::services::{BackendKey, Lives};
use super::tracking::Known;

/// One flow.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    pub(crate) original: Tuple,
    pub(crate) reply: Tuple,
    pub(crate) backend: BackendKey,
    /// Which life of the backend it was opened to.
    pub(crate) life: u64,
    pub(crate) client: Direction,
    pub(crate) server: Direction,
    /// When it was opened, in milliseconds.
    pub(crate) opened: u64,
    /// Whether datagrams have gone both ways for longer than two seconds.
    pub(crate) is_stream: bool,
}

/// Which of several hops packets take, and among which it was chosen.
pub(crate) type Chosen = (RouteHopSpec, Vec<RouteHopSpec>);

/// What one direction has sent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Direction {
    pub(crate) packets: u32,
    pub(crate) bytes: u64,
    pub(crate) last: u64,
    /// SYN, ACK and FIN that it has sent, and whether it has sent a reset that counts.
    pub(crate) sent: Flags,
    /// What later packets are judged by.
    pub(crate) known: Known,
    /// Its way, once one was taken.
    pub(crate) hop: Option<Chosen>,
}

/// Which direction of a flow a packet belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
}

/// A flow as the flow table shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) original: Tuple,
    pub(crate) reply: Tuple,
    /// The backend, unless it was removed.
    pub(crate) backend: Option<SocketAddr>,
    pub(crate) phase: Option<&'static str>,
    pub(crate) answered: bool,
    pub(crate) is_stream: bool,
    /// Milliseconds, modulo 2^32.
    pub(crate) last: u32,
    pub(crate) packets: [u32; 2],
    pub(crate) bytes: [u64; 2],
}

impl Flow {
    /// The phase of a connection (RFC 9293 section 3.3.2, seen from the middle).
    pub(crate) fn phase(&self) -> &'static str {
        let (client, server) = (self.client.sent, self.server.sent);
        match () {
            () if client.rst || server.rst => "reset",
            () if client.fin && server.fin => "time-wait",
            () if client.fin || server.fin => "half-closed",
            // Whatever else a server says, without its SYN there is no connection.
            () if !server.syn => "syn-sent",
            () if client.ack => "established",
            () => "syn-received",
        }
    }

    /// Whether it has phases: all but datagrams.
    pub(crate) fn is_connection(&self) -> bool {
        self.original.protocol != Protocol::Udp
    }

    /// RFC 9293 section 3.6.1: whether a SYN may begin anew.
    pub(crate) fn is_closing(&self) -> bool {
        ["reset", "time-wait"].contains(&self.phase())
    }

    /// Whether it must make room when the table is full. Established flows never do.
    pub(crate) fn may_make_room(&self) -> bool {
        if self.is_connection() {
            self.is_closing() || ["syn-sent", "syn-received"].contains(&self.phase())
        } else {
            !self.is_stream
        }
    }

    /// Whether neither side has sent for longer than its phase allows.
    pub(crate) fn is_expired(&self, now: u64, timeouts: &Timeouts) -> bool {
        let allowed = match (self.is_connection(), self.phase()) {
            (true, "syn-sent" | "syn-received") => timeouts.tcp_opening,
            (true, "established") => timeouts.tcp_established,
            (true, "half-closed") => timeouts.tcp_half_closed,
            (true, "time-wait") => timeouts.tcp_time_wait,
            (true, _) => timeouts.tcp_reset,
            (false, _) if self.is_stream => timeouts.udp_answered,
            (false, _) => timeouts.udp_unanswered,
        };
        u128::from(now - self.client.last.max(self.server.last)) > allowed.as_millis()
    }

    /// P801: datagrams leave a removed endpoint at once.
    pub(crate) fn is_stale(&self, lives: &Lives) -> bool {
        !self.is_connection() && lives.of_backend(&self.backend) != Some(self.life)
    }

    /// Whether its backend has been gone for longer than connections may go on.
    pub(crate) fn is_drained(&self, lives: &Lives, now: u64, timeouts: &Timeouts) -> bool {
        let gone = lives.dead_for(self.life, now);
        gone.zip(timeouts.drain).is_some_and(|(gone, drain)| u128::from(gone) > drain.as_millis())
    }

    /// The packet as it leaves.
    pub(crate) fn translated(&self, side: Side) -> Tuple {
        match side {
            Side::Client => self.reply.reversed(),
            Side::Server => self.original.reversed(),
        }
    }
}

/// All flows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Flows(pub(crate) Vec<Flow>);

impl Flows {
    pub(crate) fn find(&self, tuple: &Tuple) -> Option<(usize, Side)> {
        let side = |flow: &Flow| {
            let client = (flow.original == *tuple).then_some(Side::Client);
            client.or_else(|| (flow.reply == *tuple).then_some(Side::Server))
        };
        self.0.iter().enumerate().find_map(|(at, flow)| Some((at, side(flow)?)))
    }

    /// Whether a table of one family may be full for somebody: as many entries as a bucket has slots.
    pub(crate) fn is_crowded(&self, v4: bool) -> bool {
        2 * self.0.iter().filter(|flow| flow.original.src.is_ipv4() == v4).count() >= 32
    }

    /// Whether an established flow may give way to another client's in a full table: an idle one of the client with the
    /// most flows, or nearly the most.
    fn gives_way(&self, flow: &Flow, now: u64) -> bool {
        let client = client(flow);
        let v4 = flow.original.src.is_ipv4();
        let mut counts: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for other in self.0.iter().filter(|other| other.original.src.is_ipv4() == v4) {
            *counts.entry(self::client(other)).or_default() += 1;
        }
        let (own, most) = (counts[&client], counts.values().copied().max().unwrap_or(0));
        let idle = now - flow.client.last.max(flow.server.last);
        // The flow that is about to begin is counted already.
        idle >= 1_000 && own >= 2 && 8 * (own + 1) >= 7 * most
    }

    /// Whether no flow has packets of this tuple in either direction.
    pub(crate) fn is_free(&self, tuple: &Tuple) -> bool {
        self.find(tuple).is_none()
    }
}

/// Who the client of a flow is: an address, or a /64 of IPv6.
fn client(flow: &Flow) -> IpAddr {
    match flow.original.src.ip() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

/// Compares the table with the flows that must be in it, and forgets those that left it lawfully.
///
/// # Errors
/// A flow is there that must not be, is missing, or differs.
pub(crate) fn compare(
    flows: &mut Flows,
    lives: &Lives,
    timeouts: &Timeouts,
    table: &[Listed],
    (now, opened): (u64, usize),
) -> Result<(), String> {
    // Each flow that begins may push out one for each of its directions.
    let crowded = [true, false].map(|v4| flows.is_crowded(v4));
    let mut may_be_evicted = if crowded.contains(&true) { 2 * opened } else { 0 };
    let all = flows.clone();
    let mut kept = Vec::with_capacity(flows.0.len());
    for flow in flows.0.drain(..) {
        if let Some(listed) = table.iter().find(|listed| listed.original == flow.original) {
            check(&flow, listed, lives)?;
            kept.push(flow);
        } else if flow.is_expired(now, timeouts)
            || flow.is_stale(lives)
            || flow.is_drained(lives, now, timeouts)
        {
            // The sweep was here.
        } else if may_be_evicted > 0 && (flow.may_make_room() || all.gives_way(&flow, now)) {
            may_be_evicted -= 1;
        } else {
            return Err(format!("the table lost a flow that was to stay: {} {flow:?}", flow.phase()));
        }
    }
    flows.0 = kept;
    let unknown = table.iter().find(|listed| !flows.0.iter().any(|flow| flow.original == listed.original));
    unknown.map_or(Ok(()), |listed| Err(format!("the table has a flow that nothing opened: {listed:?}")))
}

fn check(flow: &Flow, listed: &Listed, lives: &Lives) -> Result<(), String> {
    let alive = lives.of_backend(&flow.backend) == Some(flow.life);
    let wanted = Listed {
        original: flow.original,
        reply: flow.reply,
        backend: alive.then_some(flow.backend.1),
        phase: flow.is_connection().then(|| flow.phase()),
        answered: flow.server.packets > 0,
        is_stream: flow.is_stream,
        last: u32::try_from(flow.client.last.max(flow.server.last) & 0xffff_ffff).unwrap(),
        packets: [flow.client.packets, flow.server.packets],
        bytes: [flow.client.bytes, flow.server.bytes],
    };
    if *listed == wanted { Ok(()) } else { Err(format!("a flow is {listed:?}, but must be {wanted:?}")) }
}
