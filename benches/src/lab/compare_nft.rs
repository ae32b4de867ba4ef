//! `lab compare-nft`: random conversations through Flowgate and through Linux with nft, packet by packet. Linux is an
//! independent implementation of connection tracking and NAT that very many networks rely on: what the two do differently has
//! a reason in `compare_nft/explained.rs`, or fails the comparison.

mod conversation;
mod explained;
mod packet;
mod reading;
mod report;
mod services;
mod world;

use std::path::Path;
use std::time::Duration;

use super::faults::random::Random;
use super::interrupt;
use super::output::{print_line, print_progress};
use crate::error::Result;
use crate::loadgen::stop::Stop;
use conversation::{Conversation, Step, Turn, index};
use packet::{Mac, Sending, frames};
use reading::{End, Reading};
use report::Outcome;
use world::World;

pub use report::CompareNftReport;

/// Conversations at a time.
const CONVERSATIONS: usize = 40;
/// The first client port.
const FIRST_PORT: u16 = 10_000;
/// How long all conversations are silent now and then: longer than a flow that is beginning or ending may be idle, and long
/// enough for Flowgate's sweep to have passed.
const LONG_PAUSE: Duration = Duration::from_secs(services::SHORT_S + 18);
/// Longer than the two seconds after which datagrams in both directions are a stream.
const SHORT_PAUSE: Duration = Duration::from_millis(2500);

/// How much to compare.
#[derive(Debug, Clone)]
pub struct CompareNftOptions {
    /// Packets to send through each gateway.
    pub packets: usize,
    /// The seed of all random choices.
    pub seed: u64,
    /// How often all conversations pause, spread over the run.
    pub pauses: usize,
}

/// Runs the comparison and removes everything it created.
pub fn compare_nft(options: &CompareNftOptions, flowgate: &Path, stop: &Stop) -> Result<CompareNftReport> {
    print_line("starting flowgate and nft, each in a network of its own");
    let worlds = [World::with_flowgate(flowgate)?, World::with_nft()?];
    let mut comparison = Comparison::new(options.seed);
    let pause_every = options.packets / (options.pauses + 1);
    let mut paused = 0;
    while comparison.report.packets < options.packets {
        interrupt::check(stop)?;
        comparison.round(&worlds)?;
        let due = comparison.report.packets / pause_every.max(1);
        if due > paused && comparison.report.packets < options.packets {
            paused = due;
            let pause = if paused % 2 == 1 { SHORT_PAUSE } else { LONG_PAUSE };
            print_progress(&format!(
                "{} packets, {} differences; now a pause of {pause:?}",
                comparison.report.packets, comparison.report.different
            ));
            interrupt::sleep(stop, pause)?;
        }
    }
    let report = comparison.report;
    print_line(report.table());
    if !report.is_success() {
        print_line(format!("what flowgate dropped:\n{}", worlds[0].state()));
    }
    Ok(report)
}

/// The conversations under way and what came of those before.
struct Comparison {
    random: Random,
    conversations: Vec<Conversation>,
    next_port: u16,
    /// The number of the next packet; by it what arrives is known again.
    number: u16,
    report: CompareNftReport,
}

/// A packet that is under way.
struct Sent {
    /// The place of its conversation.
    at: usize,
    number: u16,
    step: Step,
    arrived: [Vec<(End, Reading)>; 2],
}

impl Comparison {
    fn new(seed: u64) -> Self {
        Self {
            random: Random(seed),
            conversations: Vec::new(),
            next_port: FIRST_PORT,
            number: 1,
            report: CompareNftReport::new(seed),
        }
    }

    /// Sends the next packet of each conversation through both gateways and compares what arrives.
    fn round(&mut self, worlds: &[World; 2]) -> Result<()> {
        while self.conversations.len() < CONVERSATIONS {
            self.conversations.push(Conversation::begin(self.next_port, &mut self.random));
            self.next_port += 1;
            self.report.conversations += 1;
        }
        let mut sent = self.next_steps();
        for (side, world) in worlds.iter().enumerate() {
            let outgoing: Vec<_> = sent.iter().flat_map(|sent| self.frames_of(sent, side)).collect();
            let arrived = world.exchange(&outgoing, self.number)?;
            // Linux puts fragments together, Flowgate passes them on.
            for (end, reading) in
                arrived.into_iter().filter(|(_, reading)| !reading.tells_of_a_lost_fragment())
            {
                match self.owner(&sent, side, (end, &reading)) {
                    Some(owner) => sent[owner].arrived[side].push((end, reading)),
                    None => self.report.stray(world.name, end, &reading),
                }
            }
        }
        self.number += 1;
        let mut over = Vec::new();
        for sent in sent {
            if !self.compare(&sent) {
                over.push(sent.at);
            }
            self.learn(sent);
        }
        let mut place = 0;
        self.conversations.retain(|_| {
            place += 1;
            !over.contains(&(place - 1))
        });
        Ok(())
    }

