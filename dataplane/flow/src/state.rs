//! How far a flow has come. Never decides how long that may last: see [`crate::expiry`].
//!
//! Each direction notes what it has seen in its own entry, so that two cores never write one line; the
//! phase of a TCP connection follows from both notes (RFC 9293 section 3.3.2, seen from the middle).

use flowgate_wire::TcpFlags;

/// What one direction of a TCP connection has sent so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct TcpSeen(u16);

impl TcpSeen {
    const SYN: u16 = 1;
    const ACK: u16 = 2;
    const FIN: u16 = 4;
    const RST: u16 = 8;
    /// The other direction has sent a reset that counts.
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

    /// The notes after a segment with these flags. A reset counts only if its sequence number is right, so
    /// it has notes of its own: [`TcpSeen::with_reset`].
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

    /// The notes of the direction that has sent a reset that counts.
    #[must_use]
    pub const fn with_reset(self) -> Self {
        Self(self.0 | Self::RST)
    }

    /// The notes of the direction that was sent a reset that counts.
    #[must_use]
    pub const fn with_reset_from_peer(self) -> Self {
        Self(self.0 | Self::RST_FROM_PEER)
    }

    /// Whether the other direction has reset the connection.
    #[inline]
    pub const fn is_reset_by_peer(self) -> bool {
        self.has(Self::RST_FROM_PEER)
    }

    /// The notes as if no reset had been sent by either side.
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
    /// The client asked; nobody has answered.
    SynSent,
    /// The backend agreed; the client has not confirmed.
    SynReceived,
    /// Both sides have confirmed.
    Established,
    /// One side has finished.
    HalfClosed,
    /// Both sides have finished.
    TimeWait,
    /// One side has reset the connection.
    Reset,
}

impl TcpPhase {
    /// The phase that follows from what the two directions have sent.
    pub const fn of(original: TcpSeen, reply: TcpSeen) -> Self {
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

    /// Whether the flow is over but for stragglers: it may be replaced or evicted.
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
