//! One ring of an AF_XDP socket, which is memory that the kernel shares: entries, and the indexes of producer and consumer
//! (Documentation/networking/af_xdp.rst).
//!
//! Each side writes only its own index. An index that is read with Acquire orders the entries that it covers; an index that
//! is written with Release publishes what was done to them. Indexes run freely and are masked when an entry is accessed. The
//! other side's index lies on a cache line that it writes, so it is read only when the cached value does not suffice.
#![allow(unsafe_code, reason = "memory that is shared with the kernel")]

use std::io;
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::sys::xdp_socket::{RingMemory, RingOffsets};

/// A part of the packet memory as the kernel describes it: `struct xdp_desc` of <linux/if_xdp.h>.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Descriptor {
    /// Where the data starts, in bytes from the start of the memory.
    pub(crate) addr: u64,
    /// Bytes of data.
    pub(crate) len: u32,
    /// Flags, such as XDP_PKT_CONTD.
    pub(crate) options: u32,
}

impl Descriptor {
    pub(crate) fn start(&self) -> usize {
        // Lossless: addresses are offsets into memory of this process.
        usize::try_from(self.addr).unwrap_or(usize::MAX)
    }
}

/// What a ring consists of: descriptors for packets, addresses alone for chunks that carry none.
pub(crate) trait Entry: Copy {
    fn from_descriptor(descriptor: &Descriptor) -> Self;
    fn descriptor(self) -> Descriptor;
}

impl Entry for Descriptor {
    #[inline]
    fn from_descriptor(descriptor: &Descriptor) -> Self {
        *descriptor
    }

    #[inline]
    fn descriptor(self) -> Descriptor {
        self
    }
}

impl Entry for u64 {
    #[inline]
    fn from_descriptor(descriptor: &Descriptor) -> Self {
        descriptor.addr
    }

    #[inline]
    fn descriptor(self) -> Descriptor {
        Descriptor { addr: self, len: 0, options: 0 }
    }
}

/// One of the four rings. Whether this process produces or consumes is a matter of which methods its owner calls.
pub(crate) struct Ring<T> {
    memory: RingMemory,
    len: u32,
    /// Copies of the indexes: our own is exact, the other may be behind.
    producer: u32,
    consumer: u32,
    entries: PhantomData<T>,
}

impl<T: Entry> Ring<T> {
    /// Maps a ring of `len` entries, a power of two, that the socket was given before.
    pub(crate) fn map(
        socket: BorrowedFd<'_>,
        page_offset: libc::off_t,
        offsets: RingOffsets,
        len: u32,
    ) -> io::Result<Self> {
        let memory = RingMemory::map(socket, page_offset, offsets, len as usize * size_of::<T>())?;
        Ok(Self { memory, len, producer: 0, consumer: 0, entries: PhantomData })
    }

    /// Takes up to `into.len()` entries that the kernel has produced, and returns how many.
    #[inline]
    pub(crate) fn consume(&mut self, into: &mut [Descriptor]) -> usize {
        let wanted = u32::try_from(into.len()).unwrap_or(u32::MAX);
        let mut ready = self.producer.wrapping_sub(self.consumer);
        if ready < wanted {
            self.producer = index(self.memory.producer()).load(Ordering::Acquire);
            ready = self.producer.wrapping_sub(self.consumer);
        }
        let count = ready.min(wanted);
        for (slot, at) in into.iter_mut().zip(0..count) {
            *slot = self.read(self.consumer.wrapping_add(at)).descriptor();
        }
        if count > 0 {
            self.consumer = self.consumer.wrapping_add(count);
            index(self.memory.consumer()).store(self.consumer, Ordering::Release);
        }
        count as usize
    }

    /// Gives entries to the kernel. There must be room for them: see [`room`](Self::room).
    #[inline]
    pub(crate) fn produce(&mut self, from: &[Descriptor]) {
        debug_assert!(self.producer.wrapping_sub(self.consumer) as usize + from.len() <= self.len as usize);
        for (descriptor, at) in from.iter().zip(0_u32..) {
            let entry = self.entry(self.producer.wrapping_add(at));
            // SAFETY: `entry` is inside of the ring, and the kernel does not read it before the index below covers it.
            unsafe { entry.write(T::from_descriptor(descriptor)) };
        }
        // A ring has at most 2^31 entries, so their number fits.
        self.producer = self.producer.wrapping_add(u32::try_from(from.len()).unwrap_or_default());
        index(self.memory.producer()).store(self.producer, Ordering::Release);
    }

    /// Free entries for producing. The kernel's index is read only if fewer than `wanted` are known to be free.
    #[inline]
    pub(crate) fn room(&mut self, wanted: usize) -> usize {
        let room = self.len - self.producer.wrapping_sub(self.consumer);
        if room as usize >= wanted {
            return room as usize;
        }
        self.consumer = index(self.memory.consumer()).load(Ordering::Acquire);
        (self.len - self.producer.wrapping_sub(self.consumer)) as usize
    }

    /// Whether the kernel waits to be woken before it looks at this ring.
    #[inline]
    pub(crate) fn needs_wakeup(&self) -> bool {
        index(self.memory.flags()).load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }

    /// Takes back what was produced and the kernel has not consumed. Only for a ring that the kernel consumes no more: it
    /// does not learn of it.
    pub(crate) fn take_back(&mut self, mut each: impl FnMut(Descriptor)) -> usize {
        self.consumer = index(self.memory.consumer()).load(Ordering::Acquire);
        let count = self.producer.wrapping_sub(self.consumer);
        (0..count).for_each(|at| each(self.read(self.consumer.wrapping_add(at)).descriptor()));
        self.consumer = self.producer;
        count as usize
    }

    #[inline]
    fn read(&self, at: u32) -> T {
        let entry = self.entry(at);
        // SAFETY: `entry` is inside of the ring, initialised since mmap, and its writer is done with it: the index that
        // covers it was read with Acquire, or it is our own.
        unsafe { entry.read() }
    }

    #[inline]
    fn entry(&self, at: u32) -> NonNull<T> {
        let first = self.memory.entries().cast::<T>();
        // SAFETY: masked to the length with which the ring was mapped.
        unsafe { first.add((at & (self.len - 1)) as usize) }
    }
}

#[inline]
fn index<'a>(at: NonNull<AtomicU32>) -> &'a AtomicU32 {
    // SAFETY: an aligned 32-bit integer in a mapping that lives as long as the ring, of which every access is atomic. The
    // reference does not leave the method that asked for it.
    unsafe { at.as_ref() }
}
