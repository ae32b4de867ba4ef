//! What ethtool's ioctl says of a device: how many receive queues it has, the name of its driver, and whether it takes
//! VLAN tags off frames, which can be changed. (sysfs would show the devices of the namespace in which it was mounted.)
#![allow(unsafe_code, reason = "the ethtool ioctl has no safe wrapper")]

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

const SIOCETHTOOL: libc::Ioctl = 0x8946;
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_SFLAGS: u32 = 0x26;
const ETHTOOL_GCHANNELS: u32 = 0x3c;

const ETH_FLAG_RXVLAN: u32 = 1 << 8;

/// Receive queues in use. An error when the driver does not say.
pub(crate) fn rx_queue_count(interface: &str) -> io::Result<u32> {
    #[repr(C)]
    #[derive(Default)]
    struct Channels {
        cmd: u32,
        max: [u32; 4],
        rx: u32,
        tx: u32,
        other: u32,
        combined: u32,
    }
    let channels = Channels { cmd: ETHTOOL_GCHANNELS, ..Channels::default() };
    // SAFETY: a `struct ethtool_channels` of plain integers, which is what this command fills.
    let channels = unsafe { ask(interface, channels) }?;
    Ok((channels.rx + channels.combined).max(1))
}

/// The name of the device's driver. An error for devices that have none.
pub(crate) fn driver(interface: &str) -> io::Result<String> {
    #[repr(C)]
    struct DriverInfo {
        cmd: u32,
        driver: [u8; 32],
        version: [u8; 32],
        firmware: [u8; 32],
        bus: [u8; 32],
        rom: [u8; 32],
        reserved: [u8; 12],
        counts: [u32; 5],
    }
    let text = [0; 32];
    let info = DriverInfo {
        cmd: ETHTOOL_GDRVINFO,
        driver: text,
        version: text,
        firmware: text,
        bus: text,
        rom: text,
        reserved: [0; 12],
        counts: [0; 5],
    };
    // SAFETY: a `struct ethtool_drvinfo` of plain integers, which is what this command fills.
    let info = unsafe { ask(interface, info) }?;
    let len = info.driver.iter().position(|byte| *byte == 0).unwrap_or(info.driver.len());
    Ok(String::from_utf8_lossy(&info.driver[..len]).into_owned())
}

/// Whether the device takes VLAN tags off received frames and carries them beside (`rxvlan`).
pub(crate) fn has_rx_vlan_offload(interface: &str) -> io::Result<bool> {
    flags(interface, ETHTOOL_GFLAGS, 0).map(|flags| flags & ETH_FLAG_RXVLAN != 0)
}

/// Has the device leave VLAN tags in frames. A driver may do otherwise without an error.
pub(crate) fn disable_rx_vlan_offload(interface: &str) -> io::Result<()> {
    // All flags of the command are set at once: the others stay.
    let now = flags(interface, ETHTOOL_GFLAGS, 0)?;
    flags(interface, ETHTOOL_SFLAGS, now & !ETH_FLAG_RXVLAN).map(drop)
}

fn flags(interface: &str, cmd: u32, data: u32) -> io::Result<u32> {
    #[repr(C)]
    struct Value {
        cmd: u32,
        data: u32,
    }
    // SAFETY: a `struct ethtool_value` of plain integers, which is what both commands read or fill.
    unsafe { ask(interface, Value { cmd, data }) }.map(|value| value.data)
}

/// Has the kernel fill `question`.
///
/// # Safety
///
/// It is the complete struct that goes with the command in its first field, and any bytes are valid for it.
unsafe fn ask<T>(interface: &str, mut question: T) -> io::Result<T> {
    #[repr(C)]
    struct IfReq<T> {
        name: [u8; libc::IFNAMSIZ],
        data: *mut T,
        pad: [u8; 16],
    }
    if interface.len() >= libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut request = IfReq { name: [0; libc::IFNAMSIZ], data: &raw mut question, pad: [0; 16] };
    request.name[..interface.len()].copy_from_slice(interface.as_bytes());

    let any = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: `request` is a complete `struct ifreq` whose data pointer leads to a live struct of the kind that the
    // command fills, as the caller promises.
    let result = unsafe { libc::ioctl(any.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a live local that any bytes are valid for; read through the pointer that the kernel wrote through.
    Ok(unsafe { request.data.read_volatile() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_does_not_exist_has_no_driver() {
        assert_eq!(driver("nothing-here").unwrap_err().raw_os_error(), Some(libc::ENODEV));
        assert_eq!(driver("a-name-that-is-too-long").unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
