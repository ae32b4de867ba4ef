//! UMEM and socket configuration, and binding. Used at start-up and when sockets are reopened, not on the packet path.
#![allow(unsafe_code, reason = "xsk-rs marks binding a socket as unsafe")]

use std::error::Error as _;
use std::num::NonZeroU32;
use std::time::Duration;
use std::{io, thread};

use xsk_rs::config::{BindFlags, LibxdpFlags, SocketConfig, UmemConfigBuilder};
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, Socket, TxQueue, Umem};

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

/// The four rings of one bound socket.
pub(crate) struct Rings {
    pub(crate) tx: TxQueue,
    pub(crate) rx: RxQueue,
    pub(crate) fill: FillQueue,
    pub(crate) completion: CompQueue,
}

/// Rejects configurations that the kernel would reject later with EINVAL and no reason.
pub(crate) fn check(umem: &UmemConfig, sockets: &[XskSocketConfig]) -> Result<(), XskError> {
    let fail = |text: String| Err(XskError::Config(text));
    if sockets.is_empty() {
        return fail("a frame pool needs at least one port".to_owned());
    }
    // Aligned chunks are a power of two from 2048 to the page size (net/xdp/xdp_umem.c:xdp_umem_reg), also in huge pages.
    if !matches!(umem.chunk_len, 2048 | 4096) {
        return fail(format!("chunk_len {}: only 2048 and 4096 exist", umem.chunk_len));
    }
    if umem.headroom + KERNEL_HEADROOM >= umem.chunk_len {
        return fail(format!("headroom {} leaves no room in chunks of {}", umem.headroom, umem.chunk_len));
    }
    for socket in sockets {
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

/// Maps and registers the memory.
pub(crate) fn create_umem(
    config: &UmemConfig,
    sockets: &[XskSocketConfig],
) -> Result<(Umem, Vec<FrameDesc>), XskError> {
    // libxdp gives every fill and completion ring of a UMEM the same length; a socket uses no more of its fill ring than
    // it is configured for.
    let fill = sockets.iter().map(|socket| socket.fill_ring_len).max().unwrap_or_default();
    let completion = sockets.iter().map(|socket| socket.completion_ring_len).max().unwrap_or_default();
    let mut count = u64::from(config.frame_count);
    if config.huge_pages {
        // munmap fails for a length that ends inside a huge page.
        count = count.next_multiple_of(HUGE_PAGE_LEN / u64::from(config.chunk_len));
    }
    let bytes = count * u64::from(config.chunk_len);
    let invalid = |error: &dyn std::fmt::Display| XskError::Config(error.to_string());

    let umem_config = UmemConfigBuilder::new()
        .frame_size(config.chunk_len.try_into().map_err(|error| invalid(&error))?)
        .frame_headroom(config.headroom)
        .fill_queue_size(fill.try_into().map_err(|error| invalid(&error))?)
        .comp_queue_size(completion.try_into().map_err(|error| invalid(&error))?)
        .build()
        .map_err(|error| invalid(&error))?;
    let count = u32::try_from(count)
        .ok()
        .and_then(NonZeroU32::new)
        .ok_or_else(|| XskError::Config(format!("frame_count {} is too large", config.frame_count)))?;

    // In huge pages too the kernel pins 4 KiB pages and charges them to RLIMIT_MEMLOCK: ENOBUFS.
    Umem::new(umem_config, count, config.huge_pages).map_err(|error| {
        let source = os_error(error.source());
        let hint = match source.raw_os_error() {
            Some(libc::ENOMEM) if config.huge_pages => " (reserve huge pages: sysctl vm.nr_hugepages)",
            Some(libc::ENOBUFS) => " (raise the memlock limit or grant CAP_IPC_LOCK)",
            Some(libc::EPERM) => " (needs CAP_NET_RAW)",
            _ => "",
        };
        XskError::Umem { bytes, source, hint }
    })
}

/// Binds one socket. A queue whose last owner has just died stays busy for a moment, so it is tried for about 3 s.
pub(crate) fn bind(umem: &Umem, socket: &XskSocketConfig, mode: BindMode) -> Result<Rings, XskError> {
    let copy = match mode {
        BindMode::ZeroCopy => BindFlags::XDP_ZEROCOPY,
        BindMode::Copy => BindFlags::XDP_COPY,
    };
    let invalid = |error: &dyn std::fmt::Display| XskError::Config(error.to_string());
    let config = SocketConfig::builder()
        .rx_queue_size(socket.rx_ring_len.try_into().map_err(|error| invalid(&error))?)
        .tx_queue_size(socket.tx_ring_len.try_into().map_err(|error| invalid(&error))?)
        // Without its own program, which libxdp would attach in place of ours.
        .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
        // Need-wakeup: system calls only when the driver sleeps, in copy mode one per burst.
        .bind_flags(copy | BindFlags::XDP_USE_NEED_WAKEUP)
        .build();
    let interface = socket.interface.parse().map_err(|error| invalid(&error))?;

    let failed = |source: io::Error| {
        let hint = match source.raw_os_error() {
            Some(libc::EBUSY) => " (another process has a socket on this queue)",
            Some(libc::EINVAL) => " (does the queue exist?)",
            Some(libc::EPERM) => " (needs CAP_NET_RAW and CAP_NET_ADMIN)",
            Some(libc::ENODEV) => " (no such interface here)",
            _ => "",
        };
        XskError::Bind {
            interface: socket.interface.clone(),
            queue: socket.queue,
            mode: mode.name(),
            source,
            hint,
        }
    };

    let mut pause = FIRST_BIND_PAUSE;
    for attempt in 1.. {
        // SAFETY: loading libxdp's own program is inhibited, which is what the contract asks for.
        match unsafe { Socket::new(config, umem, &interface, socket.queue) } {
            Ok((tx, rx, Some((fill, completion)))) => return Ok(Rings { tx, rx, fill, completion }),
            // A second socket on a queue shares the rings of the first one and gets none of its own.
            Ok((_, _, None)) => {
                return Err(XskError::Config(format!(
                    "{} queue {} appears twice in one pool",
                    socket.interface, socket.queue
                )));
            }
            Err(error) => {
                let source = os_error(error.source());
                // The kernel frees sockets of a dead process from a work queue (net/xdp/xsk_buff_pool.c:xp_put_pool).
                if source.raw_os_error() != Some(libc::EBUSY) || attempt == BIND_ATTEMPTS {
                    return Err(failed(source));
                }
            }
        }
        thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_BIND_PAUSE);
    }
    unreachable!("the loop above returns on its last attempt")
}

/// The errno of an xsk-rs error, which has it in its `source()`.
fn os_error(source: Option<&(dyn std::error::Error + 'static)>) -> io::Error {
    source
        .and_then(|error| error.downcast_ref::<io::Error>())
        .and_then(io::Error::raw_os_error)
        .map_or_else(|| io::Error::other("xsk-rs gave no reason"), io::Error::from_raw_os_error)
}
