//! Clients and servers: as much of TCP and UDP as it takes to hold a conversation.

use std::net::SocketAddr;

use fastrand::Rng;
use flowgate_wire::Protocol;

use super::frames::Packet;
use crate::model::packet::{Flags, Segment};

/// One end of a conversation.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) protocol: Protocol,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    state: State,
    /// The next sequence number to send.
    next: u32,
    /// The next sequence number to receive.
    wanted: u32,
    /// SCTP: the tags that it announces, and that it was told.
    tags: [u32; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Listening,
    Asking,
    Open,
    Finished,
    Closed,
}

const ACK: Flags = Flags { syn: false, ack: true, fin: false, rst: false };
const SYN: Flags = Flags { syn: true, ack: false, fin: false, rst: false };

impl Peer {
    pub(crate) fn client(
        protocol: Protocol,
        local: SocketAddr,
        remote: SocketAddr,
        random: &mut Rng,
    ) -> Self {
        Self::new(protocol, [local, remote], State::Asking, random)
    }

    pub(crate) fn server(
        protocol: Protocol,
        local: SocketAddr,
        remote: SocketAddr,
        random: &mut Rng,
    ) -> Self {
        Self::new(protocol, [local, remote], State::Listening, random)
    }

    fn new(protocol: Protocol, [local, remote]: [SocketAddr; 2], state: State, random: &mut Rng) -> Self {
        let tags = [random.u32(1..), 0];
        Self { protocol, local, remote, state, next: random.u32(..), wanted: 0, tags }
    }

    /// Says something by itself.
    pub(crate) fn speak(&mut self, random: &mut Rng) -> Vec<Packet> {
        if self.protocol == Protocol::Udp {
            return vec![self.packet(Flags::default(), payload_len(random))];
        }
        match (self.state, random.u8(..20)) {
            (State::Listening, _) => vec![],
            (State::Asking, _) => vec![self.packet(SYN, 0)],
            // A port that is used again (RFC 9293 section 3.6.1).
            (State::Closed | State::Finished, 0..4) => {
                self.state = State::Asking;
                self.next = self.next.wrapping_add(100_000);
                vec![self.packet(SYN, 0)]
            }
            (State::Closed, _) => vec![],
            (_, 0) => {
                self.state = State::Closed;
                vec![self.packet(Flags { rst: true, ..Flags::default() }, 0)]
            }
            // A reset that somebody made up.
            (_, 1) => {
                let sequence = random.u32(..);
                vec![Packet { sequence, ..self.packet(Flags { rst: true, ..Flags::default() }, 0) }]
            }
            (State::Open, 2..5) => self.finish(),
            _ => {
                let packet = self.packet(ACK, payload_len(random));
                self.next = self.next.wrapping_add(u32::try_from(packet.payload_len).unwrap());
                vec![packet]
            }
        }
    }

    /// Answers what it hears.
    pub(crate) fn hear(&mut self, segment: &Segment, random: &mut Rng) -> Vec<Packet> {
        if self.protocol == Protocol::Udp {
            let answers = self.state == State::Listening && random.u8(..5) > 0;
            return if answers { vec![self.packet(Flags::default(), payload_len(random))] } else { vec![] };
        }
        let flags = segment.flags;
        if flags.syn {
            self.tags[1] = segment.tags.announced;
        }
        if flags.rst {
            self.state = State::Closed;
            return vec![];
        }
        let occupied = segment.payload_len + u32::from(flags.syn) + u32::from(flags.fin);
        self.wanted = segment.sequence.wrapping_add(occupied);
        match (self.state, flags.syn, flags.fin) {
            (State::Listening | State::Closed | State::Finished, true, _) if !flags.ack => {
                self.accept(random)
            }
            (State::Asking, true, _) => {
                self.state = State::Open;
                self.next = self.next.wrapping_add(1);
                vec![self.packet(ACK, payload_len(random) * usize::from(random.bool()))]
            }
            // RFC 9293 section 3.10.7.1.
            (State::Listening | State::Closed, ..) => {
                let sequence = segment.acknowledgement;
                vec![Packet { sequence, ..self.packet(Flags { rst: true, ..Flags::default() }, 0) }]
            }
            (State::Open, _, true) => {
                let mut answers = vec![self.packet(ACK, 0)];
                if random.bool() {
                    answers.extend(self.finish());
                }
                answers
            }
            (_, false, false) if segment.payload_len == 0 => vec![],
            _ => vec![self.packet(ACK, 0)],
        }
    }

    fn accept(&mut self, random: &mut Rng) -> Vec<Packet> {
        match random.u8(..10) {
            0 => vec![],
            1 => vec![self.packet(Flags { rst: true, ..ACK }, 0)],
            _ => {
                self.state = State::Open;
                let packet = self.packet(Flags { syn: true, ..ACK }, 0);
                self.next = self.next.wrapping_add(1);
                vec![packet]
            }
        }
    }

    fn finish(&mut self) -> Vec<Packet> {
        self.state = State::Finished;
        let packet = self.packet(Flags { fin: true, ..ACK }, 0);
        self.next = self.next.wrapping_add(1);
        vec![packet]
    }

    fn packet(&self, flags: Flags, payload_len: usize) -> Packet {
        Packet {
            protocol: self.protocol,
            src: self.local,
            dst: self.remote,
            flags,
            sequence: self.sequence(flags),
            acknowledgement: match self.protocol {
                Protocol::Sctp => self.tags[0],
                _ if flags.ack => self.wanted,
                _ => 0,
            },
            payload_len,
        }
    }

    fn sequence(&self, flags: Flags) -> u32 {
        match self.protocol {
            // RFC 9260 section 8.5.1 (A): an INIT carries no tag.
            Protocol::Sctp if flags.syn && !flags.ack => 0,
            Protocol::Sctp => self.tags[1],
            _ => self.next,
        }
    }
}

fn payload_len(random: &mut Rng) -> usize {
    match random.u8(..20) {
        0 => random.usize(1300..1500),
        1..4 => 0,
        _ => random.usize(1..60),
    }
}
