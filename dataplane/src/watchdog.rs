//! Notices when a worker hangs: its heartbeat stands still. The supervisor polls it and acts on the changes.

use std::time::{Duration, Instant};

/// A change in the state of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The heartbeat of the worker with this number stood still for longer than allowed.
    Hangs(usize),
    /// The heartbeat of the worker with this number moves again.
    Recovers(usize),
}

/// Watches the heartbeats of workers.
#[derive(Debug)]
pub struct Watchdog {
    allowed: Duration,
    seen: Vec<Seen>,
}

#[derive(Debug)]
struct Seen {
    heartbeat: Option<u64>,
    at: Instant,
    hanging: bool,
}

impl Watchdog {
    /// Watches workers whose heartbeat may stand still for `allowed`.
    pub fn new(allowed: Duration) -> Self {
        Self { allowed, seen: Vec::new() }
    }

    /// Compares the heartbeats with those of the last call and returns what has changed. A worker that does not run has no
    /// heartbeat and does not count as hanging.
    pub fn look(&mut self, heartbeats: &[Option<u64>], now: Instant) -> Vec<Change> {
        self.seen.resize_with(heartbeats.len(), || Seen { heartbeat: None, at: now, hanging: false });
        let mut changes = Vec::new();
        for (worker, (seen, heartbeat)) in self.seen.iter_mut().zip(heartbeats).enumerate() {
            // Any change counts, not only growth: a worker that was replaced starts at zero again.
            let moves = *heartbeat != seen.heartbeat || heartbeat.is_none();
            if moves {
                *seen = Seen { heartbeat: *heartbeat, at: now, hanging: seen.hanging };
            }
            let hangs = !moves && now.duration_since(seen.at) > self.allowed;
            if hangs && !seen.hanging {
                changes.push(Change::Hangs(worker));
            } else if moves && seen.hanging {
                changes.push(Change::Recovers(worker));
            }
            seen.hanging = hangs || (seen.hanging && !moves);
        }
        changes
    }

    /// Whether a worker hangs.
    pub fn is_hanging(&self, worker: usize) -> bool {
        self.seen.get(worker).is_some_and(|seen| seen.hanging)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_stands_still_is_reported_once_and_so_is_its_recovery() {
        #[expect(clippy::disallowed_methods, reason = "only differences matter")]
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut watchdog = Watchdog::new(Duration::from_millis(500));
        assert_eq!(watchdog.look(&[Some(1), Some(1)], at(0)), []);
        assert_eq!(watchdog.look(&[Some(1), Some(2)], at(400)), []);
        assert_eq!(watchdog.look(&[Some(1), Some(3)], at(501)), [Change::Hangs(0)]);
        assert_eq!(watchdog.look(&[Some(1), Some(4)], at(900)), []);
        assert!(watchdog.is_hanging(0) && !watchdog.is_hanging(1));
        assert_eq!(watchdog.look(&[Some(2), None], at(1000)), [Change::Recovers(0)]);
        assert_eq!(watchdog.look(&[Some(2), None], at(1400)), []);
        assert_eq!(watchdog.look(&[Some(3), None], at(5000)), [], "a worker that is away does not hang");
        assert_eq!(watchdog.look(&[Some(4), Some(0)], at(5100)), []);
        assert_eq!(watchdog.look(&[Some(5), Some(0)], at(5601)), [Change::Hangs(1)]);
    }
}
