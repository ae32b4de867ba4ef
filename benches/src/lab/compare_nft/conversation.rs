//! Random conversations: what two hosts that keep to their protocol say to one another, and what strangers, bad links and
//! hostile senders put in between. What is put in between changes nothing for the two: whatever a gateway makes of it, what
//! they say afterwards must arrive.

mod oddity;
mod sctp;
mod tcp;
mod udp;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::packet::{Content, Shape};
use super::reading::End;
use super::services;
use crate::lab::faults::random::Random;
use crate::lab::topology::{GATEWAY_UPLINK, ipv6_of};
use crate::lab::wire::{RST, SCTP, SYN, TCP, UDP};

/// One packet of a conversation.
#[derive(Debug, Clone)]
pub(super) struct Step {
    pub(super) sender: End,
    /// What is special about it; by this name differences are explained.
    pub(super) kind: &'static str,
    pub(super) content: Content,
    pub(super) shape: Shape,
}

/// A client that talks to a Service.
pub(super) struct Conversation {
    pub(super) client: SocketAddr,
    pub(super) target: SocketAddr,
    pub(super) backend: SocketAddr,
    /// What each gateway made of it so far.
    pub(super) sides: [Side; 2],
    /// Whether the backend has answered its SYN with a reset.
    pub(super) is_refused: bool,
    /// What was sent and came of it.
    pub(super) history: Vec<String>,
    talk: Talk,
    /// What is said next, and the state after it: it was under way already in a packet that may have arrived.
    planned: Option<(Step, Talk)>,
    left: u32,
}

/// What a conversation does when it is its turn.
pub(super) enum Turn {
    Says(Step),
    /// The backend would speak, but nothing has reached it, or an error is due about nothing.
    Waits,
    IsOver,
}

/// A conversation as one gateway translates it.
#[derive(Default)]
pub(super) struct Side {
    /// Whom the backend answers.
    pub(super) peer: Option<SocketAddr>,
    /// The last packets that client and backend received.
    pub(super) received: [Vec<u8>; 2],
}

#[derive(Clone)]
enum Talk {
    Tcp(tcp::Connection),
    Udp,
    Sctp(sctp::Association),
}

impl Conversation {
    /// A new one; no other has its client port.
    pub(super) fn begin(port: u16, random: &mut Random) -> Self {
        let protocol = [TCP, TCP, TCP, UDP, UDP, SCTP][below(random, 6)];
        let v4 = below(random, 3) > 0;
        let address =
            |address: Ipv4Addr| -> IpAddr { if v4 { address.into() } else { ipv6_of(address).into() } };
        let (vip, (port_of_vip, target_port)) = destination(protocol, random);
        let clients = [&services::CLIENTS[..], &[services::FAR_CLIENT]].concat();
        let talk = match protocol {
            TCP => Talk::Tcp(tcp::Connection::new(random)),
            UDP => Talk::Udp,
            _ => Talk::Sctp(sctp::Association::new(random)),
        };
        Self {
            client: SocketAddr::new(address(clients[below(random, clients.len())]), port),
            target: SocketAddr::new(address(vip), port_of_vip),
            backend: SocketAddr::new(address(services::BACKEND), target_port),
            sides: Default::default(),
            is_refused: false,
            history: Vec::new(),
            talk,
            planned: None,
            left: 4 + random.next() % 24,
        }
    }

    /// The next packet.
    pub(super) fn next(&mut self, random: &mut Random) -> Turn {
        let Some(left) = self.left.checked_sub(1) else { return Turn::IsOver };
        self.left = left;
        if self.planned.is_none() {
            let mut talk = self.talk.clone();
            let Some(step) = talk.regular(random) else { return Turn::IsOver };
            self.planned = Some((step, talk));
        }
        let odd = match below(random, 100) {
            0..60 => None,
            60..80 => self.odd(random),
            80..84 => Some(oddity::control(self.client.is_ipv4(), random)),
            _ => self.misshapen(random),
        };
        let Some(step) = odd else {
            let Some((step, talk)) = self.planned.take() else { return Turn::Waits };
            if !self.can_send(&step) {
                // Asked again, it may say something else.
                return Turn::Waits;
            }
            self.talk = talk;
            return Turn::Says(step);
        };
        if self.can_send(&step) { Turn::Says(step) } else { Turn::Waits }
    }

