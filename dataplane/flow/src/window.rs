//! Which segments of a TCP connection its ends would accept, as seen from the middle. Values in, values out.
//!
//! Anybody can send a segment with a guessed tuple. Only one that its receiver would act on may change what we know of a
//! connection (RFC 9293 section 3.10.7, RFC 5961); `tcp_in_window` in the kernel's nf_conntrack_proto_tcp.c judges likewise
//! by four bounds. In the terms of RFC 9293: the highest number that an end has sent is its SND.NXT, what it acknowledged
//! is its RCV.NXT, and the window that it announced is its RCV.WND.
//!
//! Both numbers are in the entry of the direction that sends them, so judging takes the cache lines of both directions.
//! Nearly all segments do without: [`is_next`] compares with the entry of their own direction, which holds what the ends
//! have agreed on before.

use flowgate_wire::{TcpFlags, TcpSegment};

use crate::entry::Side;
use crate::state::Connection;

/// What one direction of a TCP connection has sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    /// Flags, window, scale.
    pub(crate) connection: Connection,
    /// The number after the highest octet.
    pub(crate) end: u32,
    /// The last acknowledgement number; until there is one, the number after the SYN.
    pub(crate) acked: u32,
}

/// What follows from an acceptable segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Accepted {
    /// The record of its direction afterwards.
    pub(crate) own: Sent,
    /// Whether it resets the connection.
    pub(crate) resets: bool,
    /// Whether it shows that a reset of the other direction was not taken (RFC 5961 section 3.2).
    pub(crate) refutes: bool,
}

impl Accepted {
    /// Whether it changes the phase, or the numbers that all later segments are compared with.
    pub(crate) fn changes(&self, before: &Sent) -> bool {
        self.resets || self.refutes || self.own != *before
    }
}

/// Whether a segment that is neither SYN nor FIN nor RST goes on where its direction stands. Such a segment needs no
/// [`judge`]: it moves numbers by at most [`STEP`], and a blind one meets both of them once in 2^30 attempts.
#[inline(always)]
pub(crate) fn is_next(segment: &TcpSegment, end: u32, acked: u32) -> bool {
    let near = |number: u32, known: u32| number.wrapping_sub(known).wrapping_add(STEP) <= 2 * STEP;
    near(segment.end, end) && near(segment.acknowledgement, acked)
}

/// Acknowledgement and record of a direction after a segment of it. A segment that was overtaken takes nothing back, and of
/// equal acknowledgements the larger window counts: no receiver should take back what it has offered (RFC 9293 section
/// 3.8.6).
#[inline(always)]
pub(crate) fn acknowledged(segment: &TcpSegment, acked: u32, connection: Connection) -> (u32, Connection) {
    let offered = connection.with_window(segment.window);
    let ahead = distance(acked, segment.acknowledgement);
    let is_newer = ahead > 0 || ahead == 0 && offered.announces_more_than(connection);
    if is_newer { (segment.acknowledgement, offered) } else { (acked, connection) }
}

/// Judges a segment of the direction `side` by what it (`own`) and the other direction (`peer`) have sent; `None` if its
/// receiver would not act on it.
pub(crate) fn judge(side: Side, own: &Sent, peer: &Sent, segment: &TcpSegment) -> Option<Accepted> {
    let accepted = |own| Some(Accepted { own, resets: false, refutes: false });
    let flags = segment.flags;
    if flags.intersects(TcpFlags::RST) {
        let own = Sent { connection: own.connection.with_reset(), ..*own };
        return is_reset_in_window(side, &own, peer, segment).then_some(Accepted {
            own,
            resets: true,
            refutes: false,
        });
    }
    match (flags.intersects(TcpFlags::SYN), flags.intersects(TcpFlags::ACK), side) {
        // No stack sends both, and which of them counts differs.
        (true, ..) if flags.intersects(TcpFlags::FIN) => None,
        (true, false, Side::Original) => accepted(after_syn(own, peer, segment)?),
        (true, true, Side::Reply) => accepted(after_syn_ack(own, peer, segment)?),
        // RFC 9293 section 3.10.7.4, fifth: "if the ACK bit is off, drop the segment". Nor does a client answer a SYN, or
        // a server begin.
        (true, ..) | (false, false, _) => None,
        (false, true, _) if !own.connection.has_sent_syn() => None,
        (false, true, _) if !peer.connection.has_sent_syn() => accepted(without_peer(own, segment)?),
        (false, true, _) => after_ack(own, peer, segment),
    }
}

