//! Reads back from the kernel which XDP program a device runs and in which mode: one RTM_GETLINK. Only reads.

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

const NLMSG_HEADER_LEN: usize = 16;
const IFINFO_LEN: usize = 16;
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const IFLA_MTU: u16 = 4;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_PROG_ID: u16 = 4;
const IFLA_XDP_DRV_PROG_ID: u16 = 5;
const IFLA_XDP_SKB_PROG_ID: u16 = 6;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// A device's XDP programs by mode, as the kernel reports them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct DeviceXdp {
    pub(crate) native: Option<u32>,
    pub(crate) generic: Option<u32>,
    /// Any program, also one offloaded to the NIC.
    pub(crate) any: Option<u32>,
    pub(crate) rx_queues_allocated: u32,
    /// The largest IP packet, in bytes.
    pub(crate) mtu: u32,
}

/// Asks the kernel about one device of the calling thread's network namespace.
pub(crate) fn device_xdp(ifindex: u32) -> io::Result<DeviceXdp> {
    let route =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    send(route.as_raw_fd(), &request(ifindex), MsgFlags::empty())?;
    let mut answer = vec![0; 1 << 16];
    let len = recv(route.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    parse(&answer[..len])
}

fn request(ifindex: u32) -> [u8; NLMSG_HEADER_LEN + IFINFO_LEN] {
    const LEN: u32 = 32;
    let mut message = [0; LEN as usize];
    message[0..4].copy_from_slice(&LEN.to_ne_bytes());
    message[4..6].copy_from_slice(&RTM_GETLINK.to_ne_bytes());
    message[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    message[20..24].copy_from_slice(&ifindex.to_ne_bytes());
    message
}

fn parse(message: &[u8]) -> io::Result<DeviceXdp> {
    let short = || io::Error::new(io::ErrorKind::InvalidData, "netlink answer ends early");
    let kind = u16_at(message, 4).ok_or_else(short)?;
    if kind == NLMSG_ERROR {
        let errno = u32_at(message, NLMSG_HEADER_LEN).ok_or_else(short)?.cast_signed();
        return Err(io::Error::from_raw_os_error(errno.wrapping_neg()));
    }
    if kind != RTM_NEWLINK {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "netlink answered something else"));
    }
    let mut device = DeviceXdp::default();
    for (kind, value) in attributes(message.get(NLMSG_HEADER_LEN + IFINFO_LEN..).ok_or_else(short)?) {
        match kind {
            IFLA_MTU => device.mtu = u32_at(value, 0).ok_or_else(short)?,
            IFLA_NUM_RX_QUEUES => device.rx_queues_allocated = u32_at(value, 0).ok_or_else(short)?,
            IFLA_XDP => {
                for (kind, value) in attributes(value) {
                    match kind {
                        IFLA_XDP_PROG_ID => device.any = u32_at(value, 0),
                        IFLA_XDP_DRV_PROG_ID => device.native = u32_at(value, 0),
                        IFLA_XDP_SKB_PROG_ID => device.generic = u32_at(value, 0),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    // With programs in two modes the kernel leaves IFLA_XDP_PROG_ID out.
    device.any = device.any.or(device.native).or(device.generic);
    Ok(device)
}

fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & NLA_TYPE_MASK;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_answer_becomes_its_errno() {
        let mut message = [0; 20];
        message[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        message[16..20].copy_from_slice(&(-libc::ENODEV).to_ne_bytes());
        assert_eq!(parse(&message).unwrap_err().raw_os_error(), Some(libc::ENODEV));
    }

    #[test]
    fn a_truncated_answer_is_an_error_not_a_panic() {
        let mut message = [0; 60];
        message[4..6].copy_from_slice(&RTM_NEWLINK.to_ne_bytes());
        for len in 0..32 {
            assert!(parse(&message[..len]).is_err(), "{len} bytes");
        }
        message[32..34].copy_from_slice(&u16::MAX.to_ne_bytes());
        assert_eq!(parse(&message).unwrap(), DeviceXdp::default());
    }

    #[test]
    fn the_loopback_device_runs_no_program() {
        let device = device_xdp(1).unwrap();
        assert_eq!((device.any, device.native, device.generic), (None, None, None));
        assert!(device.rx_queues_allocated >= 1);
        assert!(device.mtu >= 68, "every device of the Internet carries that (RFC 791): {device:?}");
    }
}
