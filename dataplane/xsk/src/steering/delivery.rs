//! What an interface delivers: whether large packets arrive whole.

use super::sockets::InterfaceSlots;
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
    /// What an interface has delivered since its sockets were opened, or since
    /// [`reset_delivery`](Self::reset_delivery).
    ///
    /// # Errors
    ///
    /// An interface that is not attached, or what the kernel says.
    pub fn delivery(&self, ifindex: u32) -> Result<Delivery, SteeringError> {
        self.maps.delivery(self.slots_of(ifindex)?)
    }

    /// Begins anew to note what an interface delivers: in another mode it may deliver something else.
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
