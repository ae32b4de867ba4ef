//! The memory of one pool, and who owns which of its chunks.
//!
//! Every chunk has exactly one token. The token is in the pool's free list, in a [`Frame`](crate::Frame), or with a socket
//! (in its rings, or with the kernel, which took the chunk from them). `alive` counts tokens and references (one of the
//! pool, one per socket, and those by which sockets are opened later); the release that brings it to zero frees the memory.
//! So the memory outlives every frame, without an atomic reference count per frame on the packet path.
#![allow(unsafe_code, reason = "hands out packet memory that the kernel shares")]

use std::ptr::NonNull;
#[cfg(debug_assertions)]
use std::sync::atomic::AtomicU8;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::ring::Descriptor;
use crate::sys::xdp_socket;
use crate::umem::KERNEL_HEADROOM;
use crate::{UmemConfig, XskError, umem};

/// Who owns a chunk. Tracked in debug builds only: a second owner is a bug of this crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ChunkOwner {
    User,
    Fill,
    Tx,
}

pub(crate) struct Region {
    base: NonNull<u8>,
    /// Bytes of the whole mapping.
    len: usize,
    headroom: u32,
    chunk_shift: u32,
    chunk_count: u32,
    alive: AtomicUsize,
    /// Frames that were dropped instead of recycled; `None` once the pool is gone.
    returned: Mutex<Option<Vec<Descriptor>>>,
    returned_count: AtomicU32,
    /// Chunks that are lost until the memory is freed: the kernel had them when their socket was closed.
    leaked: AtomicU32,
    #[cfg(debug_assertions)]
    owners: Vec<AtomicU8>,
}

// SAFETY: `base` is the only field that is not Sync by itself. It is never written, and the bytes behind it are
// reached only through a chunk's one token, whose owner is one thread at a time.
unsafe impl Sync for Region {}
// SAFETY: nothing in it belongs to a thread; mmap'ed memory may be unmapped from any thread.
unsafe impl Send for Region {}

impl Drop for Region {
    fn drop(&mut self) {
        xdp_socket::unmap(self.base, self.len);
    }
}

/// A counted reference to a region: one of the pool, one per socket, and those of [`PacketMemory`](crate::PacketMemory).
pub(crate) struct RegionRef(NonNull<Region>);

// SAFETY: a region may be shared between threads (it is Sync) and freed on any of them (it is Send).
unsafe impl Send for RegionRef {}
// SAFETY: as above; a shared RegionRef gives only `&Region`.
unsafe impl Sync for RegionRef {}

impl Region {
    /// Maps new memory. Returns its first reference, and a descriptor for every chunk.
    pub(crate) fn map(config: &UmemConfig) -> Result<(RegionRef, Vec<Descriptor>), XskError> {
        let (base, len) = umem::map(config)?;
        let chunk_len = config.chunk_len as usize;
        let data_start = u64::from(KERNEL_HEADROOM + config.headroom);
        let chunks = (0..len / chunk_len).map(|chunk| (chunk * chunk_len) as u64);
        let descs: Vec<_> =
            chunks.map(|start| Descriptor { addr: start + data_start, len: 0, options: 0 }).collect();
        let region = Box::new(Self {
            base,
            len,
            headroom: config.headroom,
            chunk_shift: config.chunk_len.trailing_zeros(),
            chunk_count: u32::try_from(descs.len()).unwrap_or(u32::MAX),
            // All tokens at once: on the packet path none is counted, they only move.
            alive: AtomicUsize::new(descs.len() + 1),
            returned: Mutex::new(Some(Vec::new())),
            returned_count: AtomicU32::new(0),
            leaked: AtomicU32::new(0),
            #[cfg(debug_assertions)]
            owners: descs.iter().map(|_| AtomicU8::new(ChunkOwner::User as u8)).collect(),
        });
        Ok((RegionRef(NonNull::from(Box::leak(region))), descs))
    }

    /// Where the memory is, and how long.
    pub(crate) fn memory(&self) -> (NonNull<u8>, usize) {
        (self.base, self.len)
    }

    /// Bytes left free in each chunk in front of those that the kernel reserves.
    pub(crate) fn headroom(&self) -> u32 {
        self.headroom
    }

    pub(crate) fn chunk_len(&self) -> u32 {
        1 << self.chunk_shift
    }

    pub(crate) fn chunk_count(&self) -> u32 {
        self.chunk_count
    }

    /// Where the data of a descriptor starts.
    #[inline]
    pub(crate) fn data(&self, desc: &Descriptor) -> NonNull<u8> {
        debug_assert!(self.contains(desc));
        // SAFETY: every descriptor that becomes a frame came with the memory or passed `contains`: it is inside.
        unsafe { self.base.add(desc.start()) }
    }

