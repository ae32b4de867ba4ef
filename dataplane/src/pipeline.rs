//! The way of a packet through a worker, for a burst at a time.
//!
//! Three passes over the burst, so that no packet waits for memory that could have been on its way:
//! headers are prefetched; parsed, hashed and the tags of their buckets prefetched; then each packet is
//! decided and rewritten, while the tags of one some way behind it are compared and its entry prefetched.
//! Everything comes in as an argument. Never reads a clock, takes a lock, allocates, logs or makes a system call.

pub mod choose;
mod established;
mod family;
mod fragments;
mod icmp;
mod mss;
mod open;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flowgate_flow::{AffinityTable, Flows, Found, NextHopRef, Probe, Tick, Timeouts, prefetch};
use flowgate_tables::routing::Unresolved;
use flowgate_tables::{BackendId, NextHop, NextHopId, Routing, Tables};
use flowgate_wire::refusal::Problem;
use flowgate_wire::rewrite::complete_checksum;
use flowgate_wire::{
    Address, EtherAddrs, EtherType, Malformed, Packet, Parsed, Protocol, TcpFlags, Translation,
};

use crate::allowance::Allowance;
use crate::counters::{Counters, Event};
use crate::options::Options;
use crate::shortage::{Shortage, Shortages};
use crate::verdict::{DropReason, PassReason, Verdict};
use crate::worker::WorkerNumber;
pub use family::Family;
pub use fragments::Awaited;
pub(crate) use fragments::EXPECTED_MS;
use fragments::Fragments;

/// Connections that may replace others in a millisecond on average, and at once.
const REPLACED_PER_MS: u32 = 16;
const REPLACED_AT_ONCE: u32 = 1024;

/// How many packets before its own the entry of a packet is asked for, at least. Fewer are not there in time, more push one
/// another out of the first-level cache.
const AHEAD: usize = 16;

/// Frames in a burst at most.
pub const BURST: usize = 64;

/// What a burst is decided by, besides the packets themselves.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The time, one for the whole burst.
    pub now: Tick,
    /// The current generation, one for the whole burst.
    pub tables: &'a Tables,
    /// All flows.
    pub flows: &'a Flows,
    /// Which backends clients stay with.
    pub affinity: &'a AffinityTable,
    /// How long flows may be silent.
    pub timeouts: &'a Timeouts,
    /// What the operator chose.
    pub options: &'a Options,
}

/// What the transport checksums of a device's frames are worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RxChecksums {
    /// As they were on a wire: complete.
    Complete,
    /// A virtual device may leave them for another device to complete (`CHECKSUM_PARTIAL`).
    MayBePartial,
}

/// Decides a burst of frames and rewrites those that are to be sent.
pub trait Process {
    /// Puts the fate of `frames[i]` into `verdicts[i]`. Both have the same length, [`BURST`] at most.
    fn process<F: AsMut<[u8]>>(
        &mut self,
        frames: &mut [F],
        checksums: RxChecksums,
        context: &Context<'_>,
        counters: &mut Counters,
        verdicts: &mut [Verdict],
    );

    /// Neighbours that are to be resolved since the last call, each handed to `ask`.
    fn drain_requests(&mut self, ask: impl FnMut(Unresolved));

    /// Packets whose awaited fragment has come since the last call, each handed to `ready`: what waits for them is
    /// to be decided again.
    fn drain_ready(&mut self, ready: impl FnMut(Awaited));

    /// Services whose new flows were refused since the last call, each handed to `tell`, which says whether it took
    /// it.
    fn drain_shortages(&mut self, tell: impl FnMut(Shortage) -> bool);
}

/// One worker's pipeline.
#[derive(Debug)]
pub struct Pipeline {
    v4: Box<[Staged<Ipv4Addr>; BURST]>,
    v6: Box<[Staged<Ipv6Addr>; BURST]>,
    router: Router,
}

/// A packet between the passes.
#[derive(Clone, Copy, Debug)]
struct Staged<A> {
    packet: Packet<A>,
    probe: Probe,
}

impl<A: Address> Staged<A> {
    const EMPTY: Self = Self { packet: Packet::EMPTY, probe: Probe::EMPTY };
}

impl<A: Family> Staged<A> {
    /// Puts a packet here and starts its lookup.
    #[inline(always)]
    fn put(&mut self, packet: Packet<A>, context: &Context<'_>) {
        self.probe = A::table(context.flows).probe(&packet.tuple);
        self.packet = packet;
    }
}

