//! A worker's AF_XDP sockets as a [`Device`].

use std::time::Duration;

use flowgate_tables::InterfaceId;
use flowgate_xsk::{BURST, Frame, FramePool, Poller, RefusedReason, XskSocket};

use super::{Device, NotSent};
use crate::burst::{FrameBuffer, RxChecksums};

/// One (interface, queue) socket of a worker.
#[derive(Debug)]
pub struct RxQueue {
    /// The interface, by its number in the tables.
    pub interface: InterfaceId,
    /// The state of the checksums of its received frames.
    pub checksums: RxChecksums,
    /// The socket.
    pub socket: XskSocket,
}

/// The sockets of one worker. They share one UMEM, so a frame received on one interface is sent out of another without a
/// copy.
#[derive(Debug)]
pub struct XskDevice {
    pool: FramePool,
    sockets: Vec<XskSocket>,
    checksums: Vec<RxChecksums>,
    interfaces: Vec<InterfaceId>,
    /// For each interface the position of the socket that sends on it.
    tx_socket: Vec<Option<usize>>,
    poller: Poller,
}

impl XskDevice {
    /// A device of the sockets that were opened over `pool`. Of several sockets on one interface the first sends.
    pub fn new(pool: FramePool, queues: Vec<RxQueue>) -> Self {
        let mut device = Self {
            pool,
            sockets: Vec::new(),
            checksums: Vec::new(),
            interfaces: Vec::new(),
            tx_socket: Vec::new(),
            poller: Poller::new(),
        };
        device.add(queues);
        device
    }

    /// Adds the sockets of interfaces that have none.
    pub fn add(&mut self, queues: Vec<RxQueue>) {
        for RxQueue { interface, checksums, socket } in queues {
            self.interfaces.push(interface);
            self.checksums.push(checksums);
            self.sockets.push(socket);
        }
        self.assign_tx();
        // Fills the fill rings: until then the kernel has no memory to receive into.
        self.flush();
    }

    /// Removes the sockets of an interface. Their frames go back to the pool, as far as the kernel is done with them
    /// ([`XskSocket::retire`], which says what must have happened before). The sockets are returned to be closed by another
    /// thread, since that waits for the kernel; with them, how many frames are lost.
    pub fn remove(&mut self, interface: InterfaceId) -> (Vec<XskSocket>, usize) {
        let (mut removed, mut lost) = (Vec::new(), 0);
        let is_its = |at: &usize| self.interfaces[*at] == interface;
        // From the last one on, so that the positions of the others stay.
        let positions: Vec<_> = (0..self.sockets.len()).rev().filter(is_its).collect();
        for position in positions {
            self.interfaces.remove(position);
            self.checksums.remove(position);
            let mut socket = self.sockets.remove(position);
            lost += socket.retire(&mut self.pool);
            removed.push(socket);
        }
        self.assign_tx();
        (removed, lost)
    }

    fn assign_tx(&mut self) {
        let interface_count =
            self.interfaces.iter().map(|interface| interface.index() + 1).max().unwrap_or(0);
        self.tx_socket = vec![None; interface_count];
        // In reverse, so that the first socket of an interface is written last and stays.
        for (position, interface) in self.interfaces.iter().enumerate().rev() {
            self.tx_socket[interface.index()] = Some(position);
        }
    }

    /// Sends a frame made elsewhere at once, for a device that no worker owns yet.
    ///
    /// # Errors
    /// [`NotSent`]: the interface has no socket, no frame is free, or the bytes do not fit into a frame.
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
    pub fn sockets(&self) -> &[XskSocket] {
        &self.sockets
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
        self.sockets.len()
    }

    fn interface(&self, queue: usize) -> InterfaceId {
        self.interfaces[queue]
    }

    fn checksums(&self, queue: usize) -> RxChecksums {
        self.checksums[queue]
    }

    fn rx_burst(&mut self, queue: usize, frames: &mut Vec<Frame>) {
        self.sockets[queue].rx_burst(frames, BURST);
    }

    fn send(&mut self, egress: InterfaceId, frame: Frame) -> Result<(), NotSent> {
        let Some(position) = self.tx_socket.get(egress.index()).copied().flatten() else {
            self.pool.recycle(frame);
            return Err(NotSent::NoEgress);
        };
        self.sockets[position].tx_push(frame).map_err(|refused| {
            // A frame that was refused is still ours: it goes back to the pool, or it would be lost for ever.
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
        for socket in &mut self.sockets {
            // In this order: what the kernel has sent becomes free, and free frames can be received into.
            socket.flush();
            socket.reap(&mut self.pool);
            socket.refill(&mut self.pool);
        }
    }

    fn wait(&mut self, timeout: Duration) {
        // On an error poll returns at once: without the sleep the worker would spin.
        if self.poller.wait(&self.sockets, None, timeout).is_err() {
            std::thread::sleep(timeout);
        }
    }

    fn assert_no_leak(&self, held: usize) {
        if let Err(error) = self.pool.audit(&self.sockets).check(held) {
            panic!("{error}");
        }
    }
}
