//! A TCP connection between two hosts that keep to RFC 9293, and segments that do not belong into it.

use super::{Step, below, either, low16, pick};
use crate::lab::compare_nft::packet::{Checksum, Content, Segment, Shape};
use crate::lab::compare_nft::reading::End;
use crate::lab::faults::random::Random;
use crate::lab::wire::{ACK, FIN, PSH, RST, SYN, URG};

/// Both ends of a connection.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    stage: Stage,
    client: Peer,
    backend: Peer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Closed,
    SynSent,
    SynReceived,
    Open,
    /// Both have sent their FIN; the first one has to acknowledge the second.
    Closing(End),
    Over,
}

/// One end.
#[derive(Debug, Clone)]
struct Peer {
    /// SND.NXT.
    next: u32,
    /// RCV.WND as its segments carry it.
    window: u16,
    /// The shift that its SYN offers.
    scale: Option<u8>,
    has_finished: bool,
}

impl Connection {
    pub(super) fn new(random: &mut Random) -> Self {
        Self { stage: Stage::Closed, client: Peer::new(random), backend: Peer::new(random) }
    }

    /// The next segment of the connection.
    pub(super) fn regular(&mut self, random: &mut Random) -> Option<Step> {
        match self.stage {
            Stage::Closed => {
                self.stage = Stage::SynSent;
                Some(self.say(End::Client, "SYN", SYN, 0))
            }
            Stage::SynSent => match below(random, 16) {
                0 | 1 => Some(self.again(End::Client, "SYN again", SYN)),
                2 => {
                    self.stage = Stage::Over;
                    let mut reset = self.segment(End::Backend, RST | ACK, 0);
                    reset.sequence = 0;
                    Some(step(End::Backend, "connection refused", reset))
                }
                _ => {
                    self.stage = Stage::SynReceived;
                    Some(self.say(End::Backend, "SYN, ACK", SYN | ACK, 0))
                }
            },
            Stage::SynReceived => match below(random, 16) {
                0 => Some(self.again(End::Backend, "SYN, ACK again", SYN | ACK)),
                1 => self.reset(End::Client),
                _ => {
                    self.stage = Stage::Open;
                    Some(self.say(End::Client, "ACK", ACK, 0))
                }
            },
            Stage::Open => self.talk(random),
            Stage::Closing(first) => {
                self.stage = Stage::Over;
                Some(self.say(first, "last ACK", ACK, 0))
            }
            Stage::Over => {
                if below(random, 3) > 0 {
                    return None;
                }
                // RFC 9293 section 3.6.1: above the sequence numbers of the connection before.
                let isn = self.client.next.wrapping_add(1_000_000);
                *self = Self::new(random);
                self.client.next = isn;
                self.stage = Stage::SynSent;
                Some(self.say(End::Client, "SYN of the next connection", SYN, 0))
            }
        }
    }

    fn talk(&mut self, random: &mut Random) -> Option<Step> {
        let mut sender = either(random);
        let what = below(random, 20);
        if what == 0 {
            return self.reset(sender);
        }
        if self.peer(sender).has_finished {
            if what < 8 {
                return Some(self.say(sender, "ACK after FIN", ACK, 0));
            }
            sender = sender.other();
        }
        match what {
            1..4 => {
                let is_second = self.peer(sender.other()).has_finished;
                let finish = self.say(sender, "FIN", FIN | ACK, 0);
                self.peer_mut(sender).has_finished = true;
                if is_second {
                    self.stage = Stage::Closing(sender.other());
                }
                Some(finish)
            }
            4..9 => Some(self.say(sender, "ACK", ACK, 0)),
            _ => Some(self.say(sender, "data", PSH | ACK, 1 + below(random, 400))),
        }
    }

    /// A segment that does not belong into the connection, from a stranger who knows its addresses and ports, or from a
    /// host that errs. `began` tells whether the backend has seen any segment of the client's.
    pub(super) fn odd(&self, began: bool, planned: &Step, random: &mut Random) -> Option<Step> {
        let sender = either(random);
        if !matches!(self.stage, Stage::Open | Stage::SynReceived) {
            return self.odd_outside(began, random);
        }
        // A FIN or RST that is planned may have arrived.
        if matches!(&planned.content, Content::Tcp(segment) if segment.flags & (FIN | RST) > 0) {
            return None;
        }
        let mut segment = self.segment(sender, ACK, 0);
        let beyond = self.beyond(sender, random);
        let kind = match below(random, 16) {
            kind @ 0..5 => outside_the_window(kind, &mut segment, beyond, random),
            5 => {
                segment.acknowledgement = segment.acknowledgement.wrapping_add(1 << 31);
                "acknowledgement of what was never sent"
            }
            6 if self.stage == Stage::Open => {
                segment.flags = SYN;
                segment.sequence = random.next();
                "SYN in the connection"
            }
            // In the place of the third segment of the handshake it would open the connection for Linux.
            7 if self.stage == Stage::Open => {
                segment.sequence = segment.sequence.wrapping_sub(1);
                "keep-alive"
            }
            8 => {
                segment.flags = pick(random, &[0, FIN | PSH | URG, SYN | FIN, SYN | RST, FIN, 63]);
                // In its place a reset counts whatever stands beside it (RFC 9293 section 3.10.7.4).
                if segment.flags & RST > 0 {
                    segment.sequence = beyond;
                }
                "flags that no host sends"
            }
            9 => {
                segment.options = pick(
                    random,
                    &[&[8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 1, 1][..], &[30, 4, 0, 0], &[1, 1, 1, 0]],
                )
                .to_vec();
                "unusual options"
            }
            10 => {
                segment.options = vec![5, 40, 0, 0];
                "broken options"
            }
            11 => {
                segment.data_offset = Some(pick(random, &[4, 0, 15]));
                "wrong data offset"
            }
            12 => {
                segment.flags = pick(random, &[PSH | ACK, RST, FIN | ACK]);
                return Some(wrong_checksum(sender, segment));
            }
            13 => {
                segment.flags |= pick(random, &[URG, 64, 128, 192]);
                "urgent or congestion flags"
            }
            14 if self.stage == Stage::Open => {
                segment.flags = SYN | ACK;
                segment.sequence = random.next();
                "SYN, ACK in the connection"
            }
            _ if self.stage == Stage::Open => {
                segment.payload_len = 1 + below(random, 200);
                "data that is sent again later"
            }
            _ => return None,
        };
        Some(step(sender, kind, segment))
    }

