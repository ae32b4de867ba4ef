//! The one place of this crate that reads the clock.

use std::time::Instant;

/// The present moment.
#[expect(clippy::disallowed_methods, reason = "measuring is what this crate is for")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
