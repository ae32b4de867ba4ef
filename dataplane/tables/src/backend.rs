//! Backends and their slots, which are the same in all generations.

use std::net::IpAddr;

use flowgate_wire::L4Port;
use hashbrown::HashMap;

use crate::id::{BackendId, ServiceId};

/// One endpoint of one Service port, as the data plane sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its identity across generations.
    pub id: BackendId,
    /// The Service port that it serves.
    pub service: ServiceId,
    /// Its address.
    pub addr: IpAddr,
    /// Its port.
    pub port: L4Port,
}

/// What identifies a backend across generations.
pub(crate) type BackendKey = (ServiceId, IpAddr, L4Port);

/// All backends by slot.
#[derive(Clone, Debug, Default)]
pub struct BackendTable {
    slots: Vec<Option<Backend>>,
    epochs: Vec<u8>,
    by_key: HashMap<BackendKey, BackendId>,
}

impl BackendTable {
    /// The backend, unless it was removed.
    #[inline]
    pub fn get(&self, id: BackendId) -> Option<&Backend> {
        self.slots.get(id.slot())?.as_ref().filter(|backend| backend.id == id)
    }

    /// The backend of a Service port at this address.
    pub fn find(&self, service: ServiceId, addr: IpAddr, port: L4Port) -> Option<BackendId> {
        self.id_of(&(service, addr, port))
    }

    /// Whether the backend has not been removed.
    #[inline]
    pub fn is_current(&self, id: BackendId) -> bool {
        // Asked for each packet, so it reads one byte of a dense array and not the backend itself.
        self.epochs.get(id.slot()) == Some(&id.epoch())
    }

    /// All backends, by slot.
    pub fn iter(&self) -> impl Iterator<Item = &Backend> {
        self.slots.iter().flatten()
    }

    /// The number of backends.
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Whether there is no backend.
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// The table with exactly the backends `keys`; those that `self` has stay in their slots.
    pub(crate) fn rebuilt(&self, keys: impl Iterator<Item = BackendKey>) -> Result<Self, TooManyBackends> {
        let mut next = Self {
            slots: vec![None; self.slots.len()],
            epochs: self.epochs.clone(),
            by_key: HashMap::with_capacity(self.by_key.len()),
        };
        let mut added = Vec::new();
        for key in keys {
            match self.by_key.get(&key) {
                Some(&id) => next.insert(key, id),
                None => added.push(key),
            }
        }
        // Reversed, so that `pop` gives the lowest free slot and the table stays short.
        let mut free: Vec<usize> =
            (0..self.slots.len()).rev().filter(|&slot| next.slots[slot].is_none()).collect();
        for &slot in &free {
            // Raised when the slot is freed and not when it is given away: entries of the removed backend are stale from
            // this generation on.
            if self.slots[slot].is_some() {
                next.epochs[slot] = next.epochs[slot].wrapping_add(1);
            }
        }
        for key in added {
            // Several sets of one Service may have the same endpoint.
            if next.by_key.contains_key(&key) {
                continue;
            }
            let slot = free.pop().unwrap_or_else(|| {
                next.slots.push(None);
                next.epochs.push(0);
                next.slots.len() - 1
            });
            // The last slot with epoch 255 would be `BackendId::NONE`.
            let slot_number =
                u32::try_from(slot).ok().filter(|&n| n < BackendId::SLOTS_MAX - 1).ok_or(TooManyBackends)?;
            next.insert(key, BackendId::new(slot_number, next.epochs[slot]));
        }
        Ok(next)
    }

    pub(crate) fn id_of(&self, key: &BackendKey) -> Option<BackendId> {
        self.by_key.get(key).copied()
    }

    fn insert(&mut self, key: BackendKey, id: BackendId) {
        let (service, addr, port) = key;
        self.slots[id.slot()] = Some(Backend { id, service, addr, port });
        self.by_key.insert(key, id);
    }
}

/// There are more backends than slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {} backends", BackendId::SLOTS_MAX)]
pub struct TooManyBackends;

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn key(host: u8) -> BackendKey {
        (ServiceId(1), IpAddr::V4(Ipv4Addr::new(10, 0, 0, host)), L4Port::new(80))
    }

    #[test]
    fn a_backend_stays_in_its_slot_while_others_come_and_go() {
        let first = BackendTable::default().rebuilt([1, 2, 3].map(key).into_iter()).unwrap();
        let stayed = first.id_of(&key(2)).unwrap();
        let second = first.rebuilt([2, 4, 5].map(key).into_iter()).unwrap();
        assert_eq!(second.id_of(&key(2)), Some(stayed));
        assert!(second.is_current(stayed));
        assert_eq!(second.len(), 3);
    }

    #[test]
    fn a_removed_backend_is_stale_at_once_and_after_its_slot_is_reused() {
        let first = BackendTable::default().rebuilt([1].map(key).into_iter()).unwrap();
        let removed = first.id_of(&key(1)).unwrap();
        let second = first.rebuilt(std::iter::empty()).unwrap();
        assert!(!second.is_current(removed));
        assert_eq!(second.get(removed), None);
        let third = second.rebuilt([9].map(key).into_iter()).unwrap();
        let newcomer = third.id_of(&key(9)).unwrap();
        assert_eq!(newcomer.slot(), removed.slot());
        assert!(!third.is_current(removed));
        assert!(third.is_current(newcomer));
        assert_eq!(third.get(removed), None);
    }

    #[test]
    fn no_backend_is_never_current() {
        let table = BackendTable::default().rebuilt([1].map(key).into_iter()).unwrap();
        assert!(!table.is_current(BackendId::NONE));
        assert_eq!(table.get(BackendId::NONE), None);
    }

    #[test]
    fn a_key_given_twice_is_one_backend() {
        let table = BackendTable::default().rebuilt([1, 1, 1].map(key).into_iter()).unwrap();
        assert_eq!(table.iter().count(), 1);
    }
}
