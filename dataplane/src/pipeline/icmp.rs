//! ICMP: errors about packets of a flow are translated and forwarded, and VIPs answer echo requests where the operator wants
//! it. An error does not change the state of its flow: anybody can forge one (RFC 5927).

use std::net::{Ipv4Addr, Ipv6Addr};

use flowgate_flow::Found;
use flowgate_wire::icmp::{self, Message, Quoted, TranslatedError};
use flowgate_wire::{Address, Datagram, EtherType, FiveTuple};

use super::context::SlowPath;
use super::input::{drop_malformed, not_routed, refused_source};
use super::open::may_be_preserved_reply;
use super::router::{Router, current_next_hop};
use super::{Context, Family};
use crate::counters::Event;
use crate::verdict::{DropReason, PassReason, Verdict};

impl Router {
    /// Decides about an ICMP message and rewrites it.
    #[cold]
    pub(super) fn control_message(&mut self, frame: &mut [u8], slow: &mut SlowPath<'_>) -> Verdict {
        match EtherType::of(frame) {
            Some(EtherType::Ipv4) => self.control_message_of::<Ipv4Addr>(frame, slow),
            Some(EtherType::Ipv6) => self.control_message_of::<Ipv6Addr>(frame, slow),
            _ => Verdict::Pass(PassReason::NotIp),
        }
    }

    fn control_message_of<A: Family>(&mut self, frame: &mut [u8], slow: &mut SlowPath<'_>) -> Verdict {
        let datagram = match A::datagram(frame) {
            Ok(datagram) => datagram,
            Err(malformed) => return drop_malformed(malformed),
        };
        if let Some(reason) = refused_source(datagram.src, slow.context) {
            return Verdict::Drop(reason);
        }
        match Message::of(frame, &datagram) {
            Message::Error(quoted) => self.forward_error(frame, &datagram, &quoted, slow),
            Message::EchoRequest => answer_echo(frame, &datagram, slow),
            Message::Other => Verdict::Pass(PassReason::NotL4),
        }
    }

    /// Forwards an error in the reverse direction of the packet that it quotes, as a reply to that packet would be.
    fn forward_error<A: Family>(
        &mut self,
        frame: &mut [u8],
        datagram: &Datagram<A>,
        quoted: &Quoted<A>,
        slow: &mut SlowPath<'_>,
    ) -> Verdict {
        // RFC 792: an error is sent to the source of the packet that it quotes.
        if datagram.dst != quoted.tuple.src {
            return Verdict::Pass(PassReason::NotOurs);
        }
        // RFC 1122 section 3.2.2: no ICMP error is sent about an ICMP error.
        if datagram.ttl <= 1 {
            return Verdict::Drop(DropReason::TtlExpired);
        }
        let answer = quoted.tuple.reversed();
        let flows = A::table(slow.context.flows);
        let probe = flows.probe(&answer);
        // Not prefetched: errors are rare. By the reply's tuple, since the flow is stored under both.
        let found = flows.find_again(&probe, &answer);
        if found.is_none() {
            if !is_preserved_reply(&answer, slow.context) {
                return Verdict::Drop(DropReason::NoFlow);
            }
            // Routed as the kernel would: whose reply it is about, anyone can write.
            if let Some(reason) = not_routed(datagram.src, datagram.dst, slow) {
                return Verdict::Drop(reason);
            }
        }
        let stored = found.as_ref().and_then(|found| current_next_hop(found, &slow.context.tables.routing));
        let dst = found.as_ref().map_or(datagram.dst, |found| found.forwarding.translation.dst);
        let next_hop = match stored {
            Some(next_hop) => next_hop,
            None => match self.next_hop(dst.into(), probe.hash().0, slow) {
                Ok((_, next_hop)) => next_hop,
                // RFC 1122 section 3.2.2: no ICMP error is sent about an ICMP error.
                Err(Verdict::IcmpError(_)) => return Verdict::Drop(DropReason::NoRoute),
                Err(verdict) => return verdict,
            },
        };
        let ether = match self.resolved(next_hop, slow.counters) {
            Ok(ether) => ether,
            Err(verdict) => return verdict,
        };
        // Dropped in silence, unlike other packets: no error about an error.
        if datagram.ip_len() > next_hop.mtu {
            return Verdict::Drop(DropReason::TooBig);
        }
        let (done, event) = match found {
            Some(found) => {
                let new = translated_error(datagram.src, &answer, &found);
                (icmp::translate(frame, datagram, quoted, &new, ether), Event::IcmpErrorsTranslated)
            }
            None => (icmp::route(frame, datagram, ether), Event::Routed),
        };
        if done.is_none() {
            return Verdict::Drop(DropReason::Malformed);
        }
        slow.counters.add(event, 1);
        Verdict::Transmit(next_hop.egress)
    }
}

/// The translation of an error that goes in the direction of `found`, whose packets arrive as `answer`.
///
/// The quoted packet is translated back to what its sender had sent, or the sender would not find the connection. The source
/// of the error is replaced where that of a reply would be, since the other side may have no route to it; otherwise it stays.
fn translated_error<A: Family>(sender: A, answer: &FiveTuple<A>, found: &Found<'_, A>) -> TranslatedError<A> {
    let translation = &found.forwarding.translation;
    let src = if translation.src == answer.src { sender } else { translation.src };
    TranslatedError { src, dst: translation.dst, about: translation.tuple(answer.protocol).reversed() }
}

/// Whether the error is about a packet to a backend whose clients' addresses are preserved, but of no flow: such a packet is
/// routed as the kernel would.
fn is_preserved_reply<A: Family>(answer: &FiveTuple<A>, context: &Context<'_>) -> bool {
    may_be_preserved_reply(answer, context) && !context.tables.sources.is_node(answer.dst.into())
}

/// Whether echo requests to this address are answered. The node's kernel answers for the node's own addresses.
pub(super) fn answers_echo<A: Address>(dst: A, context: &Context<'_>) -> bool {
    let tables = context.tables;
    context.config.echo_vips && tables.services.is_vip(dst.into()) && !tables.sources.is_node(dst.into())
}

/// P505 rejects other packets to a cluster IP. For echo requests there is no rule: VIPs of kube-proxy are silent in some of
/// its modes and answer in others.
fn answer_echo<A: Address>(frame: &mut [u8], datagram: &Datagram<A>, slow: &mut SlowPath<'_>) -> Verdict {
    if !answers_echo(datagram.dst, slow.context) {
        return Verdict::Pass(PassReason::NotOurs);
    }
    match icmp::reply_to_echo(frame, datagram) {
        Some(()) => {
            slow.counters.add(Event::EchoesAnswered, 1);
            Verdict::Reply
        }
        None => Verdict::Drop(DropReason::RejectUnanswered),
    }
}
