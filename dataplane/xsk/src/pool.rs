//! The free frames of one worker, and an audit of where all the others are.
#![allow(unsafe_code, reason = "turns free chunks into frames")]

use std::collections::BTreeSet;
use std::fmt;

use crate::memory::{OpenedSockets, PacketMemory};
use crate::region::{Region, RegionRef};
use crate::ring::Descriptor;
use crate::{Frame, MissingFeature, UmemConfig, XskError, XskSocket, XskSocketConfig, umem};

/// One worker's packet memory with its free frames.
///
/// All sockets of a pool share the memory, so a frame received on one may be sent on another. Free frames are a stack:
/// the one used last is most likely still in the CPU's cache.
pub struct FramePool {
    free: Vec<Descriptor>,
    region: RegionRef,
    zero_copy_refusal: Option<String>,
    missing: BTreeSet<MissingFeature>,
}

impl FramePool {
    /// Maps the memory and opens sockets on it, as [`PacketMemory::open`] does.
    ///
    /// # Errors
    ///
    /// [`XskError`] with the socket and a hint.
    pub fn new(config: &UmemConfig, sockets: &[XskSocketConfig]) -> Result<(Self, Vec<XskSocket>), XskError> {
        umem::check(config, sockets)?;
        let mut pool = Self::map(config)?;
        let OpenedSockets { sockets, zero_copy_refusal, missing_features } = pool.memory().open(sockets)?;
        (pool.zero_copy_refusal, pool.missing) = (zero_copy_refusal, missing_features);
        Ok((pool, sockets))
    }

    /// Maps the memory, for sockets that are opened later.
    ///
    /// # Errors
    ///
    /// [`XskError`]: there is no such memory.
    pub fn map(config: &UmemConfig) -> Result<Self, XskError> {
        umem::check(config, &[])?;
        let (region, mut free) = Region::map(config)?;
        // A stack is taken from at its end: so the lowest addresses are used first.
        free.reverse();
        Ok(Self { free, region, zero_copy_refusal: None, missing: BTreeSet::new() })
    }

    /// A handle by which sockets are opened on this memory.
    #[must_use]
    pub fn memory(&self) -> PacketMemory {
        PacketMemory::of(self.region.another())
    }

    /// An empty frame to build a packet in; `None` if all are in use.
    #[inline]
    pub fn take(&mut self) -> Option<Frame> {
        if self.free.is_empty() {
            self.collect_returned();
        }
        let desc = self.free.pop()?;
        // SAFETY: the free list holds each token once, of this region, and every entry of it passed `contains`.
        let mut frame = unsafe { Frame::new(desc, self.region.as_ptr()) };
        frame.set_len(0).expect("an empty frame always fits");
        Some(frame)
    }

    /// Takes a frame back. A frame of another pool returns to that pool, as if it were dropped.
    #[inline]
    pub fn recycle(&mut self, frame: Frame) {
        if frame.is_of(self.region.as_ptr()) {
            self.free.push(frame.into_desc());
        }
    }

    /// Number of free frames.
    #[must_use]
    pub fn free_count(&self) -> usize {
        self.free.len() + self.region.returned_count() as usize
    }

    /// Number of frames of the pool, wherever they are.
    #[must_use]
    pub fn total(&self) -> usize {
        self.region.chunk_count() as usize
    }

    /// Why the sockets that were opened with the pool are in copy mode although zero copy was tried; `None` otherwise.
    #[must_use]
    pub fn zero_copy_refusal(&self) -> Option<&str> {
        self.zero_copy_refusal.as_deref()
    }

    /// Features that this kernel does not have, without which those sockets work.
    pub fn missing_features(&self) -> impl Iterator<Item = MissingFeature> + '_ {
        self.missing.iter().copied()
    }

    /// Counts every frame. Sockets of other pools among `sockets` are ignored.
    #[must_use]
    pub fn audit(&self, sockets: &[XskSocket]) -> FrameAudit {
        let ours = || sockets.iter().filter(|socket| socket.is_of(self));
        let free = self.free_count();
        let in_fill = ours().map(XskSocket::in_fill).sum();
        let in_tx = ours().map(XskSocket::in_tx).sum();
        let leaked = self.region.leaked() as usize;
        let known = free + in_fill + in_tx + leaked;
        FrameAudit {
            total: self.total(),
            free,
            in_fill,
            in_tx,
            leaked,
            held: self.total().saturating_sub(known),
            known,
        }
    }

    pub(crate) fn is(&self, region: &RegionRef) -> bool {
        self.region.as_ptr() == region.as_ptr()
    }

    /// The free list, after frames that were dropped elsewhere were moved back into it.
    #[inline]
    pub(crate) fn free_list(&mut self) -> &mut Vec<Descriptor> {
        if self.region.returned_count() > 0 {
            self.collect_returned();
        }
        &mut self.free
    }

    // Takes a lock, so it is kept out of the packet path's instructions as well.
    #[cold]
    fn collect_returned(&mut self) {
        self.region.drain_returned(&mut self.free);
    }
}

impl Drop for FramePool {
    fn drop(&mut self) {
        // Closed first: a frame that is dropped from now on releases its token by itself.
        self.region.release_chunks(self.free.len() + self.region.close_returns());
    }
}

impl fmt::Debug for FramePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FramePool").field("total", &self.total()).field("free", &self.free_count()).finish()
    }
}

/// Where all frames of a pool are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameAudit {
    /// All frames.
    pub total: usize,
    /// In the pool.
    pub free: usize,
    /// For receiving: in a fill ring, in the driver, or in an rx ring.
    pub in_fill: usize,
    /// For sending: staged, in a tx ring, in flight, or in a completion ring.
    pub in_tx: usize,
    /// Lost with a socket that was dropped before its pool.
    pub leaked: usize,
    /// The rest: [`Frame`]s.
    pub held: usize,
    known: usize,
}

/// The account of a pool does not add up: a frame was lost or exists twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("frames do not add up: {audit:?}, and the caller holds {held_by_caller}")]
pub struct AuditError {
    /// What was counted.
    pub audit: FrameAudit,
    /// Number of frames that the caller claims to hold.
    pub held_by_caller: usize,
}

impl FrameAudit {
    /// Checks that free frames, those with the kernel and those of the caller add up to the total.
    ///
    /// # Errors
    ///
    /// [`AuditError`] if they do not.
    pub fn check(&self, held_by_caller: usize) -> Result<(), AuditError> {
        if self.known + held_by_caller == self.total {
            Ok(())
        } else {
            Err(AuditError { audit: *self, held_by_caller })
        }
    }
}
