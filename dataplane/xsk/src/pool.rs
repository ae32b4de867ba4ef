//! The free frames of one worker, and the account of all the others. Must never lose a frame or hand one out twice.
#![allow(unsafe_code, reason = "turns free chunks into frames")]

use std::collections::BTreeSet;
use std::fmt;

use xsk_rs::FrameDesc;

use crate::region::{Region, RegionRef};
use crate::{
    BindMode, Frame, MissingFeature, UmemConfig, XskError, XskSocket, XskSocketConfig, ZeroCopy, umem,
};

/// One worker's packet memory: its free frames.
///
/// All ports of a pool share the memory, so a frame received on one may be sent on another. Free frames are a stack:
/// the one used last is still in the cache.
pub struct FramePool {
    free: Vec<FrameDesc>,
    region: RegionRef,
    zero_copy_refusal: Option<String>,
    missing: BTreeSet<MissingFeature>,
}

impl FramePool {
    /// Maps the memory and binds a socket for each port, in their order.
    ///
    /// With [`ZeroCopy::Auto`] throughout, tries zero copy first; when any port refuses, all are bound in copy mode
    /// (one memory has one mode) and [`zero_copy_refusal`](Self::zero_copy_refusal) says why.
    ///
    /// # Errors
    ///
    /// [`XskError`], saying which port and what to do. A queue that is still busy from a process that died is
    /// tried again for about three seconds.
    pub fn new(config: &UmemConfig, ports: &[XskSocketConfig]) -> Result<(Self, Vec<XskSocket>), XskError> {
        umem::check(config, ports)?;
        if ports.iter().any(|port| port.zero_copy == ZeroCopy::Off) {
            return Self::open(config, ports, BindMode::Copy, None);
        }
        match Self::open(config, ports, BindMode::ZeroCopy, None) {
            Err(XskError::Bind { source, .. })
                if ports.iter().all(|port| port.zero_copy == ZeroCopy::Auto)
                    && !matches!(source.raw_os_error(), Some(libc::ENODEV | libc::EPERM)) =>
            {
                Self::open(config, ports, BindMode::Copy, Some(source.to_string()))
            }
            other => other,
        }
    }

    fn open(
        config: &UmemConfig,
        ports: &[XskSocketConfig],
        mode: BindMode,
        zero_copy_refusal: Option<String>,
    ) -> Result<(Self, Vec<XskSocket>), XskError> {
        let (umem, mut free) = umem::create_umem(config, ports)?;
        // All sockets before any port: an error here leaves nothing that references frames.
        let rings = ports.iter().map(|port| umem::bind(&umem, port, mode)).collect::<Result<Vec<_>, _>>()?;

        // The first chunks are taken first.
        free.reverse();
        let mut references = Region::share(umem, &free, config.chunk_len, ports.len() + 1);
        let region = references.pop().expect("asked for one more than ports");
        let mut missing = BTreeSet::new();
        let ports = ports
            .iter()
            .zip(rings)
            .zip(references)
            .map(|((config, rings), reference)| XskSocket::new(config, rings, reference, &mut missing))
            .collect::<Result<Vec<_>, _>>()?;
        Ok((Self { free, region, zero_copy_refusal, missing }, ports))
    }

    /// An empty frame to build a packet in, or `None` when all are in use.
    #[inline]
    pub fn take(&mut self) -> Option<Frame> {
        if self.free.is_empty() {
            self.collect_returned();
        }
        let desc = self.free.pop()?;
        // SAFETY: the free list references each token once, of this region, and every entry of it passed `contains`.
        let mut frame = unsafe { Frame::new(desc, self.region.as_ptr()) };
        frame.set_len(0).expect("an empty frame always fits");
        Some(frame)
    }

    /// Takes a frame back. One of another pool goes to that pool.
    #[inline]
    pub fn recycle(&mut self, frame: Frame) {
        if frame.is_of(self.region.as_ptr()) {
            self.free.push(frame.into_desc());
        }
    }

    /// Frames that are free now.
    #[must_use]
    pub fn free_count(&self) -> usize {
        self.free.len() + self.region.returned_count() as usize
    }

    /// All frames of the pool, wherever they are.
    #[must_use]
    pub fn total(&self) -> usize {
        self.region.chunk_count() as usize
    }

    /// Why the ports run in copy mode although zero copy was tried.
    #[must_use]
    pub fn zero_copy_refusal(&self) -> Option<&str> {
        self.zero_copy_refusal.as_deref()
    }

    /// What this kernel does not have and the ports go without.
    pub fn missing_features(&self) -> impl Iterator<Item = MissingFeature> + '_ {
        self.missing.iter().copied()
    }

    /// Counts every frame. Ports of other pools are left out.
    #[must_use]
    pub fn audit(&self, ports: &[XskSocket]) -> FrameAudit {
        let ours = || ports.iter().filter(|port| port.is_of(self));
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

    /// The free list, with what was dropped elsewhere back in it.
    #[inline]
    pub(crate) fn free_list(&mut self) -> &mut Vec<FrameDesc> {
        if self.region.returned_count() > 0 {
            self.collect_returned();
        }
        &mut self.free
    }

    #[cold]
    fn collect_returned(&mut self) {
        self.region.drain_returned(&mut self.free);
    }
}

impl Drop for FramePool {
    fn drop(&mut self) {
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
    /// With the kernel for receiving: in a fill ring, in the driver, or received and not yet taken.
    pub in_fill: usize,
    /// With the kernel for sending: staged, in a tx ring, in flight, or sent and not yet reaped.
    pub in_tx: usize,
    /// Gone with a port that was dropped before its pool.
    pub leaked: usize,
    /// The rest: in somebody's hands.
    pub held: usize,
    known: usize,
}

/// The account of a pool does not add up: a frame was lost or exists twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("frames do not add up: {audit:?}, and the caller references {held_by_caller}")]
pub struct AuditError {
    /// What was counted.
    pub audit: FrameAudit,
    /// What the caller says it references.
    pub held_by_caller: usize,
}

impl FrameAudit {
    /// Checks that free, with the kernel and in the caller's hands make the total.
    ///
    /// # Errors
    ///
    /// [`AuditError`] when they do not.
    pub fn check(&self, held_by_caller: usize) -> Result<(), AuditError> {
        if self.known + held_by_caller == self.total {
            Ok(())
        } else {
            Err(AuditError { audit: *self, held_by_caller })
        }
    }
}
