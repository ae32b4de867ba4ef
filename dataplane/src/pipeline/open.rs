//! Opening a flow: backend, source and entry for the first packet. Packet bytes are not touched here.

use std::net::IpAddr;

use flowgate_flow::{Binding, Direction, Found, Inserted, NewFlow, NextHopRef, Probe};
use flowgate_tables::routing::Route;
use flowgate_tables::service::ServiceKey;
use flowgate_tables::{Backend, NextHop, NextHopId};
use flowgate_wire::reject::IcmpError;
use flowgate_wire::{FiveTuple, L4Port, Packet, Protocol, TcpFlags, Translation};

use super::context::SlowPath;
use super::input::unserved_vip;
use super::router::{Router, has_valid_checksum};
use super::select::{AffinityContext, Decision, select_backend};
use super::shares::{PortShare, has_too_many_half_open, make_room_for_client, make_room_for_connection};
use super::{Context, Family};
use crate::counters::Event;
use crate::exhaustion::ExhaustedResource;
use crate::pipeline_config::UnservedPorts;
use crate::verdict::{DropReason, PassReason, RejectReason, Verdict};

/// Source ports that are tried before a flow is refused. With 95 % of a range in use, 128 random tries fail once in 700
/// (0.95^128).
const SNAT_ATTEMPTS: u32 = 128;

/// Sources of a large range that are tried before a flow makes room that may. In a flood of forged packets, whose flows fill the
/// range and all may, every new flow would else cost eight times as much. With half of a range in use, all of so many random
/// tries are in use once in 65,000 (0.5^16).
const PATIENCE: usize = 16;

/// The lowest source port given to a client whose address is preserved and whose own port is taken: those below are system
/// ports (RFC 6335 section 6).
const FIRST_PRESERVED_PORT: u32 = 1024;

