//! Which packets of a connection count: as RFC 9293, RFC 5961 and RFC 9260 have their receivers decide.

use flowgate_wire::Protocol;

use super::flows::{Direction, Flow, Side};
use super::packet::{Flags, Segment};

/// What one direction has sent that later packets are judged by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Known {
    /// The number after its SYN. SCTP: the tag that it proposes.
    first: u32,
    /// The number after its last octet. SCTP: the tag that the other direction has to carry.
    end: u32,
    /// What it has acknowledged.
    acked: u32,
    window: u32,
    scale: Option<u8>,
    /// Whether it has sent more than its SYN.
    spoke: bool,
    /// Whether a reset of the other direction waits to be refuted.
    is_reset_by_other: bool,
}

/// What became of a packet in the eyes of its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Noted {
    Plainly,
    /// No endpoint would act on it: it changed nothing.
    Ignored,
    /// The same of a reset.
    ResetIgnored,
    /// It showed that the reset before was not taken.
    Refuted,
}

impl Flow {
    /// The flow sends this packet on. Says what came of it.
    pub(crate) fn note(&mut self, side: Side, segment: &Segment, now: u64) -> Noted {
        // As netfilter counts: the first answer itself makes no stream.
        let is_stream = self.server.packets > 0 && now - self.opened > 2_000;
        self.is_stream |= segment.tuple.protocol == Protocol::Udp && is_stream;
        let (own, other) = match side {
            Side::Client => (&mut self.client, &mut self.server),
            Side::Server => (&mut self.server, &mut self.client),
        };
        let noted = match segment.tuple.protocol {
            Protocol::Udp => Some(Noted::Plainly),
            Protocol::Tcp => tcp(side, own, other, segment),
            Protocol::Sctp => sctp(side, own, other, segment),
        };
        let Some(noted) = noted else {
            return if segment.flags.rst { Noted::ResetIgnored } else { Noted::Ignored };
        };
        own.packets += 1;
        own.bytes += u64::from(segment.ip_len);
        own.last = now;
        noted
    }
}

/// How far `b` is behind `a` (RFC 9293 section 3.4).
fn gap(a: u32, b: u32) -> i64 {
    i64::from(b.wrapping_sub(a) as i32)
}

/// The octet after the segment.
fn end(segment: &Segment) -> u32 {
    let occupied = u32::from(segment.flags.syn) + u32::from(segment.flags.fin);
    segment.sequence.wrapping_add(segment.payload_len + occupied)
}

/// The largest window that begins with the same three bits.
fn rounded(window: u16) -> u32 {
    let (mut leading, mut rest) = (u32::from(window), 0);
    while leading > 7 {
        (leading, rest) = (leading / 2, rest * 2 + 1);
    }
    leading * (rest + 1) + rest
}

/// The window of an end in octets. That of a SYN counts as it stands there (RFC 7323 section 2.2).
fn offered(of: &Direction, to: &Direction) -> i64 {
    let shift = if of.sent.ack && to.known.scale.is_some() { of.known.scale.unwrap_or(0) } else { 0 };
    i64::from(of.known.window) << shift
}

fn tcp(side: Side, own: &mut Direction, other: &mut Direction, segment: &Segment) -> Option<Noted> {
    let Flags { syn, ack, fin, rst } = segment.flags;
    if ack && !syn && !fin && !rst && !own.known.is_reset_by_other && is_near(own, segment) {
        own.known = advanced(own.known, segment, true);
        return Some(Noted::Plainly);
    }
    if rst {
        if !resets(side, own, other, segment) || !segment.is_intact {
            return None;
        }
        own.sent.rst = true;
        other.known.is_reset_by_other = true;
        return Some(Noted::Plainly);
    }
    match (syn, ack, side) {
        (true, ..) if fin => None,
        (true, false, Side::Client) => begins(own, other, segment),
        (true, true, Side::Server) => answers(own, other, segment),
        (false, true, _) if own.sent.syn && other.sent.syn => continues(own, other, segment),
        // The answers take another way.
        (false, true, _) if own.sent.syn && gap(own.known.end, end(segment)).abs() <= 65_536 => {
            if gap(own.known.end, end(segment)) > 0 {
                if !segment.is_intact {
                    return None;
                }
                own.known.end = end(segment);
            }
            Some(Noted::Plainly)
        }
        _ => None,
    }
}

