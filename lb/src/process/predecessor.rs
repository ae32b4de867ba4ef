//! A start right after the sudden end of its predecessor. The kernel takes a moment to tear down what a killed process had: its
//! listening sockets, its locks, its sockets on queues. A start that finds one of them taken waits for it.

use std::io;
use std::thread;
use std::time::Duration;

use flowgate_control::dns::DnsError;
use flowgate_flow::PersistError;
use flowgate_xsk::XskError;
use flowgate_xsk::steering::SteeringError;
use tokio::time::Instant;

use crate::admin::AdminError;

/// How long this start waits for its predecessor, over all that it may still hold.
#[derive(Debug)]
pub(crate) struct Predecessor {
    limit: Duration,
    /// Set by the first wait.
    deadline: Option<Instant>,
}

impl Default for Predecessor {
    fn default() -> Self {
        Self { limit: LIMIT, deadline: None }
    }
}

impl Predecessor {
    /// Repeats the attempt while a predecessor may hold what it needs, until the time is up. Blocks the thread. The first wait is
    /// logged.
    ///
    /// # Errors
    /// The last error of the attempt.
    pub(crate) fn outlast<T, E: Into<anyhow::Error>>(
        &mut self,
        mut attempt: impl FnMut() -> Result<T, E>,
    ) -> anyhow::Result<T> {
        loop {
            let error = match attempt() {
                Ok(value) => return Ok(value),
                Err(error) => error.into(),
            };
            if !may_end_soon(&error) {
                return Err(error);
            }
            let now = Instant::now();
            let deadline = *self.deadline.get_or_insert_with(|| {
                let limit_s = self.limit.as_secs();
                tracing::warn!("waiting at most {limit_s} s for an earlier flowgate to end: {error:#}");
                now + self.limit
            });
            if now >= deadline {
                return Err(error);
            }
            thread::sleep(PAUSE);
        }
    }
}

/// Whether the error may be due to a process that is ending.
fn may_end_soon(error: &anyhow::Error) -> bool {
    let is_busy = |source: &io::Error| source.kind() == io::ErrorKind::ResourceBusy;
    error.chain().any(|cause| {
        matches!(cause.downcast_ref(), Some(SteeringError::InUse { .. }))
            || matches!(cause.downcast_ref(), Some(AdminError::Silent(_)))
            || matches!(cause.downcast_ref(), Some(PersistError::InUse(_)))
            || matches!(cause.downcast_ref(), Some(XskError::Bind { source, .. }) if is_busy(source))
            || matches!(
                cause.downcast_ref(),
                Some(DnsError::Bind { source, .. }) if source.kind() == io::ErrorKind::AddrInUse
            )
    })
}

const PAUSE: Duration = Duration::from_millis(100);
/// The kernel takes longest to give back pinned memory and the queues of a NIC in zero copy: about a second.
const LIMIT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// The outcome of attempts that fail with the error for so many times.
    fn outlast(
        predecessor: &mut Predecessor,
        times: u32,
        error: impl Fn() -> anyhow::Error,
    ) -> Result<u32, String> {
        let mut attempts = 0;
        let outcome = predecessor.outlast(|| {
            attempts += 1;
            if attempts > times { Ok(attempts) } else { Err(error()) }
        });
        outcome.map_err(|error| error.to_string())
    }

    #[test]
    fn what_a_dying_process_holds_is_waited_for_and_nothing_else() {
        let mut predecessor = Predecessor::default();
        let locked = || SteeringError::InUse { path: "/pins".into() }.into();
        assert_eq!(outlast(&mut predecessor, 1, locked), Ok(2));
        let queue = || {
            let source = io::Error::from_raw_os_error(nix::libc::EBUSY);
            let bind = XskError::Bind { interface: "eth0".into(), queue: 0, mode: "copy", source, hint: "" };
            anyhow::Error::from(bind).context("opening")
        };
        assert_eq!(outlast(&mut predecessor, 1, queue), Ok(2));
        let silent = || AdminError::Silent(PathBuf::from("/admin.sock")).into();
        assert_eq!(outlast(&mut predecessor, 1, silent), Ok(2));
        let live = || AdminError::InUse(PathBuf::from("/admin.sock")).into();
        assert!(outlast(&mut predecessor, 1, live).is_err(), "one that answers does not end");
    }

    #[test]
    fn the_wait_is_bounded_over_all_that_is_held() {
        let mut predecessor = Predecessor { limit: PAUSE / 2, deadline: None };
        let flows = || PersistError::InUse("/flows".into()).into();
        let refused = outlast(&mut predecessor, u32::MAX, flows).unwrap_err();
        assert!(refused.contains("another process uses this flow table"), "{refused}");
        let pins = || SteeringError::InUse { path: "/pins".into() }.into();
        assert!(outlast(&mut predecessor, 1, pins).is_err(), "no time is left for another wait");
    }
}
