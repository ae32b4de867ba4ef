//! The section `[flows]`: sizes of the flow and affinity tables, and when flows expire.

use std::time::Duration;

use flowgate_dataplane::PipelineConfig;
use flowgate_flow::Timeouts;
use serde::{Deserialize, Deserializer};

use super::value::parse_with;

#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Flows {
    #[serde(deserialize_with = "capacity")]
    pub(crate) capacity: u32,
    #[serde(deserialize_with = "capacity")]
    pub(crate) capacity_v6: u32,
    /// Whether flows outlive the process.
    pub(crate) keep: bool,
    #[serde(deserialize_with = "affinity_capacity")]
    pub(crate) affinity_capacity: u32,
    #[serde(deserialize_with = "percent")]
    half_open_percent: u8,
    #[serde(deserialize_with = "percent")]
    per_client_percent: u8,
    #[serde(deserialize_with = "timeout")]
    tcp_opening_s: Duration,
    #[serde(deserialize_with = "timeout")]
    tcp_established_s: Duration,
    #[serde(deserialize_with = "timeout")]
    tcp_half_closed_s: Duration,
    #[serde(deserialize_with = "timeout")]
    tcp_time_wait_s: Duration,
    #[serde(deserialize_with = "timeout")]
    tcp_reset_s: Duration,
    #[serde(deserialize_with = "timeout")]
    udp_unanswered_s: Duration,
    #[serde(deserialize_with = "timeout")]
    udp_answered_s: Duration,
    #[serde(deserialize_with = "timeout_or_never")]
    drain_s: Option<Duration>,
}

impl Default for Flows {
    fn default() -> Self {
        let timeouts = Timeouts::default();
        Self {
            capacity: 262_144,
            capacity_v6: 65_536,
            keep: true,
            affinity_capacity: 65_536,
            half_open_percent: PipelineConfig::default().half_open_percent,
            per_client_percent: 50,
            tcp_opening_s: timeouts.tcp_opening,
            tcp_established_s: timeouts.tcp_established,
            tcp_half_closed_s: timeouts.tcp_half_closed,
            tcp_time_wait_s: timeouts.tcp_time_wait,
            tcp_reset_s: timeouts.tcp_reset,
            udp_unanswered_s: timeouts.udp_unanswered,
            udp_answered_s: timeouts.udp_answered,
            drain_s: timeouts.drain,
        }
    }
}

impl Flows {
    pub(super) const fn apply_to(&self, pipeline: &mut PipelineConfig) {
        pipeline.half_open_percent = self.half_open_percent;
        pipeline.per_client_percent = self.per_client_percent;
    }

    pub(crate) const fn timeouts(&self) -> Timeouts {
        Timeouts {
            tcp_opening: self.tcp_opening_s,
            tcp_established: self.tcp_established_s,
            tcp_half_closed: self.tcp_half_closed_s,
            tcp_time_wait: self.tcp_time_wait_s,
            tcp_reset: self.tcp_reset_s,
            udp_unanswered: self.udp_unanswered_s,
            udp_answered: self.udp_answered_s,
            drain: self.drain_s,
        }
    }
}

fn capacity<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    parse_with(deserializer, |entries| within(entries, 64, 500_000_000))
}

fn affinity_capacity<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    parse_with(deserializer, |entries| within(entries, 8, 100_000_000))
}

fn percent<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    parse_with(deserializer, |percent| within(percent, 1, 100))
}

fn timeout<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    parse_with(deserializer, seconds_within)
}

/// 0: there is no such limit.
fn timeout_or_never<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    parse_with(deserializer, |seconds| (seconds != 0).then(|| seconds_within(seconds)).transpose())
}

fn seconds_within(seconds: u64) -> Result<Duration, String> {
    within(seconds, 1, Timeouts::MAX.as_secs()).map(Duration::from_secs)
}

fn within<T: PartialOrd + std::fmt::Display>(number: T, least: T, most: T) -> Result<T, String> {
    if (&least..=&most).contains(&&number) {
        Ok(number)
    } else {
        Err(format!("{number} is not from {least} to {most}"))
    }
}
