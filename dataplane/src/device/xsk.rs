//! A worker's AF_XDP sockets as a [`Device`].

use std::time::Duration;

use flowgate_tables::InterfaceId;
use flowgate_xsk::{BURST, Frame, FramePool, Poller, RefusedReason, XskSocket};

use super::{Device, NotSent};
use crate::burst::{FrameBuffer, RxChecksums};

/// One (interface, queue) socket of a worker.
#[derive(Debug)]
pub struct RxQueue {
    /// The interface in the tables.
    pub interface: InterfaceId,
    /// What the checksums of its frames are worth.
    pub checksums: RxChecksums,
    /// The socket.
    pub port: XskSocket,
}

/// The sockets of one worker over one packet memory, so that a frame received on one interface is sent
/// by another without a copy.
#[derive(Debug)]
pub struct XskDevice {
    pool: FramePool,
    ports: Vec<XskSocket>,
    checksums: Vec<RxChecksums>,
    interfaces: Vec<InterfaceId>,
    /// Position of the socket that sends for each interface.
    tx_port: Vec<Option<usize>>,
    poller: Poller,
}

impl XskDevice {
    /// Joins the sockets that were opened over `pool`; the first of an interface sends for it.
    pub fn new(pool: FramePool, queues: Vec<RxQueue>) -> Self {
        let interface_count = queues.iter().map(|queue| queue.interface.index() + 1).max().unwrap_or(0);
        let mut tx_port = vec![None; interface_count];
        for (position, queue) in queues.iter().enumerate().rev() {
            tx_port[queue.interface.index()] = Some(position);
        }
        let checksums = queues.iter().map(|queue| queue.checksums).collect();
        let interfaces = queues.iter().map(|queue| queue.interface).collect();
        let ports = queues.into_iter().map(|queue| queue.port).collect();
        let mut device = Self { pool, ports, checksums, interfaces, tx_port, poller: Poller::new() };
        device.flush();
        device
    }

    /// Sends a frame that somebody else made, at once: for a device that no worker has yet.
    ///
    /// # Errors
    /// [`NotSent`]: there is no way to send it, no free frame, or it is longer than any.
    pub fn send_bytes(&mut self, egress: InterfaceId, bytes: &[u8]) -> Result<(), NotSent> {
        let mut frame = self.pool.take().ok_or(NotSent::RingFull)?;
        if !frame.resize(bytes.len()) {
            self.pool.recycle(frame);
            return Err(NotSent::RingFull);
        }
        frame.as_mut().copy_from_slice(bytes);
        self.send(egress, frame)?;
        self.flush();
        Ok(())
    }

    /// The sockets.
    pub fn ports(&self) -> &[XskSocket] {
        &self.ports
    }
}

impl FrameBuffer for Frame {
    fn resize(&mut self, len: usize) -> bool {
        self.set_len(len).is_ok()
    }
}

impl Device for XskDevice {
    type Frame = Frame;

    fn rx_queues(&self) -> usize {
        self.ports.len()
    }

    fn interface(&self, queue: usize) -> InterfaceId {
        self.interfaces[queue]
    }

    fn checksums(&self, queue: usize) -> RxChecksums {
        self.checksums[queue]
    }

    fn rx_burst(&mut self, queue: usize, frames: &mut Vec<Frame>) {
        self.ports[queue].rx_burst(frames, BURST);
    }

    fn send(&mut self, egress: InterfaceId, frame: Frame) -> Result<(), NotSent> {
        let Some(position) = self.tx_port.get(egress.index()).copied().flatten() else {
            self.pool.recycle(frame);
            return Err(NotSent::NoEgress);
        };
        self.ports[position].tx_push(frame).map_err(|refused| {
            let reason =
                if refused.reason == RefusedReason::RingFull { NotSent::RingFull } else { NotSent::NoEgress };
            self.pool.recycle(refused.frame);
            reason
        })
    }

    fn recycle(&mut self, frame: Frame) {
        self.pool.recycle(frame);
    }

    fn flush(&mut self) {
        for port in &mut self.ports {
            port.flush();
            port.reap(&mut self.pool);
            port.refill(&mut self.pool);
        }
    }

    fn wait(&mut self, timeout: Duration) {
        // An error here would otherwise turn the pause into a spin.
        if self.poller.wait(&self.ports, None, timeout).is_err() {
            std::thread::sleep(timeout);
        }
    }

    fn assert_no_leak(&self, held: usize) {
        if let Err(error) = self.pool.audit(&self.ports).check(held) {
            panic!("{error}");
        }
    }
}
