//! Packet memory and socket configuration, and binding. Used at start-up and when sockets are opened again, not on the packet
//! path.
//!
//! The kernel's UMEM is a registration of memory with a socket. The sockets of one interface share one registration; each
//! interface registers the same memory for itself. So a frame that one interface has received is sent by another without a
//! copy, and yet no interface needs the sockets of another.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::time::Duration;
use std::{io, thread};

use nix::net::if_::if_nametoindex;

use crate::region::Region;
use crate::ring::{Descriptor, Ring};
use crate::sys::xdp_socket;

/// Bytes at the start of each chunk that the kernel reserves (XDP_PACKET_HEADROOM).
pub const KERNEL_HEADROOM: u32 = 256;

const HUGE_PAGE_LEN: u64 = 2 << 20;
// 5 ms doubled up to 500 ms, 11 times: about 3 s.
const BIND_ATTEMPTS: u32 = 12;
const FIRST_BIND_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_BIND_PAUSE: Duration = Duration::from_millis(500);

/// The packet memory of one worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UmemConfig {
    /// Number of chunks; [`UmemConfig::frames_for`] is enough for a set of sockets.
    pub frame_count: u32,
    /// Bytes per chunk: 2048 (frames up to 1792 bytes) or 4096 (up to 3840).
    pub chunk_len: u32,
    /// Bytes left free at the start of each chunk, in front of the 256 that the kernel reserves.
    pub headroom: u32,
    /// Whether the memory is made of huge pages, which the host must have reserved.
    pub huge_pages: bool,
}

impl UmemConfig {
    /// Number of chunks with which none of these sockets ever has to wait for memory.
    #[must_use]
    pub fn frames_for(sockets: &[XskSocketConfig]) -> u32 {
        const IN_HAND: u32 = 256; // a few bursts between an rx and a tx ring
        sockets.iter().fold(IN_HAND, |sum, socket| {
            sum.saturating_add(socket.fill_ring_len).saturating_add(socket.tx_ring_len)
        })
    }
}

impl Default for UmemConfig {
    fn default() -> Self {
        Self { frame_count: 8192, chunk_len: 2048, headroom: 0, huge_pages: false }
    }
}

/// Whether the NIC accesses a socket's memory directly.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ZeroCopy {
    /// Zero copy if every socket of the pool can, otherwise copy.
    #[default]
    Auto,
    /// Zero copy or an error.
    Force,
    /// Copy mode.
    Off,
}

/// The mode in which the kernel bound a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BindMode {
    /// The NIC reads and writes the packet memory itself.
    ZeroCopy,
    /// The kernel copies every packet.
    Copy,
}

impl BindMode {
    /// `zero-copy` or `copy`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ZeroCopy => "zero-copy",
            Self::Copy => "copy",
        }
    }
}

/// Preferred busy polling: the worker's system calls drive the queue instead of interrupts. It only takes effect if the
/// device's `napi_defer_hard_irqs` and `gro_flush_timeout` are set as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BusyPoll {
    /// Time for which one call may spin.
    pub microseconds: u32,
    /// Packets that one call may process.
    pub budget: u16,
}

/// One socket: an interface's queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XskSocketConfig {
    /// The device's name.
    pub interface: String,
    /// Number of its receive and transmit queue.
    pub queue: u32,
    /// Received packets that can wait for the worker.
    pub rx_ring_len: u32,
    /// Packets that can wait for the device.
    pub tx_ring_len: u32,
    /// Chunks that this socket gives to the kernel for receiving: at least the rx ring plus the NIC's own ring.
    pub fill_ring_len: u32,
    /// Sent chunks that can wait to be reaped: at least the tx ring.
    pub completion_ring_len: u32,
    /// Zero copy or not. One memory has one mode: `Off` on any socket of a pool means copy mode for all.
    pub zero_copy: ZeroCopy,
    /// Preferred busy polling; `None`: interrupts.
    pub busy_poll: Option<BusyPoll>,
}

impl XskSocketConfig {
    /// A socket with rings of 2048 entries (fill ring: 4096) and [`ZeroCopy::Auto`].
    pub fn new(interface: impl Into<String>, queue: u32) -> Self {
        Self {
            interface: interface.into(),
            queue,
            rx_ring_len: 2048,
            tx_ring_len: 2048,
            fill_ring_len: 4096,
            completion_ring_len: 2048,
            zero_copy: ZeroCopy::Auto,
            busy_poll: None,
        }
    }
}

