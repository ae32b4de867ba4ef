//! A device in ordinary memory, for tests and benches: frames are vectors, queues are lists.

use std::collections::VecDeque;
use std::time::Duration;

use flowgate_tables::InterfaceId;

use super::{Device, NotSent};
use crate::burst::{BURST, FrameBuffer, RxChecksums};

/// A frame in ordinary memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryFrame(
    /// The bytes, from the Ethernet header on.
    pub Vec<u8>,
);

impl AsMut<[u8]> for MemoryFrame {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl FrameBuffer for MemoryFrame {
    fn resize(&mut self, len: usize) -> bool {
        self.0.resize(len, 0);
        true
    }
}

/// A device with one queue per interface.
#[derive(Debug)]
pub struct MemoryDevice {
    rx: Vec<VecDeque<MemoryFrame>>,
    tx: Vec<Vec<MemoryFrame>>,
    tx_ring_len: usize,
    held: usize,
    recycled: Vec<MemoryFrame>,
}

impl MemoryDevice {
    /// A device with this many interfaces, each of which sends at most `tx_ring_len` frames between two
    /// calls of [`take_sent`](Self::take_sent).
    pub fn new(interfaces: usize, tx_ring_len: usize) -> Self {
        Self {
            rx: vec![VecDeque::new(); interfaces],
            tx: vec![Vec::new(); interfaces],
            tx_ring_len,
            held: 0,
            recycled: Vec::new(),
        }
    }

    /// Puts a frame into the receive queue of an interface.
    pub fn deliver(&mut self, interface: InterfaceId, frame: Vec<u8>) {
        self.rx[interface.index()].push_back(MemoryFrame(frame));
    }

    /// Takes the frames that were sent out of an interface since the last call.
    pub fn take_sent(&mut self, interface: InterfaceId) -> Vec<MemoryFrame> {
        std::mem::take(&mut self.tx[interface.index()])
    }

    /// The number of frames that were given back without being sent.
    pub fn recycled(&self) -> usize {
        self.recycled.len()
    }
}

impl Device for MemoryDevice {
    type Frame = MemoryFrame;

    fn rx_queues(&self) -> usize {
        self.rx.len()
    }

    fn interface(&self, queue: usize) -> InterfaceId {
        InterfaceId(u8::try_from(queue).expect("a queue for each of at most 256 interfaces"))
    }

    fn checksums(&self, _queue: usize) -> RxChecksums {
        RxChecksums::MayBePartial
    }

    fn rx_burst(&mut self, queue: usize, frames: &mut Vec<MemoryFrame>) {
        let waiting = &mut self.rx[queue];
        let burst = waiting.len().min(BURST);
        frames.extend(waiting.drain(..burst));
        self.held += burst;
    }

    fn send(&mut self, egress: InterfaceId, frame: MemoryFrame) -> Result<(), NotSent> {
        let room = self.tx.get(egress.index()).map(|sent| sent.len() < self.tx_ring_len);
        match room {
            Some(true) => {
                self.held -= 1;
                self.tx[egress.index()].push(frame);
                Ok(())
            }
            refused => {
                self.recycle(frame);
                Err(if refused.is_some() { NotSent::RingFull } else { NotSent::NoEgress })
            }
        }
    }

    fn recycle(&mut self, frame: MemoryFrame) {
        self.held -= 1;
        self.recycled.push(frame);
    }

    fn flush(&mut self) {}

    fn wait(&mut self, timeout: Duration) {
        if self.rx.iter().all(VecDeque::is_empty) {
            std::thread::sleep(timeout.min(Duration::from_millis(1)));
        }
    }

    fn assert_no_leak(&self, held: usize) {
        assert_eq!(self.held, held, "frames given out and not taken back");
    }
}
