//! Decides about one packet: established flows in a straight line ([`established`](super::established)), everything else
//! on the slow path here and in the files beside, each for one kind of packet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flowgate_flow::{Found, NextHopRef, Probe, Tracked};
use flowgate_tables::routing::NeighbourKey;
use flowgate_tables::{BackendId, NextHop, NextHopId, Routing};
use flowgate_wire::reject::IcmpError;
use flowgate_wire::rewrite::complete_checksum;
use flowgate_wire::{Address, ChecksumState, EtherAddrs, EtherType, Packet, Protocol, TcpFlags, Translation};

use super::context::SlowPath;
use super::fragments::Fragments;
use super::input::{is_forged_reply, not_routed, refused_source, unserved_vip};
use super::neighbours::NeighbourRequests;
use super::{Context, Family, Staged, mss, open};
use crate::burst::{RxChecksums, WorkerNumber};
use crate::counters::{Counters, Event};
use crate::exhaustion::UnreportedExhaustions;
use crate::token_bucket::TokenBucket;
use crate::verdict::{DropReason, PassReason, Verdict};

/// What decisions about single packets leave behind in a worker.
#[derive(Debug)]
pub(super) struct Router {
    pub(super) worker: WorkerNumber,
    pub(super) requests: NeighbourRequests,
    pub(super) fragments: Fragments,
    /// Limits how fast half-open connections may evict one another once they have their share of the table. In a SYN flood
    /// the rest is dropped after a look at the headers, which leaves the worker's time to established flows.
    pub(super) replacements: TokenBucket,
    pub(super) exhaustions: UnreportedExhaustions,
}

impl Router {
    pub(super) fn new(worker: WorkerNumber) -> Self {
        Self {
            worker,
            requests: NeighbourRequests::default(),
            fragments: Fragments::new(worker),
            replacements: TokenBucket::new(REPLACED_PER_MS, REPLACED_BURST),
            exhaustions: UnreportedExhaustions::default(),
        }
    }

    /// Decides about a packet and counts the verdict. Its arguments are not bundled and the verdict is not returned: the fast
    /// path is inlined into the loop over the burst, and a verdict is larger than what comes back in registers.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "inlined into the hot loop: each stays in a register")]
    pub(super) fn decide<A: Family>(
        &mut self,
        frame: &mut [u8],
        staged: &Staged<A>,
        position: usize,
        checksums: RxChecksums,
        context: &Context<'_>,
        counters: &mut Counters,
        verdict: &mut Verdict,
    ) {
        match Self::forward_established(frame, staged, position, checksums, context, counters) {
            Some(egress) => *verdict = Verdict::Transmit(egress),
            None => {
                let ingress = context.ingress_of(position);
                let slow = &mut SlowPath { context, counters, checksums, ingress };
                *verdict = self.slow_path(frame, staged, slow);
                counters.count(verdict);
            }
        }
    }

    /// Decides about a frame that is no L4 packet (ICMP, fragments), if parsing did not, and counts the verdict.
    #[cold]
    pub(super) fn handle_non_l4(&mut self, frame: &mut [u8], slow: &mut SlowPath<'_>, verdict: &mut Verdict) {
        match *verdict {
            Verdict::Pass(PassReason::NotL4) => *verdict = self.control_message(frame, slow),
            Verdict::Pass(PassReason::Fragment) => {
                *verdict = match EtherType::of(frame) {
                    Some(EtherType::Ipv6) => self.fragment::<Ipv6Addr>(frame, slow),
                    _ => self.fragment::<Ipv4Addr>(frame, slow),
                };
            }
            _ => {}
        }
        if let Verdict::Pass(reason) = *verdict
            && reason != PassReason::NotIp
            && let Some(unserved) = destination(frame).and_then(|dst| unserved_vip(dst, slow.context))
        {
            *verdict = Verdict::Drop(unserved);
        }
        slow.counters.count(verdict);
    }

    /// Decides about any packet that [`forward_established`](Self::forward_established) left alone.
    #[cold]
    pub(super) fn slow_path<A: Family>(
        &mut self,
        frame: &mut [u8],
        staged: &Staged<A>,
        slow: &mut SlowPath<'_>,
    ) -> Verdict {
        let Staged { packet, probe } = staged;
        if let Some(reason) = refused_source(packet.tuple.src, slow.context) {
            return Verdict::Drop(reason);
        }
        // RFC 1812 section 5.3.1, RFC 8200 section 3: a packet is not forwarded with a TTL or hop limit of zero.
        if packet.ttl <= 1 {
            return Verdict::IcmpError(IcmpError::TimeExceeded);
        }
        // Two lookups: `find` uses what the second pass prefetched and may miss a flow that another worker, or an earlier packet
        // of this burst, has inserted since; `find_again` reads the buckets anew.
        let flows = A::table(slow.context.flows);
        let known = match flows.find(probe, &packet.tuple).or_else(|| flows.find_again(probe, &packet.tuple))
        {
            // Removed at once rather than reused: the new connection gets a backend and a port of its own.
            Some(over) if is_superseded(&over, packet, slow.context) => {
                slow.counters.add(Event::FlowsReplaced, u64::from(flows.remove(&over)));
                None
            }
            known => known,
        };
        let found = match known {
            Some(found) => {
                if is_forged_reply(packet.tuple.src, packet.tuple.dst, &found, slow) {
                    return Verdict::Drop(DropReason::WrongInterface);
                }
                slow.counters.add(Event::FlowHits, 1);
                found
            }
            None => match self.open(frame, packet, probe, slow) {
                Ok(found) => found,
                Err(Verdict::Pass(PassReason::NotOurs))
                    if open::may_be_preserved_reply(&packet.tuple, slow.context) =>
                {
                    return self.route(frame, staged, slow);
                }
                Err(verdict) => return verdict,
            },
        };
        self.forward(frame, staged, &found, slow)
    }

