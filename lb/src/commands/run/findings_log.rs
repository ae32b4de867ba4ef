//! Logs each finding when it appears. Ten thousand refused objects do not fill the disk: of many new findings the first are
//! logged, then their number; `flowgate show tables` has all of them.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use flowgate_control::{Entry, Report, Status};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};

/// Logs until dropped.
pub(super) async fn run(mut status: watch::Receiver<Status>) {
    let mut log = FindingsLog::default();
    let mut refused = None;
    let mut open = true;
    loop {
        let (report, of_servers, now_refused) = {
            let status = status.borrow_and_update();
            let of_servers = status.listeners.values().flat_map(|entries| entries.iter().cloned());
            let of_servers: Vec<Entry> = of_servers.collect();
            (Arc::clone(&status.report), of_servers, status.refused.clone())
        };
        if let Some(reason) = now_refused.as_ref().filter(|_| now_refused != refused) {
            tracing::error!("the newest tables were not published: {reason}");
        }
        refused = now_refused;
        let now = Instant::now();
        let look = move || {
            let lines = log.look(&report, of_servers, now);
            (log, lines)
        };
        // On another thread: there may be a hundred thousand findings.
        let lines = match spawn_blocking(look).await {
            Ok((next, lines)) => {
                log = next;
                lines
            }
            Err(_panic) => {
                log = FindingsLog::default();
                Vec::new()
            }
        };
        lines.iter().for_each(|line| tracing::warn!("{line}"));
        let due = log.due();
        tokio::select! {
            changed = status.changed(), if open => open = changed.is_ok(),
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            else => std::future::pending().await,
        }
    }
}

/// What was logged, and what was left out.
#[derive(Default)]
struct FindingsLog {
    report: Arc<Report>,
    of_servers: Vec<Entry>,
    /// Digests of the findings that there are now.
    known: HashSet<u64>,
    hasher: RandomState,
    /// When the present period began; `None` while nothing was logged for a period.
    began: Option<Instant>,
    /// Findings logged in this period.
    logged: usize,
    /// Findings left out of the log, and not counted in it yet.
    left_out: usize,
    /// Whether this period had its line about those that were left out.
    counted: bool,
}

impl FindingsLog {
    /// The lines for what is new: at most [`LINES_MAX`] findings per [`PERIOD`], and two lines about those left out.
    fn look(&mut self, report: &Arc<Report>, of_servers: Vec<Entry>, now: Instant) -> Vec<String> {
        let mut lines = Vec::new();
        if self.began.is_some_and(|began| now.duration_since(began) >= PERIOD) {
            lines.extend(self.count_left_out());
            // A line about the last period is one of the next.
            self.counted = !lines.is_empty();
            (self.began, self.logged) = (self.counted.then_some(now), 0);
        }
        if Arc::ptr_eq(&self.report, report) && self.of_servers == of_servers {
            return lines;
        }
        let mut known = HashSet::with_capacity(self.known.len());
        for entry in report.entries.iter().chain(&of_servers) {
            let digest = self.hasher.hash_one(entry);
            if !known.insert(digest) || self.known.contains(&digest) {
                continue;
            }
            self.began.get_or_insert(now);
            if self.logged < LINES_MAX {
                self.logged += 1;
                lines.push(entry.to_string());
            } else {
                self.left_out += 1;
            }
        }
        if !self.counted {
            lines.extend(self.count_left_out());
        }
        (self.report, self.of_servers, self.known) = (Arc::clone(report), of_servers, known);
        lines
    }

    /// When to look again even if nothing changes.
    fn due(&self) -> Option<Instant> {
        self.began.filter(|_| self.left_out > 0).map(|began| began + PERIOD)
    }

    fn count_left_out(&mut self) -> Option<String> {
        let count = std::mem::take(&mut self.left_out);
        self.counted |= count > 0;
        (count > 0).then(|| format!("{count} more findings are not logged: `flowgate show tables` lists all"))
    }
}

/// The most findings that are logged per period.
const LINES_MAX: usize = 20;
const PERIOD: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use flowgate_control::Severity;

    use super::*;

    fn entry(number: usize) -> Entry {
        Entry { severity: Severity::Error, place: None, object: None, reason: format!("finding {number}") }
    }

    fn report(numbers: impl IntoIterator<Item = usize>) -> Arc<Report> {
        Arc::new(Report { entries: numbers.into_iter().map(entry).collect() })
    }

    #[test]
    fn a_finding_is_logged_when_it_appears_and_again_when_it_comes_back() {
        let (mut log, now) = (FindingsLog::default(), Instant::now());
        assert_eq!(log.look(&report([1, 2]), vec![], now), ["finding 1", "finding 2"]);
        assert_eq!(log.look(&report([2, 3]), vec![entry(4)], now), ["finding 3", "finding 4"]);
        assert!(log.look(&report([2, 3]), vec![entry(4)], now).is_empty());
        assert_eq!(log.look(&report([2, 1]), vec![entry(4)], now), ["finding 1"]);
        assert_eq!(log.due(), None);
    }

    #[test]
    fn ten_thousand_findings_are_twenty_lines_and_their_number() {
        let (mut log, began) = (FindingsLog::default(), Instant::now());
        let lines = log.look(&report(0..10_000), vec![], began);
        assert_eq!(lines.len(), LINES_MAX + 1);
        assert_eq!(lines[LINES_MAX], "9980 more findings are not logged: `flowgate show tables` lists all");
        assert!(log.look(&report(0..10_000), vec![], began).is_empty(), "the same again is no news");
        // All of them change with every change of one object.
        let mut lines = 0;
        for change in 1..=100 {
            let at = began + Duration::from_millis(100) * change;
            let first = 10_000 * change as usize;
            lines += log.look(&report(first..first + 10_000), vec![], at).len();
        }
        assert!(lines <= LINES_MAX + 2, "{lines} lines in ten seconds");
        let due = log.due().expect("what was left out is counted later");
        let latest = log.report.clone();
        let counted = log.look(&latest, vec![], due);
        assert_eq!(counted.len(), 1, "{counted:?}");
        assert!(log.due().is_none());
    }
}
