//! Replacing the process by a new one of the same program, when a thread of it cannot be ended otherwise. The
//! flow table outlives it; everything else begins anew under the same process id.

use std::env;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use nix::time::{ClockId, clock_gettime};

/// How often the program has replaced itself so far, and when lately. It travels in the environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reexecutions {
    total: u64,
    /// Seconds of the monotonic clock, the oldest first.
    lately: Vec<u64>,
}

impl Reexecutions {
    /// Those before this start.
    pub(crate) fn so_far() -> Self {
        env::var(VARIABLE).ok().and_then(|text| Self::parse(&text)).unwrap_or_default()
    }

    /// How many there were.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// Whether one more would not be a loop.
    pub(crate) fn may_go_on(&self) -> bool {
        self.may_go_on_at(seconds())
    }

    fn may_go_on_at(&self, now: u64) -> bool {
        self.lately.iter().filter(|at| now.saturating_sub(**at) < WINDOW_S).count() < IN_WINDOW
    }

    /// Replaces this process by a new one with the same arguments. Returns only when that fails.
    pub(crate) fn again(&self) -> anyhow::Error {
        let program = match program() {
            Ok(program) => program,
            Err(error) => return error,
        };
        let mut arguments = env::args_os();
        let mut command = Command::new(&program);
        if let Some(name) = arguments.next() {
            command.arg0(name);
        }
        let error = command.args(arguments).env(VARIABLE, self.with_one_at(seconds()).to_string()).exec();
        anyhow::Error::new(error).context(format!("replacing the process by {}", program.display()))
    }

    fn with_one_at(&self, now: u64) -> Self {
        let mut lately: Vec<_> =
            self.lately.iter().copied().filter(|at| now.saturating_sub(*at) < WINDOW_S).collect();
        lately.push(now);
        Self { total: self.total + 1, lately }
    }

    fn parse(text: &str) -> Option<Self> {
        let (total, lately) = text.split_once(':')?;
        let lately = lately.split(',').filter(|at| !at.is_empty()).map(str::parse).collect::<Result<_, _>>();
        Some(Self { total: total.parse().ok()?, lately: lately.ok()? })
    }
}

impl std::fmt::Display for Reexecutions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lately: Vec<_> = self.lately.iter().map(u64::to_string).collect();
        write!(f, "{}:{}", self.total, lately.join(","))
    }
}

/// The file that this process runs. One that was replaced on disk meanwhile is still there for it.
fn program() -> anyhow::Result<PathBuf> {
    let program = env::current_exe().context("asking which program this is")?;
    Ok(if program.exists() { program } else { "/proc/self/exe".into() })
}

fn seconds() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| Duration::from(time).as_secs())
}

const VARIABLE: &str = "FLOWGATE_REEXECUTED";

/// A process that hangs more often than so many times in this time is left alone: its traffic passes.
const IN_WINDOW: usize = 3;
const WINDOW_S: u64 = 600;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_ends_and_what_was_long_ago_does_not_count() {
        let mut past = Reexecutions::default();
        for at in [10, 20, 30] {
            assert!(past.may_go_on_at(at));
            past = past.with_one_at(at);
            assert_eq!(Reexecutions::parse(&past.to_string()), Some(past.clone()));
        }
        assert!(!past.may_go_on_at(40));
        assert!(past.may_go_on_at(10 + WINDOW_S));
        assert_eq!(past.with_one_at(25 + WINDOW_S), Reexecutions { total: 4, lately: vec![30, 625] });
        assert_eq!(Reexecutions::parse("garbage"), None);
    }
}
