//! The memory of the flow table: one mapping of fixed size and place, zeroed when it is new.
//!
//! The only place that turns bytes into entries, and only into shared references.
#![allow(unsafe_code, reason = "entries and tags are views of one mapping that other programs may share")]

use std::fs::File;
use std::io::{self, ErrorKind};
use std::marker::PhantomData;

use memmap2::{Advice, MmapOptions, MmapRaw};
use nix::fcntl::{FallocateFlags, fallocate};

use crate::address::FlowAddress;
use crate::entry::Entry;
use crate::tags::{BUCKET_SLOTS, Tags};

/// The kernel refuses memory for a table.
#[derive(Debug, thiserror::Error)]
#[error("{bytes} bytes for a flow table of {flows} flows: {source}")]
pub struct OutOfMemory {
    /// Bytes requested.
    pub bytes: usize,
    /// Capacity of the table.
    pub flows: u32,
    /// The kernel's error.
    #[source]
    pub source: io::Error,
}

/// A type that may be in memory that several threads or processes share.
///
/// # Safety
/// Any bytes are a valid value, every field is an atomic, the size is a multiple of the alignment, and the
/// alignment is at most a page.
pub(crate) unsafe trait SharedRecord: Sync {}

// SAFETY: all fields are atomics or arrays of them, and `repr(C, align(64))` makes it 64 or 128 bytes.
unsafe impl<A: FlowAddress> SharedRecord for Entry<A> {}

/// Tags first, entries after them, both aligned to a page.
#[derive(Debug)]
pub(crate) struct Memory<E> {
    mapping: MmapRaw,
    bucket_count: u32,
    /// Bytes from the start of the mapping; stored, since it is needed for every packet.
    entries_offset: usize,
    entries: PhantomData<fn() -> E>,
}

impl<E: SharedRecord> Memory<E> {
    /// Anonymous memory, which ends with the process.
    pub(crate) fn new(bucket_count: u32, flows: u32) -> Result<Self, OutOfMemory> {
        let bytes = len_bytes::<E>(bucket_count);
        let mapped = MmapOptions::new().len(bytes).map_anon().map(MmapRaw::from);
        let refused = |source| OutOfMemory { bytes, flows, source };
        let memory = Self::from_mapping(mapped.map_err(refused)?, bucket_count);
        match memory.mapping.advise(Advice::PopulateWrite) {
            Err(error) if error.kind() == ErrorKind::OutOfMemory => Err(refused(error)),
            // Kernels before 5.14 do not know this advice: pages are faulted in one by one by the first flows.
            _ => Ok(memory),
        }
    }

    /// The beginning of `file`, which is extended as needed.
    pub(crate) fn in_file(file: &File, bucket_count: u32, flows: u32) -> Result<Self, OutOfMemory> {
        let bytes = len_bytes::<E>(bucket_count);
        let refused = |source| OutOfMemory { bytes, flows, source };
        let len = i64::try_from(bytes).unwrap_or(i64::MAX);
        // Now and not on demand: a page that the file system cannot provide later is a SIGBUS.
        fallocate(file, FallocateFlags::empty(), 0, len).map_err(|errno| refused(errno.into()))?;
        let memory =
            Self::from_mapping(MmapOptions::new().len(bytes).map_raw(file).map_err(refused)?, bucket_count);
        // Only an optimisation: it spares the first packets the page faults.
        let _ = memory.mapping.advise(Advice::PopulateWrite);
        Ok(memory)
    }

    fn from_mapping(mapping: MmapRaw, bucket_count: u32) -> Self {
        // Only an optimisation: fewer TLB misses where the kernel has huge pages. Lookups are at random places.
        let _ = mapping.advise(Advice::HugePage);
        let entries_offset = entries_offset(bucket_count);
        Self { mapping, bucket_count, entries_offset, entries: PhantomData }
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
        // SAFETY: the mapping begins with bucket_count tag words, is page aligned, any bytes are a valid
        // value, lives as long as self, and is only ever reached through atomics.
        unsafe { std::slice::from_raw_parts(first, self.bucket_count as usize) }
    }

    #[inline]
    pub(crate) fn entries(&self) -> &[E] {
        // SAFETY: the mapping is longer than the offset.
        let first = unsafe { self.mapping.as_ptr().add(self.entries_offset) }.cast::<E>();
        // SAFETY: entry_count entries follow the offset, which is a multiple of the page size; the rest is
        // what `SharedRecord` promises; the mapping lives as long as self.
        unsafe { std::slice::from_raw_parts(first, entry_count(self.bucket_count)) }
    }
}

/// Bytes of a table with this many buckets, in whole pages.
pub(crate) const fn len_bytes<E>(bucket_count: u32) -> usize {
    (entries_offset(bucket_count) + entry_count(bucket_count) * size_of::<E>()).next_multiple_of(PAGE_BYTES)
}

const fn entry_count(bucket_count: u32) -> usize {
    bucket_count as usize * BUCKET_SLOTS as usize
}

const fn entries_offset(bucket_count: u32) -> usize {
    (bucket_count as usize * size_of::<Tags>()).next_multiple_of(PAGE_BYTES)
}

pub(crate) const PAGE_BYTES: usize = 4096;
