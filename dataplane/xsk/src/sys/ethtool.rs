//! ethtool's ioctl: a device's receive queues, its driver, and its RX VLAN offload. Not read from sysfs, which shows the
//! devices of the network namespace in which it was mounted.
#![allow(unsafe_code, reason = "the ethtool ioctl has no safe wrapper")]

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

// <linux/sockios.h> and <linux/ethtool.h>
const SIOCETHTOOL: libc::Ioctl = 0x8946;
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_SFLAGS: u32 = 0x26;
const ETHTOOL_GCHANNELS: u32 = 0x3c;

const ETH_FLAG_RXVLAN: u32 = 1 << 8;

/// Number of receive queues in use. An error if the driver has no channels to report.
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
    let channels = unsafe { ioctl(interface, channels) }?;
    // A driver has separate queues or combined ones; some report none of both for their only one.
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
    let info = unsafe { ioctl(interface, info) }?;
    let len = info.driver.iter().position(|byte| *byte == 0).unwrap_or(info.driver.len());
    Ok(String::from_utf8_lossy(&info.driver[..len]).into_owned())
}

/// Whether the device moves VLAN tags of received frames into the packet's metadata (`rxvlan`).
pub(crate) fn has_rx_vlan_offload(interface: &str) -> io::Result<bool> {
    flags(interface, ETHTOOL_GFLAGS, 0).map(|flags| flags & ETH_FLAG_RXVLAN != 0)
}

/// Makes the device leave VLAN tags in frames. A driver can ignore that without an error: read it back.
pub(crate) fn disable_rx_vlan_offload(interface: &str) -> io::Result<()> {
    // The command sets all of its flags at once, so the others are passed as they are.
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
    unsafe { ioctl(interface, Value { cmd, data }) }.map(|value| value.data)
}

/// Runs the command in the first field of `value`, and returns `value` as the kernel filled it.
///
/// # Safety
///
/// `value` is the complete struct of that command, and any bytes are valid for its type.
unsafe fn ioctl<T>(interface: &str, mut value: T) -> io::Result<T> {
    #[repr(C)]
    struct IfReq<T> {
        name: [u8; libc::IFNAMSIZ],
        data: *mut T,
        pad: [u8; 16],
    }
    if interface.len() >= libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut request = IfReq { name: [0; libc::IFNAMSIZ], data: &raw mut value, pad: [0; 16] };
    request.name[..interface.len()].copy_from_slice(interface.as_bytes());

    // The ioctl goes to the device that is named; any socket of the namespace will do.
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
