//! The memory of one pool, and who may touch which chunk of it.
//!
//! Every chunk has exactly one token. A token is in the pool's free list, in a [`Frame`](crate::Frame), or with a
//! port (its rings and what the kernel took from them). `alive` counts tokens and owners (pool, ports); whoever
//! brings it to zero frees the memory. So the memory outlives every frame without a reference count per frame, and
//! must never be unmapped earlier.
#![allow(unsafe_code, reason = "hands out packet memory that the kernel shares")]

use std::ptr::{self, NonNull};
#[cfg(debug_assertions)]
use std::sync::atomic::AtomicU8;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use xsk_rs::{FrameDesc, Umem};

/// Who may touch a chunk. Tracked in debug builds only: a second owner is a bug of this crate.
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
    /// Chunks that left with a port.
    leaked: AtomicU32,
    #[cfg(debug_assertions)]
    owners: Vec<AtomicU8>,
}

// SAFETY: `base` is the only field that is not Sync by itself. It is never written, and the bytes behind it are
// reached only through a chunk's one token, whose owner is one thread at a time.
unsafe impl Sync for Region {}
// SAFETY: nothing in it belongs to a thread; mmap'ed memory may be unmapped from any thread.
unsafe impl Send for Region {}

/// A counted reference to a region: the pool has one and each port has one.
pub(crate) struct RegionRef(NonNull<Region>);

// SAFETY: a region may be shared between threads (it is Sync) and freed on any of them (it is Send).
unsafe impl Send for RegionRef {}
// SAFETY: as above; a shared RegionRef gives only `&Region`.
unsafe impl Sync for RegionRef {}

impl Region {
    /// Takes a fresh UMEM whose descriptors nobody else has, and hands out `owners` references to it.
    pub(crate) fn share(umem: Umem, descs: &[FrameDesc], chunk_len: u32, owners: usize) -> Vec<RegionRef> {
        // SAFETY: the descriptor came with this UMEM; the slice is empty and only its address is taken.
        let first = unsafe { umem.data(&descs[0]) }.contents().as_ptr().addr() - descs[0].addr();
        // The memory came from mmap in foreign code, which also told its address to the kernel.
        let base = NonNull::new(ptr::with_exposed_provenance_mut(first)).expect("mmap never maps page zero");
        let region = Box::new(Self {
            umem,
            base,
            chunk_shift: chunk_len.trailing_zeros(),
            chunk_count: u32::try_from(descs.len()).expect("xsk-rs counts frames in a u32"),
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

    /// True when the descriptor and its length lie in one chunk of this region. Asked of all that the kernel
    /// hands over.
    #[inline]
    pub(crate) fn contains(&self, desc: &FrameDesc) -> bool {
        desc.addr() >> self.chunk_shift < self.chunk_count as usize
            && desc.lengths().data() <= self.capacity(desc)
    }

    /// Notes that a chunk changes hands and, in debug builds, panics when it was not where it should have been.
    #[inline]
    pub(crate) fn transfer(&self, desc: &FrameDesc, from: ChunkOwner, to: ChunkOwner) {
        #[cfg(debug_assertions)]
        {
            let chunk = desc.addr() >> self.chunk_shift;
            let was = self.owners[chunk].swap(to as u8, Ordering::Relaxed);
            assert_eq!(was, from as u8, "chunk {chunk} goes from {from:?} to {to:?}, but another holds it");
        }
        #[cfg(not(debug_assertions))]
        let _ = (desc, from, to);
    }

    /// Takes back a frame that was dropped. False when the pool is gone: then the token is given up instead.
    pub(crate) fn take_back(&self, desc: FrameDesc) -> bool {
        let mut returned = self.lock_returned();
        let Some(frames) = returned.as_mut() else { return false };
        frames.push(desc);
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

    /// From here on a dropped frame gives up its token. Hands back how many waited to be drained.
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
        // Nothing under this lock panics halfway.
        self.returned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RegionRef {
    #[inline]
    pub(crate) fn as_ptr(&self) -> NonNull<Region> {
        self.0
    }

    /// Gives up the tokens of `chunks`, which the owner of this reference had and forgets.
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

/// Gives up `count` tokens or references and frees the region with the last one.
///
/// # Safety
///
/// The caller owned `count` tokens or references of this region and uses none of them, nor the pointer, afterwards.
pub(crate) unsafe fn release(region: NonNull<Region>, count: usize) {
    // SAFETY: the tokens being given up still keep the region alive at this point.
    let before = unsafe { region.as_ref() }.alive.fetch_sub(count, Ordering::AcqRel);
    debug_assert!(before >= count);
    if before == count {
        // SAFETY: made by Box::leak in `share`; the count just reached zero, so nobody else refers to it.
        drop(unsafe { Box::from_raw(region.as_ptr()) });
    }
}
