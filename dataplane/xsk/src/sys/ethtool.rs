//! How many receive queues a device has, by ethtool ioctl. (sysfs would show the devices of the namespace in which
//! it was mounted.)
#![allow(unsafe_code, reason = "the ethtool ioctl has no safe wrapper")]

use std::{io, os::fd::AsRawFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

const SIOCETHTOOL: libc::Ioctl = 0x8946;
const ETHTOOL_GCHANNELS: u32 = 0x3c;

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
    #[repr(C)]
    struct IfReq {
        name: [u8; libc::IFNAMSIZ],
        data: *mut Channels,
        pad: [u8; 16],
    }
    if interface.len() >= libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut channels = Channels { cmd: ETHTOOL_GCHANNELS, ..Channels::default() };
    let mut request = IfReq { name: [0; libc::IFNAMSIZ], data: &raw mut channels, pad: [0; 16] };
    request.name[..interface.len()].copy_from_slice(interface.as_bytes());

    let any = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: `request` is a complete `struct ifreq` whose data pointer leads to a live `struct ethtool_channels`,
    // which is what ETHTOOL_GCHANNELS fills.
    let result = unsafe { libc::ioctl(any.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a live local of plain integers; read through the pointer that the kernel wrote through.
    let channels = unsafe { request.data.read_volatile() };
    Ok((channels.rx + channels.combined).max(1))
}