/// A reset counts with the one number that its receiver takes at once (RFC 5961 section 3.2): the next that it expects,
/// or one that its sender has sent since. Anywhere else in the window it is challenged, and its sender repeats it with
/// that number if it is genuine.
fn is_reset_in_window(side: Side, own: &Sent, peer: &Sent, segment: &TcpSegment) -> bool {
    let within = |number: u32, from: u32, to: u32| number.wrapping_sub(from) <= to.wrapping_sub(from);
    if peer.connection.has_sent_ack() {
        let from = earlier(peer.acked, own.end);
        return within(segment.sequence, from, own.end);
    }
    match side {
        // A client gives up before the server's SYN was seen.
        Side::Original => own.connection.has_sent_syn() && within(segment.sequence, own.acked, own.end),
        // RFC 9293 section 3.10.7.3, second: in SYN-SENT a reset is acceptable if it acknowledges the SYN. A client that
        // has had the server's SYN is beyond that.
        Side::Reply => {
            let acknowledges = segment.flags.intersects(TcpFlags::ACK)
                && within(segment.acknowledgement, peer.acked, peer.end);
            acknowledges || own.connection.has_sent_syn() && segment.sequence == own.end
        }
    }
}

/// The client's SYN, first or repeated. Until the server answers, one with another number begins anew.
fn after_syn(own: &Sent, peer: &Sent, segment: &TcpSegment) -> Option<Sent> {
    let first = segment.sequence.wrapping_add(1);
    if peer.connection.has_sent_syn() {
        return (!own.connection.has_sent_ack() && own.acked == first).then_some(*own);
    }
    let connection = Connection::default()
        .with_flags(TcpFlags::SYN)
        .with_scale(segment.window_scale)
        .with_window(segment.window);
    Some(Sent { connection, end: segment.end, acked: first })
}

/// The server's answer to a SYN, which has to acknowledge it (RFC 9293 section 3.10.7.3). After the client's next segment it
/// is only a late copy.
fn after_syn_ack(own: &Sent, peer: &Sent, segment: &TcpSegment) -> Option<Sent> {
    if peer.connection.has_sent_ack() {
        return (own.connection.has_sent_syn() && is_in_window(own, peer, segment)).then_some(*own);
    }
    let acknowledged = segment.acknowledgement.wrapping_sub(peer.acked);
    if !peer.connection.has_sent_syn() || acknowledged > peer.end.wrapping_sub(peer.acked) {
        return None;
    }
    let connection = own.connection.with_flags(segment.flags).with_scale(segment.window_scale);
    // RFC 7323 section 2.2: the window of a SYN is never scaled. What comes after it is, so it is stored as that would be.
    let shift = connection.scale().filter(|_| peer.connection.scale().is_some()).unwrap_or(0);
    let connection = connection.with_window(segment.window.div_ceil(1 << shift));
    Some(Sent { connection, end: segment.end, acked: segment.acknowledgement })
}

/// Without the other direction, whose packets may take another way, only the own numbers can be compared.
fn without_peer(own: &Sent, segment: &TcpSegment) -> Option<Sent> {
    let ahead = segment.end.wrapping_sub(own.end).wrapping_add(STEP);
    (ahead <= 2 * STEP).then(|| Sent { end: later(own.end, segment.end), ..*own })
}