    /// Bytes from the descriptor's address to the end of its chunk.
    #[inline]
    pub(crate) fn capacity(&self, desc: &Descriptor) -> usize {
        let chunk_len = 1_usize << self.chunk_shift;
        chunk_len - (desc.start() & (chunk_len - 1))
    }

    /// True if the descriptor's bytes lie in one chunk of this region. Checked for every descriptor from the kernel.
    #[inline]
    pub(crate) fn contains(&self, desc: &Descriptor) -> bool {
        desc.start() >> self.chunk_shift < self.chunk_count as usize
            && desc.len as usize <= self.capacity(desc)
    }

    /// Records that a chunk changes its owner. Debug builds panic if `from` did not own it; release builds do nothing.
    #[inline]
    pub(crate) fn transfer(&self, desc: &Descriptor, from: ChunkOwner, to: ChunkOwner) {
        #[cfg(debug_assertions)]
        {
            let chunk = desc.start() >> self.chunk_shift;
            // Relaxed: the ring or the lock by which the chunk moves orders the accesses to its bytes.
            let was = self.owners[chunk].swap(to as u8, Ordering::Relaxed);
            assert_eq!(was, from as u8, "chunk {chunk} goes from {from:?} to {to:?}, but another holds it");
        }
        #[cfg(not(debug_assertions))]
        let _ = (desc, from, to);
    }

    /// Takes back a frame that was dropped. False if the pool is gone: then the caller releases the token.
    pub(crate) fn take_back(&self, desc: Descriptor) -> bool {
        let mut returned = self.lock_returned();
        let Some(frames) = returned.as_mut() else { return false };
        frames.push(desc);
        // A hint for the pool, so Relaxed: the frames themselves are published by the lock.
        self.returned_count.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Frames that were dropped since the last [`drain_returned`](Self::drain_returned).
    #[inline]
    pub(crate) fn returned_count(&self) -> u32 {
        self.returned_count.load(Ordering::Relaxed)
    }

    pub(crate) fn drain_returned(&self, into: &mut Vec<Descriptor>) {
        if let Some(frames) = self.lock_returned().as_mut() {
            into.append(frames);
            self.returned_count.store(0, Ordering::Relaxed);
        }
    }

    /// From now on a dropped frame releases its token. Returns how many were waiting to be drained.
    pub(crate) fn close_returns(&self) -> usize {
        self.lock_returned().take().map_or(0, |frames| frames.len())
    }

    pub(crate) fn leaked(&self) -> u32 {
        self.leaked.load(Ordering::Relaxed)
    }

    pub(crate) fn leak(&self, chunks: u32) {
        self.leaked.fetch_add(chunks, Ordering::Relaxed);
    }

    fn lock_returned(&self) -> MutexGuard<'_, Option<Vec<Descriptor>>> {
        // No code under this lock panics halfway, so a poisoned lock still protects a valid list.
        self.returned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RegionRef {
    #[inline]
    pub(crate) fn as_ptr(&self) -> NonNull<Region> {
        self.0
    }

    /// Another reference to the same region.
    pub(crate) fn another(&self) -> Self {
        // Relaxed, as in `Arc`: who has a reference need not synchronise to make another.
        self.alive.fetch_add(1, Ordering::Relaxed);
        Self(self.0)
    }

    /// Releases the tokens of `chunks`, which the owner of this reference had and does not use any more.
    pub(crate) fn release_chunks(&self, chunks: usize) {
        // SAFETY: the owner's own reference stays, so the region outlives this call; each token is given up once because
        // only an owner's `drop` comes here.
        unsafe { release(self.0, chunks) };
    }
}

impl Drop for RegionRef {
    fn drop(&mut self) {
        // SAFETY: this reference was counted once, when it was made, and ends here.
        unsafe { release(self.0, 1) };
    }
}

impl std::ops::Deref for RegionRef {
    type Target = Region;

    #[inline]
    fn deref(&self) -> &Region {
        // SAFETY: a RegionRef is counted in `alive` until it is dropped, so the region exists.
        unsafe { self.0.as_ref() }
    }
}

/// Releases `count` tokens or references, and frees the region with the last one.
///
/// # Safety
///
/// The caller owned `count` tokens or references of this region and uses none of them, nor the pointer, afterwards.
pub(crate) unsafe fn release(region: NonNull<Region>, count: usize) {
    // AcqRel, as in `Arc`: everything that other owners did with the memory happens before it is unmapped.
    // SAFETY: the tokens being released still keep the region alive at this point.
    let before = unsafe { region.as_ref() }.alive.fetch_sub(count, Ordering::AcqRel);
    debug_assert!(before >= count);
    if before == count {
        // SAFETY: made by Box::leak in `map`; the count just reached zero, so nobody else refers to it.
        drop(unsafe { Box::from_raw(region.as_ptr()) });
    }
}