impl Router {
    /// Opens a flow for a packet that has none, or returns the verdict on the packet.
    #[cold]
    pub(super) fn open<'a, A: Family>(
        &mut self,
        frame: &[u8],
        packet: &Packet<A>,
        probe: &Probe,
        slow: &mut SlowPath<'a>,
    ) -> Result<Found<'a, A>, Verdict> {
        let tables = slow.context.tables;
        let tuple = &packet.tuple;
        let any = tuple.any_family();
        let key = ServiceKey { protocol: any.protocol, addr: any.dst, port: any.dst_port };
        // A TCP segment without SYN, or an SCTP chunk that is no INIT, belongs to a connection that we do not know: a backend
        // selected for it would not know it either.
        let opens = tuple.protocol == Protocol::Udp || packet.tcp_flags.opens();
        let frontend = tables.services.frontend(&key);
        if !opens && frontend.is_some() {
            return Err(no_connection(packet, slow.context));
        }
        // Before anything that costs more: in a SYN flood this is where nearly all of it ends.
        if tuple.protocol != Protocol::Udp
            && has_too_many_half_open::<A>(slow.context)
            && let Some(frontend) = frontend
            && !self.replacements.take(slow.context.now)
        {
            self.exhaustions.add(ExhaustedResource::HalfOpen, frontend.service, None);
            return Err(Verdict::Drop(DropReason::HalfOpenLimit));
        }
        // The backend would drop it, and a flow with a source port would wait for an answer.
        if frontend.is_some() && !has_valid_checksum(frame, packet, slow.checksums) {
            return Err(Verdict::Drop(DropReason::BadChecksum));
        }
        let affinity = AffinityContext { affinity: slow.context.affinity, now: slow.context.now };
        let selection = match select_backend(tables, Some(&affinity), &any) {
            Decision::Forward(selection) => selection,
            Decision::Reject(reason) => return Err(Verdict::Reject(reason)),
            Decision::Drop(reason) => return Err(Verdict::Drop(reason)),
            Decision::NotOurs => return Err(no_service(packet, slow.context)),
        };
        // Counted apart: a new binding is the ordinary case of the first connection.
        match selection.bound {
            Some(Binding::Existing(_)) => slow.counters.add(Event::AffinityKept, 1),
            Some(Binding::Evicting(_)) => slow.counters.add(Event::AffinityEvictions, 1),
            Some(Binding::New(_) | Binding::NoBackend) | None => {}
        }
        // The endpoints of a Service port are of its own family, so this does not fail; if it did, there would be no route.
        let backend_addr = A::from_ip(selection.backend.addr).ok_or(Verdict::Drop(DropReason::NoRoute))?;
        let (id, next_hop) = self.next_hop(selection.backend.addr, probe.hash().0, slow)?;
        // Checked before the insertion: packets that cannot leave, as in a flood to a silent host, must not fill the table.
        self.resolved(next_hop, slow.counters)?;
        // Likewise before the insertion: the sender comes again with smaller packets, and only then is there a flow.
        if packet.ip_len() > next_hop.mtu {
            return Err(Verdict::IcmpError(IcmpError::TooBig(next_hop.mtu)));
        }
        let target = ForwardTarget {
            original: tuple,
            backend: selection.backend,
            addr: backend_addr,
            source_nat: selection.source_nat,
            next_hop: NextHopRef::new(id.to_bits(), tables.routing.epoch()),
        };
        let inserted = self.insert(probe, &target, next_hop, slow);
        if let Err(Verdict::Drop(reason)) = inserted
            && let Some(resource) = ExhaustedResource::of(reason)
        {
            self.exhaustions.add(resource, selection.frontend.service, Some(next_hop.egress));
        }
        inserted
    }

    /// The next hop of `dst`; `flow_hash` selects one of several (ECMP).
    pub(super) fn next_hop<'a>(
        &mut self,
        dst: IpAddr,
        flow_hash: u32,
        slow: &mut SlowPath<'a>,
    ) -> Result<(NextHopId, &'a NextHop), Verdict> {
        let routing = &slow.context.tables.routing;
        match routing.route(dst, flow_hash) {
            Route::Via(id) => {
                let next_hop = routing.next_hop(id).ok_or(Verdict::Drop(DropReason::NoRoute))?;
                Ok((id, next_hop))
            }
            // No neighbour has the address of all.
            Route::Unknown(neighbour) if routing.is_broadcast(neighbour.addr) => {
                Err(Verdict::Drop(DropReason::NotForwarded))
            }
            Route::Unknown(neighbour) => {
                // On-link, and never resolved so far: not in the tables, so there is no next hop with an id yet.
                self.requests.push(neighbour, slow.counters);
                Err(Verdict::AwaitNeighbour(neighbour))
            }
            // RFC 1812 section 5.2.7.1, RFC 4443 section 3.1: the sender is told.
            Route::None => Err(Verdict::IcmpError(IcmpError::NoRoute)),
        }
    }

    fn insert<'a, A: Family>(
        &self,
        probe: &Probe,
        target: &ForwardTarget<'_, A>,
        egress: &NextHop,
        slow: &mut SlowPath<'a>,
    ) -> Result<Found<'a, A>, Verdict> {
        make_room_for_connection(target.original, probe, slow)?;
        make_room_for_client(target.original, probe, slow)?;
        // RFC 6056 section 3.3.3: the first port follows from a keyed hash, so nobody outside can guess it.
        let start = probe.hash().0;
        let client = target.original;
        if !target.source_nat {
            // A client may reach one backend through two VIPs from one source port. The replies of both flows would have
            // the same tuple, so the second flow gets another source port, as netfilter does it.
            let another =
                |attempt| FIRST_PRESERVED_PORT + nth_choice(start, attempt) % (65_536 - FIRST_PRESERVED_PORT);
            let others = (0..SNAT_ATTEMPTS).filter_map(|attempt| u16::try_from(another(attempt)).ok());
            let ports = std::iter::once(client.src_port).chain(others.map(L4Port::new));
            let sources = ports.map(|port| (client.src, port));
            let none_left = DropReason::ReplyTupleTaken;
            let attempts = Attempts { sources, share: None, patience: usize::MAX, none_left };
            return insert_any(target, attempts, slow);
        }
        let snat = &slow.context.tables.snat;
        let addresses = A::snat_addresses(snat, egress.egress);
        let ports = snat.worker_ports(self.worker.index, self.worker.count);
        if addresses.is_empty() || ports.is_empty() {
            return Err(Verdict::Drop(DropReason::NoSnatAddress));
        }
        // Pseudo-random steps may miss the last free one of a small range: then every pair is tried as well.
        let pairs = u32::try_from(addresses.len() * ports.len()).unwrap_or(u32::MAX);
        let is_small = pairs <= SNAT_ATTEMPTS;
        let every_pair = 0..if is_small { pairs } else { 0 };
        let choices = (0..SNAT_ATTEMPTS).map(|attempt| nth_choice(start, attempt)).chain(every_pair);
        let sources = choices.map(|choice| {
            let choice = choice as usize;
            let port = ports[(choice / addresses.len()) % ports.len()];
            (addresses[choice % addresses.len()], L4Port::new(port))
        });
        let share = PortShare::new(ports, addresses.len(), slow.context.config.per_client_percent);
        let patience = if is_small { usize::MAX } else { PATIENCE };
        insert_any(
            target,
            Attempts { sources, share, patience, none_left: DropReason::SnatPortsExhausted },
            slow,
        )
    }
}

