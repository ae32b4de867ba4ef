//! The memory of one pool, and who owns which of its chunks.
//!
//! Every chunk has exactly one token. The token is in the pool's free list, in a [`Frame`](crate::Frame), or with a socket
//! (in its rings, or with the kernel, which took the chunk from them). `alive` counts tokens and references (one of the
//! pool, one per socket); the release that brings it to zero frees the memory. So the memory outlives every frame, without
//! an atomic reference count per frame on the packet path.
#![allow(unsafe_code, reason = "hands out packet memory that the kernel shares")]

use std::ptr::{self, NonNull};
#[cfg(debug_assertions)]
use std::sync::atomic::AtomicU8;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use xsk_rs::{FrameDesc, Umem};

/// Who owns a chunk. Tracked in debug builds only: a second owner is a bug of this crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ChunkOwner {
    User,
    Fill,
    Tx,
}

pub(crate) struct Region {
    umem: Umem,
    base: NonNull<u8>,
    chunk_shift: u32,
    chunk_count: u32,
    alive: AtomicUsize,
    /// Frames that were dropped instead of recycled; `None` once the pool is gone.
    returned: Mutex<Option<Vec<FrameDesc>>>,
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

/// A counted reference to a region: one of the pool and one per socket.
pub(crate) struct RegionRef(NonNull<Region>);

// SAFETY: a region may be shared between threads (it is Sync) and freed on any of them (it is Send).
unsafe impl Send for RegionRef {}
// SAFETY: as above; a shared RegionRef gives only `&Region`.
unsafe impl Sync for RegionRef {}

impl Region {
    /// Takes a new UMEM with all its descriptors, and returns `owners` references to it.
    pub(crate) fn share(umem: Umem, descs: &[FrameDesc], chunk_len: u32, owners: usize) -> Vec<RegionRef> {
        // SAFETY: the descriptor came with this UMEM; the slice is empty and only its address is taken.
        let first = unsafe { umem.data(&descs[0]) }.contents().as_ptr().addr() - descs[0].addr();
        // With exposed provenance: the memory was mapped by C code, and the kernel writes into it by address.
        let base = NonNull::new(ptr::with_exposed_provenance_mut(first)).expect("mmap never maps page zero");
        let region = Box::new(Self {
            umem,
            base,
            chunk_shift: chunk_len.trailing_zeros(),
            chunk_count: u32::try_from(descs.len()).expect("xsk-rs counts frames in a u32"),
            // All tokens at once: on the packet path none is counted, they only move.
            alive: AtomicUsize::new(descs.len() + owners),
            returned: Mutex::new(Some(Vec::new())),
            returned_count: AtomicU32::new(0),
            leaked: AtomicU32::new(0),
            #[cfg(debug_assertions)]
            owners: descs.iter().map(|_| AtomicU8::new(ChunkOwner::User as u8)).collect(),
        });
        let region = NonNull::from(Box::leak(region));
        (0..owners).map(|_| RegionRef(region)).collect()
    }

    pub(crate) fn umem(&self) -> &Umem {
        &self.umem
    }

    pub(crate) fn chunk_count(&self) -> u32 {
        self.chunk_count
    }

    /// Where the data of a descriptor starts.
    #[inline]
    pub(crate) fn data(&self, desc: &FrameDesc) -> NonNull<u8> {
        debug_assert!(self.contains(desc));
        // SAFETY: every descriptor that becomes a frame came with the UMEM or passed `contains`: it is inside.
        unsafe { self.base.add(desc.addr()) }
    }

    /// Bytes from the descriptor's address to the end of its chunk.
    #[inline]
    pub(crate) fn capacity(&self, desc: &FrameDesc) -> usize {
        let chunk_len = 1_usize << self.chunk_shift;
        chunk_len - (desc.addr() & (chunk_len - 1))
    }

    /// True if the descriptor's bytes lie in one chunk of this region. Checked for every descriptor from the kernel.
    #[inline]
    pub(crate) fn contains(&self, desc: &FrameDesc) -> bool {
        desc.addr() >> self.chunk_shift < self.chunk_count as usize
            && desc.lengths().data() <= self.capacity(desc)
    }

    /// Records that a chunk changes its owner. Debug builds panic if `from` did not own it; release builds do nothing.
    #[inline]
    pub(crate) fn transfer(&self, desc: &FrameDesc, from: ChunkOwner, to: ChunkOwner) {
        #[cfg(debug_assertions)]
        {
            let chunk = desc.addr() >> self.chunk_shift;
            // Relaxed: the ring or the lock by which the chunk moves orders the accesses to its bytes.
            let was = self.owners[chunk].swap(to as u8, Ordering::Relaxed);
            assert_eq!(was, from as u8, "chunk {chunk} goes from {from:?} to {to:?}, but another holds it");
        }
        #[cfg(not(debug_assertions))]
        let _ = (desc, from, to);
    }

    /// Takes back a frame that was dropped. False if the pool is gone: then the caller releases the token.
    pub(crate) fn take_back(&self, desc: FrameDesc) -> bool {
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

    pub(crate) fn drain_returned(&self, into: &mut Vec<FrameDesc>) {
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

    fn lock_returned(&self) -> MutexGuard<'_, Option<Vec<FrameDesc>>> {
        // No code under this lock panics halfway, so a poisoned lock still protects a valid list.
        self.returned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RegionRef {
    #[inline]
    pub(crate) fn as_ptr(&self) -> NonNull<Region> {
        self.0
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
        // SAFETY: made by Box::leak in `share`; the count just reached zero, so nobody else refers to it.
        drop(unsafe { Box::from_raw(region.as_ptr()) });
    }
}
