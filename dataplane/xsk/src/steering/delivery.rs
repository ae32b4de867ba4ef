//! What an interface delivers: whether large packets arrive whole.

use super::maps::QUEUES_PER_INTERFACE;
use super::{Steering, SteeringError};

/// What the program noted of an interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Delivery {
    /// Frames with less of an IP packet than its length says.
    pub truncated: u64,
    /// Bytes of the last of them.
    pub truncated_len: u32,
    /// Bytes of the longest frame with a whole packet, of those of 1000 bytes and more; 0 if there was none.
    pub longest_whole: u32,
}

impl Steering {
    /// What an interface has delivered since its sockets were opened, or since
    /// [`reset_delivery`](Self::reset_delivery).
    ///
    /// # Errors
    ///
    /// An interface that is not attached, or what the kernel says.
    pub fn delivery(&self, ifindex: u32) -> Result<Delivery, SteeringError> {
        self.maps.delivery(self.place(ifindex)?)
    }

    /// Begins anew to note what an interface delivers: in another mode it may deliver something else.
    ///
    /// # Errors
    ///
    /// As [`delivery`](Self::delivery).
    pub fn reset_delivery(&mut self, ifindex: u32) -> Result<(), SteeringError> {
        let place = self.place(ifindex)?;
        self.maps.reset_delivery(place)
    }

    /// The interface's place in the configuration.
    fn place(&self, ifindex: u32) -> Result<u32, SteeringError> {
        let known = self.sockets.bases().iter().find(|(known, _)| *known == ifindex);
        let (_, base) = known.ok_or(SteeringError::NoSlot { ifindex, queue: 0 })?;
        Ok(base / QUEUES_PER_INTERFACE)
    }
}