/// How a source is looked for.
struct Attempts<'t, I> {
    /// What is tried, in this order.
    sources: I,
    /// What the client may have of them.
    share: Option<PortShare<'t>>,
    /// After so many sources that are in use, the oldest of the flows seen makes room, if one may.
    patience: usize,
    /// Why the flow is refused when there is none.
    none_left: DropReason,
}

/// Inserts the flow with the first source whose reply tuple is free. When all are taken, the longest idle of the flows
/// that hold them makes room, if it is half open, unanswered or has ended; an established flow never does. A client that has
/// its share of the ports gets one of its own only.
fn insert_any<'a, A: Family>(
    target: &ForwardTarget<'_, A>,
    attempts: Attempts<'_, impl Iterator<Item = (A, L4Port)>>,
    slow: &mut SlowPath<'a>,
) -> Result<Found<'a, A>, Verdict> {
    let flows = A::table(slow.context.flows);
    let Attempts { sources, share, patience, mut none_left } = attempts;
    let mut spare: Option<(u32, Found<'a, A>, (A, L4Port))> = None;
    for (tried, source) in sources.enumerate() {
        if tried >= patience && spare.is_some() {
            break;
        }
        let flow = target.flow(source);
        let client = target.original.src;
        let has_share = share.is_some_and(|share| {
            let sent = flow.reply.tuple.reversed();
            flows.flows_in_port_block(client, &sent) >= share.in_block_of(source.1.number())
        });
        let holder = if has_share {
            none_left = DropReason::ClientLimit;
            let own = |holder: &Found<'_, A>| holder.forwarding.translation.dst.client() == client.client();
            flows.lookup(&flow.reply.tuple).filter(own)
        } else {
            // Nothing is looked up first: two workers may open the same flow, or take the same port, at the same time. The
            // insertion decides and returns what won.
            match flows.insert(&flow, slow.context.now) {
                Inserted::New(found) => {
                    slow.counters.add(Event::FlowsOpened, 1);
                    return Ok(found);
                }
                // Another worker was first with a packet of the same flow: its translation is the one.
                Inserted::Existing(found) => return Ok(found),
                Inserted::ReplyTaken(holder) => {
                    slow.counters.add(Event::SnatCollisions, 1);
                    Some(holder)
                }
                Inserted::Full => return Err(Verdict::Drop(DropReason::FlowTableFull)),
            }
        };
        let Some(holder) = holder else { continue };
        let idle = flows.evictable_idle_ms(&holder, slow.context.now);
        if let Some(idle) = idle.filter(|idle| spare.is_none_or(|(most, ..)| *idle > most)) {
            spare = Some((idle, holder, source));
        }
    }
    let (_, holder, source) = spare.ok_or(Verdict::Drop(none_left))?;
    // Asked again: another worker may have forwarded a reply of this flow since, or evicted it and taken its port. Then this
    // packet is dropped, and the client's retransmission tries again.
    if flows.evictable_idle_ms(&holder, slow.context.now).is_some() && flows.remove(&holder) {
        slow.counters.add(Event::SnatPortsReclaimed, 1);
        if let Inserted::New(found) = flows.insert(&target.flow(source), slow.context.now) {
            slow.counters.add(Event::FlowsOpened, 1);
            return Ok(found);
        }
    }
    Err(Verdict::Drop(none_left))
}

