//! Fragments of packets to and from Services: the first is decided as a whole packet would be, the others are translated as
//! it was. Nothing is reassembled.
//!
//! A fragment that arrives before the first of its packet is held by the worker: [`Verdict::AwaitFragment`]. Fragments that
//! overlap make their whole packet be dropped (RFC 5722, RFC 8200 section 4.5); one that cuts up headers is dropped alone
//! (RFC 1858, RFC 7112). Only the transport header of the first fragment is touched.

mod cache;
mod identification;
mod ranges;

use flowgate_tables::InterfaceId;
use flowgate_wire::fragment::{self, FragmentRange, InvalidFragment};
use flowgate_wire::header::ip_protocol;
use flowgate_wire::{Datagram, FiveTuple, Fragment, L4Port, Packet, Protocol, icmp};

pub(crate) use cache::EXPECTED_MS;

use cache::{Cache, Decided, Key, Newcomer, State};
use identification::Identifications;
use ranges::Fit;

use super::context::SlowPath;
use super::icmp::answers_echo;
use super::input::{drop_malformed, refused_source};
use super::router::Router;
use super::{Context, Family, Staged};
use crate::burst::{BURST, RxChecksums, WorkerNumber};
use crate::counters::Event;
use crate::verdict::{AwaitedFragment, DropReason, PassReason, Verdict};
use flowgate_wire::reject::IcmpError;

/// The fragmented packets of one worker.
#[derive(Debug)]
pub(super) struct Fragments {
    cache: Cache,
    identifications: Identifications,
    /// Awaited packets whose fragment came since the last call of `drain_ready`.
    ready: [Option<AwaitedFragment>; BURST],
    ready_count: usize,
}

impl Fragments {
    pub(super) fn new(worker: WorkerNumber) -> Self {
        Self {
            cache: Cache::new(),
            identifications: Identifications::new(worker),
            ready: [None; BURST],
            ready_count: 0,
        }
    }

    pub(super) fn drain_ready(&mut self, ready: impl FnMut(AwaitedFragment)) {
        self.ready[..self.ready_count].iter_mut().filter_map(Option::take).for_each(ready);
        self.ready_count = 0;
    }

    /// Makes frames ready that are held for the packet in `slot`. There is room for one packet per frame of a burst.
    fn wake(&mut self, slot: usize) {
        // Taken, so that one packet is put down once however many of its fragments are on hold.
        let is_awaited = std::mem::take(&mut self.cache.entry(slot).is_awaited);
        if is_awaited && let Some(free) = self.ready.get_mut(self.ready_count) {
            *free = Some(self.cache.awaited(slot));
            self.ready_count += 1;
        }
    }

    fn wait(&mut self, slot: usize) -> Verdict {
        self.cache.entry(slot).is_awaited = true;
        Verdict::AwaitFragment(self.cache.awaited(slot))
    }

    /// Sets the verdict on all further fragments of the packet in `slot`, those on hold included.
    fn end(&mut self, slot: usize, of_others: Verdict) {
        self.cache.entry(slot).state = State::Ended(of_others);
        self.wake(slot);
    }

    /// Drops this and all further fragments of the packet in `slot`.
    fn drop_all(&mut self, slot: usize, reason: DropReason) -> Verdict {
        self.end(slot, Verdict::Drop(reason));
        Verdict::Drop(reason)
    }

    /// `None` if the part may be forwarded. One that overlaps makes its packet be dropped, a duplicate only itself.
    fn unfit(&mut self, slot: usize, part: &FragmentRange) -> Option<Verdict> {
        match self.cache.entry(slot).ranges.fit(part) {
            Fit::New => None,
            Fit::Duplicate => Some(Verdict::Drop(DropReason::FragmentDuplicate)),
            Fit::Excess => Some(Verdict::Drop(DropReason::FragmentExcess)),
            Fit::Overlap => Some(self.drop_all(slot, DropReason::FragmentOverlap)),
        }
    }

