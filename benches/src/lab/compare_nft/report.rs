//! What came of each packet in both networks, as a table and as one line of JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use comfy_table::{Table, presets};
use serde::Serialize;

use super::conversation::{Conversation, Step};
use super::explained::{Case, Fate, explanation};
use super::reading::{End, Reading};

/// Conversations that are printed for each kind of packet that differed, and strays.
const PRINTED: usize = 3;
const PRINTED_STRAYS: usize = 5;

/// What came of one packet in one network.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    pub(super) fate: Fate,
    text: String,
    /// The text without IPv4 options and IPv6 extension headers.
    pub(super) bare: String,
    /// The source address and port of all that arrived.
    pub(super) sources: Vec<SocketAddr>,
}

impl Outcome {
    pub(super) fn of(sender: End, arrived: &[(End, Reading)]) -> Self {
        let lines = |forwarded: fn(&Reading) -> &str| {
            let line = |(end, reading): &(End, Reading)| {
                let (place, text) = if *end == sender {
                    ("back ", reading.answer.as_str())
                } else {
                    ("", forwarded(reading))
                };
                format!("{place}at the {end:?}: {text}")
            };
            let mut lines: Vec<_> = arrived.iter().map(line).collect();
            lines.sort();
            lines.join("; ")
        };
        let sources = arrived.iter().map(|(_, reading)| reading.source).collect();
        let fate = match arrived {
            [] => Fate::Nothing,
            _ if arrived.iter().all(|(end, _)| *end != sender) => Fate::Forwarded,
            _ if arrived.iter().all(|(end, _)| *end == sender) => Fate::Answered,
            _ => Fate::Both,
        };
        Self { fate, text: lines(|reading| &reading.whole), bare: lines(|reading| &reading.bare), sources }
    }
}

impl Outcome {
    /// Whether all that arrived has this source address and port.
    pub(super) fn comes_from(&self, source: SocketAddr) -> bool {
        self.sources.iter().all(|other| *other == source)
    }

    /// Whether all that arrived has this source address.
    pub(super) fn comes_from_host(&self, source: IpAddr) -> bool {
        self.sources.iter().all(|other| other.ip() == source)
    }
}

impl PartialEq for Outcome {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?} {}", self.fate, self.text)
    }
}

/// The number of packets by outcome.
#[derive(Debug, Clone, Default, Serialize)]
pub struct CompareNftReport {
    /// The seed of the run.
    pub seed: u64,
    /// Conversations begun.
    pub conversations: usize,
    /// Packets sent through each gateway.
    pub packets: usize,
    /// Packets with the same outcome in both networks.
    pub same: usize,
    /// Packets with exactly a difference that has a reason.
    pub explained: usize,
    /// Packets with any other difference.
    pub different: usize,
    /// Packets that arrived and that nobody sent.
    pub strays: usize,
    /// By kind of packet: same, explained, different.
    #[serde(skip)]
    kinds: BTreeMap<&'static str, [usize; 3]>,
    /// By reason.
    #[serde(skip)]
    reasons: BTreeMap<&'static str, usize>,
    #[serde(skip)]
    stories: Vec<String>,
}

impl CompareNftReport {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }

    /// Counts a packet; false for a difference without a reason.
    pub(super) fn add(&mut self, conversation: &Conversation, step: &Step, outcomes: &[Outcome; 2]) -> bool {
        let counts = self.kinds.entry(step.kind).or_default();
        let [ours, theirs] = outcomes;
        if ours == theirs {
            counts[0] += 1;
            self.same += 1;
            return true;
        }
        let case = Case { of: conversation, step, outcomes };
        if let Some(reason) = explanation(&case) {
            counts[1] += 1;
            self.explained += 1;
            *self.reasons.entry(reason).or_default() += 1;
            return true;
        }
        counts[2] += 1;
        self.different += 1;
        if counts[2] <= PRINTED {
            let ends = format!(
                "DIFFERENT: {} from {} to {}\n  ",
                step.kind, conversation.client, conversation.target
            );
            self.stories.push(ends + &conversation.history.join("\n  "));
        }
        false
    }

    pub(super) fn stray(&mut self, world: &str, end: End, reading: &Reading) {
        self.strays += 1;
        if self.strays <= PRINTED_STRAYS {
            self.stories.push(format!("STRAY in {world} at the {end:?}: {}", reading.whole));
        }
    }

    /// All kinds of packets, the reasons, and the conversations that differed.
    pub(super) fn table(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::UTF8_BORDERS_ONLY);
        table.set_header(["packet", "same", "explained", "DIFFERENT"]);
        for (kind, counts) in &self.kinds {
            let mut row = vec![(*kind).to_owned()];
            row.extend(counts.map(|count| count.to_string()));
            table.add_row(row);
        }
        let mut text = table.to_string();
        for (reason, count) in &self.reasons {
            text.push_str(&format!("\n{count} times: {reason}"));
        }
        for story in &self.stories {
            text.push_str(&format!("\n\n{story}"));
        }
        text
    }

    /// One line of JSON.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("the report holds plain numbers")
    }

    /// Whether every difference has a reason.
    pub fn is_success(&self) -> bool {
        self.different == 0 && self.strays == 0
    }
}
