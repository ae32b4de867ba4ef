//! Idle timeouts by protocol and phase.

use std::time::Duration;

use crate::state::TcpPhase;

/// How long a flow may be idle. All values are below [`Timeouts::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP until the client has acknowledged the backend's SYN.
    pub tcp_opening: Duration,
    /// TCP between handshake and the first FIN.
    pub tcp_established: Duration,
    /// TCP after one FIN.
    pub tcp_half_closed: Duration,
    /// TCP after both FINs.
    pub tcp_time_wait: Duration,
    /// TCP after a reset.
    pub tcp_reset: Duration,
    /// UDP in one direction, or in both for less than two seconds.
    pub udp_unanswered: Duration,
    /// UDP in both directions for longer: a stream.
    pub udp_answered: Duration,
    /// Deadline for connections to a removed backend, active or idle; `None`: no deadline.
    pub drain: Option<Duration>,
}

impl Default for Timeouts {
    /// Of the order of netfilter's (Documentation/networking/nf_conntrack-sysctl.rst), but shorter after the end of a
    /// connection, since each flow occupies a SNAT port, and longer while it is half closed.
    fn default() -> Self {
        Self {
            tcp_opening: Duration::from_secs(60),
            tcp_established: Duration::from_secs(5 * 24 * 3600),
            tcp_half_closed: Duration::from_secs(3600),
            tcp_time_wait: Duration::from_secs(30),
            tcp_reset: Duration::from_secs(10),
            udp_unanswered: Duration::from_secs(30),
            udp_answered: Duration::from_secs(120),
            drain: Some(Duration::from_secs(24 * 3600)),
        }
    }
}

impl Timeouts {
    /// The longest timeout: half the period of [`Tick`](crate::Tick), beyond which differences are ambiguous.
    pub const MAX: Duration = Duration::from_secs(24 * 24 * 3600);

    /// Deadline for connections to a removed backend, in milliseconds.
    pub fn drain_ms(&self) -> Option<u32> {
        self.drain.map(bounded_ms)
    }

    /// How long a connection in this phase may be idle, in milliseconds.
    pub(crate) fn allowed_ms(&self, phase: TcpPhase) -> u32 {
        bounded_ms(match phase {
            TcpPhase::SynSent | TcpPhase::SynReceived => self.tcp_opening,
            TcpPhase::Established => self.tcp_established,
            TcpPhase::HalfClosed => self.tcp_half_closed,
            TcpPhase::TimeWait => self.tcp_time_wait,
            TcpPhase::Reset => self.tcp_reset,
        })
    }

    /// How long a UDP flow may be idle, in milliseconds.
    pub(crate) fn allowed_udp_ms(&self, is_stream: bool) -> u32 {
        bounded_ms(if is_stream { self.udp_answered } else { self.udp_unanswered })
    }
}

fn bounded_ms(timeout: Duration) -> u32 {
    u32::try_from(timeout.min(Timeouts::MAX).as_millis()).unwrap_or(u32::MAX / 2)
}