/// Why packet memory or a socket could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum XskError {
    /// The configuration contradicts itself or the kernel's limits.
    #[error("{0}")]
    Config(String),
    /// The memory could not be mapped or registered.
    #[error("cannot set up {bytes} bytes of packet memory: {source}{hint}")]
    Umem {
        /// Size of the memory.
        bytes: u64,
        /// The kernel's answer.
        source: io::Error,
        /// What usually helps.
        hint: &'static str,
    },
    /// A socket could not be bound to its queue.
    #[error("cannot bind an AF_XDP socket to {interface} queue {queue} ({mode}): {source}{hint}")]
    Bind {
        /// The device.
        interface: String,
        /// The queue.
        queue: u32,
        /// `zero-copy` or `copy`.
        mode: &'static str,
        /// The kernel's answer.
        source: io::Error,
        /// What usually helps.
        hint: &'static str,
    },
    /// A bound socket refused an option.
    #[error("cannot set up the socket on {interface} queue {queue}: {source}")]
    Socket {
        /// The device.
        interface: String,
        /// The queue.
        queue: u32,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// The four rings of one bound socket, and its descriptor.
pub(crate) struct Rings {
    pub(crate) tx: Ring<Descriptor>,
    pub(crate) rx: Ring<Descriptor>,
    pub(crate) fill: Ring<u64>,
    pub(crate) completion: Ring<u64>,
    pub(crate) fd: OwnedFd,
}

/// Rejects configurations that the kernel would reject later with EINVAL and no reason.
pub(crate) fn check(umem: &UmemConfig, sockets: &[XskSocketConfig]) -> Result<(), XskError> {
    let fail = |text: String| Err(XskError::Config(text));
    check_sockets(sockets)?;
    // Aligned chunks are a power of two from 2048 to the page size (net/xdp/xdp_umem.c:xdp_umem_reg), also in huge pages.
    if !matches!(umem.chunk_len, 2048 | 4096) {
        return fail(format!("chunk_len {}: only 2048 and 4096 exist", umem.chunk_len));
    }
    if umem.headroom + KERNEL_HEADROOM >= umem.chunk_len {
        return fail(format!("headroom {} leaves no room in chunks of {}", umem.headroom, umem.chunk_len));
    }
    let least = sockets.iter().fold(64_u64, |sum, socket| sum + u64::from(socket.fill_ring_len));
    if u64::from(umem.frame_count) < least {
        return fail(format!(
            "frame_count {}: the fill rings alone take {least}; {} serve every ring",
            umem.frame_count,
            UmemConfig::frames_for(sockets)
        ));
    }
    Ok(())
}

/// Rejects sockets that the kernel would reject later with EINVAL and no reason.
pub(crate) fn check_sockets(sockets: &[XskSocketConfig]) -> Result<(), XskError> {
    let fail = |text: String| Err(XskError::Config(text));
    for (at, socket) in sockets.iter().enumerate() {
        let is_same =
            |other: &&XskSocketConfig| (&other.interface, other.queue) == (&socket.interface, socket.queue);
        if sockets[..at].iter().find(is_same).is_some() {
            return fail(format!("{} queue {} appears twice in one pool", socket.interface, socket.queue));
        }
        for (name, len) in [
            ("rx_ring_len", socket.rx_ring_len),
            ("tx_ring_len", socket.tx_ring_len),
            ("fill_ring_len", socket.fill_ring_len),
            ("completion_ring_len", socket.completion_ring_len),
        ] {
            // The kernel wants a power of two (net/xdp/xsk.c:xsk_init_queue), and a burst of 64 has to fit.
            if !len.is_power_of_two() || len < 64 {
                return fail(format!("{}: {name} {len} is not a power of two from 64 on", socket.interface));
            }
        }
    }
    let force = sockets.iter().find(|socket| socket.zero_copy == ZeroCopy::Force);
    let off = sockets.iter().find(|socket| socket.zero_copy == ZeroCopy::Off);
    if let (Some(force), Some(off)) = (force, off) {
        return fail(format!(
            "one packet memory has one mode: {} asks for zero copy and {} for none",
            force.interface, off.interface
        ));
    }
    Ok(())
}

/// Maps the memory: where it is, and how many bytes.
pub(crate) fn map(config: &UmemConfig) -> Result<(NonNull<u8>, usize), XskError> {
    let mut bytes = u64::from(config.frame_count) * u64::from(config.chunk_len);
    if config.huge_pages {
        // munmap fails for a length that ends inside a huge page.
        bytes = bytes.next_multiple_of(HUGE_PAGE_LEN);
    }
    let len = usize::try_from(bytes)
        .map_err(|_error| XskError::Config(format!("frame_count {} is too large", config.frame_count)))?;
    let base = xdp_socket::map_memory(len, config.huge_pages).map_err(|source| {
        let hint = match source.raw_os_error() {
            Some(libc::ENOMEM) if config.huge_pages => " (reserve huge pages: sysctl vm.nr_hugepages)",
            _ => "",
        };
        XskError::Umem { bytes, source, hint }
    })?;
    Ok((base, len))
}

/// Opens and binds one socket. It shares the registration of `shared`, a bound socket of the same interface, or registers
/// the memory itself.
pub(crate) fn open(
    region: &Region,
    socket: &XskSocketConfig,
    mode: BindMode,
    shared: Option<BorrowedFd<'_>>,
) -> Result<Rings, XskError> {
    let failed = |source| bind_error(socket, mode, source);
    let fd = xdp_socket::open().map_err(failed)?;
    if shared.is_none() {
        register(region, fd.as_fd())?;
    }
    let rings = create_rings(fd, socket).map_err(failed)?;
    bind(&rings, socket, mode, shared)?;
    Ok(rings)
}

fn register(region: &Region, socket: BorrowedFd<'_>) -> Result<(), XskError> {
    let memory = region.memory();
    let registered = xdp_socket::register_memory(socket, memory, region.chunk_len(), region.headroom());
    registered.map_err(|source| {
        // In huge pages too the kernel pins 4 KiB pages and charges them to RLIMIT_MEMLOCK: ENOBUFS.
        let hint = match source.raw_os_error() {
            Some(libc::ENOBUFS) => " (raise the memlock limit or grant CAP_IPC_LOCK)",
            Some(libc::EPERM) => " (needs CAP_NET_RAW)",
            _ => "",
        };
        XskError::Umem { bytes: memory.1 as u64, source, hint }
    })
}

fn create_rings(fd: OwnedFd, socket: &XskSocketConfig) -> io::Result<Rings> {
    let (fill_len, completion_len) = (socket.fill_ring_len, socket.completion_ring_len);
    for (option, len) in [
        (libc::XDP_UMEM_FILL_RING, fill_len),
        (libc::XDP_UMEM_COMPLETION_RING, completion_len),
        (libc::XDP_RX_RING, socket.rx_ring_len),
        (libc::XDP_TX_RING, socket.tx_ring_len),
    ] {
        xdp_socket::create_ring(fd.as_fd(), option, len)?;
    }
    let offsets = xdp_socket::ring_offsets(fd.as_fd())?;
    let page = |offset| libc::off_t::try_from(offset).map_err(io::Error::other);
    let (of_fill, of_completion) =
        (page(libc::XDP_UMEM_PGOFF_FILL_RING)?, page(libc::XDP_UMEM_PGOFF_COMPLETION_RING)?);
    Ok(Rings {
        tx: Ring::map(fd.as_fd(), libc::XDP_PGOFF_TX_RING, offsets.tx, socket.tx_ring_len)?,
        rx: Ring::map(fd.as_fd(), libc::XDP_PGOFF_RX_RING, offsets.rx, socket.rx_ring_len)?,
        fill: Ring::map(fd.as_fd(), of_fill, offsets.fr, fill_len)?,
        completion: Ring::map(fd.as_fd(), of_completion, offsets.cr, completion_len)?,
        fd,
    })
}

/// Binds a socket. A queue whose last owner has just died stays busy for a moment, so it is tried for about 3 s.
fn bind(
    rings: &Rings,
    socket: &XskSocketConfig,
    mode: BindMode,
    shared: Option<BorrowedFd<'_>>,
) -> Result<(), XskError> {
    let flags = match (shared, mode) {
        // The mode is the one of the registration, and naming it is an error (net/xdp/xsk.c:xsk_bind).
        (Some(_), _) => 0,
        // Need-wakeup: system calls only when the driver sleeps, in copy mode one per burst.
        (None, BindMode::ZeroCopy) => libc::XDP_ZEROCOPY | libc::XDP_USE_NEED_WAKEUP,
        (None, BindMode::Copy) => libc::XDP_COPY | libc::XDP_USE_NEED_WAKEUP,
    };
    let mut pause = FIRST_BIND_PAUSE;
    for attempt in 1.. {
        let ifindex = if_nametoindex(socket.interface.as_str()).map_err(io::Error::from);
        let bound = ifindex
            .and_then(|ifindex| xdp_socket::bind(rings.fd.as_fd(), (ifindex, socket.queue), flags, shared));
        match bound {
            Ok(()) => return Ok(()),
            // The kernel frees sockets of a dead process from a work queue (net/xdp/xsk_buff_pool.c:xp_put_pool).
            Err(source) if source.raw_os_error() != Some(libc::EBUSY) || attempt == BIND_ATTEMPTS => {
                return Err(bind_error(socket, mode, source));
            }
            Err(_) => {}
        }
        thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_BIND_PAUSE);
    }
    unreachable!("the loop above returns on its last attempt")
}

fn bind_error(socket: &XskSocketConfig, mode: BindMode, source: io::Error) -> XskError {
    let hint = match source.raw_os_error() {
        Some(libc::EBUSY) => " (another process has a socket on this queue)",
        Some(libc::EINVAL) => " (does the queue exist?)",
        Some(libc::EPERM) => " (needs CAP_NET_RAW and CAP_NET_ADMIN)",
        Some(libc::ENODEV) => " (no such interface here)",
        _ => "",
    };
    let (interface, queue) = (socket.interface.clone(), socket.queue);
    XskError::Bind { interface, queue, mode: mode.name(), source, hint }
}
