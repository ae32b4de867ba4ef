//! One chunk of packet memory as a value that moves. There is never a second `Frame` of the same chunk.
#![allow(unsafe_code, reason = "turns a chunk that it owns into a slice")]

use std::ptr::NonNull;
use std::{fmt, mem, slice};

use crate::region::{ChunkOwner, Region, release};
use crate::ring::Descriptor;

/// An Ethernet frame in a pool's memory; this value owns its chunk.
///
/// Send it with [`XskSocket::tx_push`](crate::XskSocket::tx_push) or return it with
/// [`FramePool::recycle`](crate::FramePool::recycle). A frame that is dropped also returns to its pool, but through a lock:
/// fine on an error path, too slow for the packet path.
#[must_use = "a frame that is not sent or recycled goes back to its pool the slow way"]
pub struct Frame {
    desc: Descriptor,
    region: NonNull<Region>,
}

// SAFETY: a frame is the only way to its chunk and the chunk's token keeps the region alive; the region itself may
// be used from any thread (it is Sync).
unsafe impl Send for Frame {}
// SAFETY: a shared frame gives only shared access to bytes that nobody else can write.
unsafe impl Sync for Frame {}

/// The wanted length of a frame exceeds its chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{wanted} bytes do not fit into a chunk that has room for {capacity}")]
pub struct FrameTooLong {
    /// The wanted length, in bytes.
    pub wanted: usize,
    /// The longest that fits, in bytes.
    pub capacity: usize,
}

impl Frame {
    /// # Safety
    ///
    /// The caller owned the token of this chunk, hands it to the frame, and the descriptor passed
    /// [`Region::contains`] on this region.
    #[inline]
    pub(crate) unsafe fn new(desc: Descriptor, region: NonNull<Region>) -> Self {
        Self { desc, region }
    }

    /// The frame's descriptor and with it the chunk's token.
    #[inline]
    pub(crate) fn into_desc(self) -> Descriptor {
        let desc = self.desc;
        // The token goes on with the descriptor: `drop` would give the chunk back to the pool as well.
        mem::forget(self);
        desc
    }

    #[inline]
    pub(crate) fn is_of(&self, region: NonNull<Region>) -> bool {
        self.region == region
    }

    #[inline]
    fn region(&self) -> &Region {
        // SAFETY: this frame's token keeps the region alive.
        unsafe { self.region.as_ref() }
    }

    /// Bytes in the frame, from the Ethernet header on.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.desc.len as usize
    }

    /// True for a frame with no bytes, as [`FramePool::take`](crate::FramePool::take) hands it out.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes to which this frame can grow.
    #[inline]
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.region().capacity(&self.desc)
    }

    /// Shortens or lengthens the frame at its end. Added bytes are what an earlier packet left in the chunk.
    ///
    /// # Errors
    ///
    /// [`FrameTooLong`] beyond [`capacity`](Self::capacity); the frame stays as it was.
    #[inline]
    pub fn set_len(&mut self, len: usize) -> Result<(), FrameTooLong> {
        let capacity = self.capacity();
        if len > capacity {
            return Err(FrameTooLong { wanted: len, capacity });
        }
        // Lossless: a chunk has at most 4096 bytes.
        self.desc.len = u32::try_from(len).unwrap_or_default();
        Ok(())
    }
}

impl AsRef<[u8]> for Frame {
    #[inline]
    fn as_ref(&self) -> &[u8] {
        let data = self.region().data(&self.desc);
        // SAFETY: `len` bytes from there are in one chunk (checked when the frame was made and by set_len), mapped
        // and initialised since mmap, and this frame is the chunk's only owner.
        unsafe { slice::from_raw_parts(data.as_ptr(), self.len()) }
    }
}

impl AsMut<[u8]> for Frame {
    #[inline]
    fn as_mut(&mut self) -> &mut [u8] {
        let data = self.region().data(&self.desc);
        // SAFETY: as in as_ref, and `&mut self` excludes every other slice of this frame.
        unsafe { slice::from_raw_parts_mut(data.as_ptr(), self.len()) }
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        // From the user to the user: checks that no ring has the chunk, in debug builds.
        self.region().transfer(&self.desc, ChunkOwner::User, ChunkOwner::User);
        if !self.region().take_back(self.desc) {
            // SAFETY: the pool refused it, so this frame still owns its token; the value ends here.
            unsafe { release(self.region, 1) };
        }
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame").field("addr", &self.desc.addr).field("len", &self.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_stays_small() {
        assert!(size_of::<Frame>() <= 24);
        assert_eq!(size_of::<Option<Frame>>(), size_of::<Frame>());
    }
}
