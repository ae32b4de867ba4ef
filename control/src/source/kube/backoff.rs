//! Exponential back-off with jitter. Returns the delay and does not sleep.

use std::time::Duration;

/// A delay that doubles with each failure, between a minimum and a maximum.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    pub(super) const fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, next: min }
    }

    /// After a success the next delay is the minimum again.
    pub(super) const fn reset(&mut self) {
        self.next = self.min;
    }

    /// The delay after one more failure, jittered.
    pub(super) fn next_wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(self.max);
        jittered(wait)
    }
}

/// Between half of a time and all of it, so that many clients that failed together do not come back together.
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
            let wait = backoff.next_wait();
            assert!(wait >= ms(length) / 2 && wait <= ms(length), "{wait:?} of {length} ms");
        }
        backoff.reset();
        assert!(backoff.next_wait() <= ms(100));
    }
}
