//! Where a device leaves the VLAN tags of frames that it receives. The steering program sees only those in the frame: one
//! that a device took off and carries beside it is lost on the way into an AF_XDP socket.

use std::io;

use crate::Driver;
use crate::sys::ethtool;

/// What became of the wish to have tags left in frames.
#[derive(Debug)]
pub enum Tags {
    /// The device leaves them there already.
    InFrames,
    /// It took them off until now.
    NowInFrames,
    /// The device decides nothing: the far end of a veth pair does, and where it puts tags beside frames they stay.
    FarEnd,
    /// It takes them off, and cannot be told otherwise.
    Beside(io::Error),
}

impl Tags {
    /// Has a device leave tags in frames, as far as it can.
    #[must_use]
    pub fn leave_in_frames(interface: &str) -> Self {
        let changed = match ethtool::takes_tags_off(interface) {
            Ok(true) => ethtool::leave_tags_in(interface).and_then(|()| ethtool::takes_tags_off(interface)),
            // One that does not say takes none off: the kernel answers for all drivers.
            Ok(false) | Err(_) => return Self::of_driver(interface, Self::InFrames),
        };
        match changed {
            Ok(false) => Self::of_driver(interface, Self::NowInFrames),
            Ok(true) => Self::Beside(io::Error::other("its driver turns that on again")),
            Err(error) => Self::Beside(error),
        }
    }

    /// The flag of a veth means nothing: its frames come from the far end's kernel as they are (`veth_xmit`).
    fn of_driver(interface: &str, otherwise: Self) -> Self {
        if Driver::of(interface).is_veth() { Self::FarEnd } else { otherwise }
    }
}
