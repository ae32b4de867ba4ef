//! Sees when a worker hangs. Never touches packets: what is to be done is told to an [`Alarm`].

use std::time::{Duration, Instant};

/// What is to be done about a worker.
pub trait Alarm {
    /// The worker has not moved for the time allowed, or is dead: take its traffic away.
    fn hangs(&mut self, worker: usize);
    /// The worker moves again: give its traffic back.
    fn recovers(&mut self, worker: usize);
}

/// Watches the heartbeats of workers.
#[derive(Debug)]
pub struct Watchdog {
    allowed: Duration,
    seen: Vec<Seen>,
}

#[derive(Debug)]
struct Seen {
    heartbeat: u64,
    at: Instant,
    hanging: bool,
}

impl Watchdog {
    /// Watches `workers` workers, each of which may stand still for `allowed`.
    pub fn new(workers: usize, allowed: Duration, now: Instant) -> Self {
        let seen = (0..workers).map(|_| Seen { heartbeat: 0, at: now, hanging: false }).collect();
        Self { allowed, seen }
    }

    /// Looks at the heartbeat of each worker and tells `alarm` what has changed. A dead worker has none.
    pub fn look(&mut self, heartbeats: &[Option<u64>], now: Instant, alarm: &mut impl Alarm) {
        for (worker, (seen, heartbeat)) in self.seen.iter_mut().zip(heartbeats).enumerate() {
            match *heartbeat {
                Some(heartbeat) if heartbeat != seen.heartbeat => {
                    *seen = Seen { heartbeat, at: now, hanging: seen.hanging };
                    if seen.hanging {
                        seen.hanging = false;
                        alarm.recovers(worker);
                    }
                }
                alive => {
                    let silent = now.duration_since(seen.at) > self.allowed;
                    if !seen.hanging && (alive.is_none() || silent) {
                        seen.hanging = true;
                        alarm.hangs(worker);
                    }
                }
            }
        }
    }

    /// Workers that hang or are dead.
    pub fn hanging(&self) -> impl Iterator<Item = usize> {
        self.seen.iter().enumerate().filter(|(_, seen)| seen.hanging).map(|(worker, _)| worker)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Log(Vec<String>);

    impl Alarm for Log {
        fn hangs(&mut self, worker: usize) {
            self.0.push(format!("{worker} hangs"));
        }
        fn recovers(&mut self, worker: usize) {
            self.0.push(format!("{worker} recovers"));
        }
    }

    #[test]
    fn a_worker_that_stands_still_is_reported_once_and_so_is_its_recovery() {
        #[expect(clippy::disallowed_methods, reason = "only differences matter")]
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut watchdog = Watchdog::new(2, Duration::from_millis(500), start);
        let mut log = Log::default();
        watchdog.look(&[Some(1), Some(1)], at(0), &mut log);
        watchdog.look(&[Some(1), Some(2)], at(400), &mut log);
        assert!(log.0.is_empty());
        watchdog.look(&[Some(1), Some(3)], at(501), &mut log);
        watchdog.look(&[Some(1), Some(4)], at(900), &mut log);
        assert_eq!(log.0, ["0 hangs"]);
        assert_eq!(watchdog.hanging().collect::<Vec<_>>(), [0]);
        watchdog.look(&[Some(2), None], at(1000), &mut log);
        assert_eq!(log.0, ["0 hangs", "0 recovers", "1 hangs"]);
    }
}
