//! Differences that are meant: each names the kinds of packets, what both gateways make of them, and why.

use std::net::SocketAddr;

use Fate::{Answered, Forwarded, Nothing};

use super::conversation::{Conversation, REVIVED, Step};
use super::packet::{Content, Train};
use super::reading::End;
use super::report::Outcome;
use super::services;
use crate::lab::topology::{GATEWAY_UPLINK, ipv6_of};

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// The other end got something, its sender nothing.
    Forwarded,
    /// Its sender got something, the other end nothing.
    Answered,
    /// Both got something.
    Both,
    /// Nobody got anything.
    Nothing,
}

/// A difference with its reason.
struct Explanation {
    kinds: &'static [&'static str],
    /// Flowgate's and Linux's.
    fates: &'static [[Fate; 2]],
    /// What else has to hold.
    holds: fn(&Case<'_>) -> bool,
    reason: &'static str,
}

/// A packet and what came of it in both networks.
pub(super) struct Case<'a> {
    pub(super) of: &'a Conversation,
    pub(super) step: &'a Step,
    pub(super) outcomes: &'a [Outcome; 2],
}

const EXPLANATIONS: [Explanation; 26] = [
    Explanation {
        kinds: &["wrong transport checksum", "wrong IP checksum", "ICMP error with a wrong checksum"],
        fates: &[[Forwarded, Nothing], [Answered, Nothing]],
        holds: always,
        reason: "checksums are updated and never verified: a wrong one stays wrong, and the receiver drops it (decision 16)",
    },
    Explanation {
        kinds: &[
            "reset outside the window",
            "FIN outside the window",
            "data outside the window",
            "acknowledgement of what was never sent",
            "SYN in the connection",
            "SYN, ACK in the connection",
            "flags that no host sends",
            "segment before the SYN, ACK",
            "segment after the end",
        ],
        fates: &[[Forwarded, Nothing]],
        holds: always,
        reason: "a segment that its receiver would not take is passed on and changes nothing of the flow: the receiver ignores it \
                 or answers with a challenge ACK (RFC 9293 section 3.10.7.4, RFC 5961); Linux calls it invalid",
    },
    Explanation {
        kinds: &[
            "ABORT with a wrong tag",
            "end with a wrong tag",
            "DATA with a wrong tag",
            "chunk with a wrong length",
        ],
        fates: &[[Forwarded, Nothing]],
        holds: always,
        reason: "an SCTP packet that its receiver discards (RFC 9260 section 8.5) is passed on and changes nothing of the flow",
    },
    Explanation {
        kinds: &["hop-by-hop option that discards"],
        fates: &[[Forwarded, Nothing], [Forwarded, Answered], [Answered, Nothing]],
        holds: always,
        reason: "hop-by-hop options are for those that are configured to look at them (RFC 8200 section 4.3)",
    },
    Explanation {
        kinds: &["hop-by-hop options out of place"],
        fates: &[
            [Answered, Forwarded],
            [Nothing, Forwarded],
            [Forwarded, Nothing],
            [Answered, Nothing],
            [Forwarded, Forwarded],
        ],
        holds: always,
        reason: "hop-by-hop options stand first (RFC 8200 section 4.1): others pass to the kernel, which reports them or has no \
                 flow for them",
    },
    Explanation {
        kinds: &["record route", "timestamp option", "atomic fragment"],
        fates: &[[Forwarded, Forwarded]],
        holds: only_options_differ,
        reason: "options and extension headers stay as they are; Linux writes into some, and reassembles atomic fragments",
    },
    Explanation {
        kinds: &["broken IP options"],
        fates: &[[Nothing, Answered]],
        holds: always,
        reason: "dropped and counted, without an ICMP parameter problem: nobody sends such options but to attack",
    },
    Explanation {
        kinds: &["datagram to port 0"],
        fates: &[[Nothing, Answered], [Nothing, Forwarded]],
        holds: always,
        reason: "no Service has port 0 (RFC 6335 section 6): dropped and counted",
    },
    Explanation {
        kinds: &["VIP as source"],
        fates: &[[Nothing, Answered], [Nothing, Forwarded]],
        holds: always,
        reason: "no client has the address of a Service: its answers would go to the Service",
    },
    Explanation {
        kinds: &["fragments in reverse"],
        fates: &[[Nothing, Forwarded]],
        holds: overtakes_where_nothing_is_known,
        reason: "to an address of the node, and from a backend that sees its clients, a later fragment that overtakes its first one \
                 is lost (decision 6)",
    },
    Explanation {
        kinds: &["fragments that are not all", "fragments that overlap", "a fragment twice", "fragments"],
        fates: &[[Answered, Nothing]],
        holds: is_unserved,
        reason: "the first fragment is refused as the whole packet would be, without waiting for the others",
    },
    Explanation {
        kinds: &["segment without a connection", "segment before the SYN, ACK", "segment after the end"],
        fates: &[[Answered, Nothing]],
        holds: is_unserved,
        reason: "what no backend serves is refused whether or not it opens a connection",
    },
    Explanation {
        kinds: &["SYN in the connection"],
        fates: &[[Forwarded, Forwarded]],
        holds: |case| leaves_a_kept_backend_as_it_is_in(case, 1),
        reason: "a SYN of the backend's within a connection through the VIP belongs to it and is challenged (RFC 5961 section 4); \
                 Linux takes it for a direct one",
    },
    Explanation {
        kinds: &["SYN, ACK in the connection"],
        fates: &[[Forwarded, Forwarded]],
        holds: leaves_a_kept_backend_as_it_is,
        reason: "after the end of a connection through the VIP, a SYN, ACK of its backend belongs to a direct one (decision 15)",
    },
    Explanation {
        kinds: &[],
        fates: &[[Forwarded, Nothing]],
        holds: leaves_a_kept_backend_as_it_is,
        reason: "what a backend that sees its clients sends besides its flows is routed as it is (decision 15); the rules for Linux \
                 drop what opens nothing",
    },
    Explanation {
        kinds: &["routing header with a segment left"],
        fates: &[
            [Nothing, Forwarded],
            [Nothing, Answered],
            [Answered, Forwarded],
            [Answered, Nothing],
            [Forwarded, Forwarded],
        ],
        holds: always,
        reason: "source routes of IPv6 (RFC 5095) are dropped where everything is ours, and else the kernel's, which has no flow for \
                 them",
    },
    Explanation {
        kinds: &["datagram with options"],
        fates: &[[Forwarded, Nothing], [Answered, Nothing]],
        holds: always,
        reason: "a checksum ends where its datagram does (RFC 9868 section 5); connection tracking of Linux sums up the whole packet, \
                 and takes it only if the rest sums up to nothing",
    },
    Explanation {
        kinds: &["own address as source"],
        fates: &[[Nothing, Forwarded], [Nothing, Answered]],
        holds: |case| case.of.target.is_ipv6(),
        reason: "nobody else has an address of the gateway; in IPv6 Linux does not look",
    },
    Explanation {
        kinds: &["own address as source"],
        fates: &[[Forwarded, Nothing]],
        holds: is_forged_by_a_backend,
        reason: "what a backend sends from an address of the gateway is no flow and the kernel's, as IPv6 of Linux forwards it; the \
                 rules for Linux drop what opens nothing",
    },
    Explanation {
        kinds: &["IP length below the headers"],
        fates: &[[Answered, Nothing]],
        holds: always,
        reason: "headers that contradict themselves are the kernel's, which tells their sender",
    },
    Explanation {
        kinds: &["record route", "timestamp option"],
        fates: &[[Answered, Nothing]],
        holds: is_unserved,
        reason: "Linux refuses nothing with an option that it has begun to write into",
    },
    Explanation {
        kinds: &["last hop", "no hops left"],
        fates: &[[Answered, Nothing]],
        holds: always,
        reason: "hops are looked at before it is known whether there is a flow",
    },
    Explanation {
        kinds: &["ICMP error"],
        fates: &[[Forwarded, Nothing]],
        holds: |case| matches!(&case.step.content, Content::Error(error) if error.quote_len < 36),
        reason: "an error may quote the ports and no more behind options; Linux wants eight bytes (RFC 792)",
    },
    Explanation {
        kinds: &["martian source"],
        fates: &[[Nothing, Answered]],
        holds: always,
        reason: "martian sources are dropped in silence (RFC 1812 section 5.3.7)",
    },
    Explanation {
        kinds: &["echo request"],
        fates: &[[Nothing, Answered]],
        holds: |case| !is_node(case),
        reason: "what a Service does not serve is dropped; Linux sends it back to the router that it came from",
    },
    Explanation {
        kinds: &[],
        fates: &[[Forwarded, Forwarded], [Answered, Answered]],
        holds: keeps_the_port_of_a_client,
        reason: "what a backend sends besides its flows is no flow (decision 15): later it takes no port away from the client whom it \
                 was for",
    },
];

