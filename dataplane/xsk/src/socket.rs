//! One AF_XDP socket: a device's queue, its four rings and its wakeups.
//!
//! Nothing here allocates, waits or loops without a bound. A descriptor that the kernel would refuse must never
//! reach the tx ring: it would be consumed and never completed, and its frame lost.
#![allow(unsafe_code, reason = "moves descriptors between rings that the kernel shares")]

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::{fmt, io};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use xsk_rs::FrameDesc;

use crate::region::{ChunkOwner, RegionRef};
use crate::sys::xdp_socket;
use crate::umem::Rings;
use crate::{BindMode, Frame, FramePool, MissingFeature, XskError, XskSocketConfig};

/// Packets that one call moves at most.
pub const BURST: usize = 64;

/// Send calls that one flush makes at most. Copy mode may end a call early after 32 packets (before 6.17) or after
/// each packet that the device drops.
const KICKS_PER_FLUSH: usize = 64;

/// Packets that a send call of copy mode takes before 6.17 (TX_BATCH_SIZE in net/xdp/xsk.c).
const OLD_TX_BATCH: usize = 32;

/// One (interface, queue) socket. Its pool's frames come in here and go out here.
pub struct XskSocket {
    rings: Rings,
    region: RegionRef,
    fd: RawFd,
    fill_target: usize,
    tx_ring_len: usize,
    always_kick: bool,
    /// Whether the tx ring shows after each send call what that one took. In copy mode before 6.17 it shows that only once
    /// everything was taken.
    shows_progress: bool,
    in_fill: usize,
    in_tx: usize,
    /// Free places of the tx ring that are not spoken for by `staged`. The kernel can only add to them.
    tx_room: usize,
    staged_count: usize,
    staged: [FrameDesc; BURST],
    scratch: [FrameDesc; BURST],
    wakes: WakeCounters,
    bind_mode: BindMode,
    interface: String,
    queue: u32,
}

/// A frame that a port did not take.
#[derive(Debug)]
pub struct TxRefused {
    /// The frame, unchanged.
    pub frame: Frame,
    /// Why.
    pub reason: RefusedReason,
}

/// Why a port did not take a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusedReason {
    /// The device has not caught up.
    RingFull,
    /// The frame belongs to another pool's memory.
    OtherPool,
    /// The frame has no bytes.
    Empty,
}

/// What has become of a port's device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    /// Administratively up.
    Up,
    /// Down: the port works again once it is up.
    Down,
    /// Deleted or moved away: the port is of no use any more.
    Gone,
}

/// How often the kernel had to be woken and what it said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WakeCounters {
    /// Send calls.
    pub tx: u64,
    /// Receive calls that told the driver about new fill frames.
    pub rx: u64,
    /// Send calls after which the kernel wanted another one.
    pub again: u64,
    /// Send calls that ended on a packet that the device dropped.
    pub device_drop: u64,
    /// Send calls that found no memory.
    pub no_memory: u64,
    /// Calls that found the device down or gone.
    pub link_down: u64,
    /// Calls that failed otherwise.
    pub other: u64,
}

/// The kernel's own counters of a socket (XDP_STATISTICS).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct XdpStatistics {
    /// Received packets dropped: too long for a chunk, mostly.
    pub rx_dropped: u64,
    /// Fill descriptors that the kernel refused: a bug of ours.
    pub rx_invalid_descs: u64,
    /// Tx descriptors that the kernel refused: a bug of ours.
    pub tx_invalid_descs: u64,
    /// Received packets dropped because the rx ring was full.
    pub rx_ring_full: u64,
    /// Times the fill ring was empty when the kernel wanted a chunk.
    pub rx_fill_ring_empty_descs: u64,
    /// Times the tx ring was empty when the kernel looked.
    pub tx_ring_empty_descs: u64,
}