impl Pipeline {
    /// The pipeline of one worker.
    pub fn new(worker: WorkerNumber) -> Self {
        Self {
            v4: Box::new([Staged::EMPTY; BURST]),
            v6: Box::new([Staged::EMPTY; BURST]),
            router: Router {
                worker,
                requests: Requests::default(),
                fragments: Fragments::new(worker),
                replacements: Allowance::new(REPLACED_PER_MS, REPLACED_AT_ONCE),
                shortages: Shortages::default(),
            },
        }
    }

    /// The passes for the frames of a burst that are no IPv4, given by the bits of `others`. A function of its
    /// own, so that the loops over IPv4 keep their registers.
    #[inline(never)]
    fn process_others<F: AsMut<[u8]>>(
        &mut self,
        others: u64,
        frames: &mut [F],
        checksums: RxChecksums,
        context: &Context<'_>,
        counters: &mut Counters,
        verdicts: &mut [Verdict],
    ) {
        let Self { v6, router, .. } = self;
        let mut segments = 0_u64;
        for i in set_bits(others) {
            let frame = frames[i].as_mut();
            verdicts[i] = match EtherType::of(frame) {
                Some(EtherType::Ipv6) => match stage(frame, &mut v6[i % BURST], context) {
                    None => {
                        segments |= 1 << i;
                        continue;
                    }
                    Some(other) => not_a_segment(other),
                },
                Some(_) => Verdict::Pass(PassReason::NotIp),
                None => Verdict::Drop(DropReason::Malformed),
            };
        }
        let mut ahead = set_bits(segments);
        for i in ahead.by_ref().take(AHEAD) {
            context.flows.v6.prefetch(&mut v6[i % BURST].probe);
        }
        for (n, i) in set_bits(others).enumerate() {
            // Four at a time, so that their misses of the TLB overlap as well.
            if n % 4 == 0 {
                for next in ahead.by_ref().take(4) {
                    context.flows.v6.prefetch(&mut v6[next % BURST].probe);
                }
            }
            let (frame, verdict) = (frames[i].as_mut(), &mut verdicts[i]);
            if segments & (1 << i) != 0 {
                router.decide(frame, &v6[i % BURST], checksums, context, counters, verdict);
            } else {
                router.decide_rest(frame, context, counters, verdict);
            }
        }
    }
}

/// Decides one packet after another: which source ports are this worker's own, and which neighbours it
/// wants resolved.
#[derive(Debug)]
struct Router {
    worker: WorkerNumber,
    requests: Requests,
    fragments: Fragments,
    /// How fast connections that nobody has answered may replace one another once they have their share of the
    /// table: a flood then costs a look at headers, and established flows keep the worker's time.
    replacements: Allowance,
    shortages: Shortages,
}

impl Router {
    /// Puts the fate of a packet into `verdict` and counts it.
    #[inline(always)]
    fn decide<A: Family>(
        &mut self,
        frame: &mut [u8],
        staged: &Staged<A>,
        checksums: RxChecksums,
        context: &Context<'_>,
        counters: &mut Counters,
        verdict: &mut Verdict,
    ) {
        match Self::forward_established(frame, staged, checksums, context, counters) {
            Some(egress) => *verdict = Verdict::Transmit(egress),
            None => {
                *verdict = self.decide_in_full(frame, staged, checksums, context, counters);
                counters.count(verdict);
            }
        }
    }

    /// Decides what is no segment and not decided yet, and counts it.
    #[cold]
    fn decide_rest(
        &mut self,
        frame: &mut [u8],
        context: &Context<'_>,
        counters: &mut Counters,
        verdict: &mut Verdict,
    ) {
        match *verdict {
            Verdict::Pass(PassReason::NotL4) => *verdict = self.control_message(frame, context, counters),
            Verdict::Pass(PassReason::Fragment) => {
                *verdict = match EtherType::of(frame) {
                    Some(EtherType::Ipv6) => self.fragment::<Ipv6Addr>(frame, context, counters),
                    _ => self.fragment::<Ipv4Addr>(frame, context, counters),
                };
            }
            _ => {}
        }
        counters.count(verdict);
    }

