//! The system calls of an AF_XDP socket: its options, its rings, binding, and wakeups.
//!
//! Not by libxdp, which binds every further socket of a packet memory by the descriptor of the first one. The kernel refuses
//! that as soon as the first one's device is gone, and that socket stays open until the memory is freed: no interface could
//! come and go without the others.
#![allow(unsafe_code, reason = "socket options, mappings and wakeups on a raw AF_XDP descriptor")]

use std::ffi::{c_int, c_void};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;
use std::{io, ptr};

use crate::{BusyPoll, XdpStatistics};

// <linux/if_xdp.h> since 6.17; not yet in libc.
const XDP_MAX_TX_SKB_BUDGET: c_int = 9;

/// An AF_XDP socket that is not bound.
pub(crate) fn open() -> io::Result<OwnedFd> {
    // SAFETY: a system call without pointers.
    let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Registers packet memory with a socket: `len` bytes from `base`, in chunks.
pub(crate) fn register_memory(
    socket: BorrowedFd<'_>,
    (base, len): (NonNull<u8>, usize),
    chunk_len: u32,
    headroom: u32,
) -> io::Result<()> {
    let memory = libc::xdp_umem_reg {
        // The kernel takes an address as an integer and writes by it.
        addr: base.as_ptr().expose_provenance() as u64,
        len: len as u64,
        chunk_size: chunk_len,
        headroom,
        flags: 0,
        tx_metadata_len: 0,
    };
    set_option(socket, libc::SOL_XDP, libc::XDP_UMEM_REG, &memory)
}

/// Gives a socket a ring of so many entries; `option` is one of XDP_RX_RING, XDP_TX_RING, XDP_UMEM_FILL_RING and
/// XDP_UMEM_COMPLETION_RING.
pub(crate) fn create_ring(socket: BorrowedFd<'_>, option: c_int, len: u32) -> io::Result<()> {
    set(socket, libc::SOL_XDP, option, len)
}

/// Where indexes, flags and entries lie in the mapping of a ring, in bytes.
pub(crate) type RingOffsets = libc::xdp_ring_offset;

/// The offsets of all four rings.
pub(crate) fn ring_offsets(socket: BorrowedFd<'_>) -> io::Result<libc::xdp_mmap_offsets> {
    let none = || libc::xdp_ring_offset { producer: 0, consumer: 0, desc: 0, flags: 0 };
    let mut offsets = libc::xdp_mmap_offsets { rx: none(), tx: none(), fr: none(), cr: none() };
    read_option(socket, libc::XDP_MMAP_OFFSETS, &mut offsets)?;
    Ok(offsets)
}

/// Binds a socket to a queue. With `shared` it uses the memory of that bound socket, in the same mode, and `flags` are empty.
pub(crate) fn bind(
    socket: BorrowedFd<'_>,
    (ifindex, queue): (u32, u32),
    flags: u16,
    shared: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let shared_flag = if shared.is_some() { libc::XDP_SHARED_UMEM } else { 0 };
    let address = libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP.try_into().unwrap_or_default(),
        sxdp_flags: flags | shared_flag,
        sxdp_ifindex: ifindex,
        sxdp_queue_id: queue,
        sxdp_shared_umem_fd: shared.map_or(0, |fd| fd.as_raw_fd().cast_unsigned()),
    };
    const { assert!(size_of::<libc::sockaddr_xdp>() == 16) };
    // SAFETY: `address` is a live local of the length that is passed.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), 16) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The mapping of one ring. The socket is released only when its rings are unmapped as well.
pub(crate) struct RingMemory {
    base: NonNull<u8>,
    len: usize,
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    entries: NonNull<u8>,
}

// SAFETY: a mapping belongs to no thread, and everything in it is reached by atomics or by its ring's one owner.
unsafe impl Send for RingMemory {}
// SAFETY: as above; a shared ring reads only its flags.
unsafe impl Sync for RingMemory {}

impl RingMemory {
    /// Maps the ring at `page_offset`, with `entry_bytes` of entries.
    pub(crate) fn map(
        socket: BorrowedFd<'_>,
        page_offset: libc::off_t,
        offsets: RingOffsets,
        entry_bytes: usize,
    ) -> io::Result<Self> {
        let offset = |of: u64| usize::try_from(of).map_err(io::Error::other);
        let len = offset(offsets.desc)? + entry_bytes;
        let base = map(len, libc::MAP_SHARED | libc::MAP_POPULATE, Some((socket, page_offset)))?;
        let at = |of: u64| -> io::Result<NonNull<u8>> {
            let offset = offset(of)?;
            debug_assert!(offset < len);
            // SAFETY: the kernel says where in the mapping, whose length follows from its own offsets.
            Ok(unsafe { base.add(offset) })
        };
        let producer = at(offsets.producer)?.cast();
        let consumer = at(offsets.consumer)?.cast();
        let flags = at(offsets.flags)?.cast();
        Ok(Self { base, len, producer, consumer, flags, entries: at(offsets.desc)? })
    }

    #[inline]
    pub(crate) fn producer(&self) -> NonNull<AtomicU32> {
        self.producer
    }

    #[inline]
    pub(crate) fn consumer(&self) -> NonNull<AtomicU32> {
        self.consumer
    }

    #[inline]
    pub(crate) fn flags(&self) -> NonNull<AtomicU32> {
        self.flags
    }

    #[inline]
    pub(crate) fn entries(&self) -> NonNull<u8> {
        self.entries
    }
}

impl Drop for RingMemory {
    fn drop(&mut self) {
        unmap(self.base, self.len);
    }
}

/// Maps packet memory, populated, in pages or huge pages.
pub(crate) fn map_memory(len: usize, huge_pages: bool) -> io::Result<NonNull<u8>> {
    let huge = if huge_pages { libc::MAP_HUGETLB } else { 0 };
    map(len, libc::MAP_ANONYMOUS | libc::MAP_SHARED | libc::MAP_POPULATE | huge, None)
}

fn map(len: usize, flags: c_int, file: Option<(BorrowedFd<'_>, libc::off_t)>) -> io::Result<NonNull<u8>> {
    let (fd, offset) = file.map_or((-1, 0), |(fd, offset)| (fd.as_raw_fd(), offset));
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice changes no memory of ours.
    let base = unsafe { libc::mmap(ptr::null_mut(), len, access, flags, fd, offset) };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mmap returned page zero"))
}

/// Unmaps what [`map_memory`] or a ring has mapped; the caller refers to it no more.
pub(crate) fn unmap(base: NonNull<u8>, len: usize) {
    // SAFETY: only the owners of mappings call this, once, when they are dropped.
    let result = unsafe { libc::munmap(base.as_ptr().cast::<c_void>(), len) };
    debug_assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// Waits until nothing in the kernel refers to what was taken out of a BPF map before: an RCU grace period.
pub(crate) fn wait_for_readers() {
    // With nohz_full the kernel refuses this; then the time that a NAPI poll can take at most, many times over.
    const GRACE: std::time::Duration = std::time::Duration::from_millis(20);
    const MEMBARRIER_CMD_GLOBAL: libc::c_long = 1;
    // SAFETY: a system call without pointers (kernel/sched/membarrier.c: MEMBARRIER_CMD_GLOBAL is synchronize_rcu).
    if unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) } != 0 {
        std::thread::sleep(GRACE);
    }
}

/// True if the kernel bound the socket in zero-copy mode.
pub(crate) fn is_zero_copy(socket: BorrowedFd<'_>) -> io::Result<bool> {
    // `struct xdp_options` of <linux/if_xdp.h> is a u32.
    let mut flags: u32 = 0;
    read_option(socket, libc::XDP_OPTIONS, &mut flags)?;
    Ok(flags & libc::XDP_OPTIONS_ZEROCOPY != 0)
}

/// The kernel's counters of a socket.
pub(crate) fn statistics(socket: BorrowedFd<'_>) -> io::Result<XdpStatistics> {
    // `struct xdp_statistics` of <linux/if_xdp.h>, 48 bytes; kernels before 5.9 fill in the first three.
    const { assert!(size_of::<[u64; 6]>() == 48) };
    let mut counters = [0_u64; 6];
    read_option(socket, libc::XDP_STATISTICS, &mut counters)?;
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
    set_option(socket, level, option, &value)
}

/// `T` is what the option takes: a 32-bit integer or one structure.
fn set_option<T>(socket: BorrowedFd<'_>, level: c_int, option: c_int, value: &T) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `len` bytes, all of which are of `value`, which lives through the call.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, ptr::from_ref(value).cast(), len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `T` is what the option of SOL_XDP writes: integers or a structure of them, for which every value of the bytes is valid.
fn read_option<T: Copy>(socket: BorrowedFd<'_>, option: c_int, value: &mut T) -> io::Result<()> {
    let mut len = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `len` bytes, all of which are of `value`.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_XDP, option, ptr::from_mut(value).cast(), &raw mut len)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
