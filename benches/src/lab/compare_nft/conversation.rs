//! Random conversations: what two hosts that keep to their protocol say to one another, and what strangers, bad links and
//! hostile senders put in between. What is put in between changes nothing for the two: whatever a gateway makes of it, what
//! they say afterwards must arrive.

mod oddity;
mod sctp;
mod tcp;
mod udp;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::packet::{Content, Segment, Shape, Train};
use super::reading::End;
use super::services;
use crate::lab::faults::random::Random;
use crate::lab::topology::{GATEWAY_UPLINK, ipv6_of};
use crate::lab::wire::{FIN, RST, SCTP, SYN, TCP, UDP};

/// One packet of a conversation.
#[derive(Debug, Clone)]
pub(super) struct Step {
    pub(super) sender: End,
    /// What is special about it; by this name differences are explained.
    pub(super) kind: &'static str,
    pub(super) content: Content,
    pub(super) shape: Shape,
}

const REFUSED: &str =
    "a connection that was refused is remembered like every other that was reset; Linux forgets it at once";
const RESET_BLINDLY: &str = "once a FIN was seen, Linux takes a reset from beyond the window for the end; Flowgate does not (RFC \
    5961 section 3.2)";
const ASKED_IN_VAIN: &str = "Linux forgets a closed connection for a new SYN before it drops that SYN; Flowgate when it forwards \
    the SYN";
const JUDGED_BY_A_SYN: &str = "after a SYN within a connection Linux may judge segments by the number of that SYN; Flowgate by \
    those of the connection";
const HELD_BACK: &str = "a datagram that Linux holds back opens its flow here: by its first fragment, or with a checksum that \
    ends where it does";
pub(super) const REVIVED: &str = "only an INIT opens a flow: a path that is added has no Service to lead to; Linux takes a HEARTBEAT \
    or SHUTDOWN ACK too";

/// What Linux drops behind its connection tracking.
const DROPPED_LATE: [&str; 8] = [
    "broken IP options",
    "multicast frame",
    "broadcast frame",
    "last hop",
    "no hops left",
    "loose source route",
    "strict source route",
    "source route at its end",
];
const FOLLOWED: &str = "connection tracking of Linux follows a packet that Linux drops afterwards; Flowgate follows what it \
    forwards";

/// A client that talks to a Service.
pub(super) struct Conversation {
    pub(super) client: SocketAddr,
    pub(super) target: SocketAddr,
    pub(super) backend: SocketAddr,
    /// What each gateway made of it so far.
    pub(super) sides: [Side; 2],
    /// Why only Flowgate may know of it.
    pub(super) forgotten: Option<&'static str>,
    /// Why only Linux may know of it.
    pub(super) revived: Option<&'static str>,
    /// What was sent and came of it.
    pub(super) history: Vec<String>,
    talk: Talk,
    /// What is said next, and the state after it: it was under way already in a packet that may have arrived.
    planned: Option<(Step, Talk)>,
    left: u32,
}

impl Step {
    /// Whether an error may quote it. Not what the kernel routes as it is, nor whose end only one of the two sees.
    pub(super) fn is_quotable(&self) -> bool {
        let own = [
            "hop-by-hop options out of place",
            "routing header with a segment left",
            "datagram with options",
        ];
        !own.contains(&self.kind)
    }

    /// Whether it is an SCTP packet that begins with a HEARTBEAT, its answer, or a SHUTDOWN ACK (RFC 9260 section 3.3): of
    /// no association, Linux takes it for the beginning of one.
    pub(super) fn revives(&self) -> bool {
        matches!(&self.content, Content::Sctp { chunks, .. } if matches!(chunks.first(), Some(4 | 5 | 8)))
    }

    /// Whether it ends a connection, or an association by an ABORT or one of the three SHUTDOWNs (RFC 9260 section 3.3).
    fn ends(&self) -> bool {
        match &self.content {
            Content::Tcp(segment) => segment.flags & (FIN | RST) > 0,
            Content::Sctp { chunks, .. } => matches!(chunks.first(), Some(6..=8 | 14)),
            _ => false,
        }
    }
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
            forgotten: None,
            revived: None,
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

    /// What only one of the gateways remembers after a step; `has_passed` tells whether each let it through.
    pub(super) fn remember(&mut self, step: &Step, has_passed: [bool; 2]) {
        if has_passed == [false; 2] && DROPPED_LATE.contains(&step.kind) {
            self.revived = Some(FOLLOWED);
            if step.ends() {
                // Its timeout is now the shorter one of an end.
                self.forgotten = Some(FOLLOWED);
            }
        }
        match &step.content {
            Content::Tcp(segment) => self.remember_tcp(step, segment, has_passed),
            Content::Sctp { .. } if step.revives() && has_passed == [false, true] => {
                self.revived = Some(REVIVED);
            }
            Content::Udp { .. } if step.sender == End::Client && !has_passed[1] => {
                let train = step.shape.fragments.map(|fragments| fragments.train);
                if has_passed[0] || matches!(train, Some(Train::Unfinished | Train::Overlapping)) {
                    self.forgotten = Some(HELD_BACK);
                }
            }
            _ => {}
        }
    }

    fn remember_tcp(&mut self, step: &Step, segment: &Segment, has_passed: [bool; 2]) {
        let is_strange = step.kind == "SYN in the connection";
        let asks = step.sender == End::Client && segment.flags & SYN > 0 && !is_strange;
        let refuses = step.sender == End::Backend && segment.flags & RST > 0 && segment.sequence == 0;
        if refuses {
            self.forgotten = Some(REFUSED);
        } else if step.kind == "reset outside the window" && has_passed[1] {
            self.forgotten = Some(RESET_BLINDLY);
        } else if is_strange {
            self.forgotten = Some(JUDGED_BY_A_SYN);
        } else if asks && has_passed == [true; 2] {
            self.forgotten = None;
        } else if asks && !has_passed[1] {
            self.forgotten = self.forgotten.or(Some(ASKED_IN_VAIN));
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