    /// While there is no connection.
    fn odd_outside(&self, began: bool, random: &mut Random) -> Option<Step> {
        let flags = pick(random, &[ACK, PSH | ACK, FIN | ACK, RST, RST | ACK, SYN | ACK]);
        let kind = match self.stage {
            Stage::Closed if !began => "segment without a connection",
            // What ends or opens a connection that is beginning or over would be a part of it.
            _ if flags & (RST | SYN) > 0 => return None,
            Stage::SynSent if flags & FIN == 0 => "segment before the SYN, ACK",
            Stage::Over => "segment after the end",
            _ => return None,
        };
        Some(step(End::Client, kind, self.segment(End::Client, flags, 0)))
    }

    /// A sequence number that the receiver does not take, with the largest window that the other end may have announced.
    fn beyond(&self, sender: End, random: &mut Random) -> u32 {
        let next = self.peer(sender).next;
        let far = 1 << 30;
        match below(random, 4) {
            // Beyond 64 KiB with any shift.
            0 => next.wrapping_add(far).wrapping_add(random.next() % far),
            1 => next.wrapping_sub(far).wrapping_sub(random.next() % far),
            2 => next.wrapping_add(1 << 24),
            _ => next.wrapping_add(1 << 31),
        }
    }

    fn reset(&mut self, sender: End) -> Option<Step> {
        self.stage = Stage::Over;
        let segment = self.segment(sender, RST, 0);
        Some(step(sender, "reset", Segment { acknowledgement: 0, ..segment }))
    }

    /// The next segment of an end, which the other one receives.
    fn say(&mut self, sender: End, kind: &'static str, flags: u8, payload_len: usize) -> Step {
        let segment = self.segment(sender, flags, payload_len);
        let taken = u32::from(flags & (SYN | FIN) > 0) + u32::try_from(payload_len).expect("it is short");
        let peer = self.peer_mut(sender);
        peer.next = peer.next.wrapping_add(taken);
        step(sender, kind, segment)
    }

    /// A SYN or SYN, ACK that is sent again.
    fn again(&self, sender: End, kind: &'static str, flags: u8) -> Step {
        let mut segment = self.segment(sender, flags, 0);
        segment.sequence = segment.sequence.wrapping_sub(1);
        step(sender, kind, segment)
    }

    fn segment(&self, sender: End, flags: u8, payload_len: usize) -> Segment {
        let (own, far) = (self.peer(sender), self.peer(sender.other()));
        let mut options = Vec::new();
        if flags & SYN > 0 {
            // Maximum segment size, SACK permitted, and the window scale (RFC 7323).
            options.extend([2, 4, 5, 0xb4, 1, 1, 4, 2]);
            options.extend(own.scale.map(|shift| [1, 3, 3, shift]).into_iter().flatten());
        }
        Segment {
            flags,
            sequence: own.next,
            acknowledgement: if flags & ACK > 0 { far.next } else { 0 },
            window: own.window,
            options,
            payload_len,
            data_offset: None,
        }
    }

    fn peer(&self, end: End) -> &Peer {
        match end {
            End::Client => &self.client,
            End::Backend => &self.backend,
        }
    }

    fn peer_mut(&mut self, end: End) -> &mut Peer {
        match end {
            End::Client => &mut self.client,
            End::Backend => &mut self.backend,
        }
    }
}

impl Peer {
    fn new(random: &mut Random) -> Self {
        let scale = pick(random, &[None, Some(0), Some(2), Some(7)]);
        Self { next: random.next(), window: 4000 + low16(random.next()) / 2, scale, has_finished: false }
    }
}

fn step(sender: End, kind: &'static str, segment: Segment) -> Step {
    Step { sender, kind, content: Content::Tcp(segment), shape: Shape::default() }
}

fn wrong_checksum(sender: End, segment: Segment) -> Step {
    let kind = "wrong transport checksum";
    let shape = Shape { checksum: Checksum::Wrong, ..Shape::default() };
    Step { sender, kind, content: Content::Tcp(segment), shape }
}

/// Lets a segment carry a sequence number that its receiver does not take.
fn outside_the_window(
    kind: usize,
    segment: &mut Segment,
    sequence: u32,
    random: &mut Random,
) -> &'static str {
    segment.sequence = sequence;
    match kind {
        0 | 1 => segment.flags = RST,
        2 => segment.flags = RST | ACK,
        3 => segment.flags = FIN | ACK,
        _ => segment.payload_len = below(random, 300),
    }
    match kind {
        0..3 => "reset outside the window",
        3 => "FIN outside the window",
        _ => "data outside the window",
    }
}
