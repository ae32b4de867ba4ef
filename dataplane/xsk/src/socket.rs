//! One AF_XDP socket on a device's queue: its four rings and its wakeups.
//!
//! A chunk goes from the pool through the fill ring to the kernel and comes back through the rx ring, or through the tx ring
//! to the device and back through the completion ring. Each ring has one producer and one consumer, this socket's owner and
//! the kernel; `ring.rs` orders the stores of ring indexes and entries.
//!
//! Nothing here allocates, blocks or loops without a bound. A descriptor that the kernel would reject must never reach the tx
//! ring: it would be consumed and never completed (net/xdp/xsk_queue.h:xskq_cons_read_desc), and its frame lost.
#![allow(unsafe_code, reason = "moves descriptors between rings that the kernel shares")]

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;
use std::{fmt, io, thread};

use crate::region::{ChunkOwner, RegionRef};
use crate::ring::Descriptor;
use crate::sys::xdp_socket;
use crate::umem::Rings;
use crate::{BindMode, Frame, FramePool, MissingFeature, XskError, XskSocketConfig};

/// Most packets that one call moves.
pub const BURST: usize = 64;

/// Most send calls that one flush makes. In copy mode a call may end after 32 packets (before Linux 6.17) or after each
/// packet that the device drops.
const KICKS_PER_FLUSH: usize = 64;

/// How often a socket that is to be closed looks for completions, and the pause in between.
const RETIRE_LOOKS: usize = 20;
const RETIRE_PAUSE: Duration = Duration::from_micros(100);

/// Packets that a send call in copy mode takes before Linux 6.17 (net/xdp/xsk.c:TX_BATCH_SIZE).
const OLD_TX_BATCH: usize = 32;

/// One (interface, queue) socket. Its pool's frames come in here and go out here.
pub struct XskSocket {
    rings: Rings,
    region: RegionRef,
    fill_target: usize,
    tx_ring_len: usize,
    always_kick: bool,
    /// Whether the tx ring's consumer index moves with each send call. In copy mode before Linux 6.17 it moves only when all
    /// entries were taken.
    shows_progress: bool,
    in_fill: usize,
    in_tx: usize,
    /// Free entries of the tx ring beyond those that `staged` will take. Cached: the kernel can only add to them.
    tx_room: usize,
    staged_count: usize,
    staged: [Descriptor; BURST],
    scratch: [Descriptor; BURST],
    wakes: WakeCounters,
    bind_mode: BindMode,
    interface: String,
    queue: u32,
}

/// A frame that a socket did not accept.
#[derive(Debug)]
pub struct TxRefused {
    /// The frame, unchanged.
    pub frame: Frame,
    /// Why.
    pub reason: RefusedReason,
}

/// Why a socket did not accept a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusedReason {
    /// The tx ring is full: the device is slower.
    RingFull,
    /// The frame belongs to another pool's memory.
    OtherPool,
    /// The frame has no bytes.
    Empty,
}

/// State of a socket's device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    /// Administratively up.
    Up,
    /// Down: the socket works again when the device is up.
    Down,
    /// Deleted or moved to another namespace: the socket will never work again.
    Gone,
}

/// How often the kernel had to be woken, and with what result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WakeCounters {
    /// Send calls.
    pub tx: u64,
    /// Receive calls, by which the driver looks at the fill ring.
    pub rx: u64,
    /// Send calls that ended with EAGAIN: there is more to send.
    pub again: u64,
    /// Send calls that ended with EBUSY: the device dropped a packet.
    pub device_drop: u64,
    /// Send calls that ended for lack of memory.
    pub no_memory: u64,
    /// Calls that failed because the device is down or gone.
    pub link_down: u64,
    /// Calls that failed for other reasons.
    pub other: u64,
}

/// The kernel's own counters of a socket (XDP_STATISTICS).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct XdpStatistics {
    /// Received packets dropped, mostly because they do not fit into a chunk.
    pub rx_dropped: u64,
    /// Fill descriptors that the kernel rejected: a bug of this crate.
    pub rx_invalid_descs: u64,
    /// Tx descriptors that the kernel rejected: a bug of this crate.
    pub tx_invalid_descs: u64,
    /// Received packets dropped because the rx ring was full.
    pub rx_ring_full: u64,
    /// Times that the fill ring was empty when the kernel needed a chunk.
    pub rx_fill_ring_empty_descs: u64,
    /// Times that the tx ring was empty when the kernel looked.
    pub tx_ring_empty_descs: u64,
}

