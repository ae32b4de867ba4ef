//! Holding what is ours while no socket is there, so that no kernel stack answers in Flowgate's place.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::{Steering, SteeringError};

impl Steering {
    /// From now on for this long, the program drops what is ours where no socket is in the slot, instead of passing it
    /// to the kernel. Everything else passes as ever. Zero ends it at once.
    ///
    /// It outlives this process, like the program: call it again and again while all is well, and the last call bounds
    /// how long nobody is served after a death. It counts for every interface.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn set_grace_period(&mut self, time: Duration) -> Result<(), SteeringError> {
        // The clock of bpf_ktime_get_ns(), which is what the program compares with.
        let now =
            clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).map_err(SteeringError::Clock)?;
        let until = if time.is_zero() { Duration::ZERO } else { now.saturating_add(time) };
        self.maps.set_grace_deadline(u64::try_from(until.as_nanos()).unwrap_or(u64::MAX))
    }
}
