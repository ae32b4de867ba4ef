//! The socket map (XSKMAP): which AF_XDP socket receives the packets of which queue. The packets of an empty slot pass to the
//! kernel, or are dropped within the grace period.

use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aya::maps::{MapData, MapError, XskMap};

use super::SteeringError;
use crate::sys::xdp_socket;

/// Interfaces that one set of maps serves.
pub(super) const MAX_INTERFACES: u32 = 16;
/// Queues of an interface that can have a socket.
pub(super) const QUEUES_PER_INTERFACE: u32 = 256;

/// The slots of one interface in the socket map, and with them its place in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InterfaceSlots {
    /// Index of the device that has them now.
    pub(super) ifindex: u32,
    /// The first of [`QUEUES_PER_INTERFACE`] slots.
    pub(super) first: u32,
}

impl InterfaceSlots {
    /// Position of the interface in the configuration, and its index in the map `deliveries`.
    pub(super) fn number(self) -> u32 {
        self.first / QUEUES_PER_INTERFACE
    }
}

/// A handle on the socket map that can be sent to another thread: with it the watchdog takes traffic from a worker.
///
/// The kernel empties a slot when its socket is closed, that is, when the last duplicate of its descriptor is.
#[derive(Clone)]
pub struct SocketMap {
    map: Arc<Mutex<XskMap<MapData>>>,
    interfaces: Arc<[InterfaceSlots]>,
}

impl SocketMap {
    pub(super) fn new(map: XskMap<MapData>, interfaces: Vec<InterfaceSlots>) -> Self {
        Self { map: Arc::new(Mutex::new(map)), interfaces: interfaces.into() }
    }

    /// A handle on the same slots for other devices.
    pub(super) fn for_devices(&self, interfaces: Vec<InterfaceSlots>) -> Self {
        Self { map: Arc::clone(&self.map), interfaces: interfaces.into() }
    }

    /// The slots of all interfaces, in the order of the configuration.
    pub(super) fn interfaces(&self) -> &[InterfaceSlots] {
        &self.interfaces
    }

    /// The slots of the interface with this index; `None` if it is not attached.
    pub(super) fn interface(&self, ifindex: u32) -> Option<InterfaceSlots> {
        self.interfaces.iter().find(|interface| interface.ifindex == ifindex).copied()
    }

    /// Redirects Flowgate's packets of a queue to this socket, which must be bound to the same queue: for a socket of another
    /// queue the kernel drops them (net/xdp/xsk.c:xsk_rcv_check).
    ///
    /// # Errors
    ///
    /// An interface that is not attached, a queue beyond the map, or those of the kernel.
    pub fn set(&self, ifindex: u32, queue: u32, socket: BorrowedFd<'_>) -> Result<(), SteeringError> {
        let slot = self.slot(ifindex, queue)?;
        Ok(self.lock().set(slot, socket.as_raw_fd(), 0)?)
    }

    /// Empties one slot, which can be empty already.
    ///
    /// # Errors
    ///
    /// Those of [`set`](Self::set).
    pub fn clear(&self, ifindex: u32, queue: u32) -> Result<(), SteeringError> {
        let slot = self.slot(ifindex, queue)?;
        unset(&mut self.lock(), slot)
    }

    /// Empties every slot: no packet is redirected any more.
    ///
    /// # Errors
    ///
    /// The first error of the kernel; the other slots are emptied nevertheless.
    pub fn clear_all(&self) -> Result<(), SteeringError> {
        let mut map = self.lock();
        // Also slots of interfaces that are not configured any more. `fold` does not stop at an error.
        (0..map.len()).map(|slot| unset(&mut map, slot)).fold(Ok(()), Result::and)
    }

    /// Waits until the kernel delivers nothing more by slots that were emptied before. Takes some tens of milliseconds.
    pub fn wait_for_readers(&self) {
        xdp_socket::wait_for_readers();
    }

    fn slot(&self, ifindex: u32, queue: u32) -> Result<u32, SteeringError> {
        match self.interface(ifindex) {
            Some(interface) if queue < QUEUES_PER_INTERFACE => Ok(interface.first + queue),
            _ => Err(SteeringError::NoSlot { ifindex, queue }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, XskMap<MapData>> {
        // Each update is one system call, so a panic under this lock leaves nothing half done.
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unset(map: &mut XskMap<MapData>, slot: u32) -> Result<(), SteeringError> {
    match map.unset(slot) {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        // Depending on its version aya reports an empty slot in this way or as `KeyNotFound`.
        Err(MapError::SyscallError(call)) if call.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error.into()),
    }
}

impl fmt::Debug for SocketMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SocketMap").field("interfaces", &self.interfaces).finish_non_exhaustive()
    }
}
