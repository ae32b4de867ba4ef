//! Times for people that nobody can set back. Operators and NTP step the wall clock; durations and orders that were computed from
//! it would jump. So moments are kept by a clock that begins as the wall clock and goes on by the monotonic one, and are put
//! into the wall clock's terms where they are shown.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

/// A clock that was the wall clock at its beginning, and that no step of the wall clock moves.
#[derive(Clone, Copy, Debug)]
pub struct SteadyClock {
    began: Instant,
    wall: SystemTime,
}

impl SteadyClock {
    /// Begins at the instant `began`, when the wall clock shows `wall`.
    pub const fn new(began: Instant, wall: SystemTime) -> Self {
        Self { began, wall }
    }

    /// The time at an instant.
    pub fn at(&self, now: Instant) -> SystemTime {
        self.wall + now.saturating_duration_since(self.began)
    }

    /// What a moment of this clock is called by a wall clock that shows `wall` now.
    pub fn shown(&self, moment: SystemTime, now: Instant, wall: SystemTime) -> SystemTime {
        moved(moment, self.at(now), wall)
    }

    /// The moment of this clock that a wall clock which shows `wall` now calls `shown`. Moments to come are now.
    pub fn moment(&self, shown: SystemTime, now: Instant, wall: SystemTime) -> SystemTime {
        moved(shown.min(wall), wall, self.at(now))
    }
}

/// `moment` plus what leads from `from` to `to`.
fn moved(moment: SystemTime, from: SystemTime, to: SystemTime) -> SystemTime {
    match to.duration_since(from) {
        Ok(ahead) if ahead < NOISE => moment,
        Ok(ahead) => moment + ahead,
        Err(behind) if behind.duration() < NOISE => moment,
        Err(behind) => moment.checked_sub(behind.duration()).unwrap_or(SystemTime::UNIX_EPOCH),
    }
}

/// The present moment.
pub fn now() -> SystemTime {
    clock().at(instant())
}

/// A moment as the wall clock shows it now.
pub fn shown(moment: SystemTime) -> SystemTime {
    clock().shown(moment, instant(), SystemTime::now())
}

/// The moment that the wall clock shows as this now, for times that another process has written.
pub fn moment(shown: SystemTime) -> SystemTime {
    clock().moment(shown, instant(), SystemTime::now())
}

fn clock() -> SteadyClock {
    static CLOCK: OnceLock<SteadyClock> = OnceLock::new();
    *CLOCK.get_or_init(|| SteadyClock::new(instant(), SystemTime::now()))
}

#[expect(clippy::disallowed_methods, reason = "times for people begin here")]
fn instant() -> Instant {
    Instant::now()
}

/// Both clocks are read one after the other: smaller differences are no step.
const NOISE: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_step_of_the_wall_clock_changes_what_is_shown_and_no_duration() {
        let (began, wall) = (instant(), SystemTime::UNIX_EPOCH + 1000 * HOUR);
        let clock = SteadyClock::new(began, wall);
        let moment = clock.at(began + HOUR);
        for (step, stepped) in [("ahead", wall + 50 * HOUR), ("back", wall - 50 * HOUR), ("none", wall)] {
            let (now, wall_now) = (began + 3 * HOUR, stepped + 3 * HOUR);
            assert_eq!(clock.at(now).duration_since(moment).unwrap(), 2 * HOUR, "{step}");
            assert_eq!(clock.shown(moment, now, wall_now), wall_now - 2 * HOUR, "{step}");
            assert_eq!(clock.moment(wall_now - HOUR, now, wall_now), clock.at(now) - HOUR, "{step}");
        }
        let ahead = clock.moment(wall + 5 * HOUR, began, wall);
        assert_eq!(ahead, clock.at(began), "a file of a clock that was ahead is as of now");
    }

    #[test]
    fn without_a_step_moments_are_shown_exactly() {
        let at = SystemTime::UNIX_EPOCH + HOUR;
        assert_eq!((shown(at), moment(at)), (at, at));
    }
}
