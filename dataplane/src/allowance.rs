//! So much at once and so much a millisecond, and no more. Never decides of what.

use flowgate_flow::Tick;

/// What one worker may still do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowance {
    per_ms: u32,
    at_once: u32,
    left: u32,
    filled: Tick,
}

impl Allowance {
    /// `per_ms` in a millisecond on average, `at_once` together.
    pub(crate) fn new(per_ms: u32, at_once: u32) -> Self {
        Self { per_ms, at_once, left: at_once, filled: Tick::default() }
    }

    /// Whether one more is allowed now; then it counts.
    pub(crate) fn take(&mut self, now: Tick) -> bool {
        let earned = now.since(self.filled).saturating_mul(self.per_ms);
        if earned > 0 {
            self.filled = now;
            self.left = self.left.saturating_add(earned).min(self.at_once);
        }
        let has_one = self.left > 0;
        self.left -= u32::from(has_one);
        has_one
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allowed_comes_in_bursts_and_at_a_rate() {
        for (per_ms, at_once, in_ten_ms) in [(16, 1024, 160), (1, 100, 10)] {
            let mut allowance = Allowance::new(per_ms, at_once);
            let mut taken = |ms| (0..5_000).filter(|_| allowance.take(Tick(ms))).count();
            assert_eq!(taken(0), at_once as usize);
            assert_eq!(taken(0), 0);
            assert_eq!(taken(10), in_ten_ms);
            assert_eq!(taken(60_000), at_once as usize);
        }
    }
}
