//! Executing the program again in the same process, the only way to get rid of a worker thread that hangs: a thread
//! cannot be ended from outside. The process id stays, and so does the flow table, which is in a file; everything else
//! starts from the beginning.

use std::env;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use nix::time::{ClockId, clock_gettime};

/// When the program has executed itself. Passed to the next one in the environment, since nothing else outlives exec(2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ExecHistory {
    total: u64,
    /// Those within [`WINDOW_S`], in seconds of the monotonic clock, the oldest first.
    recent: Vec<u64>,
}

impl ExecHistory {
    /// The history that the environment holds; empty in the first process.
    pub(crate) fn from_env() -> Self {
        env::var(VARIABLE).ok().and_then(|text| Self::parse(&text)).unwrap_or_default()
    }

    /// The number of executions after the first.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// Whether the program may execute itself once more: fewer than [`IN_WINDOW`] times in [`WINDOW_S`].
    pub(crate) fn within_limit(&self) -> bool {
        self.within_limit_at(seconds())
    }

    fn within_limit_at(&self, now: u64) -> bool {
        self.recent.iter().filter(|at| now.saturating_sub(**at) < WINDOW_S).count() < IN_WINDOW
    }

    /// Executes the program with the same arguments. Returns only if that fails.
    pub(crate) fn exec_again(&self) -> anyhow::Error {
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
        anyhow::Error::new(error).context(format!("executing {}", program.display()))
    }

    fn with_one_at(&self, now: u64) -> Self {
        let mut recent: Vec<_> =
            self.recent.iter().copied().filter(|at| now.saturating_sub(*at) < WINDOW_S).collect();
        recent.push(now);
        Self { total: self.total + 1, recent }
    }

    fn parse(text: &str) -> Option<Self> {
        let (total, recent) = text.split_once(':')?;
        let recent = recent.split(',').filter(|at| !at.is_empty()).map(str::parse).collect::<Result<_, _>>();
        Some(Self { total: total.parse().ok()?, recent: recent.ok()? })
    }
}

impl std::fmt::Display for ExecHistory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let recent: Vec<_> = self.recent.iter().map(u64::to_string).collect();
        write!(f, "{}:{}", self.total, recent.join(","))
    }
}

/// The program's file. If it was replaced on disk, `/proc/self/exe` still leads to the one that runs.
fn program() -> anyhow::Result<PathBuf> {
    let program = env::current_exe().context("finding the file of the program")?;
    Ok(if program.exists() { program } else { "/proc/self/exe".into() })
}

fn seconds() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| Duration::from(time).as_secs())
}

const VARIABLE: &str = "FLOWGATE_REEXECUTED";

/// Beyond so many executions in this time a hanging worker stays, and its traffic passes to the kernel.
const IN_WINDOW: usize = 3;
const WINDOW_S: u64 = 600;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_ends_and_what_was_long_ago_does_not_count() {
        let mut past = ExecHistory::default();
        for at in [10, 20, 30] {
            assert!(past.within_limit_at(at));
            past = past.with_one_at(at);
            assert_eq!(ExecHistory::parse(&past.to_string()), Some(past.clone()));
        }
        assert!(!past.within_limit_at(40));
        assert!(past.within_limit_at(10 + WINDOW_S));
        assert_eq!(past.with_one_at(25 + WINDOW_S), ExecHistory { total: 4, recent: vec![30, 625] });
        assert_eq!(ExecHistory::parse("garbage"), None);
    }
}