    /// Records that the part was forwarded. A complete packet is removed, so that its identification can be used again.
    fn sent(&mut self, slot: usize, part: &FragmentRange) {
        let ranges = &mut self.cache.entry(slot).ranges;
        ranges.add(part);
        if ranges.is_complete() {
            self.cache.remove(slot);
        }
    }
}

/// A parsed fragment.
struct Piece<A> {
    datagram: Datagram<A>,
    fragment: Fragment,
    part: FragmentRange,
    slot: usize,
}

impl Router {
    /// Decides about a frame that was parsed as a fragment.
    #[cold]
    pub(super) fn fragment<A: Family>(&mut self, frame: &mut [u8], slow: &mut SlowPath<'_>) -> Verdict {
        let datagram = match A::datagram(frame) {
            Ok(datagram) => datagram,
            Err(malformed) => return drop_malformed(malformed),
        };
        if let Some(reason) = refused_source(datagram.src, slow.context) {
            return Verdict::Drop(reason);
        }
        let Some(fragment) = datagram.fragment else { return Verdict::Pass(PassReason::NotL4) };
        if datagram.protocol == A::ICMP && answers_echo(datagram.dst, slow.context) {
            return self.echo_fragment(frame, &datagram, &fragment, slow);
        }
        let protocol = Protocol::from_number(datagram.protocol);
        let is_first = fragment.offset == 0;
        // Without ports there is no Service: the kernel reassembles it, if it is for the kernel.
        if protocol.is_none() && (is_first || !may_hide_protocol::<A>(datagram.protocol)) {
            return Verdict::Pass(PassReason::NotL4);
        }
        let part = match FragmentRange::of(&datagram, &fragment) {
            Ok(part) => part,
            Err(unfit) => return drop_invalid(unfit),
        };
        let newcomer = if is_first { Newcomer::First } else { Newcomer::Later };
        let Some(slot) = self.fragment_slot(&datagram, &fragment, newcomer, slow.context) else {
            return Verdict::Drop(DropReason::FragmentExcess);
        };
        let piece = Piece { datagram, fragment, part, slot };
        let verdict = match protocol {
            Some(protocol) if is_first => self.first_fragment(frame, &piece, protocol, slow),
            _ => self.later_fragment(frame, &piece, slow),
        };
        slow.counters.add(Event::FragmentsForwarded, u64::from(matches!(verdict, Verdict::Transmit(_))));
        verdict
    }

    /// Answers a fragment of an echo request to a VIP by that fragment of the reply; the first tells whether it is one.
    fn echo_fragment<A: Family>(
        &mut self,
        frame: &mut [u8],
        datagram: &Datagram<A>,
        fragment: &Fragment,
        slow: &mut SlowPath<'_>,
    ) -> Verdict {
        let newcomer = if fragment.offset == 0 { Newcomer::First } else { Newcomer::Later };
        if newcomer == Newcomer::First && !icmp::is_echo_request(frame, datagram) {
            return Verdict::Pass(PassReason::NotL4);
        }
        let part = match FragmentRange::of(datagram, fragment) {
            Ok(part) => part,
            Err(unfit) => return drop_invalid(unfit),
        };
        let Some(slot) = self.fragment_slot(datagram, fragment, newcomer, slow.context) else {
            return Verdict::Drop(DropReason::FragmentExcess);
        };
        let state = self.fragments.cache.entry(slot).state;
        if let State::Ended(verdict) = state {
            return verdict;
        }
        if let Some(verdict) = self.fragments.unfit(slot, &part) {
            return verdict;
        }
        match (newcomer, state) {
            (Newcomer::First, _) => {
                slow.counters.add(Event::EchoesAnswered, 1);
                self.fragments.cache.entry(slot).state = State::Echo;
                self.fragments.wake(slot);
            }
            (Newcomer::Later, State::Echo) => {}
            (Newcomer::Later, _) => {
                self.fragments.cache.entry(slot).ranges.learn_total(&part);
                return self.fragments.wait(slot);
            }
        }
        if icmp::reply_to_echo(frame, datagram).is_none() {
            return self.fragments.drop_all(slot, DropReason::RejectUnanswered);
        }
        self.fragments.sent(slot, &part);
        Verdict::Reply
    }

