//! What xsk-rs lacks for an AF_XDP socket: its options, and wakeups that report the state of the link (xsk-rs discards
//! ENETDOWN).
#![allow(unsafe_code, reason = "socket options and wakeups on a raw AF_XDP descriptor")]

use std::ffi::c_int;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::{io, ptr};

use crate::{BusyPoll, XdpStatistics};

// <linux/if_xdp.h> since 6.17; not yet in libc.
const XDP_MAX_TX_SKB_BUDGET: c_int = 9;

/// True if the kernel bound the socket in zero-copy mode.
pub(crate) fn is_zero_copy(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let mut flags: u32 = 0;
    let mut len = size_of_u32();
    // SAFETY: `flags` and `len` are live locals; XDP_OPTIONS writes one `struct xdp_options`, which is a u32.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_XDP,
            libc::XDP_OPTIONS,
            (&raw mut flags).cast(),
            &raw mut len,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(flags & libc::XDP_OPTIONS_ZEROCOPY != 0) }
}

/// The kernel's counters of a socket.
pub(crate) fn statistics(socket: BorrowedFd<'_>) -> io::Result<XdpStatistics> {
    // `struct xdp_statistics` of <linux/if_xdp.h>, 48 bytes; kernels before 5.9 fill in the first three.
    const { assert!(size_of::<[u64; 6]>() == 48) };
    let mut counters = [0_u64; 6];
    let mut len: libc::socklen_t = 48;
    // SAFETY: `counters` and `len` are live locals, and the kernel writes at most `len` bytes.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_XDP,
            libc::XDP_STATISTICS,
            counters.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let [
        rx_dropped,
        rx_invalid_descs,
        tx_invalid_descs,
        rx_ring_full,
        rx_fill_ring_empty_descs,
        tx_ring_empty_descs,
    ] = counters;
    Ok(XdpStatistics {
        rx_dropped,
        rx_invalid_descs,
        tx_invalid_descs,
        rx_ring_full,
        rx_fill_ring_empty_descs,
        tx_ring_empty_descs,
    })
}

/// Lets one send call in copy mode take the whole ring instead of 32 packets. ENOPROTOOPT before Linux 6.17.
pub(crate) fn raise_tx_budget(socket: BorrowedFd<'_>, tx_ring_len: u32) -> io::Result<()> {
    set(socket, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, tx_ring_len)
}

/// Makes room for a full TX ring of packets in flight: copy mode charges each to the socket's send buffer, whose default is
/// enough for less than 300.
pub(crate) fn raise_send_buffer(socket: BorrowedFd<'_>, bytes: u32) -> io::Result<()> {
    // FORCE goes beyond net.core.wmem_max but needs CAP_NET_ADMIN in the initial user namespace.
    set(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, bytes)
        .or_else(|_| set(socket, libc::SOL_SOCKET, libc::SO_SNDBUF, bytes))
}

/// Turns on preferred busy polling. ENOPROTOOPT before Linux 5.11 and in kernels without CONFIG_NET_RX_BUSY_POLL.
pub(crate) fn set_busy_poll(socket: BorrowedFd<'_>, busy: BusyPoll) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_PREFER_BUSY_POLL, 1)?;
    set(socket, libc::SOL_SOCKET, libc::SO_BUSY_POLL, busy.microseconds)?;
    set(socket, libc::SOL_SOCKET, libc::SO_BUSY_POLL_BUDGET, u32::from(busy.budget))
}

/// Makes the kernel send what is in the TX ring.
#[inline]
pub(crate) fn kick_tx(socket: BorrowedFd<'_>) -> io::Result<()> {
    // Non-blocking is the only mode that AF_XDP has (net/xdp/xsk.c:__xsk_sendmsg): without the flag it is EOPNOTSUPP.
    // SAFETY: an empty send without an address: the kernel reads no memory of ours.
    let sent =
        unsafe { libc::sendto(socket.as_raw_fd(), ptr::null(), 0, libc::MSG_DONTWAIT, ptr::null(), 0) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes the driver look at the fill ring.
#[inline]
pub(crate) fn kick_rx(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: an empty receive without an address: the kernel writes no memory of ours.
    let received = unsafe {
        libc::recvfrom(
            socket.as_raw_fd(),
            ptr::null_mut(),
            0,
            libc::MSG_DONTWAIT,
            ptr::null_mut(),
            ptr::null_mut(),
        )
    };
    if received < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn set(socket: BorrowedFd<'_>, level: c_int, option: c_int, value: u32) -> io::Result<()> {
    // SAFETY: every option above takes a 32-bit integer; `value` lives through the call.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), size_of_u32())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn size_of_u32() -> libc::socklen_t {
    const { assert!(size_of::<u32>() == 4) };
    4
}