fn after_ack(own: &Sent, peer: &Sent, segment: &TcpSegment) -> Option<Accepted> {
    if !is_in_window(own, peer, segment) || !is_acknowledgement_valid(own, peer, segment) {
        return None;
    }
    let mut flags = TcpFlags::ACK;
    // A FIN is the last octet of its direction. One below what was acknowledged is none (RFC 9293 section 3.10.7.4, eighth:
    // it is processed in order).
    let expected = expected_by(peer, own);
    if segment.flags.intersects(TcpFlags::FIN) && distance(expected, segment.end) > 0 {
        flags = flags.union(TcpFlags::FIN);
    }
    let is_reset = own.connection.is_reset_by_peer();
    let connection = if is_reset { own.connection.without_reset() } else { own.connection };
    // What was acknowledged beyond what the other end has sent, only a forged segment can have left here.
    let is_known = own.connection.has_sent_ack() && distance(peer.end, own.acked) <= 0;
    let connection = connection.with_flags(flags).past_syn();
    let (acked, connection) = if is_known {
        acknowledged(segment, own.acked, connection)
    } else {
        (segment.acknowledgement, connection.with_window(segment.window))
    };
    Some(Accepted {
        own: Sent { connection, end: later(own.end, segment.end), acked },
        resets: false,
        refutes: is_reset,
    })
}

/// RFC 9293 section 3.10.7.4, first: whether the segment lies in its receiver's window, or so little before it that it may be
/// a copy.
fn is_in_window(own: &Sent, peer: &Sent, segment: &TcpSegment) -> bool {
    let window = window_of(peer, own);
    distance(expected_by(peer, own), segment.sequence) <= window
        && distance(segment.end, own.end) <= window.max(COPIES)
}

/// RFC 5961 section 5.2: whether the segment acknowledges what the other end has sent, and not what it sent long ago.
fn is_acknowledgement_valid(own: &Sent, peer: &Sent, segment: &TcpSegment) -> bool {
    let outstanding = distance(segment.acknowledgement, peer.end);
    if !own.connection.has_sent_ack() {
        // The end of the handshake: nothing of this direction was acknowledged before, and the server has sent its SYN only
        // (or, with TCP Fast Open, data behind it).
        let is_exact =
            outstanding == 0 || peer.connection.is_past_syn() && (0..=COPIES).contains(&outstanding);
        return is_exact && distance(own.acked, segment.sequence) >= 0;
    }
    let window = window_of(own, peer);
    (0..=window.max(COPIES)).contains(&outstanding)
}

/// The next number that `receiver` expects of `sender`.
fn expected_by(receiver: &Sent, sender: &Sent) -> u32 {
    if receiver.connection.has_sent_ack() { earlier(receiver.acked, sender.end) } else { sender.end }
}

/// The window of `from`, in octets. Scales count only if both ends have offered one, and not for a SYN (RFC 7323 section 2.2).
fn window_of(from: &Sent, to: &Sent) -> i32 {
    let is_scaled = from.connection.has_sent_ack() && to.connection.scale().is_some();
    let shift = from.connection.scale().filter(|_| is_scaled).unwrap_or(0);
    (from.connection.window() << shift).cast_signed()
}

/// From one sequence number to another; negative if the other comes first (RFC 9293 section 3.4).
fn distance(from: u32, to: u32) -> i32 {
    to.wrapping_sub(from).cast_signed()
}

fn later(a: u32, b: u32) -> u32 {
    if distance(a, b) > 0 { b } else { a }
}

fn earlier(a: u32, b: u32) -> u32 {
    if distance(a, b) > 0 { a } else { b }
}

/// How far a segment may be from the numbers of its direction to go without [`judge`]: the largest window without scaling.
const STEP: u32 = 1 << 16;

/// How far behind a copy may be where the window is smaller, in octets (as MAXACKWINCONST in nf_conntrack_proto_tcp.c).
const COPIES: i32 = 66_000;

#[cfg(test)]
mod tests;
