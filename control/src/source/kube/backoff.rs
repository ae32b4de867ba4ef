//! How long to wait after a failure: twice as long each time, never as long as anybody else. Never waits.

use std::time::Duration;

/// Waits that grow from a shortest to a longest one, with jitter.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    shortest: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    pub(super) const fn new(shortest: Duration, longest: Duration) -> Self {
        Self { shortest, longest, next: shortest }
    }

    /// After a success the next wait is the shortest again.
    pub(super) const fn reset(&mut self) {
        self.next = self.shortest;
    }

    /// The wait after one more failure: between half of its length and all of it.
    pub(super) fn wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(self.longest);
        jittered(wait)
    }
}

/// Between half of a time and all of it, so that many who failed together do not come back together.
pub(super) fn jittered(time: Duration) -> Duration {
    time.mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_start_anew_after_a_success() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(100), ms(350));
        for length in [100, 200, 350, 350] {
            let wait = backoff.wait();
            assert!(wait >= ms(length) / 2 && wait <= ms(length), "{wait:?} of {length} ms");
        }
        backoff.reset();
        assert!(backoff.wait() <= ms(100));
    }
}
