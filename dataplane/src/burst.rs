//! Types that device, pipeline and worker share: a burst of frames, the state of their checksums, and the worker's
//! number. The ground floor of this crate: it imports nothing of it.

/// Maximum number of frames in a burst. 64, so that sets of frames fit into the bits of a `u64`.
pub const BURST: usize = 64;

/// The state of the transport checksums of received frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RxChecksums {
    /// Complete, as on a wire.
    Complete,
    /// A virtual device may have left only the sum of the pseudo header, for a device further on to complete
    /// (`CHECKSUM_PARTIAL` in `linux/skbuff.h`).
    MayBePartial,
    /// Complete, but over a packet of which this frame is the first fragment only.
    Fragmented,
}

/// A frame whose length can change.
pub trait FrameBuffer: AsMut<[u8]> {
    /// Sets the length in bytes; false if there is no room. The content of added bytes is unspecified.
    fn resize(&mut self, len: usize) -> bool;
}

/// The number of a worker, and how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerNumber {
    /// Counted from 0.
    pub index: usize,
    /// The number of workers.
    pub count: usize,
}
