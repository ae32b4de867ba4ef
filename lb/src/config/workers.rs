//! The section `[workers]`: how many, where they run, and when one counts as hanging.

use std::time::Duration;

use serde::{Deserialize, Deserializer};

use super::value::{Invalid, first_repeated, parse_with};

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Workers {
    /// 0: as many as the queues allow.
    pub(crate) count: usize,
    /// Empty: the last cores.
    pub(crate) cores: Vec<usize>,
    #[serde(rename = "idle_before_sleep_us", deserialize_with = "micros")]
    pub(crate) idle_before_sleep: Duration,
    #[serde(rename = "hang_ms", deserialize_with = "hang")]
    pub(crate) hang: Duration,
}

impl Default for Workers {
    fn default() -> Self {
        Self {
            count: 0,
            cores: Vec::new(),
            idle_before_sleep: Duration::from_micros(200),
            hang: Duration::from_secs(1),
        }
    }
}

impl Workers {
    /// The section with a count for the cores that are named.
    ///
    /// # Errors
    /// A core is named twice, or there are more or fewer cores than workers.
    pub(super) fn resolve(self) -> Result<Self, Invalid> {
        let invalid = |reason| Err(Invalid { key: "workers.cores", reason });
        let count = if self.count == 0 { self.cores.len() } else { self.count };
        if !self.cores.is_empty() && self.cores.len() != count {
            return invalid(format!("{} cores for {count} workers", self.cores.len()));
        }
        if let Some(twice) = first_repeated(&self.cores) {
            return invalid(format!("core {twice} is listed twice"));
        }
        Ok(Self { count, ..self })
    }
}

fn micros<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    u64::deserialize(deserializer).map(Duration::from_micros)
}

fn hang<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    parse_with(deserializer, |ms: u64| {
        if ms < 200 {
            return Err(format!("{ms} is below 200: a sleeping worker moves every 100 ms"));
        }
        Ok(Duration::from_millis(ms))
    })
}
