//! What an operator may choose about single packets. Never read from a file here.

/// How packets are treated where there is more than one good way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PipelineConfig {
    /// Whether a TCP segment of a connection that is not known is answered with a reset, as its receiver
    /// would (RFC 9293 section 3.10.7.1), and not dropped.
    pub reset_unknown: bool,
    /// Whether VIPs that are no addresses of the node answer echo requests.
    pub echo_vips: bool,
    /// The largest TCP segment that the ends of a connection may offer each other.
    pub mss_clamp: MssClamp,
    /// The share of each flow table, in percent, that connections may take which nobody has answered.
    pub half_open_percent: u8,
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
        Self { reset_unknown: true, echo_vips: false, mss_clamp: MssClamp::Off, half_open_percent: 50 }
    }
}
