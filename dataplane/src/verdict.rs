//! The fate of a packet. Each reason has one name and one counter, which output and metrics share.

use flowgate_tables::InterfaceId;
use flowgate_tables::routing::NeighbourKey;
use flowgate_wire::refusal::IcmpError;

/// What happens to a packet. The pipeline has rewritten a packet that is to be sent.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send it by this interface.
    Transmit(InterfaceId),
    /// The kernel's business. The XDP program passes such packets before they come here; a frame that
    /// came all the same cannot be given back and ends, counted under its reason.
    Pass(PassReason),
    /// Its next hop is being resolved: decide again when the tables have changed. Nothing was rewritten.
    AwaitNeighbour(NeighbourKey),
    /// Another fragment of its packet must be decided before it. Nothing was rewritten.
    AwaitFragment(AwaitedFragment),
    /// Tell its sender at once that nobody serves it (P502).
    Reject(RejectReason),
    /// It ends here, and its sender is told what is wrong with it.
    IcmpError(IcmpError),
    /// It became the answer to its sender: send it back by the interface that it came by.
    Reply,
    /// It ends here.
    Drop(DropReason),
}

/// A packet whose first fragment is missing, as the pipeline's fragment cache knows it. Nobody else looks inside: equal
/// ones belong to one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AwaitedFragment {
    slot: u16,
    /// Differs from the stamp of the slot's previous packet.
    stamp: u32,
}

impl AwaitedFragment {
    pub(crate) const fn new(slot: u16, stamp: u32) -> Self {
        Self { slot, stamp }
    }
}

/// Declares an enum of reasons with a stable name and an explanation for each.
macro_rules! reasons {
    ($(#[$meta:meta])* $type:ident { $($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $type { $($(#[doc = $doc])+ $variant,)+ }

        impl $type {
            /// All of them, in the order of their counters.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The name in output and metrics. It is API: it never changes.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What it means, in a sentence.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii(),)+ }
            }

            /// Position of its counter.
            pub const fn index(self) -> usize {
                self as usize
            }
        }
    };
}
pub(crate) use reasons;

reasons! {
    /// Why a packet is the kernel's business.
    PassReason {
        /// Neither an IPv4 nor an IPv6 packet.
        NotIp = "not_ip",
        /// Neither TCP nor UDP nor SCTP.
        NotL4 = "not_l4",
        /// A fragment of a packet whose first fragment was the kernel's business.
        Fragment = "fragment",
        /// Its destination is no Service, as right after a Service is removed.
        NotOurs = "not_ours",
    }
}

reasons! {
    /// Why a packet is answered with a refusal.
    RejectReason {
        /// The Service has no endpoint anywhere that could be chosen.
        NoEndpoint = "no_endpoint",
        /// The address is a Service's cluster IP, but the Service has no such port.
        UnknownPort = "unknown_port",
        /// A TCP segment to a Service, or an answer, that belongs to no connection and opens none.
        NoConnection = "no_connection",
    }
}

reasons! {
    /// Why a packet ends here.
    DropReason {
        /// A header contradicts the bytes that are there.
        Malformed = "malformed",
        /// Its hops are used up.
        TtlExpired = "ttl_expired",
        /// Belongs to no flow and does not open one: a late TCP segment or a stray reply.
        NoFlow = "no_flow",
        /// The Service has endpoints, but none that its traffic policy lets this packet have.
        NoBackend = "no_backend",
        /// The Service admits only clients from its source ranges, and this one is not.
        SourceNotAllowed = "source_not_allowed",
        /// An address that cluster IPs are taken from and that no Service has.
        UnallocatedClusterIp = "unallocated_cluster_ip",
        /// To be refused, but its sender gets no answer: too many were refused lately, or it cannot be answered.
        RejectUnanswered = "reject_unanswered",
        /// No route covers the next destination.
        NoRoute = "no_route",
        /// The next hop's Ethernet address is not known, and the packet waited in vain or found no room to wait.
        NoNeighbour = "no_neighbour",
        /// The egress interface has no address that could be the source.
        NoSnatAddress = "no_snat_address",
        /// Every port tried for this backend and source address is in use.
        SnatPortsExhausted = "snat_ports_exhausted",
        /// Every port tried for the client's own address already stands for another flow to the same backend.
        ReplyTupleTaken = "reply_tuple_taken",
        /// Half-open connections take their share of the flow table, and none of them could make room.
        HalfOpenLimit = "half_open_limit",
        /// No room in the flow table and no flow that may be evicted.
        FlowTableFull = "flow_table_full",
        /// A fragment that cuts up the headers of its packet (RFC 1858, RFC 7112).
        FragmentTiny = "fragment_tiny",
        /// A fragment that overlaps another, or a part of a packet that has such (RFC 5722).
        FragmentOverlap = "fragment_overlap",
        /// A fragment whose bytes were forwarded before.
        FragmentDuplicate = "fragment_duplicate",
        /// A fragment whose packet's first fragment did not come in time, or was not forwarded itself.
        FragmentNoFirst = "fragment_no_first",
        /// A fragment more than can be remembered or can wait.
        FragmentExcess = "fragment_excess",
        /// Larger than the MTU of its way out.
        TooBig = "too_big",
        /// The transmit ring of its way out is full.
        TxRingFull = "tx_ring_full",
        /// The way out has no socket on this worker.
        NoEgress = "no_egress",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_meanings_are_sentences() {
        let names: Vec<_> = DropReason::ALL.iter().map(|r| (r.name(), r.meaning())).collect();
        let passes = PassReason::ALL.iter().map(|r| (r.name(), r.meaning()));
        let rejects = RejectReason::ALL.iter().map(|r| (r.name(), r.meaning()));
        let all: Vec<_> = names.into_iter().chain(passes).chain(rejects).collect();
        assert_eq!(all.iter().map(|(name, _)| name).collect::<HashSet<_>>().len(), all.len());
        assert!(all.iter().all(|(_, meaning)| meaning.ends_with('.')));
    }

    #[test]
    fn indices_follow_the_order() {
        assert!(DropReason::ALL.iter().enumerate().all(|(i, reason)| reason.index() == i));
    }
}
