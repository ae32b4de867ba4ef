//! The counters of the XDP program. `bpf/reasons.h` has the same names in the same order.
//!
//! The names are those of metrics and stay; so do the variants, which are spelled like them. In them "kept" means that a
//! backend sees the client's address, and "held" the grace period.

/// How a packet left the XDP program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Reason {
    /// To a worker: the destination is a VIP.
    RedirectVip,
    /// To a worker: a NodePort on one of the node's own addresses.
    RedirectNodeport,
    /// To a worker: the reply to a flow that Flowgate masqueraded.
    RedirectSnatReply,
    /// To the kernel: neither IPv4 nor IPv6.
    PassNotIp,
    /// To the kernel: IP, but neither TCP, UDP, SCTP, an ICMP error nor an echo request.
    PassNotL4,
    /// To the kernel: a fragment whose first fragment was not ours, or is not known.
    PassFragment,
    /// To the kernel: a header that ends early or contradicts itself.
    PassMalformed,
    /// To the kernel: to an address and port that Flowgate does not serve.
    PassNotOurs,
    /// To the kernel: ours, but the slot of this queue has no socket.
    PassNoWorker,
    /// To a worker: the reply of a backend that sees the client's address.
    RedirectKeptReply,
    /// To a worker: what no Service has, to a cluster IP or another VIP.
    RedirectUnserved,
    /// To a worker: a later fragment of a datagram that is ours.
    RedirectFragment,
    /// To a worker: an ICMP error about a packet of ours.
    RedirectIcmpError,
    /// To a worker: an echo request to an address for which workers reply.
    RedirectEcho,
    /// To the kernel: the tag of a VLAN that is not served, or two tags.
    PassVlan,
    /// To the kernel: IPv6 extension headers that are not followed.
    PassExtensions,
    /// Dropped: ours, no socket in the slot, within the grace period.
    DropHeld,
    /// To the kernel: the frame ends before the IP packet in it.
    PassTruncated,
    /// To the kernel: the frame is for another Ethernet address, or for a group.
    PassOtherHost,
}

impl Reason {
    /// Every reason, in the order of the counter map.
    pub const ALL: [Self; 19] = [
        Self::RedirectVip,
        Self::RedirectNodeport,
        Self::RedirectSnatReply,
        Self::PassNotIp,
        Self::PassNotL4,
        Self::PassFragment,
        Self::PassMalformed,
        Self::PassNotOurs,
        Self::PassNoWorker,
        Self::RedirectKeptReply,
        Self::RedirectUnserved,
        Self::RedirectFragment,
        Self::RedirectIcmpError,
        Self::RedirectEcho,
        Self::PassVlan,
        Self::PassExtensions,
        Self::DropHeld,
        Self::PassTruncated,
        Self::PassOtherHost,
    ];

    /// The name that metrics, `flowgate show` and the documentation share.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RedirectVip => "redirect_vip",
            Self::RedirectNodeport => "redirect_nodeport",
            Self::RedirectSnatReply => "redirect_snat_reply",
            Self::PassNotIp => "pass_not_ip",
            Self::PassNotL4 => "pass_not_l4",
            Self::PassFragment => "pass_fragment",
            Self::PassMalformed => "pass_malformed",
            Self::PassNotOurs => "pass_not_ours",
            Self::PassNoWorker => "pass_no_worker",
            Self::RedirectKeptReply => "redirect_kept_reply",
            Self::RedirectUnserved => "redirect_unserved",
            Self::RedirectFragment => "redirect_fragment",
            Self::RedirectIcmpError => "redirect_icmp_error",
            Self::RedirectEcho => "redirect_echo",
            Self::PassVlan => "pass_vlan",
            Self::PassExtensions => "pass_extensions",
            Self::DropHeld => "drop_held",
            Self::PassTruncated => "pass_truncated",
            Self::PassOtherHost => "pass_other_host",
        }
    }
}

impl Reason {
    /// Its description for metrics and `flowgate show`, in a sentence.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::RedirectVip => "Sent up: the destination is a VIP.",
            Self::RedirectNodeport => "Sent up: a NodePort on one of the node's own addresses.",
            Self::RedirectSnatReply => "Sent up: the answer to a flow whose source was replaced.",
            Self::PassNotIp => "Passed to the kernel: neither IPv4 nor IPv6, ARP for example.",
            Self::PassNotL4 => "Passed to the kernel: no TCP, UDP or SCTP, nor ICMP about a Service.",
            Self::PassFragment => "Passed to the kernel: a fragment of a datagram that is not ours.",
            Self::PassMalformed => "Passed to the kernel: a header ends early or contradicts itself.",
            Self::PassNotOurs => "Passed to the kernel: to nothing that is served.",
            Self::PassNoWorker => "Passed to the kernel: for a Service, but no worker has the queue.",
            Self::RedirectKeptReply => "Sent up: the answer of a backend whose clients keep their address.",
            Self::RedirectUnserved => "Sent up: to a VIP or a free cluster IP, what no Service has.",
            Self::RedirectFragment => "Sent up: a later fragment of a datagram that is ours.",
            Self::RedirectIcmpError => "Sent up: an ICMP error about a packet of a flow of ours.",
            Self::RedirectEcho => "Sent up: an echo request to a VIP.",
            Self::PassVlan => "Passed to the kernel: a VLAN tag of no served VLAN interface, or two VLANs.",
            Self::PassExtensions => {
                "Passed to the kernel: too many IPv6 extension headers, or a route that is not at its end."
            }
            Self::DropHeld => "Dropped: for a Service, while Flowgate is replaced.",
            Self::PassOtherHost => {
                "Passed to the kernel: for another Ethernet address than the interface's, or for a group."
            }
            Self::PassTruncated => "Passed to the kernel: less of an IP packet arrived than its length says.",
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_order_are_those_of_the_program() {
        let header = include_str!("../../bpf/reasons.h");
        let in_c: Vec<&str> = header
            .lines()
            .filter_map(|line| line.trim_start().strip_prefix("X("))
            .filter_map(|rest| rest.split_once(')'))
            .map(|(name, _)| name)
            .collect();
        assert_eq!(in_c, Reason::ALL.map(Reason::name));
    }
}
