//! The gateway's anonymous memory; the flow tables are files and do not count.

use std::fs;

use crate::error::{Error, Result};
use crate::lab::faults::case_result::CaseResult;
use crate::lab::faults::test_bed::TestBed;

/// Growth that is attributed to the allocator.
const SLACK_KIB: u64 = 24 * 1024;

/// Samples over a soak.
#[derive(Debug, Default)]
pub(super) struct Memory {
    samples_kib: Vec<u64>,
}

impl Memory {
    /// Takes a sample.
    pub(super) fn sample(&mut self, bed: &TestBed) -> Result<()> {
        let Some(process) = bed.gateway.process_id() else { return Ok(()) };
        let path = format!("/proc/{process}/status");
        let status = fs::read_to_string(&path).map_err(Error::io(format!("read {path}")))?;
        self.samples_kib.extend(anonymous_kib(&status));
        Ok(())
    }

    /// The last third of the samples must not be far above the first.
    pub(super) fn check_growth(&self, result: &mut CaseResult) {
        let third = self.samples_kib.len().div_ceil(3);
        let highest = |samples: &[u64]| samples.iter().copied().max().unwrap_or_default();
        let first = highest(&self.samples_kib[..third]);
        let last = highest(&self.samples_kib[self.samples_kib.len() - third..]);
        result.record("memory_first_kib", first);
        result.record("memory_last_kib", last);
        result.expect(first > 0 && last <= first + first / 4 + SLACK_KIB, || {
            format!("memory grew from {first} to {last} KiB")
        });
    }
}

fn anonymous_kib(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_beyond_the_slack_fails() {
        let judged = |samples_kib: &[u64]| {
            let mut result = CaseResult::default();
            Memory { samples_kib: samples_kib.to_vec() }.check_growth(&mut result);
            result.failed()
        };
        assert!(!judged(&[20_000, 21_000, 30_000, 22_000]));
        assert!(judged(&[20_000, 21_000, 30_000, 60_000]));
        assert!(judged(&[]), "no sample is no proof");
        assert_eq!(anonymous_kib("VmRSS:\t 9 kB\nRssAnon:\t    1234 kB\n"), Some(1234));
    }
}