    /// Decides any packet; those that [`forward_established`](Self::forward_established) serves never come
    /// here.
    #[cold]
    fn decide_in_full<A: Family>(
        &mut self,
        frame: &mut [u8],
        staged: &Staged<A>,
        checksums: RxChecksums,
        context: &Context<'_>,
        counters: &mut Counters,
    ) -> Verdict {
        let Staged { packet, probe } = staged;
        // RFC 1812 section 5.3.1, RFC 8200 section 3: a packet whose hops would be used up goes no further.
        if packet.ttl <= 1 {
            return Verdict::Report(Problem::TimeExceeded);
        }
        let flows = A::table(context.flows);
        let known = match flows.find(probe, &packet.tuple).or_else(|| flows.find_late(probe, &packet.tuple)) {
            Some(over) if is_over(&over, packet, context) => {
                counters.add(Event::FlowsReplaced, u64::from(flows.remove(&over)));
                None
            }
            known => known,
        };
        let found = match known {
            Some(found) => {
                counters.add(Event::FlowHits, 1);
                found
            }
            None => match self.open(packet, probe, context, counters) {
                Ok(found) => found,
                Err(Verdict::Pass(PassReason::NotOurs))
                    if open::may_be_kept_reply(&packet.tuple, context) =>
                {
                    return self.route(frame, staged, checksums, context, counters);
                }
                Err(verdict) => return verdict,
            },
        };
        self.forward(frame, staged, &found, checksums, context, counters)
    }

    fn forward<A: Family>(
        &mut self,
        frame: &mut [u8],
        Staged { packet, probe }: &Staged<A>,
        found: &Found<'_, A>,
        checksums: RxChecksums,
        context: &Context<'_>,
        counters: &mut Counters,
    ) -> Verdict {
        let next_hop = match current_next_hop(found, &context.tables.routing) {
            Some(next_hop) => next_hop,
            None => match self.reroute(found, probe, context, counters) {
                Ok(next_hop) => next_hop,
                Err(verdict) => return verdict,
            },
        };
        let ether = match self.resolved(next_hop, counters) {
            Ok(ether) => ether,
            Err(verdict) => return verdict,
        };
        // Not before: a packet that is held comes back here and would be counted again.
        note_in_full(frame, found, packet, context, counters);
        let translation = &found.forwarding.translation;
        let verdict = self.send(frame, packet, translation, (next_hop, ether), checksums, counters);
        if packet.tcp_flags.intersects(TcpFlags::SYN) && matches!(verdict, Verdict::Transmit(_)) {
            mss::clamp(frame, packet, next_hop, probe.hash().0, context, counters);
        }
        verdict
    }

    /// Routes a packet as the kernel would have: the XDP program cannot tell the answers to clients whose
    /// address is kept from what else their backend sends.
    fn route<A: Family>(
        &mut self,
        frame: &mut [u8],
        Staged { packet, probe }: &Staged<A>,
        checksums: RxChecksums,
        context: &Context<'_>,
        counters: &mut Counters,
    ) -> Verdict {
        let next_hop = match self.next_hop(packet.tuple.dst.into(), probe.hash().0, context, counters) {
            Ok((_, next_hop)) => next_hop,
            Err(verdict) => return verdict,
        };
        let ether = match self.resolved(next_hop, counters) {
            Ok(ether) => ether,
            Err(verdict) => return verdict,
        };
        let unchanged = Translation::between(&packet.tuple, &packet.tuple);
        let verdict = self.send(frame, packet, &unchanged, (next_hop, ether), checksums, counters);
        counters.add(Event::Routed, u64::from(matches!(verdict, Verdict::Transmit(_))));
        verdict
    }

    /// The Ethernet header towards a next hop, or the wish to have it resolved.
    fn resolved<'n>(
        &mut self,
        next_hop: &'n NextHop,
        counters: &mut Counters,
    ) -> Result<&'n EtherAddrs, Verdict> {
        next_hop.ether.as_ref().ok_or_else(|| {
            let neighbour = Unresolved { egress: next_hop.egress, addr: next_hop.addr };
            self.requests.push(neighbour, counters);
            Verdict::Hold(neighbour)
        })
    }

    fn send<A: Family>(
        &self,
        frame: &mut [u8],
        packet: &Packet<A>,
        translation: &Translation<A>,
        (next_hop, ether): (&NextHop, &EtherAddrs),
        checksums: RxChecksums,
        counters: &mut Counters,
    ) -> Verdict {
        if packet.ip_len() > next_hop.mtu {
            return Verdict::Report(Problem::TooBig(next_hop.mtu));
        }
        rewrite(frame, packet, translation, ether, checksums, counters);
        Verdict::Transmit(next_hop.egress)
    }

    /// Looks the next hop up, for the first reply or again after a route change, and keeps it.
    fn reroute<'a, A: Family>(
        &mut self,
        found: &Found<'_, A>,
        probe: &Probe,
        context: &Context<'a>,
        counters: &mut Counters,
    ) -> Result<&'a NextHop, Verdict> {
        let routing = &context.tables.routing;
        let dst: IpAddr = found.forwarding.translation.dst.into();
        let (id, next_hop) = self.next_hop(dst, probe.hash().0, context, counters)?;
        found.set_next_hop(NextHopRef::new(id.to_bits(), routing.epoch()));
        counters.add(Event::Rerouted, u64::from(found.forwarding.next_hop != NextHopRef::NONE));
        Ok(next_hop)
    }
}

