//! Where frames come from and go to. A device does not look into frames.

mod memory;
mod xsk;

use std::time::Duration;

use flowgate_tables::InterfaceId;

pub use memory::{MemoryDevice, MemoryFrame};
pub use xsk::{RxQueue, XskDevice};

use crate::burst::{FrameBuffer, RxChecksums};

/// The queues of one worker. They are numbered from 0; each belongs to an interface.
pub trait Device {
    /// A frame, owned by the worker until it gives it back.
    type Frame: FrameBuffer;

    /// The number of receive queues.
    fn rx_queues(&self) -> usize;

    /// The interface that a queue belongs to.
    fn interface(&self, queue: usize) -> InterfaceId;

    /// Whether received frames of this queue may lack their transport checksums.
    fn checksums(&self, queue: usize) -> RxChecksums;

    /// Appends received frames to `frames`, at most [`BURST`](crate::BURST).
    fn rx_burst(&mut self, queue: usize, frames: &mut Vec<Self::Frame>);

    /// Queues a frame for sending out of `egress`; it leaves with the next [`flush`](Device::flush).
    ///
    /// # Errors
    /// [`NotSent`]: the frame was recycled.
    fn send(&mut self, egress: InterfaceId, frame: Self::Frame) -> Result<(), NotSent>;

    /// Gives back a frame that is not sent.
    fn recycle(&mut self, frame: Self::Frame);

    /// Sends queued frames, reclaims frames that were sent, and refills the receive queues with free frames.
    fn flush(&mut self);

    /// Sleeps until a frame arrives, at most for `timeout`.
    fn wait(&mut self, timeout: Duration);

    /// Panics if a frame was lost or owned twice. Called between bursts in debug builds; the worker then owns `held`
    /// frames.
    fn assert_no_leak(&self, held: usize);
}

/// Why a frame was not queued for sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotSent {
    /// The transmit ring is full.
    RingFull,
    /// This worker has no queue on that interface.
    NoEgress,
}