    fn forward<A: Family>(
        &mut self,
        frame: &mut [u8],
        Staged { packet, probe }: &Staged<A>,
        found: &Found<'_, A>,
        slow: &mut SlowPath<'_>,
    ) -> Verdict {
        let next_hop = match current_next_hop(found, &slow.context.tables.routing) {
            Some(next_hop) => next_hop,
            None => match self.reroute(found, probe, slow) {
                Ok(next_hop) => next_hop,
                Err(verdict) => return verdict,
            },
        };
        let ether = match self.resolved(next_hop, slow.counters) {
            Ok(ether) => ether,
            Err(verdict) => return verdict,
        };
        // Only now: a packet that is held for its neighbour comes here again and would be tracked twice.
        track(frame, found, packet, slow);
        let translation = &found.forwarding.translation;
        let verdict = self.send(frame, packet, translation, (next_hop, ether), slow);
        if packet.tcp_flags.intersects(TcpFlags::SYN) && matches!(verdict, Verdict::Transmit(_)) {
            mss::clamp(frame, packet, next_hop, probe.hash().0, slow);
        }
        verdict
    }

    /// Routes a packet without translation, as the kernel would. By its source it may be the reply to a client whose address
    /// is preserved, so the XDP program redirects all that such a backend sends; what is of no flow continues here.
    fn route<A: Family>(
        &mut self,
        frame: &mut [u8],
        Staged { packet, probe }: &Staged<A>,
        slow: &mut SlowPath<'_>,
    ) -> Verdict {
        if let Some(reason) = not_routed(packet.tuple.src, packet.tuple.dst, slow) {
            return Verdict::Drop(reason);
        }
        let next_hop = match self.next_hop(packet.tuple.dst.into(), probe.hash().0, slow) {
            Ok((_, next_hop)) => next_hop,
            Err(verdict) => return verdict,
        };
        let ether = match self.resolved(next_hop, slow.counters) {
            Ok(ether) => ether,
            Err(verdict) => return verdict,
        };
        // The identity, so that one function does the TTL and the Ethernet header for all packets.
        let unchanged = Translation::between(&packet.tuple, &packet.tuple);
        let verdict = self.send(frame, packet, &unchanged, (next_hop, ether), slow);
        slow.counters.add(Event::Routed, u64::from(matches!(verdict, Verdict::Transmit(_))));
        verdict
    }

    /// The Ethernet addresses towards a next hop. If they are not known, requests their resolution.
    pub(super) fn resolved<'n>(
        &mut self,
        next_hop: &'n NextHop,
        counters: &mut Counters,
    ) -> Result<&'n EtherAddrs, Verdict> {
        next_hop.ether.as_ref().ok_or_else(|| {
            let neighbour = NeighbourKey { egress: next_hop.egress, addr: next_hop.addr };
            self.requests.push(neighbour, counters);
            Verdict::AwaitNeighbour(neighbour)
        })
    }

    fn send<A: Family>(
        &self,
        frame: &mut [u8],
        packet: &Packet<A>,
        translation: &Translation<A>,
        (next_hop, ether): (&NextHop, &EtherAddrs),
        slow: &mut SlowPath<'_>,
    ) -> Verdict {
        if packet.ip_len() > next_hop.mtu {
            return Verdict::IcmpError(IcmpError::TooBig(next_hop.mtu));
        }
        rewrite(frame, packet, translation, ether, slow.checksums, slow.counters);
        Verdict::Transmit(next_hop.egress)
    }

    /// Looks up the next hop, for the first reply or again after a route change, and stores it in the flow.
    fn reroute<'a, A: Family>(
        &mut self,
        found: &Found<'_, A>,
        probe: &Probe,
        slow: &mut SlowPath<'a>,
    ) -> Result<&'a NextHop, Verdict> {
        let routing = &slow.context.tables.routing;
        let dst: IpAddr = found.forwarding.translation.dst.into();
        let (id, next_hop) = self.next_hop(dst, probe.hash().0, slow)?;
        // A plain store, though both directions of other workers may do the same: all of them store a next hop of the
        // current routes or one of the epoch before, which the next packet looks up again.
        found.set_next_hop(NextHopRef::new(id.to_bits(), routing.epoch()));
        slow.counters.add(Event::Rerouted, u64::from(found.forwarding.next_hop != NextHopRef::NONE));
        Ok(next_hop)
    }
}