impl Process for Pipeline {
    fn process<F: AsMut<[u8]>>(
        &mut self,
        frames: &mut [F],
        checksums: RxChecksums,
        context: &Context<'_>,
        counters: &mut Counters,
        verdicts: &mut [Verdict],
    ) {
        assert!(
            frames.len() <= BURST && frames.len() == verdicts.len(),
            "a verdict for each frame of a burst"
        );
        for frame in frames.iter_mut() {
            prefetch(frame.as_mut());
        }
        let v4 = &mut self.v4[..frames.len()];
        let (mut segments, mut others) = (0_u64, 0_u64);
        for (i, ((frame, verdict), staged)) in
            frames.iter_mut().zip(verdicts.iter_mut()).zip(v4.iter_mut()).enumerate()
        {
            let frame = frame.as_mut();
            if EtherType::of(frame) != Some(EtherType::Ipv4) {
                others |= 1 << i;
                continue;
            }
            match stage(frame, staged, context) {
                None => segments |= 1 << i,
                Some(other) => *verdict = not_a_segment(other),
            }
        }
        if (others.count_ones() as usize) < frames.len() {
            // Harmless for a frame that is no segment: an old probe, whose entry is loaded for nothing.
            for staged in v4.iter_mut().take(AHEAD) {
                context.flows.v4.prefetch(&mut staged.probe);
            }
            for (i, (frame, verdict)) in frames.iter_mut().zip(verdicts.iter_mut()).enumerate() {
                if let Some(staged) = v4.get_mut(i + AHEAD) {
                    context.flows.v4.prefetch(&mut staged.probe);
                }
                if segments & (1 << i) != 0 {
                    self.router.decide(frame.as_mut(), &v4[i], checksums, context, counters, verdict);
                } else if others & (1 << i) == 0 {
                    self.router.decide_rest(frame.as_mut(), context, counters, verdict);
                }
            }
        }
        if others != 0 {
            self.process_others(others, frames, checksums, context, counters, verdicts);
        }
    }

    fn drain_requests(&mut self, ask: impl FnMut(Unresolved)) {
        self.router.requests.drain(ask);
    }

    fn drain_ready(&mut self, ready: impl FnMut(Awaited)) {
        self.router.fragments.drain_ready(ready);
    }

    fn drain_shortages(&mut self, tell: impl FnMut(Shortage) -> bool) {
        self.router.shortages.drain(tell);
    }
}

/// The positions of the bits that are set, ascending.
#[inline(always)]
fn set_bits(mut bits: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let position = (bits != 0).then(|| bits.trailing_zeros() as usize)?;
        bits &= bits - 1;
        Some(position)
    })
}

/// Parses a frame and starts its lookup; gives back what is no segment.
#[inline(always)]
fn stage<A: Family>(
    frame: &[u8],
    staged: &mut Staged<A>,
    context: &Context<'_>,
) -> Option<Result<Parsed<A>, Malformed>> {
    match A::plain(frame) {
        Some(packet) => {
            staged.put(packet, context);
            None
        }
        None => stage_odd(frame, staged, context),
    }
}

/// The same for a frame with anything unusual in it.
#[cold]
#[inline(never)]
fn stage_odd<A: Family>(
    frame: &[u8],
    staged: &mut Staged<A>,
    context: &Context<'_>,
) -> Option<Result<Parsed<A>, Malformed>> {
    match A::parse(frame) {
        Ok(Parsed::L4(packet)) => {
            staged.put(packet, context);
            None
        }
        other => Some(other),
    }
}

/// The next hop that is kept in the entry, unless routes have changed since.
#[inline(always)]
fn current_next_hop<'a, A: Family>(found: &Found<'_, A>, routing: &'a Routing) -> Option<&'a NextHop> {
    let id = found.forwarding.next_hop.id(routing.epoch())?;
    routing.next_hop(NextHopId::from_bits(id))
}

