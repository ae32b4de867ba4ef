//! Where frames come from and go to. Never looks into one.

mod memory;
mod xsk;

use std::time::Duration;

use flowgate_tables::InterfaceId;

pub use memory::{MemoryDevice, MemoryFrame};
pub use xsk::{RxQueue, XskDevice};

use crate::burst::{FrameBuffer, RxChecksums};

/// A worker's queues. Queues are numbered from 0; each belongs to an interface.
pub trait Device {
    /// A frame that is this worker's for as long as it holds it.
    type Frame: FrameBuffer;

    /// How many queues bring frames.
    fn rx_queues(&self) -> usize;

    /// The interface that a queue belongs to.
    fn interface(&self, queue: usize) -> InterfaceId;

    /// What the checksums of this queue's frames are worth.
    fn checksums(&self, queue: usize) -> RxChecksums;

    /// Appends received frames to `frames`, a burst at most.
    fn rx_burst(&mut self, queue: usize, frames: &mut Vec<Self::Frame>);

    /// Takes a frame to be sent by `egress`; it leaves with the next [`flush`](Device::flush).
    ///
    /// # Errors
    /// [`NotSent`]: the frame was recycled.
    fn send(&mut self, egress: InterfaceId, frame: Self::Frame) -> Result<(), NotSent>;

    /// Takes back a frame that is not to be sent.
    fn recycle(&mut self, frame: Self::Frame);

    /// Sends what was taken, reclaims what was sent, and gives free frames to the queues.
    fn flush(&mut self);

    /// Sleeps until a frame arrives or `timeout` is over.
    fn wait(&mut self, timeout: Duration);

    /// Panics if a frame was lost or doubled. Called between bursts in debug builds, when the worker
    /// holds `held` frames.
    fn assert_no_leak(&self, held: usize);
}

/// Why a frame was not taken for sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotSent {
    /// The transmit ring is full.
    RingFull,
    /// This worker has no queue on that interface.
    NoEgress,
}
