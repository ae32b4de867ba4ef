//! The memory of the flow table: one anonymous mapping, zeroed by the kernel, never moved or grown.
//!
//! The only place that turns bytes into entries. Never hands out a unique reference.
#![allow(unsafe_code, reason = "entries and tags are views of one mapping that other programs may share")]

use std::marker::PhantomData;

use memmap2::MmapRaw;

use crate::address::FlowAddress;
use crate::entry::Entry;
use crate::tags::{BUCKET_SLOTS, Tags};

/// The memory asked for is not to be had.
#[derive(Debug, thiserror::Error)]
#[error("{bytes} bytes for a flow table of {flows} flows: {source}")]
pub struct OutOfMemory {
    /// Bytes asked for.
    pub bytes: usize,
    /// Flows that they were for.
    pub flows: u32,
    /// What the kernel said.
    #[source]
    pub source: std::io::Error,
}

/// What may lie in memory that several threads or programs share.
///
/// # Safety
/// Zeroed bytes are a valid value, every field is an atomic, the size is a multiple of the alignment, and
/// the alignment is at most a page.
pub(crate) unsafe trait SharedRecord: Sync {}

// SAFETY: all fields are atomics or arrays of them, and `repr(C, align(64))` makes it 64 or 128 bytes.
unsafe impl<A: FlowAddress> SharedRecord for Entry<A> {}

/// Tags first, entries after them, both aligned to a page.
#[derive(Debug)]
pub(crate) struct Memory<E> {
    mapping: MmapRaw,
    bucket_count: u32,
    /// Bytes from the start of the mapping: asked for with every packet, so not computed each time.
    entries_offset: usize,
    entries: PhantomData<fn() -> E>,
}

impl<E: SharedRecord> Memory<E> {
    pub(crate) fn new(bucket_count: u32, flows: u32) -> Result<Self, OutOfMemory> {
        let entries_offset = entries_offset(bucket_count);
        let bytes = entries_offset + entry_count(bucket_count) * size_of::<E>();
        let refused = |source| OutOfMemory { bytes, flows, source };
        let mapping = MmapRaw::from(memmap2::MmapOptions::new().len(bytes).map_anon().map_err(refused)?);
        // Fewer TLB misses where the kernel has huge pages to give; without them it works all the same.
        let _ = mapping.advise(memmap2::Advice::HugePage);
        // The first packets of new flows must not wait for page faults. Kernels before 5.14 do not know
        // this advice: there the faults come one by one as before.
        match mapping.advise(memmap2::Advice::PopulateWrite) {
            Err(error) if error.kind() == std::io::ErrorKind::OutOfMemory => Err(refused(error)),
            _ => Ok(Self { mapping, bucket_count, entries_offset, entries: PhantomData }),
        }
    }

    pub(crate) const fn bucket_count(&self) -> u32 {
        self.bucket_count
    }

    pub(crate) fn len_bytes(&self) -> usize {
        self.mapping.len()
    }

    #[inline]
    pub(crate) fn tags(&self) -> &[Tags] {
        let first = self.mapping.as_ptr().cast::<Tags>();
        // SAFETY: the mapping begins with bucket_count tag words, is page aligned, zeroed (a valid value),
        // lives as long as self, and is only ever reached through atomics.
        unsafe { std::slice::from_raw_parts(first, self.bucket_count as usize) }
    }

    #[inline]
    pub(crate) fn entries(&self) -> &[E] {
        // SAFETY: `new` made the mapping longer than the offset.
        let first = unsafe { self.mapping.as_ptr().add(self.entries_offset) }.cast::<E>();
        // SAFETY: entry_count entries follow the offset, which is a multiple of the page size; the rest is
        // what `SharedRecord` promises; the mapping lives as long as self.
        unsafe { std::slice::from_raw_parts(first, entry_count(self.bucket_count)) }
    }
}

const fn entry_count(bucket_count: u32) -> usize {
    bucket_count as usize * BUCKET_SLOTS as usize
}

const fn entries_offset(bucket_count: u32) -> usize {
    (bucket_count as usize * size_of::<Tags>()).next_multiple_of(PAGE_BYTES)
}

const PAGE_BYTES: usize = 4096;
