//! Ctrl-C and SIGTERM as a [`Stop`], so that the lab can take itself down in order.

use std::thread;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::clock;
use crate::error::{Error, Result};
use crate::loadgen::stop::Stop;

/// Listens for signals until the process ends. A second signal exits at once; the kernel then kills the children (see
/// [`guarded`](crate::netns::guarded)).
pub fn listen() -> Result<Stop> {
    let stop = Stop::default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(Error::io("make the runtime of the signal listener"))?;
    let (mut interrupt, mut terminate) = {
        let _context = runtime.enter();
        let interrupt = signal(SignalKind::interrupt()).map_err(Error::io("listen for SIGINT"))?;
        (interrupt, signal(SignalKind::terminate()).map_err(Error::io("listen for SIGTERM"))?)
    };
    let listener = stop.clone();
    thread::spawn(move || {
        runtime.block_on(async move {
            for signals in 1.. {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if signals > 1 {
                    #[expect(clippy::exit, reason = "the user does not want to wait for the clean-up")]
                    std::process::exit(130);
                }
                listener.stop();
            }
        });
    });
    Ok(stop)
}

/// Sleeps; a stop ends it early with an error.
pub(super) fn sleep(stop: &Stop, duration: Duration) -> Result<()> {
    let deadline = clock::now() + duration;
    loop {
        check(stop)?;
        let left = deadline.saturating_duration_since(clock::now());
        if left.is_zero() {
            return Ok(());
        }
        thread::sleep(left.min(Duration::from_millis(20)));
    }
}

/// [`Error::Interrupted`] after a stop.
pub(crate) fn check(stop: &Stop) -> Result<()> {
    if stop.is_stopped() { Err(Error::Interrupted) } else { Ok(()) }
}