impl XdpStatistics {
    /// The counters of a port's socket, or of a duplicate of it.
    ///
    /// # Errors
    ///
    /// What getsockopt(2) says.
    pub fn of(socket: BorrowedFd<'_>) -> io::Result<Self> {
        xdp_socket::statistics(socket)
    }
}

impl XskSocket {
    /// Adds to `missing` what this kernel does not have for it.
    pub(crate) fn new(
        config: &XskSocketConfig,
        rings: Rings,
        region: RegionRef,
        missing: &mut BTreeSet<MissingFeature>,
    ) -> Result<Self, XskError> {
        let fd = rings.rx.fd().as_raw_fd();
        let mut port = Self {
            rings,
            region,
            fd,
            fill_target: config.fill_ring_len as usize,
            tx_ring_len: config.tx_ring_len as usize,
            always_kick: false,
            shows_progress: true,
            in_fill: 0,
            in_tx: 0,
            tx_room: 0,
            staged_count: 0,
            staged: [FrameDesc::default(); BURST],
            scratch: [FrameDesc::default(); BURST],
            wakes: WakeCounters::default(),
            bind_mode: BindMode::Copy,
            interface: config.interface.clone(),
            queue: config.queue,
        };
        let failed =
            |source| XskError::Socket { interface: config.interface.clone(), queue: config.queue, source };
        // libxdp opens sockets that outlive execve(2): the queue would stay busy for the next image of the process.
        fcntl(port.as_fd(), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(|errno| failed(errno.into()))?;
        if xdp_socket::is_zero_copy(port.as_fd()).map_err(failed)? {
            port.bind_mode = BindMode::ZeroCopy;
        } else {
            if xdp_socket::raise_tx_budget(port.as_fd(), config.tx_ring_len).is_err() {
                // The budget came together with the progress being shown.
                port.shows_progress = false;
                missing.insert(MissingFeature::TxBudget);
            }
            // A full-size packet and its sk_buff; 4 MiB is far below what net.core.wmem_max would allow root.
            let bytes = config.tx_ring_len.saturating_mul(4096).min(16 << 20);
            xdp_socket::raise_send_buffer(port.as_fd(), bytes).map_err(failed)?;
        }
        if let Some(busy_poll) = config.busy_poll {
            match xdp_socket::set_busy_poll(port.as_fd(), busy_poll) {
                Ok(()) => port.always_kick = true,
                Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {
                    missing.insert(MissingFeature::BusyPoll);
                }
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(port)
    }

    /// Appends received frames to `frames`, at most `max` and at most [`BURST`], and says how many. Does not
    /// allocate while `frames` has room.
    #[inline]
    pub fn rx_burst(&mut self, frames: &mut Vec<Frame>, max: usize) -> usize {
        let want = &mut self.scratch[..max.min(BURST)];
        // SAFETY: the descriptors are written before they are read, and this ring belongs to this region's UMEM.
        let count = unsafe { self.rings.rx.consume(want) };
        self.in_fill -= count;
        for desc in &self.scratch[..count] {
            if !self.region.contains(desc) {
                self.region.leak(1); // a kernel bug: better a lost chunk than a wild pointer
                continue;
            }
            self.region.transfer(desc, ChunkOwner::Fill, ChunkOwner::User);
            // SAFETY: the kernel gave the chunk back through the rx ring, so its token passes from `in_fill` to the
            // frame; `contains` is checked above.
            frames.push(unsafe { Frame::new(*desc, self.region.as_ptr()) });
        }
        count
    }

    /// Takes a frame for sending. It leaves with the next [`flush`](Self::flush).
    ///
    /// # Errors
    ///
    /// [`TxRefused`] gives the frame back with the reason.
    #[inline]
    pub fn tx_push(&mut self, frame: Frame) -> Result<(), TxRefused> {
        if !frame.is_of(self.region.as_ptr()) {
            return Err(TxRefused { frame, reason: RefusedReason::OtherPool });
        }
        if frame.is_empty() {
            return Err(TxRefused { frame, reason: RefusedReason::Empty });
        }
        if self.staged_count == BURST {
            self.submit();
        }
        if self.tx_room == 0 {
            self.tx_room = self.rings.tx.nb_free_exact() as usize - self.staged_count;
            if self.tx_room == 0 {
                return Err(TxRefused { frame, reason: RefusedReason::RingFull });
            }
        }
        let mut desc = frame.into_desc();
        desc.set_options(0);
        self.region.transfer(&desc, ChunkOwner::User, ChunkOwner::Tx);
        self.staged[self.staged_count] = desc;
        self.staged_count += 1;
        self.tx_room -= 1;
        self.in_tx += 1;
        Ok(())
    }

    /// Sends what was pushed: one wakeup per burst where the kernel takes it. What the device cannot take now stays
    /// in the ring, and the next flush wakes the kernel for it again.
    #[inline]
    pub fn flush(&mut self) {
        if self.in_tx == 0 {
            return;
        }
        self.submit();
        if self.always_kick || self.rings.tx.needs_wakeup() {
            self.kick();
        }
    }

    /// Moves sent frames back to the pool and says how many.
    ///
    /// # Panics
    ///
    /// When `pool` is not the pool of this port.
    #[inline]
    pub fn reap(&mut self, pool: &mut FramePool) -> usize {
        assert!(pool.is(&self.region), "a port's frames go back to its own pool");
        let mut reaped = 0;
        while self.in_tx > 0 {
            // SAFETY: the descriptors are written before they are read, and this ring belongs to this region's UMEM.
            let count = unsafe { self.rings.completion.consume(&mut self.scratch) };
            self.in_tx -= count;
            reaped += count;
            let free = pool.free_list();
            for desc in &self.scratch[..count] {
                if !self.region.contains(desc) {
                    self.region.leak(1); // a kernel bug, as in rx_burst
                    continue;
                }
                self.region.transfer(desc, ChunkOwner::Tx, ChunkOwner::User);
                free.push(*desc);
            }
            if count < BURST {
                break;
            }
        }
        reaped
    }

    /// Gives free frames to the kernel for receiving until it has as many as configured, and says how many. Wakes
    /// the driver when it waits for them, also when there was nothing to give.
    ///
    /// # Panics
    ///
    /// When `pool` is not the pool of this port.
    #[inline]
    pub fn refill(&mut self, pool: &mut FramePool) -> usize {
        assert!(pool.is(&self.region), "a port's frames come from its own pool");
        let free = pool.free_list();
        let want = (self.fill_target - self.in_fill).min(free.len());
        // The kernel shows received packets before it gives their places in the fill ring back (xsk_flush in
        // net/xdp/xsk.c; zero-copy drivers are lazier still), so for an instant there may be fewer.
        let room = self.rings.fill.nb_free(u32::try_from(want).unwrap_or(u32::MAX)) as usize;
        let want = want.min(room);
        let rest = free.len() - want;
        for desc in &free[rest..] {
            self.region.transfer(desc, ChunkOwner::User, ChunkOwner::Fill);
        }
        // SAFETY: the pool owns the tokens of its free list, all of this region, and gives these up just below.
        let count = unsafe { self.rings.fill.produce(&free[rest..]) };
        assert_eq!(count, want, "only the kernel takes from the fill ring, so its room can only grow");
        free.truncate(rest);
        self.in_fill += count;
        if self.always_kick || self.rings.fill.needs_wakeup() {
            self.wakes.rx += 1;
            let result = xdp_socket::kick_rx(self.as_fd());
            self.note(result);
        }
        count
    }

    /// The socket, for the socket map and for polling.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }

    /// The kernel's counters.
    ///
    /// # Errors
    ///
    /// What getsockopt(2) says.
    pub fn statistics(&self) -> io::Result<XdpStatistics> {
        XdpStatistics::of(self.fd())
    }

    /// Wakeups so far.
    #[must_use]
    pub fn wake_counters(&self) -> WakeCounters {
        self.wakes
    }

    /// What the kernel bound this socket as, read back from it.
    #[must_use]
    pub fn bind_mode(&self) -> BindMode {
        self.bind_mode
    }

    /// The device.
    #[must_use]
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// The device's queue.
    #[must_use]
    pub fn queue(&self) -> u32 {
        self.queue
    }

    /// Asks the kernel whether the device is there. One system call: for housekeeping, not for every burst.
    #[must_use]
    pub fn link_state(&self) -> LinkState {
        match xdp_socket::kick_rx(self.as_fd()).map_err(|error| error.raw_os_error()) {
            Err(Some(libc::ENETDOWN)) => LinkState::Down,
            // The kernel unbinds a socket when its device is deleted or moves to another namespace.
            Err(Some(libc::ENXIO | libc::ENODEV)) => LinkState::Gone,
            _ => LinkState::Up,
        }
    }

    /// Frames with the kernel for receiving, received ones that were not taken yet among them.
    #[must_use]
    pub fn in_fill(&self) -> usize {
        self.in_fill
    }

    /// Frames pushed and not reaped.
    #[must_use]
    pub fn in_tx(&self) -> usize {
        self.in_tx
    }

    pub(crate) fn is_of(&self, pool: &FramePool) -> bool {
        pool.is(&self.region)
    }

    /// Moves the staged descriptors into the tx ring.
    #[inline]
    fn submit(&mut self) {
        if self.staged_count == 0 {
            return;
        }
        // SAFETY: their tokens came with the frames, all of this region; `in_tx` holds them until the completion
        // ring gives them back.
        let count = unsafe { self.rings.tx.produce(&self.staged[..self.staged_count]) };
        assert_eq!(count, self.staged_count, "tx_push counted the places");
        self.staged_count = 0;
    }

    fn kick(&mut self) {
        let mut waiting = self.tx_waiting();
        let unseen = if self.shows_progress { 0 } else { waiting.div_ceil(OLD_TX_BATCH) };
        for kicks in 1..=KICKS_PER_FLUSH {
            if waiting == 0 {
                return;
            }
            self.wakes.tx += 1;
            let result = xdp_socket::kick_tx(self.as_fd());
            let more = matches!(&result, Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)));
            self.note(result);
            if !more {
                return;
            }
            let left = self.tx_waiting();
            if left >= waiting && kicks >= unseen {
                return; // the device is busy: later
            }
            waiting = left;
        }
    }

    /// Packets in the tx ring that the kernel has not taken.
    fn tx_waiting(&mut self) -> usize {
        self.tx_ring_len - self.rings.tx.nb_free_exact() as usize
    }

    fn note(&mut self, result: io::Result<()>) {
        let Err(error) = result else { return };
        let counter = match error.raw_os_error() {
            Some(libc::EAGAIN) => &mut self.wakes.again,
            Some(libc::EBUSY) => &mut self.wakes.device_drop,
            Some(libc::ENOBUFS | libc::ENOMEM) => &mut self.wakes.no_memory,
            Some(libc::ENETDOWN | libc::ENXIO | libc::ENODEV) => &mut self.wakes.link_down,
            _ => &mut self.wakes.other,
        };
        *counter += 1;
    }
}

impl AsFd for XskSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket stays open as long as the rings, which this port owns and the borrow keeps.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }
}

impl Drop for XskSocket {
    fn drop(&mut self) {
        // What the kernel has of these chunks is never read again: nobody takes them out of the rings.
        let tokens = self.in_fill + self.in_tx;
        self.region.leak(u32::try_from(tokens).unwrap_or(u32::MAX));
        self.region.release_chunks(tokens);
    }
}

impl fmt::Debug for XskSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("XskSocket")
            .field("interface", &self.interface)
            .field("queue", &self.queue)
            .field("bind_mode", &self.bind_mode)
            .field("in_fill", &self.in_fill)
            .field("in_tx", &self.in_tx)
            .finish_non_exhaustive()
    }
}