/// The verdict on a segment of an unknown connection that does not open one. RFC 9293 section 3.10.7.1: a reset spares the
/// sender its timeouts.
fn no_connection<A: Family>(packet: &Packet<A>, context: &Context<'_>) -> Verdict {
    // RFC 9293 section 3.5.2, group 1: never a reset for a reset, or two peers would exchange them for ever.
    let answered = packet.tuple.protocol == Protocol::Tcp && !packet.tcp_flags.intersects(TcpFlags::RST);
    if answered && context.config.reset_unknown {
        Verdict::Reject(RejectReason::NoConnection)
    } else {
        Verdict::Drop(DropReason::NoFlow)
    }
}

/// The verdict on a packet that has no flow and whose destination is no Service.
fn no_service<A: Family>(packet: &Packet<A>, context: &Context<'_>) -> Verdict {
    let snat = &context.tables.snat;
    let FiveTuple { protocol, dst, dst_port, .. } = packet.tuple;
    // The XDP program redirects by address and port of SNAT alone, so a late or forged reply comes here too.
    let is_reply = snat.is_source(dst.into(), dst_port);
    match (is_reply, protocol) {
        (false, _) => match unserved_vip(dst.into(), context) {
            Some(_) if context.config.unserved_ports == UnservedPorts::Reject => {
                Verdict::Reject(RejectReason::UnknownPort)
            }
            Some(reason) => Verdict::Drop(reason),
            None => Verdict::Pass(PassReason::NotOurs),
        },
        (true, Protocol::Tcp) => no_connection(packet, context),
        (true, _) => Verdict::Drop(DropReason::NoFlow),
    }
}

/// Whether a packet with this tuple comes from a backend whose clients' addresses are preserved.
#[cold]
pub(super) fn may_be_preserved_reply<A: Family>(tuple: &FiveTuple<A>, context: &Context<'_>) -> bool {
    let FiveTuple { protocol, src, src_port, .. } = *tuple;
    // By address and port alone: which of its clients it replies to cannot be told without a flow.
    let source = ServiceKey { protocol, addr: src.into(), port: src_port };
    context.tables.services.is_reply_source(&source)
}

/// What a new flow is made of, except its source.
struct ForwardTarget<'a, A> {
    /// The tuple as the client sent it.
    original: &'a FiveTuple<A>,
    backend: &'a Backend,
    addr: A,
    /// Whether the client's address is replaced by one of ours.
    source_nat: bool,
    next_hop: NextHopRef,
}

impl<A: Family> ForwardTarget<'_, A> {
    /// The flow that reaches the backend from `source`.
    fn flow(&self, (source, source_port): (A, L4Port)) -> NewFlow<A> {
        let original = self.original;
        let sent = FiveTuple {
            protocol: original.protocol,
            src: source,
            dst: self.addr,
            src_port: source_port,
            dst_port: self.backend.port,
        };
        NewFlow {
            original: Direction {
                tuple: *original,
                translation: Translation::between(original, &sent),
                next_hop: self.next_hop,
            },
            reply: Direction {
                tuple: sent.reversed(),
                translation: Translation::between(&sent.reversed(), &original.reversed()),
                // Looked up by the first reply: the client may not have been resolved yet.
                next_hop: NextHopRef::NONE,
            },
            backend: self.backend.id.to_bits(),
        }
    }
}

/// The number of the `attempt`-th try: even steps over the whole range, from a start that differs by flow.
fn nth_choice(start: u32, attempt: u32) -> u32 {
    // The golden ratio of 2^32: consecutive multiples lie far apart (Knuth, TAOCP 3, section 6.4).
    start.wrapping_add(attempt.wrapping_mul(0x9e37_79b9)) >> 1
}
