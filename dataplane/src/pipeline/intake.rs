//! How fast unanswered connections may replace one another once they have taken their share of the table. A
//! flood then costs a look at the first headers and no more, and established flows keep the worker's time.

use flowgate_flow::Tick;

/// One worker's allowance.
#[derive(Clone, Copy, Debug)]
pub(super) struct Intake {
    left: u32,
    filled: Tick,
}

impl Default for Intake {
    fn default() -> Self {
        Self { left: BURST_MAX, filled: Tick::default() }
    }
}

impl Intake {
    /// Whether one more may begin now.
    pub(super) fn take(&mut self, now: Tick) -> bool {
        let earned = now.since(self.filled).saturating_mul(PER_MS);
        if earned > 0 {
            self.filled = now;
            self.left = self.left.saturating_add(earned).min(BURST_MAX);
        }
        let has_one = self.left > 0;
        self.left -= u32::from(has_one);
        has_one
    }
}

/// New connections in a millisecond on average.
const PER_MS: u32 = 16;

/// New connections at once.
const BURST_MAX: u32 = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_begin_in_bursts_and_at_a_rate() {
        let mut intake = Intake::default();
        let taken = |intake: &mut Intake, ms| (0..5_000).filter(|_| intake.take(Tick(ms))).count();
        assert_eq!(taken(&mut intake, 0), 1024);
        assert_eq!(taken(&mut intake, 0), 0);
        assert_eq!(taken(&mut intake, 10), 160);
        assert_eq!(taken(&mut intake, 60_000), 1024);
    }
}
