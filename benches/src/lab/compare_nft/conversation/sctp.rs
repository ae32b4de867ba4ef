//! An SCTP association between two hosts that keep to RFC 9260, and packets that do not belong into it.

use super::{Step, below, either, pick};
use crate::lab::compare_nft::packet::{Checksum, Content, Shape};
use crate::lab::compare_nft::reading::End;
use crate::lab::faults::random::Random;

const DATA: u8 = 0;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const SACK: u8 = 3;
const HEARTBEAT: u8 = 4;
const HEARTBEAT_ACK: u8 = 5;
const ABORT: u8 = 6;
const SHUTDOWN: u8 = 7;
const SHUTDOWN_ACK: u8 = 8;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;
const SHUTDOWN_COMPLETE: u8 = 14;

/// Both ends of an association.
#[derive(Debug, Clone)]
pub(super) struct Association {
    stage: Stage,
    /// The tags that client and backend want to see.
    client_tag: u32,
    backend_tag: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Closed,
    InitSent,
    InitAcked,
    CookieEchoed,
    Open,
    /// This end has sent SHUTDOWN.
    Shutdown(End),
    ShutdownAcked(End),
    Over,
}

impl Association {
    pub(super) fn new(random: &mut Random) -> Self {
        // RFC 9260 section 3.3.2: never zero.
        let (client_tag, backend_tag) = (random.next() | 1, random.next() | 1);
        Self { stage: Stage::Closed, client_tag, backend_tag }
    }

    /// The next packet of the association.
    pub(super) fn regular(&mut self, random: &mut Random) -> Option<Step> {
        let (sender, kind, chunk) = match self.stage {
            Stage::Closed => {
                self.stage = Stage::InitSent;
                let shape = Shape::default();
                let content = Content::Sctp { tag: 0, chunks: initiation(INIT, self.client_tag) };
                return Some(Step { sender: End::Client, kind: "INIT", content, shape });
            }
            Stage::InitSent => {
                self.stage = Stage::InitAcked;
                let chunks = initiation(INIT_ACK, self.backend_tag);
                return Some(self.step(End::Backend, "INIT ACK", chunks));
            }
            Stage::InitAcked => {
                self.stage = Stage::CookieEchoed;
                (End::Client, "COOKIE ECHO", COOKIE_ECHO)
            }
            Stage::CookieEchoed => {
                self.stage = Stage::Open;
                (End::Backend, "COOKIE ACK", COOKIE_ACK)
            }
            Stage::Open => {
                let sender = either(random);
                match below(random, 16) {
                    0 => {
                        self.stage = Stage::Over;
                        (sender, "ABORT", ABORT)
                    }
                    1 => {
                        self.stage = Stage::Shutdown(sender);
                        (sender, "SHUTDOWN", SHUTDOWN)
                    }
                    2 | 3 => (sender, "HEARTBEAT", HEARTBEAT),
                    4 | 5 => (sender, "HEARTBEAT ACK", HEARTBEAT_ACK),
                    6..9 => (sender, "SACK", SACK),
                    _ => (sender, "DATA", DATA),
                }
            }
            Stage::Shutdown(first) => {
                self.stage = Stage::ShutdownAcked(first);
                (first.other(), "SHUTDOWN ACK", SHUTDOWN_ACK)
            }
            Stage::ShutdownAcked(first) => {
                self.stage = Stage::Over;
                (first, "SHUTDOWN COMPLETE", SHUTDOWN_COMPLETE)
            }
            Stage::Over => return None,
        };
        Some(self.step(sender, kind, chunk_of(chunk, random)))
    }

    /// A packet that does not belong into the association. `began` tells whether the backend has seen any packet of the
    /// client's.
    pub(super) fn odd(&self, began: bool, random: &mut Random) -> Option<Step> {
        let sender = either(random);
        if self.stage == Stage::Closed && !began {
            let chunk = pick(random, &[DATA, SACK, ABORT, COOKIE_ECHO, SHUTDOWN, HEARTBEAT]);
            let mut odd = self.step(End::Client, "packet without an association", chunk_of(chunk, random));
            if chunk == HEARTBEAT {
                odd.kind = "HEARTBEAT without an association";
            }
            return Some(odd);
        }
        if self.stage != Stage::Open {
            return None;
        }
        let mut odd = self.step(sender, "", chunk_of(DATA, random));
        let Content::Sctp { tag, chunks } = &mut odd.content else { return None };
        match below(random, 6) {
            0 | 1 => {
                *tag = !*tag;
                *chunks = chunk_of(ABORT, random);
                odd.kind = "ABORT with a wrong tag";
            }
            2 => {
                *tag = !*tag;
                *chunks = chunk_of(pick(random, &[SHUTDOWN, SHUTDOWN_ACK, SHUTDOWN_COMPLETE]), random);
                odd.kind = "end with a wrong tag";
            }
            3 => {
                *tag = !*tag;
                odd.kind = "DATA with a wrong tag";
            }
            4 => {
                odd.shape.checksum = Checksum::Wrong;
                *chunks = chunk_of(pick(random, &[DATA, ABORT]), random);
                odd.kind = "wrong transport checksum";
            }
            _ => {
                chunks[2..4].copy_from_slice(&pick(random, &[[0, 0], [0, 3], [0x40, 0]]));
                odd.kind = "chunk with a wrong length";
            }
        }
        Some(odd)
    }

    fn step(&self, sender: End, kind: &'static str, chunks: Vec<u8>) -> Step {
        let tag = if sender == End::Client { self.backend_tag } else { self.client_tag };
        Step { sender, kind, content: Content::Sctp { tag, chunks }, shape: Shape::default() }
    }
}

/// INIT or INIT ACK: tag, window, streams out and in, first sequence number, and the cookie that an INIT ACK has.
fn initiation(kind: u8, tag: u32) -> Vec<u8> {
    let cookie: &[u8] = if kind == INIT_ACK { &[0, 7, 0, 8, 1, 2, 3, 4] } else { &[] };
    let mut body = tag.to_be_bytes().to_vec();
    body.extend([0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    body.extend(cookie);
    chunk(kind, &body)
}

fn chunk_of(kind: u8, random: &mut Random) -> Vec<u8> {
    match kind {
        DATA => chunk(DATA, &vec![7; 12 + 4 * (1 + below(random, 40))]),
        SACK => chunk(SACK, &[0; 12]),
        COOKIE_ECHO => chunk(COOKIE_ECHO, &[1, 2, 3, 4]),
        HEARTBEAT | HEARTBEAT_ACK => chunk(kind, &[0, 1, 0, 8, 1, 2, 3, 4]),
        SHUTDOWN => chunk(SHUTDOWN, &[0; 4]),
        _ => chunk(kind, &[]),
    }
}

fn chunk(kind: u8, body: &[u8]) -> Vec<u8> {
    let len = u16::try_from(4 + body.len()).expect("it is short");
    let mut bytes = vec![kind, 0];
    bytes.extend(len.to_be_bytes());
    bytes.extend(body);
    bytes
}