    /// The step has reached the other end in both networks.
    pub(super) fn arrived(&mut self, step: &Step) {
        if let Content::Tcp(segment) = &step.content {
            let refuses = step.sender == End::Backend && segment.flags & RST > 0 && segment.sequence == 0;
            let asks_again = step.sender == End::Client && segment.flags & SYN > 0;
            self.is_refused = (self.is_refused || refuses) && !asks_again;
        }
    }

    fn can_send(&self, step: &Step) -> bool {
        let knows_peer = step.sender == End::Client || self.sides.iter().all(|side| side.peer.is_some());
        let place = index(step.sender);
        let is_about = !matches!(step.content, Content::Error(_))
            || self.sides.iter().all(|side| !side.received[place].is_empty());
        knows_peer && is_about
    }

    /// A packet that does not belong into the conversation.
    fn odd(&mut self, random: &mut Random) -> Option<Step> {
        // What is planned may have arrived, so that only its sender's peer knows the state.
        let (planned, _) = self.planned.as_ref()?;
        let began = self.sides.iter().any(|side| side.peer.is_some());
        match &self.talk {
            Talk::Tcp(connection) => connection.odd(began, planned, random),
            Talk::Udp => udp::odd(random),
            Talk::Sctp(association) => association.odd(began, random),
        }
    }

    /// A packet that would be right, but for its headers or for who sends it. It stands beside the conversation: what it
    /// carries is sent again in its turn.
    fn misshapen(&self, random: &mut Random) -> Option<Step> {
        let (mut step, _) = self.planned.clone()?;
        (step.kind, step.shape) = oddity::shape(self, &step, random);
        Some(step)
    }
}

impl Talk {
    /// What the conversation goes on with.
    fn regular(&mut self, random: &mut Random) -> Option<Step> {
        match self {
            Self::Tcp(connection) => connection.regular(random),
            Self::Udp => Some(udp::regular(random)),
            Self::Sctp(association) => association.regular(random),
        }
    }
}

/// Whom a client aims at, and the port of the backend.
fn destination(protocol: u8, random: &mut Random) -> (Ipv4Addr, (u16, u16)) {
    let kept = below(random, 4) == 0;
    if protocol == SCTP {
        return (if kept { services::KEPT } else { services::SIGNALLING }, services::DIAMETER);
    }
    let (port, node_port) = if protocol == TCP {
        (services::HTTP, services::HTTP_NODE_PORT)
    } else {
        (services::DNS, services::DNS_NODE_PORT)
    };
    match below(random, 20) {
        _ if kept => (services::KEPT, port),
        0 => (services::EMPTY, port),
        1 => (services::WEB, (port.0 + 1, port.1)),
        2 => (services::UNALLOCATED, port),
        3..8 => (GATEWAY_UPLINK, (node_port, port.1)),
        _ => (services::WEB, port),
    }
}

/// The place of what belongs to an end.
pub(super) fn index(end: End) -> usize {
    match end {
        End::Client => 0,
        End::Backend => 1,
    }
}

/// A number below a bound.
fn below(random: &mut Random, bound: usize) -> usize {
    usize::try_from(random.next()).unwrap_or_default() % bound
}

/// One of several.
fn pick<T: Copy>(random: &mut Random, all: &[T]) -> T {
    all[below(random, all.len())]
}

fn either(random: &mut Random) -> End {
    pick(random, &[End::Client, End::Backend])
}

fn low16(value: u32) -> u16 {
    u16::try_from(value & 0xffff).expect("it has sixteen bits")
}