/// Notes in the flow that this packet goes on, which is neither a reset nor comes after one.
#[inline(always)]
fn note<A: Family>(frame: &[u8], found: &Found<'_, A>, packet: &Packet<A>, context: &Context<'_>) {
    found.touch(context.now, packet.ip_len());
    match packet.tuple.protocol {
        Protocol::Udp => {}
        Protocol::Tcp => {
            found.saw_tcp(packet.tcp_flags);
            // RFC 9293 section 3.1: without the flag the number means nothing.
            if packet.tcp_flags.intersects(TcpFlags::ACK) {
                found.acknowledged(packet.tcp_acked(frame));
            }
        }
        Protocol::Sctp => found.saw_tcp(packet.tcp_flags),
    }
}

/// Notes in the flow that this packet goes on. A reset that cannot be an endpoint's changes nothing, not
/// even how long the flow has been silent.
fn note_in_full<A: Family>(
    frame: &[u8],
    found: &Found<'_, A>,
    packet: &Packet<A>,
    context: &Context<'_>,
    counters: &mut Counters,
) {
    let flows = A::table(context.flows);
    let flags = packet.tcp_flags;
    if flags.intersects(TcpFlags::RST) {
        if !flows.reset(found, packet.tcp_sequence(frame)) {
            counters.add(Event::ResetsIgnored, 1);
            return;
        }
    } else if flags.intersects(TcpFlags::ACK) && flows.is_reset_by_peer(found) {
        flows.revive(found);
        counters.add(Event::ResetsRefuted, 1);
    }
    if flags.intersects(TcpFlags::SYN) {
        flows.answered(found);
    }
    note(frame, found, packet, context);
}

#[inline(always)]
fn rewrite<A: Family>(
    frame: &mut [u8],
    packet: &Packet<A>,
    translation: &Translation<A>,
    ether: &EtherAddrs,
    checksums: RxChecksums,
    counters: &mut Counters,
) {
    translation.apply(frame, packet, ether);
    if checksums == RxChecksums::MayBePartial && translation.finds_partial_checksum(packet) {
        complete_checksum(frame, packet);
        counters.add(Event::ChecksumsCompleted, 1);
    }
}

/// Whether the flow that was found must give way to a new one for this packet.
fn is_over<A: Family>(found: &Found<'_, A>, packet: &Packet<A>, context: &Context<'_>) -> bool {
    let flows = A::table(context.flows);
    if packet.tuple.protocol != Protocol::Udp {
        // RFC 9293 section 3.6.1: a SYN may start a connection anew once the old one has ended. It may have gone past us,
        // from a client to a backend that sees its address: then only the answer is seen.
        let flags = packet.tcp_flags;
        let is_answer = flags.contains(TcpFlags::SYN.union(TcpFlags::ACK));
        let begins = flags.opens() || is_answer && open::may_be_kept_reply(&packet.tuple, context);
        return begins && flows.tcp_phase(found).is_closing();
    }
    // P801: a datagram flow leaves a removed endpoint at once; nobody would tell its client otherwise.
    !context.tables.services.backends().is_current(BackendId::from_bits(found.forwarding.backend))
        || flows.is_expired(found, context.now, context.timeouts)
}

#[cold]
fn not_a_segment<A>(parsed: Result<Parsed<A>, Malformed>) -> Verdict {
    match parsed {
        Err(_) => Verdict::Drop(DropReason::Malformed),
        Ok(Parsed::Fragment) => Verdict::Pass(PassReason::Fragment),
        Ok(Parsed::NotL4 | Parsed::Icmp | Parsed::L4(_)) => Verdict::Pass(PassReason::NotL4),
    }
}

/// Neighbours to be resolved, at most a handful between two drains, none twice.
#[derive(Debug, Default)]
struct Requests {
    asked: [Option<Unresolved>; 16],
    len: usize,
}

impl Requests {
    #[cold]
    fn push(&mut self, neighbour: Unresolved, counters: &mut Counters) {
        if self.asked[..self.len].contains(&Some(neighbour)) {
            return;
        }
        match self.asked.get_mut(self.len) {
            Some(free) => {
                *free = Some(neighbour);
                self.len += 1;
            }
            None => counters.add(Event::ResolveOverflows, 1),
        }
    }

    fn drain(&mut self, ask: impl FnMut(Unresolved)) {
        self.asked[..self.len].iter_mut().filter_map(Option::take).for_each(ask);
        self.len = 0;
    }
}