    fn fragment_slot<A: Family>(
        &mut self,
        datagram: &Datagram<A>,
        fragment: &Fragment,
        newcomer: Newcomer,
        context: &Context<'_>,
    ) -> Option<usize> {
        // RFC 791 section 3.2 has the protocol in the key. In IPv6 later fragments may name another one than the first, since
        // their next header field is that of the fragment header.
        let protocol = if A::IS_V4 { datagram.protocol } else { 0 };
        let key = Key { src: datagram.src.into(), dst: datagram.dst.into(), id: fragment.id, protocol };
        let [high, low] = [(fragment.id >> 16) as u16, (fragment.id & 0xffff) as u16];
        let hash = keyed_hash([datagram.src, datagram.dst], [high, low], context);
        self.fragments.cache.slot(key, hash, newcomer, context.now)
    }

    /// Decides about a first fragment as about a whole packet, and stores the decision for the others.
    fn first_fragment<A: Family>(
        &mut self,
        frame: &mut [u8],
        piece: &Piece<A>,
        protocol: Protocol,
        slow: &mut SlowPath<'_>,
    ) -> Verdict {
        let Piece { datagram, fragment, part, slot } = piece;
        let (packet, datagram_len) = match fragment::parse_first(frame, datagram, protocol) {
            Ok(first) => first,
            Err(unfit) => return drop_invalid(unfit),
        };
        if let State::Ended(verdict) = self.fragments.cache.entry(*slot).state {
            return verdict;
        }
        // Also for a first fragment: an attacker may send a second one over it, to change the ports that a filter saw.
        if let Some(verdict) = self.fragments.unfit(*slot, part) {
            return verdict;
        }
        let end = datagram_len.map(|len| fragment::l4_start(datagram, fragment).saturating_add(len));
        let total = self.fragments.cache.entry(*slot).ranges.total();
        // The last fragment came first, and the transport header names a greater length.
        if end.is_some_and(|end| total.is_some_and(|total| total < end)) {
            return self.fragments.drop_all(*slot, DropReason::Malformed);
        }
        if protocol == Protocol::Sctp && total.is_none() {
            // The CRC covers the whole packet: how new ports change it depends on the distance from the end, which only the last
            // fragment tells.
            return self.fragments.wait(*slot);
        }
        let sctp_len = total.map(|total| total.saturating_sub(fragment::l4_start(datagram, fragment)));
        let (verdict, flow_hash) = self.decide_first(frame, &packet, sctp_len, slow);
        match verdict {
            Verdict::Transmit(egress) => {
                self.store_decision(frame, piece, &packet, (end, flow_hash), slow.context);
                Verdict::Transmit(egress)
            }
            // It is held and decided again; nothing was rewritten or stored.
            Verdict::AwaitNeighbour(_) => verdict,
            Verdict::Pass(_) => {
                self.fragments.end(*slot, Verdict::Pass(PassReason::Fragment));
                verdict
            }
            _ => {
                self.fragments.end(*slot, Verdict::Drop(DropReason::FragmentNoFirst));
                verdict
            }
        }
    }

