//! The phase of a TCP or SCTP connection; how long it may last is in [`crate::timeouts`].
//!
//! Each direction records in its own entry the flags of its segments that the other end would accept, so that two cores do
//! not write one cache line. The phase follows from both records (RFC 9293 section 3.3.2, as seen from the middle).

use flowgate_wire::TcpFlags;
use flowgate_wire::header::tcp::WINDOW_SCALE_MAX;

/// What one direction of a connection has sent that later packets are judged by, in the 16 bits of an entry: its flags
/// and, for TCP, the window it announces. The numbers that go with it are in [`crate::window`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Connection(u16);

impl Connection {
    const SYN: u16 = 1;
    const ACK: u16 = 2;
    const FIN: u16 = 4;
    const RST: u16 = 8;
    /// The other direction has sent a valid reset.
    const RST_FROM_PEER: u16 = 16;
    /// This direction has sent a TCP segment that goes on behind its SYN.
    const PAST_SYN: u16 = 32;
    /// The shift of windows plus one; zero without the option.
    const SCALE_AT: u32 = 6;
    const SCALE: u16 = 0b1111 << Self::SCALE_AT;
    /// See [`window_code`].
    const WINDOW_AT: u32 = 10;
    const WINDOW: u16 = 0b11_1111 << Self::WINDOW_AT;

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

    /// The record after a segment with these flags. RST is recorded by [`Connection::with_reset`] only, since it counts
    /// only with a valid sequence number.
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

    /// Whether this direction has sent a FIN, or what SCTP has for it.
    pub(crate) const fn has_sent_fin(self) -> bool {
        self.has(Self::FIN)
    }

    /// The record after a segment behind the SYN.
    #[inline(always)]
    #[must_use]
    pub(crate) const fn past_syn(self) -> Self {
        Self(self.0 | Self::PAST_SYN)
    }

    /// Whether this direction has sent anything behind its SYN.
    pub(crate) const fn is_past_syn(self) -> bool {
        self.has(Self::PAST_SYN)
    }

    /// Whether data and acknowledgements of this direction change nothing but numbers: it has acknowledged the other's
    /// SYN, and no reset of the other is waiting to be refuted.
    #[inline(always)]
    pub const fn is_open(self) -> bool {
        self.0 & (Self::ACK | Self::RST_FROM_PEER) == Self::ACK
    }

    /// The record with the shift that a SYN offers (RFC 7323 section 2.2); `None` if it offers none.
    #[must_use]
    pub(crate) fn with_scale(self, scale: Option<u8>) -> Self {
        let stored = scale.map_or(0, |scale| u16::from(scale.min(WINDOW_SCALE_MAX)) + 1);
        Self(self.0 & !Self::SCALE | stored << Self::SCALE_AT)
    }

    /// The shift that this direction has offered for its windows.
    pub(crate) fn scale(self) -> Option<u32> {
        ((self.0 & Self::SCALE) >> Self::SCALE_AT).checked_sub(1).map(u32::from)
    }

    /// The record with the window of a segment, as it stands in the header.
    #[inline(always)]
    #[must_use]
    pub(crate) const fn with_window(self, window: u16) -> Self {
        Self(self.0 & !Self::WINDOW | window_code(window) << Self::WINDOW_AT)
    }

    /// The window that this direction has announced last, before scaling: what was in the header or up to a quarter
    /// more.
    pub(crate) const fn window(self) -> u32 {
        window_of((self.0 & Self::WINDOW) >> Self::WINDOW_AT)
    }

    /// Whether this record announces a larger window than another of the same direction. Codes grow with their windows, so
    /// nothing has to be decoded.
    #[inline(always)]
    pub(crate) const fn announces_more_than(self, other: Self) -> bool {
        self.0 & Self::WINDOW > other.0 & Self::WINDOW
    }

    const fn has(self, bits: u16) -> bool {
        self.0 & bits == bits
    }
}

/// A window in six bits: its three leading bits and how many follow them, as in a floating-point number. Rounded up when it
/// is read again, so that nothing a receiver accepts is refused; windows below 8 and the largest one are exact.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "at most 13 of 16 bits are dropped")]
const fn window_code(window: u16) -> u16 {
    // Bits behind the three leading ones; none for numbers below 8.
    let dropped = (window | 0b100).ilog2() - 2;
    (dropped as u16) * 4 + (window >> dropped)
}

/// The largest window with this code.
const fn window_of(code: u16) -> u32 {
    let dropped = (code / 4).saturating_sub(1);
    (((code - dropped * 4) as u32 + 1) << dropped) - 1
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
    /// Whether the handshake is not complete: a SYN alone, from whatever address, brings a connection here, and the
    /// backend's answer to it adds nothing that the client has proven (RFC 4987 section 2).
    pub const fn is_half_open(self) -> bool {
        matches!(self, Self::SynSent | Self::SynReceived)
    }

    /// The phase that follows from the records of both directions.
    pub const fn of(original: Connection, reply: Connection) -> Self {
        // The latest phase first: flags are never cleared but by `without_reset`.
        if original.has(Connection::RST) || reply.has(Connection::RST) {
            Self::Reset
        } else if original.has(Connection::FIN) && reply.has(Connection::FIN) {
            Self::TimeWait
        } else if original.has(Connection::FIN) || reply.has(Connection::FIN) {
            Self::HalfClosed
        } else if !reply.has(Connection::SYN) {
            Self::SynSent
        } else if !original.has(Connection::ACK) {
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
        let (mut client, mut server) = (Connection::default(), Connection::default());
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
        let (client, server) =
            (Connection::default().with_flags(flags), Connection::default().with_flags(flags));
        assert_eq!(TcpPhase::of(client.with_reset(), server.with_reset_from_peer()), TcpPhase::Reset);
        assert!(server.with_reset_from_peer().is_reset_by_peer());
        let (client, server) =
            (client.with_reset().without_reset(), server.with_reset_from_peer().without_reset());
        assert_eq!(TcpPhase::of(client, server), TcpPhase::Established);
    }

    #[test]
    fn a_window_in_six_bits_is_never_smaller_and_at_most_a_quarter_larger() {
        let mut before = Connection::default();
        for window in 0..=u16::MAX {
            let record =
                Connection::default().with_flags(TcpFlags::SYN).with_scale(Some(7)).with_window(window);
            let (kept, exact) = (record.window(), u32::from(window));
            assert!(kept >= exact && kept <= exact + exact / 4, "{window} became {kept}");
            assert!(record.has_sent_syn() && record.scale() == Some(7));
            assert_eq!(record.announces_more_than(before), exact > before.window(), "{window}");
            before = record;
        }
        for exact in [0, 1, 7, u16::MAX] {
            assert_eq!(Connection::default().with_window(exact).window(), exact.into());
        }
    }

    #[test]
    fn a_scale_of_zero_is_an_offer_and_none_is_not() {
        let scale = |offered| Connection::default().with_scale(offered).scale();
        assert_eq!(
            [scale(None), scale(Some(0)), scale(Some(14)), scale(Some(255))],
            [None, Some(0), Some(14), Some(14)]
        );
    }

    #[test]
    fn a_refused_connection_is_reset() {
        let client = Connection::default().with_flags(TcpFlags::SYN);
        let server = Connection::default().with_flags(TcpFlags::RST.union(TcpFlags::ACK)).with_reset();
        assert!(TcpPhase::of(client, server).is_closing());
    }
}
