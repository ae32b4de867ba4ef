//! When to compile after a change: once changes pause, but not too late.

use std::time::Duration;

use tokio::time::Instant;

/// The times of the first and of the last change since the last compilation; `None` if there was none.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Debounce {
    times: Option<(Instant, Instant)>,
}

impl Debounce {
    pub(super) fn changed(&mut self, now: Instant) {
        let first = self.times.map_or(now, |(first, _)| first);
        self.times = Some((first, now));
    }

    /// To be called after a refused update: it is offered again even if nothing changes.
    pub(super) fn retry(&mut self, now: Instant) {
        let at = now + RETRY_AFTER;
        self.times = Some((at, at));
    }

    /// When to compile next; `None` if nothing changed.
    pub(super) fn due(&self) -> Option<Instant> {
        self.times.map(|(first, last)| (last + QUIET).min(first + LATEST))
    }
}

/// The pause between changes after which they are compiled. A rollout changes many objects within milliseconds.
const QUIET: Duration = Duration::from_millis(10);
/// The longest that a change waits if changes never pause.
const LATEST: Duration = Duration::from_millis(100);
/// The wait before a refused update is offered again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
