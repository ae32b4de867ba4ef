//! Turns off the RX VLAN offload (`rxvlan`) of devices. With it a device takes the VLAN tag off a frame and passes it on
//! in the packet's metadata, which the XDP program cannot read and AF_XDP does not carry: the VLAN would be lost.

use std::io;

use crate::Driver;
use crate::sys::ethtool;

/// State of a device's RX VLAN offload after [`turn_off`](Self::turn_off).
#[derive(Debug)]
pub enum RxVlanOffload {
    /// It was off already.
    Off,
    /// It was on and is off now.
    TurnedOff,
    /// A veth has no offload of its own: the TX VLAN offload of its peer decides, and leaving tags in frames has to be
    /// configured there.
    PeerDecides,
    /// It is on and cannot be turned off.
    Fixed(io::Error),
}

impl RxVlanOffload {
    /// Turns off the RX VLAN offload of a device, and reports what came of it.
    #[must_use]
    pub fn turn_off(interface: &str) -> Self {
        let still_on = match ethtool::has_rx_vlan_offload(interface) {
            // Read back: a driver may accept the new flags and set the bit again (ndo_fix_features).
            Ok(true) => ethtool::disable_rx_vlan_offload(interface)
                .and_then(|()| ethtool::has_rx_vlan_offload(interface)),
            // The kernel answers ETHTOOL_GFLAGS for all drivers, so an error means that there is no such offload.
            Ok(false) | Err(_) => return Self::of_driver(interface, Self::Off),
        };
        match still_on {
            Ok(false) => Self::of_driver(interface, Self::TurnedOff),
            Ok(true) => Self::Fixed(io::Error::other("its driver turns that on again")),
            Err(error) => Self::Fixed(error),
        }
    }

    fn of_driver(interface: &str, otherwise: Self) -> Self {
        // veth hands the peer's sk_buff over as it is, with a tag beside the frame if the peer put it there
        // (drivers/net/veth.c:veth_xmit): the flag of the receiving end has no effect.
        if Driver::of(interface).is_veth() { Self::PeerDecides } else { otherwise }
    }
}