    fn decide_first<A: Family>(
        &mut self,
        frame: &mut [u8],
        packet: &Packet<A>,
        sctp_len: Option<u16>,
        slow: &mut SlowPath<'_>,
    ) -> (Verdict, u32) {
        let flows = A::table(slow.context.flows);
        let mut probe = flows.probe(&packet.tuple);
        flows.prefetch(&mut probe);
        let staged = Staged { packet: *packet, probe };
        let before = sctp_fields(frame, packet);
        // The kernel completes a partial checksum before it fragments (ip_do_fragment in net/ipv4/ip_output.c).
        let complete = &mut SlowPath {
            context: slow.context,
            counters: slow.counters,
            checksums: RxChecksums::Fragmented,
            ingress: slow.ingress,
        };
        let verdict = self.slow_path(frame, &staged, complete);
        if let (Verdict::Transmit(_), Some((ports, checksum)), Some(len)) = (verdict, before, sctp_len) {
            mend_sctp(frame, packet, ports, checksum, len);
        }
        (verdict, probe.hash().0)
    }

    /// Stores how the first fragment was rewritten, for the fragments that follow it.
    fn store_decision<A: Family>(
        &mut self,
        frame: &mut [u8],
        piece: &Piece<A>,
        packet: &Packet<A>,
        (end, flow_hash): (Option<u16>, u32),
        context: &Context<'_>,
    ) {
        let Piece { datagram, fragment, part, slot } = piece;
        let header = frame.get(usize::from(packet.l3_offset)..);
        let Some(pair) = header.and_then(A::read_pair) else { return };
        let id = (pair[0] != datagram.src).then(|| {
            let id = self.fragments.identifications.next(keyed_hash(pair, [0, 0], context));
            fragment::write_identification(frame, datagram, fragment, id);
            id
        });
        let FiveTuple { protocol, src_port, dst_port, .. } = packet.tuple;
        self.fragments.cache.entry(*slot).state = State::Decided(Decided {
            pair: pair.map(Into::into),
            id,
            ports: [src_port, dst_port],
            protocol,
            flow_hash,
            end,
        });
        self.fragments.wake(*slot);
        self.fragments.sent(*slot, part);
    }

    /// Decides about a fragment that is not the first: forwards it as the first was, or holds it until the first came.
    fn later_fragment<A: Family>(
        &mut self,
        frame: &mut [u8],
        piece: &Piece<A>,
        slow: &mut SlowPath<'_>,
    ) -> Verdict {
        let Piece { part, slot, .. } = piece;
        let state = self.fragments.cache.entry(*slot).state;
        if let State::Ended(verdict) = state {
            return verdict;
        }
        if let Some(verdict) = self.fragments.unfit(*slot, part) {
            return verdict;
        }
        let State::Decided(decided) = state else {
            let ranges = &mut self.fragments.cache.entry(*slot).ranges;
            // Learned before the fragment may go on: an SCTP packet needs its length to be decided at all.
            let is_news = !part.more && ranges.total().is_none();
            ranges.learn_total(part);
            if is_news {
                // The first fragment of an SCTP packet may be held until the length is known.
                self.fragments.wake(*slot);
            }
            return self.fragments.wait(*slot);
        };
        // A last fragment must not end before the datagram does; UDP options may follow this one (RFC 9868).
        if decided.end.is_some_and(|end| !part.more && part.end < end) {
            return self.fragments.drop_all(*slot, DropReason::Malformed);
        }
        match self.follow(frame, piece, &decided, slow) {
            Ok(egress) => {
                self.fragments.sent(*slot, part);
                Verdict::Transmit(egress)
            }
            Err(verdict) => verdict,
        }
    }

