//! How much of a chunk a driver gives to one packet in zero copy. A longer packet arrives as several frames, none of which
//! is a whole packet, so chunks must be large enough for the driver's buffer and not only for the packet.
//!
//! Facts of Linux 6.18, by driver and function:
//! * igb: `igb_setup_srrctl`, igc: `igc_configure_rx_ring`: the buffer size goes into SRRCTL.BSIZEPKT in units of
//!   1024 bytes, rounded down.
//! * ixgbe: `ixgbe_configure_srrctl`: the same on the 82599; later chips have an exact limit (RXDCTL.RLPML), but the
//!   driver's name does not tell them apart. ixgbevf: the same register.
//! * i40e: `i40e_configure_rx_ring`, ice: `ice_setup_rx_ctx`: units of 128 bytes in the queue context, as in iavf
//!   and idpf, which are virtual functions of such hardware.
//! * `mlx5_core`: `mlx5e_xsk_alloc_rx_wqes_batched`: each descriptor carries the exact length.
//! * `virtio_net`: `virtnet_add_recvbuf_xsk`: the exact length as well, of which later kernels may reserve some 320 bytes for
//!   `skb_shared_info`: a chunk of 2048 would not hold 1500 bytes there, so it counts as coarse.
//! * veth, tun, bridge and other software devices: their drivers do not handle `XDP_SETUP_XSK_POOL`.

use std::fmt;

use crate::sys::ethtool;
use crate::umem::KERNEL_HEADROOM;

/// The driver of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Driver {
    name: Option<String>,
    rx_buffer: RxBuffer,
}

/// Length of the receive buffer in a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RxBuffer {
    /// The driver has no zero copy.
    NoZeroCopy,
    /// What the kernel leaves of the chunk, rounded down to a multiple of this many bytes.
    MultipleOf(u32),
}

/// By the name that `ETHTOOL_GDRVINFO` reports.
const DRIVERS: &[(&str, RxBuffer)] = &[
    // Sizes and sources: see the top of this file.
    ("igb", RxBuffer::MultipleOf(1024)),
    ("igc", RxBuffer::MultipleOf(1024)),
    ("ixgbe", RxBuffer::MultipleOf(1024)),
    ("ixgbevf", RxBuffer::MultipleOf(1024)),
    ("i40e", RxBuffer::MultipleOf(128)),
    ("ice", RxBuffer::MultipleOf(128)),
    ("iavf", RxBuffer::MultipleOf(128)),
    ("idpf", RxBuffer::MultipleOf(128)),
    ("mlx5_core", RxBuffer::MultipleOf(1)),
    ("virtio_net", RxBuffer::MultipleOf(1024)),
    // Software devices, which have no queue that a UMEM could be bound to.
    ("veth", RxBuffer::NoZeroCopy),
    ("tun", RxBuffer::NoZeroCopy),
    ("bridge", RxBuffer::NoZeroCopy),
    ("802.1Q VLAN Support", RxBuffer::NoZeroCopy),
    ("bonding", RxBuffer::NoZeroCopy),
    ("dummy", RxBuffer::NoZeroCopy),
    ("ipvlan", RxBuffer::NoZeroCopy),
    ("macvlan", RxBuffer::NoZeroCopy),
    ("team", RxBuffer::NoZeroCopy),
    ("vxlan", RxBuffer::NoZeroCopy),
];

/// For a driver that is not in the list: the coarsest unit. If that is wrong it costs memory, while a finer unit would cost packets.
const UNKNOWN: RxBuffer = RxBuffer::MultipleOf(1024);

impl Driver {
    /// The driver of the device with this name; an unknown one if there is none or the kernel does not name it.
    #[must_use]
    pub fn of(interface: &str) -> Self {
        ethtool::driver(interface).map_or(Self { name: None, rx_buffer: UNKNOWN }, Self::named)
    }

    /// The driver with this name.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        let name = name.into();
        let known = DRIVERS.iter().find(|(known, _)| *known == name);
        Self { rx_buffer: known.map_or(UNKNOWN, |(_, rx_buffer)| *rx_buffer), name: Some(name) }
    }

    /// Whether the device is one end of a veth pair.
    pub(crate) fn is_veth(&self) -> bool {
        self.name.as_deref() == Some("veth")
    }

    /// Why native XDP must not be chosen by default on this driver; `None` if nothing is known against it. Found on emulated
    /// devices with Linux 7.2.
    #[must_use]
    pub fn native_mode_defect(&self) -> Option<&'static str> {
        (self.name.as_deref() == Some("vmxnet3")).then_some(
            "in native mode vmxnet3 receives nothing any more once the interface was taken down and up, or its MTU was \
             changed",
        )
    }

    /// Bytes of the longest frame, from the Ethernet header on, that arrives whole in chunks of this length in zero copy;
    /// `None` if the driver has no zero copy.
    #[must_use]
    pub fn longest_frame(&self, chunk_len: u32) -> Option<u32> {
        match self.rx_buffer {
            RxBuffer::NoZeroCopy => None,
            RxBuffer::MultipleOf(unit) => {
                let room = chunk_len.saturating_sub(KERNEL_HEADROOM);
                // Rounded down, as the drivers do: 1792 of 2048 become 1024 in units of 1024.
                Some(room - room % unit)
            }
        }
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name.as_deref().unwrap_or("unknown"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_that_arrives_whole_is_as_long_as_its_driver_lets_it() {
        let longest = |name: &str| [2048, 4096].map(|chunk| Driver::named(name).longest_frame(chunk));
        assert_eq!(longest("igb"), [Some(1024), Some(3072)]);
        assert_eq!(longest("ice"), [Some(1792), Some(3840)]);
        assert_eq!(longest("mlx5_core"), [Some(1792), Some(3840)]);
        assert_eq!(longest("veth"), [None, None]);
        assert_eq!(longest("brand_new"), longest("igb"), "nobody knows how it rounds");
    }

    #[test]
    fn native_mode_is_left_to_be_asked_for_only_where_it_was_seen_to_fail() {
        assert!(Driver::named("vmxnet3").native_mode_defect().is_some());
        assert_eq!(Driver::named("igb").native_mode_defect(), None);
        assert_eq!(Driver::named("brand_new").native_mode_defect(), None);
    }

    #[test]
    fn what_the_kernel_does_not_name_is_unknown() {
        assert_eq!(Driver::of("nothing-here").to_string(), "unknown");
        assert_eq!(Driver::of("nothing-here").longest_frame(2048), Some(1024));
    }
}
