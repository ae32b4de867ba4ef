//! The only place in this crate that reads the clock.

use std::time::Instant;

#[expect(clippy::disallowed_methods, reason = "measuring is what this crate is for")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