/// The destination of any IP packet.
fn destination(frame: &[u8]) -> Option<IpAddr> {
    match EtherType::of(frame)? {
        EtherType::Ipv4 => Ipv4Addr::datagram(frame).ok().map(|datagram| datagram.dst.into()),
        EtherType::Ipv6 => Ipv6Addr::datagram(frame).ok().map(|datagram| datagram.dst.into()),
        EtherType::Tag | EtherType::Other => None,
    }
}

/// The next hop stored in the flow; `None` if routes have changed since it was stored.
#[inline(always)]
pub(super) fn current_next_hop<'a, A: Family>(
    found: &Found<'_, A>,
    routing: &'a Routing,
) -> Option<&'a NextHop> {
    let id = found.forwarding.next_hop.id(routing.epoch())?;
    routing.next_hop(NextHopId::from_bits(id))
}

/// Tracks any packet in its flow. One that its receiver would not act on changes nothing, not even the idle time, so that
/// blind packets can neither end a flow nor keep it alive. It is forwarded all the same: the receiver answers it with a
/// challenge (RFC 5961) or not at all, and what was misjudged here still arrives.
fn track<A: Family>(frame: &[u8], found: &Found<'_, A>, packet: &Packet<A>, slow: &mut SlowPath<'_>) {
    let flows = A::table(slow.context.flows);
    let checksums = slow.checksums;
    // Of a packet in fragments the checksum is not known, and nobody sends the end of a connection so.
    let is_cut_end = checksums == RxChecksums::Fragmented
        && packet.tuple.protocol == Protocol::Tcp
        && packet.tcp_flags.intersects(TcpFlags::RST.union(TcpFlags::FIN));
    let is_intact = || !is_cut_end && has_valid_checksum(frame, packet, checksums);
    let tracked = match packet.tuple.protocol {
        Protocol::Udp => {
            flows.record_datagram(found, slow.context.now);
            Tracked::Recorded
        }
        Protocol::Tcp => flows.track_segment(found, &packet.tcp_segment(frame), is_intact),
        Protocol::Sctp => match packet.sctp_packet(frame) {
            Some(sctp) => flows.track_sctp(found, &sctp, is_intact),
            None => Tracked::Ignored,
        },
    };
    match tracked {
        Tracked::Recorded => {}
        Tracked::ResetRefuted => slow.counters.add(Event::ResetsRefuted, 1),
        Tracked::Ignored => {
            let is_reset = packet.tcp_flags.intersects(TcpFlags::RST);
            slow.counters.add(if is_reset { Event::ResetsIgnored } else { Event::SegmentsIgnored }, 1);
            return;
        }
    }
    found.touch(slow.context.now, packet.ip_len());
}

/// Whether the transport checksum is right, as far as it can be known.
#[cold]
pub(super) fn has_valid_checksum<A: Family>(
    frame: &[u8],
    packet: &Packet<A>,
    checksums: RxChecksums,
) -> bool {
    // The rest of a fragmented packet is elsewhere; its receiver verifies it.
    if checksums == RxChecksums::Fragmented {
        return true;
    }
    match packet.checksum_state(frame) {
        ChecksumState::Right | ChecksumState::Absent => true,
        // Zero, the partial checksum of SCTP, is also a whole one by agreement of both ends (RFC 9653).
        ChecksumState::Partial => {
            checksums == RxChecksums::MayBePartial || packet.tuple.protocol == Protocol::Sctp
        }
        ChecksumState::Wrong => false,
    }
}

#[inline(always)]
pub(super) fn rewrite<A: Family>(
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
fn is_superseded<A: Family>(found: &Found<'_, A>, packet: &Packet<A>, context: &Context<'_>) -> bool {
    let flows = A::table(context.flows);
    if packet.tuple.protocol != Protocol::Udp {
        // RFC 9293 section 3.6.1: a SYN may start a connection anew once the old one has ended. It may have gone past us,
        // from a client to a backend that sees its address: then only the answer is seen.
        let flags = packet.tcp_flags;
        let is_answer = flags.contains(TcpFlags::SYN.union(TcpFlags::ACK));
        let begins = flags.opens() || is_answer && open::may_be_preserved_reply(&packet.tuple, context);
        return begins && flows.tcp_phase(found).is_closing();
    }
    // P801: a datagram flow leaves a removed endpoint at once; nobody would tell its client otherwise.
    !context.tables.services.backends().is_current(BackendId::from_bits(found.forwarding.backend))
        || flows.is_expired(found, context.now, context.timeouts)
}

/// SYN flood limit: rate (per ms) and burst at which new half-open connections may evict old ones.
const REPLACED_PER_MS: u32 = 16;
const REPLACED_BURST: u32 = 1024;
