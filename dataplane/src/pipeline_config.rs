//! What an operator may choose about the treatment of packets.

/// The treatment of packets where there is more than one good way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PipelineConfig {
    /// Whether a TCP segment of an unknown connection is answered with a reset, as its receiver would do (RFC 9293
    /// section 3.10.7.1), rather than dropped.
    pub reset_unknown: bool,
    /// Whether VIPs answer echo requests. The node's own addresses are answered for by its kernel.
    pub echo_vips: bool,
    /// What becomes of packets to a VIP on which no Service has their protocol and port.
    pub unserved_ports: UnservedPorts,
    /// The limit for the maximum segment size that the ends of a connection offer each other.
    pub mss_clamp: MssClamp,
    /// The largest IP packet, in bytes, that frames hold: with [`MssClamp::Auto`] segments fit into it.
    pub largest_packet: u16,
    /// The share of each flow table, in percent, that half-open connections may take.
    pub half_open_percent: u8,
    /// The share of each flow table, and of the source ports to each backend, in percent, that one client may take; 100: all.
    pub per_client_percent: u8,
}

/// The treatment of packets to a VIP that no Service has. Those to other ports of a cluster IP are rejected in any case (P505),
/// and VIPs that are addresses of the node are the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnservedPorts {
    /// Dropped.
    Drop,
    /// Rejected as those to a Service without endpoints, if they have ports; otherwise dropped.
    Reject,
    /// Left to the kernel, which routes them on, often to where they came from.
    Pass,
}

/// How the maximum segment size in SYNs and SYN-ACKs is limited (RFC 9293 section 3.7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MssClamp {
    /// Not at all: the ends learn of smaller MTUs by ICMP.
    Off,
    /// To what fits into a packet by the next hops of both directions.
    Auto,
    /// To so many bytes.
    To(u16),
}

impl Default for PipelineConfig {
    fn default() -> Self {
        Self {
            reset_unknown: true,
            echo_vips: false,
            unserved_ports: UnservedPorts::Drop,
            mss_clamp: MssClamp::Off,
            largest_packet: u16::MAX,
            half_open_percent: 50,
            per_client_percent: 100,
        }
    }
}
