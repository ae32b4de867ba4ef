//! The fate of a packet. Each reason has one name and one counter, shared by output and metrics.

use flowgate_tables::InterfaceId;
use flowgate_tables::routing::NeighbourKey;
use flowgate_wire::reject::IcmpError;

/// The fate of a packet. A packet to be transmitted has been rewritten already.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send it out of this interface.
    Transmit(InterfaceId),
    /// The kernel's business. The XDP program normally passes such packets to the kernel. AF_XDP cannot return a frame: one
    /// that reached a worker is dropped and counted here.
    Pass(PassReason),
    /// Hold it until its next hop is resolved, then decide again. Nothing was rewritten.
    AwaitNeighbour(NeighbourKey),
    /// Hold it until another fragment of its packet was decided, then decide again. Nothing was rewritten.
    AwaitFragment(AwaitedFragment),
    /// Drop it and send a TCP reset or an ICMP error to its sender (P502).
    Reject(RejectReason),
    /// Drop it and send this ICMP error to its sender.
    IcmpError(IcmpError),
    /// Decide again without its VLAN tag, or count it as [`PassReason::NotIp`] if it is of no VLAN that is served.
    Untag,
    /// It was rewritten into an echo reply: send it out of the interface that it came in by.
    Reply,
    /// Drop it silently.
    Drop(DropReason),
}

/// Names a packet in the pipeline's fragment cache. Opaque to the worker: equal values mean the same packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AwaitedFragment {
    slot: u16,
    /// Tells the packet apart from earlier ones in the same slot.
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
            /// All values, in the order of their counters.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The name in output and metrics: API, it does not change.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// One sentence for people.
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
    /// Why a packet is rejected.
    RejectReason {
        /// The Service has no endpoint anywhere that could be chosen.
        NoEndpoint = "no_endpoint",
        /// The address is a VIP, but no Service has this port of it.
        UnknownPort = "unknown_port",
        /// A TCP segment to a Service, or an answer, that belongs to no connection and opens none.
        NoConnection = "no_connection",
    }
}

reasons! {
    /// Why a packet is dropped.
    DropReason {
        /// A header contradicts the bytes that are there.
        Malformed = "malformed",
        /// To open a flow, but its transport checksum is wrong: the backend would drop it.
        BadChecksum = "bad_checksum",
        /// An IP option contradicts its length, or demands that the packet be dropped.
        BrokenOptions = "broken_options",
        /// The sender chose the route of the packet (RFC 7126).
        SourceRoute = "source_route",
        /// From an address that no packet can come from (RFC 1122, RFC 4291): a group, loopback, a broadcast address.
        MartianSource = "martian_source",
        /// Its hops are used up.
        TtlExpired = "ttl_expired",
        /// Belongs to no flow and does not open one: a late TCP segment or a stray reply.
        NoFlow = "no_flow",
        /// The Service has endpoints, but none that its traffic policy lets this packet have.
        NoBackend = "no_backend",
        /// The Service admits only clients from its source ranges, and this one is not.
        SourceNotAllowed = "source_not_allowed",
        /// From an address of this machine, from a source of translated flows, or from the very VIP that it goes to: sent by
        /// ourselves, or forged.
        OwnSource = "own_source",
        /// To a VIP of which no Service has this protocol and port.
        UnservedPort = "unserved_port",
        /// Of a backend that sees its clients' addresses, but by an interface that does not lead to it.
        WrongInterface = "wrong_interface",
        /// Of such a backend and of no flow, and the kernel would not forward it either.
        NotForwarded = "not_forwarded",
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
        /// The client has its share of the flow table or of the source ports to a backend, and no flow of its own could make room.
        ClientLimit = "client_limit",
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
