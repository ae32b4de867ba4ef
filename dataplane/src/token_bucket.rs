//! Token bucket: `burst` tokens at once, refilled at `per_ms`.

use flowgate_flow::Tick;

/// A token bucket; each worker has its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TokenBucket {
    per_ms: u32,
    burst: u32,
    left: u32,
    filled: Tick,
}

impl TokenBucket {
    /// A full bucket.
    pub(crate) fn new(per_ms: u32, burst: u32) -> Self {
        Self { per_ms, burst, left: burst, filled: Tick::default() }
    }

    /// Takes a token; false if there is none.
    pub(crate) fn take(&mut self, now: Tick) -> bool {
        // Refilled when a token is taken: no timer. The multiplication saturates after a long idle time.
        let earned = now.since(self.filled).saturating_mul(self.per_ms);
        if earned > 0 {
            self.filled = now;
            self.left = self.left.saturating_add(earned).min(self.burst);
        }
        let has_one = self.left > 0;
        // Without a branch: most calls take one.
        self.left -= u32::from(has_one);
        has_one
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_in_bursts_and_at_a_rate() {
        for (per_ms, burst, in_ten_ms) in [(16, 1024, 160), (1, 100, 10)] {
            let mut bucket = TokenBucket::new(per_ms, burst);
            let mut taken = |ms| (0..5_000).filter(|_| bucket.take(Tick(ms))).count();
            assert_eq!(taken(0), burst as usize);
            assert_eq!(taken(0), 0);
            assert_eq!(taken(10), in_ten_ms);
            assert_eq!(taken(60_000), burst as usize);
        }
    }
}
