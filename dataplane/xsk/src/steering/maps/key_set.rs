//! A map of which only the keys matter, and keeping it equal to a set of values.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use aya::maps::{MapData, MapError, MapType};

use super::shape::Shape;
use crate::steering::sockets::InterfaceSlots;
use crate::steering::{Shortfall, ShortfallCause, SteeringError};
use crate::sys::bpf_map::{self, Operation};

/// A pinned map whose keys are a set of `E`. A hash map or a trie: they have the same operations.
pub(super) struct KeySet<E: Entry> {
    name: &'static str,
    map: MapData,
    capacity: u32,
    entry: std::marker::PhantomData<fn(E)>,
}

/// A value that is stored as the key of a map. A VLAN's key contains the first socket slot of its interface, so there is
/// none while that interface is not attached; the other entries do not look at `interfaces` and always have a key.
pub(super) trait Entry: Ord + Copy + Send + 'static {
    type Key: Key;
    const KIND: MapType;

    fn to_key(self, interfaces: &[InterfaceSlots]) -> Option<Self::Key>;

    fn from_key(key: Self::Key, interfaces: &[InterfaceSlots]) -> Option<Self>;

    /// For the operator.
    fn name(self) -> String;
}

/// The kind of entries that a set has.
pub(super) trait SetOf {
    type Entry: Entry;
}

impl<E: Entry> SetOf for KeySet<E> {
    type Entry = E;
}

/// The bytes of a key.
pub(super) trait Key: Sized {
    fn change(map: &MapData, operation: Operation, keys: &[Self]) -> (usize, io::Result<()>);

    fn all(map: &MapData) -> io::Result<Vec<Self>>;
}

impl<const N: usize> Key for [u8; N] {
    fn change(map: &MapData, operation: Operation, keys: &[Self]) -> (usize, io::Result<()>) {
        bpf_map::change_keys(map.fd().as_fd(), operation, keys)
    }

    fn all(map: &MapData) -> io::Result<Vec<Self>> {
        bpf_map::keys(map.fd().as_fd())
    }
}

impl<E: Entry> KeySet<E> {
    pub(super) const fn shape(name: &'static str) -> Shape {
        Shape::set(name, E::KIND, size_of::<E::Key>())
    }

    /// Opens a map from its pin.
    pub(super) fn open(path: &Path, name: &'static str) -> Result<Self, MapError> {
        let map = MapData::from_pin(path)?;
        let capacity = map.info()?.max_entries();
        Ok(Self { name, map, capacity, entry: std::marker::PhantomData })
    }

    /// The map and the name of its pin.
    pub(super) fn handle(&self) -> (&'static str, BorrowedFd<'_>) {
        (self.name, self.map.fd().as_fd())
    }

    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The entries in the kernel, without those of interfaces that are not attached.
    pub(super) fn read(&self, interfaces: &[InterfaceSlots]) -> Result<BTreeSet<E>, SteeringError> {
        let keys = E::Key::all(&self.map).map_err(|error| self.failed("read", error))?;
        Ok(keys.into_iter().filter_map(|key| E::from_key(key, interfaces)).collect())
    }

    /// Removes entries of interfaces that are not attached: an earlier process may have had more interfaces.
    pub(super) fn remove_detached(&mut self, interfaces: &[InterfaceSlots]) -> Result<(), SteeringError>
    where
        E::Key: Copy,
    {
        let keys = E::Key::all(&self.map).map_err(|error| self.failed("read", error))?;
        let detached: Vec<_> =
            keys.into_iter().filter(|key| E::from_key(*key, interfaces).is_none()).collect();
        E::Key::change(&self.map, Operation::Delete, &detached)
            .1
            .map_err(|error| self.failed("change", error))
    }

    /// Removes from the map, and from `applied`, what `next` lacks.
    ///
    /// # Errors
    /// The first one of the kernel; everything else is removed nevertheless.
    pub(super) fn remove_stale(
        &mut self,
        interfaces: &[InterfaceSlots],
        applied: &mut BTreeSet<E>,
        next: &BTreeSet<E>,
    ) -> Result<(), SteeringError> {
        let stale: Vec<E> = applied.difference(next).copied().collect();
        let outcome = self.change_all(Operation::Delete, interfaces, stale, applied);
        outcome.refused.map_or(Ok(()), |(_, error)| Err(self.failed("change", error)))
    }