    /// Translates a fragment as the first of its packet was.
    fn follow<A: Family>(
        &mut self,
        frame: &mut [u8],
        Piece { datagram, fragment, .. }: &Piece<A>,
        decided: &Decided,
        slow: &mut SlowPath<'_>,
    ) -> Result<InterfaceId, Verdict> {
        if datagram.ttl <= 1 {
            return Err(Verdict::IcmpError(IcmpError::TimeExceeded));
        }
        // Routed anew rather than by a stored next hop: routes may change between two fragments.
        let [src, dst] = decided.pair;
        let (_, next_hop) = self.next_hop(dst, decided.flow_hash, slow)?;
        let ether = self.resolved(next_hop, slow.counters)?;
        if datagram.ip_len() > next_hop.mtu {
            return Err(Verdict::IcmpError(IcmpError::TooBig(next_hop.mtu)));
        }
        let pair = A::from_ip(src).zip(A::from_ip(dst)).ok_or(Verdict::Drop(DropReason::Malformed))?;
        let tuple = FiveTuple {
            protocol: decided.protocol,
            src: datagram.src,
            dst: datagram.dst,
            src_port: decided.ports[0],
            dst_port: decided.ports[1],
        };
        if let Some(found) = A::table(slow.context.flows).lookup(&tuple) {
            // Keeps the flow from expiring while only fragments come, and counts their bytes.
            found.touch(slow.context.now, datagram.ip_len());
            if tuple.protocol == Protocol::Tcp {
                // The numbers of the segment were recorded as if it ended with its first fragment.
                found.extend_segment(datagram.l4_len);
            }
        }
        let rewritten = fragment::rewrite(frame, datagram, pair.into(), ether);
        rewritten.ok_or(Verdict::Drop(DropReason::Malformed))?;
        if let Some(id) = decided.id {
            fragment::write_identification(frame, datagram, fragment, id);
        }
        Ok(next_hop.egress)
    }
}

/// Whether a fragment that is not the first may belong to an L4 packet though it names another protocol: the next header field
/// of an IPv6 fragment header may name a further extension header.
fn may_hide_protocol<A: Family>(protocol: u8) -> bool {
    !A::IS_V4 && protocol != A::ICMP && IPV6_EXTENSIONS.contains(&protocol)
}

fn drop_invalid(unfit: InvalidFragment) -> Verdict {
    Verdict::Drop(match unfit {
        InvalidFragment::Tiny => DropReason::FragmentTiny,
        InvalidFragment::Malformed(_) => DropReason::Malformed,
    })
}

/// A keyed hash of two addresses and two numbers: that of the flow table, whose secret all workers share, so that nobody
/// outside can aim at one set of the cache.
fn keyed_hash<A: Family>([src, dst]: [A; 2], numbers: [u16; 2], context: &Context<'_>) -> u32 {
    let [src_port, dst_port] = numbers.map(L4Port::new);
    let tuple = FiveTuple { protocol: Protocol::Udp, src, dst, src_port, dst_port };
    A::table(context.flows).probe(&tuple).hash().0
}

/// The ports and the checksum of an SCTP packet, as they stand in its header.
fn sctp_fields<A: Family>(frame: &[u8], packet: &Packet<A>) -> Option<([u8; 4], [u8; 4])> {
    let header = frame.get(usize::from(packet.l4_offset)..)?.first_chunk::<12>()?;
    let (fields, _) = header.as_chunks::<4>();
    (packet.tuple.protocol == Protocol::Sctp).then_some((fields[0], fields[2]))
}

/// Corrects the checksum that the translation computed over the first fragment alone, from the one that was received for the
/// whole packet: a CRC is linear, so the difference of the ports can be applied at its distance from the end.
fn mend_sctp<A: Family>(
    frame: &mut [u8],
    packet: &Packet<A>,
    old_ports: [u8; 4],
    received: [u8; 4],
    whole_len: u16,
) {
    let Some((new_ports, _)) = sctp_fields(frame, packet) else { return };
    let checksum = fragment::sctp_checksum(received, [old_ports, new_ports], whole_len);
    let at = usize::from(packet.l4_offset) + 8;
    if let Some(field) = frame.get_mut(at..at + 4) {
        field.copy_from_slice(&checksum);
    }
}

/// Hop-by-hop, routing, fragment, authentication and destination options (RFC 8200 section 4).
const IPV6_EXTENSIONS: [u8; 5] = [
    ip_protocol::HOP_BY_HOP,
    ip_protocol::ROUTING,
    ip_protocol::FRAGMENT,
    ip_protocol::AUTHENTICATION,
    ip_protocol::DESTINATION_OPTIONS,
];