/// Whether it is near to both numbers of its own direction.
fn is_near(own: &Direction, segment: &Segment) -> bool {
    let known = &own.known;
    own.sent.ack
        && gap(known.end, end(segment)).abs() <= 65_536
        && gap(known.acked, segment.acknowledgement).abs() <= 65_536
}

/// What is known after the segment. If what was acknowledged before is plausible, nothing takes it back.
fn advanced(mut known: Known, segment: &Segment, is_plausible: bool) -> Known {
    if gap(known.end, end(segment)) > 0 {
        known.end = end(segment);
    }
    let moved = gap(known.acked, segment.acknowledgement);
    known.spoke = true;
    let widens = moved == 0 && u32::from(segment.window) > known.window;
    if !is_plausible || moved > 0 || widens {
        known.acked = segment.acknowledgement;
        known.window = rounded(segment.window);
    }
    known
}

/// The next octet that a receiver waits for; never one that was not sent.
fn awaited(receiver: &Direction, sender: &Direction) -> u32 {
    let is_ahead = gap(sender.known.end, receiver.known.acked) > 0;
    if receiver.sent.ack && !is_ahead { receiver.known.acked } else { sender.known.end }
}

/// RFC 5961 section 3.2: a reset has the number that its receiver waits for, or one that was sent since.
fn resets(side: Side, own: &Direction, other: &Direction, segment: &Segment) -> bool {
    let between = |from: u32, number: u32, to: u32| number.wrapping_sub(from) <= to.wrapping_sub(from);
    if other.sent.ack {
        return between(awaited(other, own), segment.sequence, own.known.end);
    }
    if side == Side::Client {
        return own.sent.syn && between(own.known.first, segment.sequence, own.known.end);
    }
    // RFC 9293 section 3.10.7.3: in SYN-SENT it acknowledges the SYN.
    let refuses = segment.flags.ack && between(other.known.first, segment.acknowledgement, other.known.end);
    refuses || own.sent.syn && segment.sequence == own.known.end
}

/// A client's SYN.
fn begins(own: &mut Direction, other: &Direction, segment: &Segment) -> Option<Noted> {
    let first = segment.sequence.wrapping_add(1);
    if other.sent.syn {
        return (!own.sent.ack && own.known.first == first).then_some(Noted::Plainly);
    }
    let sent = Flags { syn: true, ..Flags::default() };
    let known = Known {
        first,
        end: end(segment),
        acked: first,
        window: rounded(segment.window),
        scale: segment.scale,
        spoke: false,
        is_reset_by_other: false,
    };
    if (own.sent, own.known) != (sent, known) && !segment.is_intact {
        return None;
    }
    (own.sent, own.known) = (sent, known);
    Some(Noted::Plainly)
}

/// A server's SYN.
fn answers(own: &mut Direction, other: &Direction, segment: &Segment) -> Option<Noted> {
    if other.sent.ack {
        return (own.sent.syn && is_in_window(own, other, segment)).then_some(Noted::Plainly);
    }
    let acknowledges = other.sent.syn
        && segment.acknowledgement.wrapping_sub(other.known.first)
            <= other.known.end.wrapping_sub(other.known.first);
    let shift = if other.known.scale.is_some() { segment.scale.unwrap_or(0) } else { 0 };
    let in_units = (u32::from(segment.window) + (1 << shift) - 1) >> shift;
    let known = Known {
        end: end(segment),
        acked: segment.acknowledgement,
        window: rounded(u16::try_from(in_units).unwrap()),
        scale: segment.scale,
        ..own.known
    };
    let is_news = !own.sent.syn || own.known != known;
    if !acknowledges || is_news && !segment.is_intact {
        return None;
    }
    (own.sent.syn, own.sent.ack, own.known) = (true, true, known);
    Some(Noted::Plainly)
}