    /// Adds to the map, and to `applied`, what `next` has in addition and the map has room for. Entries of interfaces that
    /// are not attached are left out.
    ///
    /// # Errors
    /// What is missing now.
    pub(super) fn add_new(
        &mut self,
        interfaces: &[InterfaceSlots],
        applied: &mut BTreeSet<E>,
        next: &BTreeSet<E>,
    ) -> Result<(), Shortfall> {
        let attached = |entry: &E| entry.to_key(interfaces).is_some();
        let mut new: Vec<E> = next.difference(applied).copied().filter(attached).collect();
        let room = (self.capacity as usize).saturating_sub(applied.len());
        let beyond = new.split_off(room.min(new.len()));
        let outcome = self.change_all(Operation::Add, interfaces, new, applied);
        let cause = |error: io::Error| match error.raw_os_error() {
            // A full hash map answers E2BIG (kernel/bpf/hashtab.c), a full trie ENOSPC (kernel/bpf/lpm_trie.c).
            Some(libc::E2BIG | libc::ENOSPC) => ShortfallCause::Full,
            _ => ShortfallCause::Kernel(error),
        };
        let (first, cause) = match (outcome.refused, beyond.first()) {
            (Some((first, error)), _) => (first, cause(error)),
            (None, Some(first)) => (*first, ShortfallCause::Full),
            (None, None) => return Ok(()),
        };
        let missing = outcome.missing + beyond.len();
        Err(Shortfall { map: self.name, capacity: self.capacity, missing, first: first.name(), cause })
    }

    /// The same as [`remove_stale`](Self::remove_stale) for at most `max` entries. Returns how many were removed.
    pub(super) fn remove_some(
        &mut self,
        interfaces: &[InterfaceSlots],
        applied: &mut BTreeSet<E>,
        next: &BTreeSet<E>,
        max: usize,
    ) -> usize {
        let stale: Vec<E> = applied.difference(next).take(max).copied().collect();
        self.change_all(Operation::Delete, interfaces, stale, applied).changed
    }

    /// The same as [`add_new`](Self::add_new) for at most `max` entries. Returns how many were added.
    pub(super) fn add_some(
        &mut self,
        interfaces: &[InterfaceSlots],
        applied: &mut BTreeSet<E>,
        next: &BTreeSet<E>,
        max: usize,
    ) -> usize {
        let room = (self.capacity as usize).saturating_sub(applied.len());
        let attached = |entry: &E| entry.to_key(interfaces).is_some();
        let new = next.difference(applied).copied().filter(attached).take(max.min(room)).collect();
        self.change_all(Operation::Add, interfaces, new, applied).changed
    }

    /// Carries out an operation on every entry that it can be carried out on, in the map and in `applied`.
    fn change_all(
        &self,
        operation: Operation,
        interfaces: &[InterfaceSlots],
        mut entries: Vec<E>,
        applied: &mut BTreeSet<E>,
    ) -> Outcome<E> {
        // Entries without a key are in no map.
        entries.retain(|entry| entry.to_key(interfaces).is_some());
        let keys: Vec<_> = entries.iter().filter_map(|entry| entry.to_key(interfaces)).collect();
        let mut outcome = Outcome { changed: 0, missing: 0, refused: None };
        let mut note = |changed: &[E]| {
            for entry in changed {
                let _ = match operation {
                    Operation::Add => applied.insert(*entry),
                    Operation::Delete => applied.remove(entry),
                };
            }
            changed.len()
        };
        let mut at = 0;
        while at < keys.len() {
            let (changed, result) = E::Key::change(&self.map, operation, &keys[at..]);
            outcome.changed += note(&entries[at..at + changed]);
            at += changed;
            let Err(error) = result else { break };
            let Some(&entry) = entries.get(at) else { break };
            let code = error.raw_os_error();
            if operation == Operation::Delete && code == Some(libc::ENOENT) {
                outcome.changed += note(&[entry]);
            } else {
                // Without room or memory the next ones would be refused as well.
                let all = matches!(code, Some(libc::E2BIG | libc::ENOSPC | libc::ENOMEM));
                let refused = if all { entries.len() - at } else { 1 };
                outcome.missing += refused;
                outcome.refused.get_or_insert((entry, error));
                at += refused - 1;
            }
            at += 1;
        }
        outcome
    }

    fn failed(&self, action: &'static str, source: io::Error) -> SteeringError {
        SteeringError::Entries { map: self.name, action, source }
    }
}

/// What became of an operation on many entries.
struct Outcome<E> {
    /// How many it was carried out on.
    changed: usize,
    /// How many were refused.
    missing: usize,
    /// The first one of them, and the kernel's answer.
    refused: Option<(E, io::Error)>,
}
