//! Lines of the log that packets cause: one in ten seconds of a kind, with the number of those that were left out. Whoever can
//! send packets could fill the log otherwise.

use std::time::{Duration, Instant};

/// The limit of one kind of lines.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogLimit {
    logged_at: Option<Instant>,
    left_out: u64,
}

impl LogLimit {
    /// How many lines were left out since the last one, if one may be written now; otherwise counts this one as left out.
    pub fn due(&mut self, now: Instant) -> Option<u64> {
        if self.logged_at.is_some_and(|at| now.saturating_duration_since(at) < LOG_EVERY) {
            self.left_out += 1;
            return None;
        }
        self.logged_at = Some(now);
        Some(std::mem::take(&mut self.left_out))
    }
}

/// The time between two lines of one kind.
pub const LOG_EVERY: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_in_ten_seconds_has_the_number_of_those_between() {
        let mut limit = LogLimit::default();
        #[expect(clippy::disallowed_methods, reason = "only differences matter")]
        let start = Instant::now();
        let mut due = |seconds| limit.due(start + Duration::from_secs(seconds));
        assert_eq!(
            [due(0), due(1), due(9), due(10), due(11), due(30)],
            [Some(0), None, None, Some(2), None, Some(1)]
        );
    }
}
