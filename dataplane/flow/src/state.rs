//! The phase of a TCP or SCTP connection; how long it may last is in [`crate::timeouts`].
//!
//! Each direction records the flags it has seen in its own entry, so that two cores do not write one cache line. The
//! phase follows from both records (RFC 9293 section 3.3.2, as seen from the middle).

use flowgate_wire::TcpFlags;

/// The flags that one direction of a connection has sent so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct TcpSeen(u16);

impl TcpSeen {
    const SYN: u16 = 1;
    const ACK: u16 = 2;
    const FIN: u16 = 4;
    const RST: u16 = 8;
    /// The other direction has sent a valid reset.
    const RST_FROM_PEER: u16 = 16;

    /// From the form that an entry stores.
    #[inline]
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// The form that an entry stores.
    #[inline]
    pub const fn to_bits(self) -> u16 {
        self.0
    }

    /// The record after a segment with these flags. RST is recorded by [`TcpSeen::with_reset`] only, since it counts only
    /// with a valid sequence number.
    #[inline]
    #[must_use]
    pub const fn with_flags(self, flags: TcpFlags) -> Self {
        let mut bits = self.0;
        if flags.intersects(TcpFlags::SYN) {
            bits |= Self::SYN;
        }
        if flags.intersects(TcpFlags::ACK) {
            bits |= Self::ACK;
        }
        if flags.intersects(TcpFlags::FIN) {
            bits |= Self::FIN;
        }
        Self(bits)
    }

    /// The record after a valid reset of this direction.
    #[must_use]
    pub const fn with_reset(self) -> Self {
        Self(self.0 | Self::RST)
    }

    /// The record after a valid reset of the other direction.
    #[must_use]
    pub const fn with_reset_from_peer(self) -> Self {
        Self(self.0 | Self::RST_FROM_PEER)
    }

    /// Whether the other direction has reset the connection.
    #[inline]
    pub const fn is_reset_by_peer(self) -> bool {
        self.has(Self::RST_FROM_PEER)
    }

    /// The record without resets of either direction.
    #[must_use]
    pub const fn without_reset(self) -> Self {
        Self(self.0 & !(Self::RST | Self::RST_FROM_PEER))
    }

    /// Whether this direction has acknowledged anything.
    pub const fn has_sent_ack(self) -> bool {
        self.has(Self::ACK)
    }

    /// Whether this direction has sent a SYN.
    pub const fn has_sent_syn(self) -> bool {
        self.has(Self::SYN)
    }

    const fn has(self, bits: u16) -> bool {
        self.0 & bits == bits
    }
}

/// The phase of a TCP connection as both directions show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpPhase {
    /// SYN of the client, no reply.
    SynSent,
    /// SYN of the backend, not acknowledged by the client.
    SynReceived,
    /// The handshake is complete.
    Established,
    /// FIN of one side.
    HalfClosed,
    /// FIN of both sides.
    TimeWait,
    /// One side has reset the connection.
    Reset,
}

impl TcpPhase {
    /// The phase that follows from the records of both directions.
    pub const fn of(original: TcpSeen, reply: TcpSeen) -> Self {
        // The latest phase first: flags are never cleared but by `without_reset`.
        if original.has(TcpSeen::RST) || reply.has(TcpSeen::RST) {
            Self::Reset
        } else if original.has(TcpSeen::FIN) && reply.has(TcpSeen::FIN) {
            Self::TimeWait
        } else if original.has(TcpSeen::FIN) || reply.has(TcpSeen::FIN) {
            Self::HalfClosed
        } else if !reply.has(TcpSeen::SYN) {
            Self::SynSent
        } else if !original.has(TcpSeen::ACK) {
            Self::SynReceived
        } else {
            Self::Established
        }
    }

    /// Whether the connection has ended and waits for stragglers: its flow may be replaced or evicted.
    pub const fn is_closing(self) -> bool {
        matches!(self, Self::TimeWait | Self::Reset)
    }

    /// The name used in output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SynSent => "syn-sent",
            Self::SynReceived => "syn-received",
            Self::Established => "established",
            Self::HalfClosed => "half-closed",
            Self::TimeWait => "time-wait",
            Self::Reset => "reset",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_goes_through_its_phases() {
        let (mut client, mut server) = (TcpSeen::default(), TcpSeen::default());
        let (syn, ack, fin) = (TcpFlags::SYN, TcpFlags::ACK, TcpFlags::FIN);
        client = client.with_flags(syn);
        assert_eq!(TcpPhase::of(client, server), TcpPhase::SynSent);
        server = server.with_flags(syn.union(ack));
        assert_eq!(TcpPhase::of(client, server), TcpPhase::SynReceived);
        client = client.with_flags(ack);
        assert_eq!(TcpPhase::of(client, server), TcpPhase::Established);
        server = server.with_flags(fin.union(ack));
        assert_eq!(TcpPhase::of(client, server), TcpPhase::HalfClosed);
        client = client.with_flags(fin.union(ack));
        assert_eq!(TcpPhase::of(client, server), TcpPhase::TimeWait);
        server = server.with_reset();
        assert_eq!(TcpPhase::of(client, server), TcpPhase::Reset);
    }

    #[test]
    fn a_connection_whose_reset_was_not_taken_lives_on() {
        let flags = TcpFlags::SYN.union(TcpFlags::ACK);
        let (client, server) = (TcpSeen::default().with_flags(flags), TcpSeen::default().with_flags(flags));
        assert_eq!(TcpPhase::of(client.with_reset(), server.with_reset_from_peer()), TcpPhase::Reset);
        assert!(server.with_reset_from_peer().is_reset_by_peer());
        let (client, server) =
            (client.with_reset().without_reset(), server.with_reset_from_peer().without_reset());
        assert_eq!(TcpPhase::of(client, server), TcpPhase::Established);
    }

    #[test]
    fn a_refused_connection_is_reset() {
        let client = TcpSeen::default().with_flags(TcpFlags::SYN);
        let server = TcpSeen::default().with_flags(TcpFlags::RST.union(TcpFlags::ACK)).with_reset();
        assert!(TcpPhase::of(client, server).is_closing());
    }
}
