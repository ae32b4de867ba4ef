//! The words that device, pipeline and worker share: a burst of frames, what their checksums are worth, and who
//! handles them. The ground floor of this crate; imports nothing of it.

/// Frames in a burst at most.
pub const BURST: usize = 64;

/// What the transport checksums of a device's frames are worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RxChecksums {
    /// As they were on a wire: complete.
    Complete,
    /// A virtual device may leave them for another device to complete (`CHECKSUM_PARTIAL` in `linux/skbuff.h`).
    MayBePartial,
}

/// A frame whose bytes can be replaced by more or fewer.
pub trait FrameBuffer: AsMut<[u8]> {
    /// Makes it `len` bytes long; false if there is no room. The content of added bytes is unspecified.
    fn resize(&mut self, len: usize) -> bool;
}

/// Which worker, of how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerNumber {
    /// From 0.
    pub index: usize,
    /// All of them.
    pub count: usize,
}
