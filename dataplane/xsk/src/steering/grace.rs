//! The grace period: while a successor process starts, packets of Flowgate are dropped instead of passed to the kernel,
//! which would answer them with resets.

use std::time::Duration;

use super::{Steering, SteeringError};
use crate::host_monotonic;

impl Steering {
    /// For this time from now on, the program drops packets of Flowgate if their slot has no socket, instead of passing them
    /// to the kernel. Other packets pass. Zero ends the grace period. It is the same for all interfaces.
    ///
    /// The end is stored in a map that outlives this process. So call this repeatedly while all is well; after a crash, the
    /// last call bounds the time for which nobody is served.
    ///
    /// # Errors
    ///
    /// Those of the kernel.
    pub fn set_grace_period(&mut self, time: Duration) -> Result<(), SteeringError> {
        let now = host_monotonic().map_err(SteeringError::Clock)?;
        let until = if time.is_zero() { Duration::ZERO } else { now.saturating_add(time) };
        self.maps.set_grace_deadline(u64::try_from(until.as_nanos()).unwrap_or(u64::MAX))
    }
}
