//! Backends and their slots, which are the same in all generations.

use std::net::IpAddr;

use flowgate_wire::L4Port;
use hashbrown::{HashMap, HashSet};

use crate::budgets::Budgets;
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

    /// The table with the backends `keys` and, while there is room, those of `former` that `self` has; backends that `self`
    /// has stay in their slots. Also returns the keys without a slot: those beyond `max` backends.
    pub(crate) fn rebuilt(
        &self,
        keys: impl Iterator<Item = BackendKey>,
        former: &[BackendKey],
        max: u32,
    ) -> (Self, Vec<BackendKey>) {
        let mut next = Self {
            slots: vec![None; self.slots.len()],
            epochs: self.epochs.clone(),
            by_key: HashMap::with_capacity(self.by_key.len()),
        };
        let mut added = Vec::new();
        // Several sets of one Service may have the same endpoint.
        let mut is_added = HashSet::new();
        for key in keys {
            match self.by_key.get(&key) {
                Some(&id) => next.insert(key, id),
                None if is_added.insert(key) => added.push(key),
                None => {}
            }
        }
        let max = usize::try_from(max.min(Budgets::MAX)).unwrap_or(usize::MAX);
        let without_slot = added.split_off(added.len().min(max.saturating_sub(next.by_key.len())));
        let room = max.saturating_sub(next.by_key.len() + added.len());
        let ids = former.iter().filter_map(|&key| Some((key, self.id_of(&key)?)));
        for (key, id) in ids.take(room) {
            next.insert(key, id);
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
            let slot = free.pop().unwrap_or_else(|| {
                next.slots.push(None);
                next.epochs.push(0);
                next.slots.len() - 1
            });
            // A slot is added only if none is free, so there are never more than `Budgets::MAX`: the last slot with epoch
            // 255 would be `BackendId::NONE`.
            let slot_number = u32::try_from(slot).expect("fewer slots than Budgets::MAX");
            next.insert(key, BackendId::new(slot_number, next.epochs[slot]));
        }
        (next, without_slot)
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn key(host: u8) -> BackendKey {
        (ServiceId(1), IpAddr::V4(Ipv4Addr::new(10, 0, 0, host)), L4Port::new(80))
    }

    fn rebuilt(table: &BackendTable, keys: impl Iterator<Item = BackendKey>) -> BackendTable {
        let (next, without_slot) = table.rebuilt(keys, &[], Budgets::MAX);
        assert_eq!(without_slot, []);
        next
    }

    #[test]
    fn beyond_the_most_backends_there_is_no_slot_and_former_ones_go_first() {
        let first = rebuilt(&BackendTable::default(), [1, 2, 3].map(key).into_iter());
        let (second, without_slot) = first.rebuilt([1, 4, 5].map(key).into_iter(), &[key(2), key(3)], 4);
        assert_eq!(without_slot, []);
        assert_eq!(second.id_of(&key(2)), first.id_of(&key(2)), "there is room for one of them");
        assert_eq!((second.id_of(&key(3)), second.len(), second.slots.len()), (None, 4, 4));
        let (third, without_slot) = second.rebuilt([1, 4, 5, 6, 6, 7].map(key).into_iter(), &[key(2)], 4);
        assert_eq!(without_slot, [key(7)]);
        assert_eq!((third.id_of(&key(2)), third.len(), third.slots.len()), (None, 4, 4));
        assert_eq!(third.id_of(&key(5)), second.id_of(&key(5)));
    }

    #[test]
    fn a_backend_stays_in_its_slot_while_others_come_and_go() {
        let first = rebuilt(&BackendTable::default(), [1, 2, 3].map(key).into_iter());
        let stayed = first.id_of(&key(2)).unwrap();
        let second = rebuilt(&first, [2, 4, 5].map(key).into_iter());
        assert_eq!(second.id_of(&key(2)), Some(stayed));
        assert!(second.is_current(stayed));
        assert_eq!(second.len(), 3);
    }

    #[test]
    fn a_removed_backend_is_stale_at_once_and_after_its_slot_is_reused() {
        let first = rebuilt(&BackendTable::default(), [1].map(key).into_iter());
        let removed = first.id_of(&key(1)).unwrap();
        let second = rebuilt(&first, std::iter::empty());
        assert!(!second.is_current(removed));
        assert_eq!(second.get(removed), None);
        let third = rebuilt(&second, [9].map(key).into_iter());
        let newcomer = third.id_of(&key(9)).unwrap();
        assert_eq!(newcomer.slot(), removed.slot());
        assert!(!third.is_current(removed));
        assert!(third.is_current(newcomer));
        assert_eq!(third.get(removed), None);
    }

    #[test]
    fn no_backend_is_never_current() {
        let table = rebuilt(&BackendTable::default(), [1].map(key).into_iter());
        assert!(!table.is_current(BackendId::NONE));
        assert_eq!(table.get(BackendId::NONE), None);
    }

    #[test]
    fn a_key_given_twice_is_one_backend() {
        let table = rebuilt(&BackendTable::default(), [1, 1, 1].map(key).into_iter());
        assert_eq!(table.iter().count(), 1);
    }
}
