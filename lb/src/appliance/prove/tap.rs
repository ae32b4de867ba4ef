//! A packet socket (packet(7)). It sees frames as the XDP program passed them to the kernel, before anything else: cut
//! packets are still cut, fragments are not reassembled, and no firewall has filtered them.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{LinkAddr, MsgFlags, recvfrom, sendto};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

/// An open socket that sees the echo replies with some identifiers.
#[derive(Debug)]
pub(super) struct Tap {
    socket: Socket,
}

impl Tap {
    /// Opens it for the identifiers from `first` to `last`.
    pub(super) fn open(first: u16, last: u16) -> io::Result<Self> {
        let all = Protocol::from(i32::from(ETH_P_ALL.to_be()));
        let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking(), Some(all))?;
        socket.attach_filter(&echo_replies(first, last))?;
        Ok(Self { socket })
    }

    /// The next frame and the ifindex of the device that received it; `None` if there is none within `limit`.
    pub(super) fn receive(&self, frame: &mut [u8], limit: Duration) -> io::Result<Option<(u32, usize)>> {
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        let mut watched = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        if poll(&mut watched, timeout)? == 0 {
            return Ok(None);
        }
        // A frame that arrived before the filter was attached is no reply to us, and is ignored later.
        match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), frame) {
            Ok((len, from)) => {
                let device = from.and_then(|from| u32::try_from(from.ifindex()).ok());
                Ok(device.map(|device| (device, len)))
            }
            // ENETDOWN: a device went down, which is no failure of the socket.
            Err(nix::Error::EAGAIN | nix::Error::ENETDOWN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends a frame by the kernel's ordinary way out of a device.
    pub(super) fn send(&self, device: &LinkAddr, frame: &[u8]) -> io::Result<()> {
        sendto(self.socket.as_raw_fd(), frame, device, MsgFlags::empty())?;
        Ok(())
    }
}

/// Flags and link-layer address of a device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    pub(super) address: LinkAddr,
    /// IFF_UP: administratively up.
    pub(super) is_up: bool,
    /// Also IFF_RUNNING: it has a carrier.
    pub(super) is_running: bool,
}

/// The device of this name, if it exists.
pub(super) fn link(interface: &str) -> Option<Link> {
    let all = getifaddrs().ok()?;
    all.filter(|entry| entry.interface_name == interface).find_map(|entry| {
        let address = *entry.address.as_ref()?.as_link_addr()?;
        let wanted = InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING;
        let is_up = entry.flags.contains(InterfaceFlags::IFF_UP);
        Some(Link { address, is_up, is_running: entry.flags.contains(wanted) })
    })
}

/// Accepts ICMP and ICMPv6 echo replies whose identifier is in the range (filter.rst: classic BPF).
fn echo_replies(first: u16, last: u16) -> [SockFilter; 18] {
    const LOAD_HALF: u16 = 0x28;
    const LOAD_BYTE: u16 = 0x30;
    const IS: u16 = 0x15;
    const IS_ABOVE: u16 = 0x25;
    const IS_FROM: u16 = 0x35;
    const GO: u16 = 0x05;
    const RETURN: u16 = 0x06;
    let step = SockFilter::new;
    [
        step(LOAD_HALF, 0, 0, 12),
        step(IS, 0, 6, 0x0800),
        step(LOAD_BYTE, 0, 0, 14 + 9),
        step(IS, 0, 13, 1),
        step(LOAD_BYTE, 0, 0, 14 + 20),
        step(IS, 0, 11, 0),
        step(LOAD_HALF, 0, 0, 14 + 20 + 4),
        step(GO, 0, 0, 6),
        step(IS, 0, 8, 0x86dd),
        step(LOAD_BYTE, 0, 0, 14 + 6),
        step(IS, 0, 6, 58),
        step(LOAD_BYTE, 0, 0, 14 + 40),
        step(IS, 0, 4, 129),
        step(LOAD_HALF, 0, 0, 14 + 40 + 4),
        step(IS_FROM, 0, 2, first.into()),
        step(IS_ABOVE, 1, 0, last.into()),
        step(RETURN, 0, 0, u32::MAX),
        step(RETURN, 0, 0, 0),
    ]
}

const ETH_P_ALL: u16 = 3;
