//! Polling for what a gateway, a kernel or a virtual machine does in its own time. Start here when a test needs to wait.

use std::thread;
use std::time::Duration;

use crate::clock;
use crate::error::{Error, Result};

/// Time limit for what normally happens at once: only a test that would hang reaches it.
pub const LIMIT: Duration = Duration::from_secs(15);
const INTERVAL: Duration = Duration::from_millis(10);

/// Polls until `condition` holds, at most [`LIMIT`], and returns how long that took. An error counts as "not yet".
///
/// # Errors
/// [`Error::Timeout`] with `what` and the last error, or [`Error::Interrupted`] as soon as `condition` returns it.
pub fn eventually(what: &str, condition: impl FnMut() -> Result<bool>) -> Result<Duration> {
    eventually_within(LIMIT, INTERVAL, what, condition)
}

/// [`eventually`] with another limit and another pause between two attempts.
///
/// # Errors
/// As [`eventually`].
pub fn eventually_within(
    limit: Duration,
    interval: Duration,
    what: &str,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<Duration> {
    let begin = clock::now();
    loop {
        let hint = match condition() {
            Ok(true) => return Ok(begin.elapsed()),
            Ok(false) => "the condition never held".to_owned(),
            Err(Error::Interrupted) => return Err(Error::Interrupted),
            Err(error) => error.to_string(),
        };
        if begin.elapsed() > limit {
            return Err(Error::Timeout { what: what.to_owned(), after: limit, hint });
        }
        thread::sleep(interval);
    }
}
