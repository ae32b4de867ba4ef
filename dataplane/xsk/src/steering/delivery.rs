//! Whether an interface delivers large packets whole: see `struct delivery` in bpf/maps.h.

use super::sockets::InterfaceSlots;
use super::{Steering, SteeringError};

/// What the program recorded of an interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Delivery {
    /// Number of frames that end before the IP packet in them.
    pub truncated: u64,
    /// Bytes of the last of them.
    pub truncated_len: u32,
    /// Bytes of the longest frame with a whole packet, from 1000 bytes on; 0 if there was none.
    pub longest_whole: u32,
}

impl Delivery {
    /// From a `struct delivery` of bpf/maps.h.
    pub(super) fn from_bytes(bytes: [u8; 16]) -> Self {
        let [truncated, lengths] = *bytes.as_chunks::<8>().0 else {
            unreachable!("16 bytes are two times 8")
        };
        let [l0, l1, l2, l3, w0, w1, w2, w3] = lengths;
        Self {
            truncated: u64::from_ne_bytes(truncated),
            truncated_len: u32::from_ne_bytes([l0, l1, l2, l3]),
            longest_whole: u32::from_ne_bytes([w0, w1, w2, w3]),
        }
    }
}

impl Steering {
    /// What an interface has delivered since the map was created or [`reset_delivery`](Self::reset_delivery) was called.
    ///
    /// # Errors
    ///
    /// An interface that is not attached, or those of the kernel.
    pub fn delivery(&self, ifindex: u32) -> Result<Delivery, SteeringError> {
        self.maps.delivery(self.slots_of(ifindex)?)
    }

    /// Starts the record of an interface anew, for example because it is in another mode.
    ///
    /// # Errors
    ///
    /// As [`delivery`](Self::delivery).
    pub fn reset_delivery(&mut self, ifindex: u32) -> Result<(), SteeringError> {
        let interface = self.slots_of(ifindex)?;
        self.maps.reset_delivery(interface)
    }

    fn slots_of(&self, ifindex: u32) -> Result<InterfaceSlots, SteeringError> {
        self.sockets.interface(ifindex).ok_or(SteeringError::NoSlot { ifindex, queue: 0 })
    }
}