/// RFC 9293 section 3.10.7.4, first.
fn is_in_window(own: &Direction, other: &Direction, segment: &Segment) -> bool {
    let window = offered(other, own);
    gap(awaited(other, own), segment.sequence) <= window
        && gap(end(segment), own.known.end) <= window.max(66_000)
}

/// A segment of an open connection.
fn continues(own: &mut Direction, other: &mut Direction, segment: &Segment) -> Option<Noted> {
    let outstanding = gap(segment.acknowledgement, other.known.end);
    let acknowledges = if own.sent.ack {
        (0..=offered(own, other).max(66_000)).contains(&outstanding)
    } else {
        // The end of the handshake.
        let is_exact = outstanding == 0 || other.known.spoke && (0..=66_000).contains(&outstanding);
        is_exact && gap(own.known.first, segment.sequence) >= 0
    };
    if !is_in_window(own, other, segment) || !acknowledges {
        return None;
    }
    // One below what was acknowledged ends nothing.
    let ends = segment.flags.fin && gap(awaited(other, own), end(segment)) > 0;
    let refutes = own.known.is_reset_by_other;
    let is_plausible = own.sent.ack && gap(other.known.end, own.known.acked) <= 0;
    let mut known = advanced(own.known, segment, is_plausible);
    let is_news = !own.sent.ack || ends && !own.sent.fin || refutes || known != own.known;
    if is_news && !segment.is_intact {
        return None;
    }
    if refutes {
        (own.sent.rst, other.sent.rst) = (false, false);
        (known.is_reset_by_other, other.known.is_reset_by_other) = (false, false);
    }
    own.sent.ack = true;
    own.sent.fin |= ends;
    own.known = known;
    Some(if refutes { Noted::Refuted } else { Noted::Plainly })
}

/// RFC 9260 sections 5.2 and 8.5: a packet counts by its tag.
fn sctp(side: Side, own: &mut Direction, other: &mut Direction, segment: &Segment) -> Option<Noted> {
    let Flags { syn, ack, fin, rst } = segment.flags;
    let tags = segment.tags;
    if syn {
        let fits = if ack {
            tags.carried != 0 && (tags.carried == other.known.end || tags.carried == other.known.first)
        } else {
            tags.carried == 0
        };
        if !fits || tags.announced == 0 || !segment.is_intact {
            return None;
        }
        own.known.first = tags.announced;
        let opens = match side {
            Side::Client => !ack && !other.sent.syn,
            Side::Server => ack && !own.sent.syn && tags.carried == other.known.end,
        };
        if !opens {
            return None;
        }
        own.known.end = tags.announced;
        own.sent.syn = true;
        own.sent.ack |= ack;
        return Some(Noted::Plainly);
    }
    if !other.sent.syn && !rst && !fin {
        return own.sent.syn.then_some(Noted::Plainly);
    }
    let wanted = if tags.reflected { own.known.end } else { other.known.end };
    let confirms = tags.cookie && tags.carried != other.known.end && tags.carried == other.known.first;
    if !confirms && (tags.carried == 0 || tags.carried != wanted) {
        return None;
    }
    if tags.completes && !other.sent.fin {
        return None;
    }
    let refutes = !rst && own.known.is_reset_by_other;
    let is_news = confirms || refutes || ack && !own.sent.ack || fin && !own.sent.fin || rst && !own.sent.rst;
    if is_news && !segment.is_intact {
        return None;
    }
    if confirms {
        own.known.end = own.known.first;
        other.known.end = tags.carried;
    }
    if refutes {
        (own.sent.rst, other.sent.rst) = (false, false);
        (own.known.is_reset_by_other, other.known.is_reset_by_other) = (false, false);
    }
    own.sent.ack |= ack;
    own.sent.fin |= fin;
    if rst {
        own.sent.rst = true;
        other.known.is_reset_by_other = true;
    }
    Some(if refutes { Noted::Refuted } else { Noted::Plainly })
}