/// The reason for this difference, if there is one.
pub(super) fn explanation(case: &Case<'_>) -> Option<&'static str> {
    let fates = [case.outcomes[0].fate, case.outcomes[1].fate];
    let fits = |explanation: &&Explanation| {
        (explanation.kinds.is_empty() || explanation.kinds.contains(&case.step.kind))
            && explanation.fates.contains(&fates)
            && (explanation.holds)(case)
    };
    // What Linux takes for a packet of no flow may still be routed as it is.
    let is_plain = leaves_a_kept_backend_as_it_is_in(case, 1);
    let is_forgotten = fates == [Forwarded, Nothing] || (fates == [Forwarded, Forwarded] && is_plain);
    let revived = case.of.revived.or_else(|| case.step.revives().then_some(REVIVED));
    let apart = case.of.forgotten.filter(|_| is_forgotten);
    let is_plain = leaves_a_kept_backend_as_it_is(case);
    let is_revived = fates == [Nothing, Forwarded] || (fates == [Forwarded, Forwarded] && is_plain);
    let apart = apart.or_else(|| revived.filter(|_| is_revived));
    EXPLANATIONS.iter().find(fits).map(|explanation| explanation.reason).or(apart)
}

fn always(_: &Case<'_>) -> bool {
    true
}

fn only_options_differ(case: &Case<'_>) -> bool {
    case.outcomes[0].bare == case.outcomes[1].bare
}

/// Whether the first fragment, which has the ports, is needed to know whose the others are, and arrives last: they are
/// addressed to the node (to a NodePort, or to the source of a masqueraded flow), or to a client.
fn overtakes_where_nothing_is_known(case: &Case<'_>) -> bool {
    let is_reversed = case.step.shape.fragments.is_some_and(|fragments| fragments.train == Train::Reversed);
    is_reversed && (case.step.sender == End::Backend || is_node(case))
}

fn is_node(case: &Case<'_>) -> bool {
    [GATEWAY_UPLINK.into(), ipv6_of(GATEWAY_UPLINK).into()].contains(&case.of.target.ip())
}

fn is_forged_by_a_backend(case: &Case<'_>) -> bool {
    let is_forged = |source| case.outcomes[0].comes_from_host(source);
    case.step.sender == End::Backend && case.step.shape.forged.is_some_and(is_forged)
}

/// Whether no backend serves the target.
fn is_unserved(case: &Case<'_>) -> bool {
    case.of.sides.iter().all(|side| side.peer.is_none())
}

/// Whether a backend that sees its clients sent it, and Flowgate left its address as it is.
fn leaves_a_kept_backend_as_it_is(case: &Case<'_>) -> bool {
    leaves_a_kept_backend_as_it_is_in(case, 0)
}

/// The same of one of the two.
fn leaves_a_kept_backend_as_it_is_in(case: &Case<'_>, side: usize) -> bool {
    let is_backend = case.outcomes[side].comes_from_host(case.of.backend.ip());
    is_kept(case) && case.step.sender == End::Backend && is_backend
}

/// Whether a backend sees the client as it is through Flowgate, and by another port through Linux.
fn keeps_the_port_of_a_client(case: &Case<'_>) -> bool {
    let [ours, theirs] = case.outcomes;
    let client = case.of.client;
    let is_other = |at: SocketAddr| at.ip() == client.ip() && at != client;
    let is_seen = ours.comes_from(client) && theirs.sources.iter().all(|at| is_other(*at));
    let was_seen = case.of.sides[0].peer == Some(client) && case.of.sides[1].peer.is_some_and(is_other);
    is_kept(case) && (was_seen || (case.step.sender == End::Client && is_seen))
}

fn is_kept(case: &Case<'_>) -> bool {
    [services::KEPT.into(), ipv6_of(services::KEPT).into()].contains(&case.of.target.ip())
}
