//! Pins that are lost while the process runs: somebody emptied the bpffs, or unmounted it. Link, program and maps live on as
//! long as this process refers to them, and would end with it. So they are pinned again.

use std::os::fd::AsFd as _;

use super::{Steering, SteeringError};
use crate::sys::bpf;

impl Steering {
    /// Pins again what has lost its pin; returns the names. To be called from time to time.
    ///
    /// # Errors
    ///
    /// The directory cannot be made again, or a pin in it. When this process ends the program is detached, unless a later
    /// call succeeds.
    pub fn mend_pins(&self) -> Result<Vec<String>, SteeringError> {
        self.pins.restore()?;
        let present = self.pins.names()?;
        let mut missing = self.maps.handles();
        for program in &self.programs {
            missing.push((&program.pin, program.xdp.fd()?.as_fd()));
        }
        // Last: with the links, everything is found.
        missing.extend(self.links.iter().flatten().map(|link| (link.pin.as_str(), link.fd())));
        missing.retain(|(name, _)| !present.iter().any(|pin| pin == name));
        for (name, object) in &missing {
            let path = self.pins.file(name);
            bpf::pin(*object, &path).map_err(|source| SteeringError::PinDir { path, source })?;
        }
        Ok(missing.into_iter().map(|(name, _)| name.to_owned()).collect())
    }
}