    /// One packet of each conversation that is not over.
    fn next_steps(&mut self) -> Vec<Sent> {
        let mut steps = Vec::new();
        let random = &mut self.random;
        let number = &mut self.number;
        self.conversations.retain_mut(|conversation| {
            let step = match conversation.next(random) {
                Turn::Says(step) => step,
                Turn::Waits => return true,
                Turn::IsOver => return false,
            };
            steps.push((
                conversation.client.port(),
                Sent { at: 0, number: *number, step, arrived: Default::default() },
            ));
            *number = number.checked_add(1).unwrap_or(1);
            true
        });
        for (port, sent) in &mut steps {
            let place = self.conversations.iter().position(|other| other.client.port() == *port);
            sent.at = place.expect("it was kept");
        }
        self.report.packets += steps.len();
        steps.into_iter().map(|(_, sent)| sent).collect()
    }

    fn frames_of(&self, sent: &Sent, side: usize) -> Vec<(End, Vec<u8>)> {
        let conversation = &self.conversations[sent.at];
        let own = &conversation.sides[side];
        let sender = sent.step.sender;
        let (from, to) = match (sender, own.peer) {
            (End::Client, _) => (conversation.client, conversation.target),
            (End::Backend, peer) => (conversation.backend, peer.expect("it was looked at")),
        };
        let macs: (Mac, Mac) = match sender {
            End::Client => (world::CLIENT_MAC, world::UPLINK_MAC),
            End::Backend => (world::BACKEND_MAC, world::FABRIC_MAC),
        };
        let received = &own.received[index(sender)];
        let sending = Sending { from, to, macs, number: sent.number, received };
        frames(&sent.step.content, &sent.step.shape, &sending)
            .into_iter()
            .map(|frame| (sender, frame))
            .collect()
    }

    /// Which of the packets under way this came of.
    fn owner(&self, sent: &[Sent], side: usize, (end, reading): (End, &Reading)) -> Option<usize> {
        let of_port =
            |port: u16| sent.iter().position(|sent| self.conversations[sent.at].client.port() == port);
        let of_peer = |peer| {
            let is_peer = |sent: &Sent| self.conversations[sent.at].sides[side].peer == Some(peer);
            sent.iter().position(is_peer)
        };
        let of_number = |number| sent.iter().position(|sent| sent.number == number);
        if let Some((number, source, destination)) = reading.about {
            let by_tuple = match end {
                End::Client => of_port(source.port()),
                End::Backend => of_peer(destination),
            };
            // One of a gateway, one that was forwarded, or one that quotes no ports.
            let by_number = by_tuple.or_else(|| of_number(reading.number)).or_else(|| of_number(number));
            return by_number.or_else(|| of_port(destination.port()));
        }
        let by_number = of_number(reading.payload_number.unwrap_or(reading.number));
        match end {
            End::Client => of_port(reading.destination.port()).or(by_number),
            End::Backend => by_number.or_else(|| of_peer(reading.source)),
        }
    }

    /// Whether the conversation goes on: it ends with a difference that has no explanation.
    fn compare(&mut self, sent: &Sent) -> bool {
        let conversation = &mut self.conversations[sent.at];
        let outcomes = [0, 1].map(|side| Outcome::of(sent.step.sender, &sent.arrived[side]));
        conversation.history.push(format!(
            "{:?} sends #{} {}: {:?} {:?}\n      flowgate: {}\n      linux:    {}",
            sent.step.sender,
            sent.number,
            sent.step.kind,
            sent.step.content,
            sent.step.shape,
            outcomes[0],
            outcomes[1]
        ));
        self.report.add(conversation, &sent.step, &outcomes)
    }

    /// What the two ends know from what arrived.
    fn learn(&mut self, sent: Sent) {
        let conversation = &mut self.conversations[sent.at];
        // Errors quote what was received: it has to be the same packet in both networks.
        let reached = |end| sent.arrived.iter().all(|arrived| arrived.iter().any(|(at, _)| *at == end));
        let both = [End::Client, End::Backend].map(reached);
        let other = sent.step.sender.other();
        let has_passed = [0, 1].map(|side: usize| sent.arrived[side].iter().any(|(at, _)| *at == other));
        conversation.remember(&sent.step, has_passed);
        let mut taken = Vec::new();
        for (side, arrived) in sent.arrived.into_iter().enumerate() {
            for (end, reading) in arrived {
                let own = &mut conversation.sides[side];
                let is_right = sent.step.shape.forged.is_none() && sent.step.shape.source_port.is_none();
                if end == End::Backend
                    && sent.step.sender == End::Client
                    && reading.source.port() > 0
                    && reading.destination == conversation.backend
                    && is_right
                {
                    own.peer = Some(reading.source);
                    taken.push((side, reading.source));
                }
                if sent.step.is_quotable()
                    && both[index(end)]
                    && reading.about.is_none()
                    && reading.source.port() > 0
                    && is_right
                {
                    own.received[index(end)] = reading.packet;
                }
            }
        }
        // The port of a flow that has expired may be another's by now.
        let backend = conversation.backend;
        let others = self.conversations.iter_mut().enumerate().filter(|(at, _)| *at != sent.at);
        for (_, other) in others.filter(|(_, other)| other.backend == backend) {
            for (side, peer) in &taken {
                other.sides[*side].peer = other.sides[*side].peer.filter(|old| old != peer);
            }
        }
    }
}