impl XdpStatistics {
    /// The counters of an AF_XDP socket, given its descriptor or a duplicate of it.
    ///
    /// # Errors
    ///
    /// Those of getsockopt(2).
    pub fn of(socket: BorrowedFd<'_>) -> io::Result<Self> {
        xdp_socket::statistics(socket)
    }
}

impl XskSocket {
    /// Sets the options of a bound socket. Adds to `missing` the features that this kernel does not have.
    pub(crate) fn new(
        config: &XskSocketConfig,
        rings: Rings,
        region: RegionRef,
        missing: &mut BTreeSet<MissingFeature>,
    ) -> Result<Self, XskError> {
        let mut socket = Self {
            rings,
            region,
            fill_target: config.fill_ring_len as usize,
            tx_ring_len: config.tx_ring_len as usize,
            always_kick: false,
            shows_progress: true,
            in_fill: 0,
            in_tx: 0,
            tx_room: 0,
            staged_count: 0,
            staged: [Descriptor::default(); BURST],
            scratch: [Descriptor::default(); BURST],
            wakes: WakeCounters::default(),
            bind_mode: BindMode::Copy,
            interface: config.interface.clone(),
            queue: config.queue,
        };
        let failed =
            |source| XskError::Socket { interface: config.interface.clone(), queue: config.queue, source };
        // Asked of the kernel and not taken from the bind flags: what counts is what the socket is.
        if xdp_socket::is_zero_copy(socket.as_fd()).map_err(failed)? {
            socket.bind_mode = BindMode::ZeroCopy;
        } else {
            if xdp_socket::raise_tx_budget(socket.as_fd(), config.tx_ring_len).is_err() {
                // The option is of the same release, 6.17, that moves the consumer index with each call.
                socket.shows_progress = false;
                missing.insert(MissingFeature::TxBudget);
            }
            // Copy mode charges packets in flight to the send buffer: 4096 bytes for a full-size packet and its sk_buff.
            let bytes = config.tx_ring_len.saturating_mul(4096).min(16 << 20);
            xdp_socket::raise_send_buffer(socket.as_fd(), bytes).map_err(failed)?;
        }
        if let Some(busy_poll) = config.busy_poll {
            match xdp_socket::set_busy_poll(socket.as_fd(), busy_poll) {
                // With interrupts deferred only our own calls run the driver's NAPI loop, whatever need_wakeup says.
                Ok(()) => socket.always_kick = true,
                Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {
                    missing.insert(MissingFeature::BusyPoll);
                }
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(socket)
    }

    /// Appends received frames to `frames`, at most `max` and at most [`BURST`], and returns how many. Does not allocate if
    /// `frames` has room for them.
    #[inline]
    pub fn rx_burst(&mut self, frames: &mut Vec<Frame>, max: usize) -> usize {
        let want = &mut self.scratch[..max.min(BURST)];
        let count = self.rings.rx.consume(want);
        self.in_fill -= count;
        for desc in &self.scratch[..count] {
            if !self.region.contains(desc) {
                // A kernel bug: a lost chunk is better than a wild pointer.
                self.region.leak(1);
                continue;
            }
            self.region.transfer(desc, ChunkOwner::Fill, ChunkOwner::User);
            // SAFETY: the kernel gave the chunk back through the rx ring, so its token passes from `in_fill` to the
            // frame; `contains` is checked above.
            frames.push(unsafe { Frame::new(*desc, self.region.as_ptr()) });
        }
        count
    }

    /// Stages a frame for sending with the next [`flush`](Self::flush).
    ///
    /// # Errors
    ///
    /// [`TxRefused`] returns the frame with the reason.
    #[inline]
    pub fn tx_push(&mut self, frame: Frame) -> Result<(), TxRefused> {
        if !frame.is_of(self.region.as_ptr()) {
            return Err(TxRefused { frame, reason: RefusedReason::OtherPool });
        }
        // A length of zero is an invalid descriptor (net/xdp/xsk_queue.h:xp_aligned_validate_desc): see the top of this file.
        if frame.is_empty() {
            return Err(TxRefused { frame, reason: RefusedReason::Empty });
        }
        if self.staged_count == BURST {
            self.submit();
        }
        if self.tx_room == 0 {
            // Reading the consumer index costs a cache miss on a line that the kernel writes: only when the cached number is
            // used up.
            self.tx_room = self.rings.tx.room(usize::MAX) - self.staged_count;
            if self.tx_room == 0 {
                return Err(TxRefused { frame, reason: RefusedReason::RingFull });
            }
        }
        let mut desc = frame.into_desc();
        // A received descriptor may have XDP_PKT_CONTD or other bits, which are invalid for sending.
        desc.options = 0;
        self.region.transfer(&desc, ChunkOwner::User, ChunkOwner::Tx);
        self.staged[self.staged_count] = desc;
        self.staged_count += 1;
        self.tx_room -= 1;
        self.in_tx += 1;
        Ok(())
    }

    /// Sends what was pushed, with one wakeup per burst if the kernel takes all of it. What the device cannot take now stays
    /// in the ring, and the next flush wakes the kernel again.
    #[inline]
    pub fn flush(&mut self) {
        if self.in_tx == 0 {
            return;
        }
        self.submit();
        // The flag is read after the entries were published: before, a driver that falls asleep in between would be missed.
        // In copy mode it is always set (net/xdp/xsk_buff_pool.c:xp_assign_dev), as nothing but a send call sends.
        if self.always_kick || self.rings.tx.needs_wakeup() {
            self.kick();
        }
    }

    /// Moves sent frames back to the pool, and returns how many.
    ///
    /// # Panics
    ///
    /// If `pool` is not the pool of this socket.
    #[inline]
    pub fn reap(&mut self, pool: &mut FramePool) -> usize {
        assert!(pool.is(&self.region), "a port's frames go back to its own pool");
        let mut reaped = 0;
        while self.in_tx > 0 {
            let count = self.rings.completion.consume(&mut self.scratch);
            self.in_tx -= count;
            reaped += count;
            let free = pool.free_list();
            for desc in &self.scratch[..count] {
                if !self.region.contains(desc) {
                    // A kernel bug, as in rx_burst.
                    self.region.leak(1);
                    continue;
                }
                self.region.transfer(desc, ChunkOwner::Tx, ChunkOwner::User);
                free.push(*desc);
            }
            // Less than a whole batch: the completion ring is empty.
            if count < BURST {
                break;
            }
        }
        reaped
    }

    /// Gives free frames to the kernel for receiving until it has as many as configured, and returns how many. Wakes the
    /// driver if it waits for frames, even if there were none to give.
    ///
    /// # Panics
    ///
    /// If `pool` is not the pool of this socket.
    #[inline]
    pub fn refill(&mut self, pool: &mut FramePool) -> usize {
        assert!(pool.is(&self.region), "a port's frames come from its own pool");
        let free = pool.free_list();
        let want = (self.fill_target - self.in_fill).min(free.len());
        // The kernel publishes received packets before it frees their entries in the fill ring (net/xdp/xsk.c:xsk_flush;
        // zero-copy drivers free them later still), so for a moment the ring may have less room than `in_fill` leaves.
        let want = want.min(self.rings.fill.room(want));
        let rest = free.len() - want;
        for desc in &free[rest..] {
            self.region.transfer(desc, ChunkOwner::User, ChunkOwner::Fill);
        }
        // The pool owns the tokens of its free list, all of this region, and gives these up here.
        self.rings.fill.produce(&free[rest..]);
        free.truncate(rest);
        self.in_fill += want;
        if self.always_kick || self.rings.fill.needs_wakeup() {
            self.wakes.rx += 1;
            let result = xdp_socket::kick_rx(self.as_fd());
            self.count_failure(result);
        }
        want
    }

    /// Takes back into the pool the frames of a socket that is about to be closed, and returns how many the kernel keeps: they
    /// are lost for the pool. Before, the socket has left the socket map, and [`SocketMap::wait_for_readers`] has returned.
    ///
    /// In copy mode the kernel keeps at most what it is just sending. In zero copy the device goes on to take frames from the
    /// fill ring as long as it exists, so that all are lost that are there for receiving.
    ///
    /// [`SocketMap::wait_for_readers`]: crate::steering::SocketMap::wait_for_readers
    ///
    /// # Panics
    ///
    /// If `pool` is not the pool of this socket.
    pub fn retire(&mut self, pool: &mut FramePool) -> usize {
        assert!(pool.is(&self.region), "a port's frames go back to its own pool");
        self.submit();
        // What is on its way to the device mostly completes at once.
        for _ in 0..RETIRE_LOOKS {
            if self.in_tx > 0 && self.tx_waiting() > 0 {
                self.kick();
            }
            self.reap(pool);
            if self.in_tx == 0 {
                break;
            }
            thread::sleep(RETIRE_PAUSE);
        }
        let mut received = [Descriptor::default(); BURST];
        loop {
            let count = self.rings.rx.consume(&mut received);
            self.in_fill -= count;
            let valid = received[..count].iter().filter(|desc| self.region.contains(desc));
            let before = pool.free_list().len();
            pool.free_list().extend(valid.inspect(|desc| {
                self.region.transfer(desc, ChunkOwner::Fill, ChunkOwner::User);
            }));
            self.region.leak(u32::try_from(count - (pool.free_list().len() - before)).unwrap_or_default());
            if count < BURST {
                break;
            }
        }
        // In copy mode only our own calls send, and only the program's redirection receives (net/xdp/xsk.c).
        if self.bind_mode == BindMode::Copy || self.link_state() == LinkState::Gone {
            let (region, free) = (&self.region, pool.free_list());
            self.in_fill -= self.rings.fill.take_back(|desc| {
                region.transfer(&desc, ChunkOwner::Fill, ChunkOwner::User);
                free.push(desc);
            });
            self.in_tx -= self.rings.tx.take_back(|desc| {
                region.transfer(&desc, ChunkOwner::Tx, ChunkOwner::User);
                free.push(desc);
            });
        }
        self.in_fill + self.in_tx
    }

    /// Its descriptor, for the socket map and for polling.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }

    /// The kernel's counters.
    ///
    /// # Errors
    ///
    /// Those of getsockopt(2).
    pub fn statistics(&self) -> io::Result<XdpStatistics> {
        XdpStatistics::of(self.fd())
    }

    /// Wakeups since the socket was opened.
    #[must_use]
    pub fn wake_counters(&self) -> WakeCounters {
        self.wakes
    }

    /// The mode in which the kernel bound this socket, read back from it.
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

    /// State of the device. One system call: for housekeeping, not for every burst.
    #[must_use]
    pub fn link_state(&self) -> LinkState {
        match xdp_socket::kick_rx(self.as_fd()).map_err(|error| error.raw_os_error()) {
            Err(Some(libc::ENETDOWN)) => LinkState::Down,
            // The kernel unbinds a socket whose device is deleted or moves to another namespace (net/xdp/xsk.c:xsk_notifier).
            Err(Some(libc::ENXIO | libc::ENODEV)) => LinkState::Gone,
            _ => LinkState::Up,
        }
    }

    /// Frames with the kernel for receiving, including those in the rx ring.
    #[must_use]
    pub fn in_fill(&self) -> usize {
        self.in_fill
    }

    /// Frames that were pushed and not reaped.
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
        // Their tokens came with the frames; `in_tx` holds them until the completion ring gives them back. `tx_push` has
        // counted the places.
        self.rings.tx.produce(&self.staged[..self.staged_count]);
        self.staged_count = 0;
    }

    fn kick(&mut self) {
        let mut waiting = self.tx_waiting();
        // Where the index does not move before all is taken, so many calls may seem to make no progress.
        let unseen = if self.shows_progress { 0 } else { waiting.div_ceil(OLD_TX_BATCH) };
        for kicks in 1..=KICKS_PER_FLUSH {
            if waiting == 0 {
                return;
            }
            self.wakes.tx += 1;
            let result = xdp_socket::kick_tx(self.as_fd());
            let more = matches!(&result, Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)));
            self.count_failure(result);
            if !more {
                return;
            }
            let left = self.tx_waiting();
            if left >= waiting && kicks >= unseen {
                return; // the device is busy: the next flush tries again
            }
            waiting = left;
        }
    }

    /// Packets in the tx ring that the kernel has not taken yet.
    fn tx_waiting(&mut self) -> usize {
        self.tx_ring_len - self.rings.tx.room(usize::MAX)
    }

    fn count_failure(&mut self, result: io::Result<()>) {
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
        self.rings.fd.as_fd()
    }
}

impl Drop for XskSocket {
    fn drop(&mut self) {
        // The kernel keeps the pages pinned as long as it uses them (net/xdp/xdp_umem.c), and nobody reads these chunks out
        // of the rings any more: so they are lost for the pool and no longer keep the region alive.
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
