//! Session affinity: which backend a client of a Service is bound to.
//!
//! A set-associative table of fixed size: a keyed hash of client and Service selects a set of a few bindings, and a full
//! set evicts the least recently used one. Used only when a flow is opened, so one lock per set is enough; it also makes
//! two workers that open flows of one client at the same time agree on the backend.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::entry::Tick;

/// The bindings of clients to backends.
#[derive(Debug)]
pub struct AffinityTable {
    /// Secret, so that clients cannot choose addresses that share a set.
    key: RandomState,
    sets: Box<[Mutex<BindingSet>]>,
}

type BindingSet = [Option<BoundClient>; SET_BINDINGS];

#[derive(Clone, Copy, Debug)]
struct BoundClient {
    client: IpAddr,
    service: u32,
    backend: u32,
    used: Tick,
}

/// Outcome of [`AffinityTable::get_or_assign`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// The client was bound to this backend already.
    Existing(u32),
    /// The client was bound to this backend now.
    New(u32),
    /// As [`Binding::New`], and another client's binding was evicted.
    Evicting(u32),
    /// There is no backend to bind the client to.
    NoBackend,
}

impl Binding {
    /// The backend, if there is one.
    pub const fn backend(self) -> Option<u32> {
        match self {
            Self::Existing(backend) | Self::New(backend) | Self::Evicting(backend) => Some(backend),
            Self::NoBackend => None,
        }
    }
}

impl AffinityTable {
    /// A table for `capacity` bindings, rounded up to whole sets, of which there is at least one.
    pub fn new(capacity: u32) -> Self {
        let sets = (capacity as usize).div_ceil(SET_BINDINGS).max(1);
        Self { key: RandomState::new(), sets: (0..sets).map(|_| Mutex::default()).collect() }
    }

    /// The memory of a table for `capacity` bindings, in bytes.
    pub const fn bytes_for(capacity: u32) -> u64 {
        (capacity as u64).div_ceil(SET_BINDINGS as u64) * size_of::<Mutex<BindingSet>>() as u64
    }

    /// The backend for a new flow of a client to a Service: that of its last one, unless it is older than `timeout_ms` or
    /// `may_be_chosen` rejects the backend; else the one from `assign`. The timeout starts anew either way (P703).
    pub fn get_or_assign(
        &self,
        (client, service): (IpAddr, u32),
        now: Tick,
        timeout_ms: u32,
        may_be_chosen: impl Fn(u32) -> bool,
        assign: impl FnOnce() -> Option<u32>,
    ) -> Binding {
        let mut set = self.set(client, service);
        let own =
            set.iter().position(|slot| slot.is_some_and(|b| b.client == client && b.service == service));
        if let Some(binding) = own.and_then(|at| set[at].as_mut())
            && now.since(binding.used) <= timeout_ms
            && may_be_chosen(binding.backend)
        {
            binding.used = now;
            return Binding::Existing(binding.backend);
        }
        let Some(backend) = assign() else {
            // P704: a binding to a removed backend is removed too.
            if let Some(at) = own {
                set[at] = None;
            }
            return Binding::NoBackend;
        };
        let at = own.unwrap_or_else(|| oldest(&set, now));
        let evicts = own.is_none() && set[at].is_some();
        set[at] = Some(BoundClient { client, service, backend, used: now });
        if evicts { Binding::Evicting(backend) } else { Binding::New(backend) }
    }

    /// Restores a binding of an earlier process, unless the client has one that was used later. False when the set is
    /// full.
    pub fn restore(&self, (client, service): (IpAddr, u32), backend: u32, used: Tick) -> bool {
        let mut set = self.set(client, service);
        let own =
            set.iter().position(|slot| slot.is_some_and(|b| b.client == client && b.service == service));
        let later = own.and_then(|at| set[at]).is_some_and(|binding| binding.used.since(used) > 0);
        let Some(at) = own.or_else(|| set.iter().position(Option::is_none)) else { return false };
        if !later {
            set[at] = Some(BoundClient { client, service, backend, used });
        }
        true
    }

    fn set(&self, client: IpAddr, service: u32) -> MutexGuard<'_, BindingSet> {
        let hash = self.key.hash_one((client, service));
        let number = usize::try_from(hash % self.sets.len() as u64).expect("below the number of sets");
        // A panic while the lock is held cannot leave a binding half written: each is replaced as a whole.
        self.sets[number].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of bindings, those that have timed out included.
    pub fn len(&self) -> usize {
        let held = |set: &Mutex<BindingSet>| {
            set.lock().unwrap_or_else(PoisonError::into_inner).iter().flatten().count()
        };
        self.sets.iter().map(held).sum()
    }

    /// Whether there is no binding.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A free slot, else the least recently used one.
fn oldest(set: &BindingSet, now: Tick) -> usize {
    let age =
        |slot: &Option<BoundClient>| slot.map_or(u64::MAX, |binding| u64::from(now.since(binding.used)));
    let oldest = set.iter().enumerate().max_by_key(|(_, slot)| age(slot));
    oldest.map_or(0, |(at, _)| at)
}

/// Bindings per set.
const SET_BINDINGS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const TIMEOUT_MS: u32 = 10_800_000;

    fn client(n: u32) -> IpAddr {
        IpAddr::V4(n.into())
    }

    fn place(table: &AffinityTable, n: u32, now: u32, choice: u32) -> Binding {
        table.get_or_assign((client(n), 1), Tick(now), TIMEOUT_MS, |_| true, || Some(choice))
    }

    #[test]
    fn a_restored_client_stays_with_the_backend_that_it_used_last() {
        let table = AffinityTable::new(8);
        for (backend, used) in [(7, 50), (8, 90), (9, 70)] {
            assert!(table.restore((client(1), 1), backend, Tick(used)));
        }
        assert_eq!(place(&table, 1, 90 + TIMEOUT_MS, 5), Binding::Existing(8));
        for n in 2..9 {
            assert!(table.restore((client(n), 1), 7, Tick(1)));
        }
        assert!(!table.restore((client(9), 1), 7, Tick(1)), "no binding makes room for another");
    }

    #[test]
    fn p703_a_client_stays_until_it_was_idle_for_the_timeout() {
        let table = AffinityTable::new(64);
        assert_eq!(place(&table, 1, 0, 7), Binding::New(7));
        assert_eq!(place(&table, 1, TIMEOUT_MS, 8), Binding::Existing(7));
        assert_eq!(
            place(&table, 1, 2 * TIMEOUT_MS, 8),
            Binding::Existing(7),
            "each connection starts it anew"
        );
        assert_eq!(place(&table, 1, 3 * TIMEOUT_MS + 1, 8), Binding::New(8));
    }

    #[test]
    fn p704_a_backend_that_may_not_be_chosen_any_more_loses_its_clients() {
        let table = AffinityTable::new(64);
        let key = (client(1), 1);
        table.get_or_assign(key, Tick(0), TIMEOUT_MS, |_| true, || Some(7));
        assert_eq!(table.get_or_assign(key, Tick(1), TIMEOUT_MS, |b| b != 7, || Some(9)), Binding::New(9));
        assert_eq!(table.get_or_assign(key, Tick(2), TIMEOUT_MS, |_| false, || None), Binding::NoBackend);
        assert!(table.is_empty());
    }

    #[test]
    fn p702_each_service_port_binds_for_itself() {
        let table = AffinityTable::new(64);
        let place = |service, choice| {
            table
                .get_or_assign((client(1), service), Tick(0), TIMEOUT_MS, |_| true, || Some(choice))
                .backend()
        };
        assert_eq!(
            (place(1, 7), place(2, 8), place(1, 9), place(2, 9)),
            (Some(7), Some(8), Some(7), Some(8))
        );
    }

    #[test]
    fn a_full_set_forgets_the_binding_used_longest_ago() {
        let table = AffinityTable::new(1);
        (0..8).for_each(|n| assert_eq!(place(&table, n, n + 1, n), Binding::New(n)));
        assert_eq!(place(&table, 0, 50, 99), Binding::Existing(0));
        assert_eq!(place(&table, 8, 60, 8), Binding::Evicting(8));
        assert_eq!(place(&table, 1, 61, 77), Binding::Evicting(77), "the second was the oldest");
        assert_eq!(place(&table, 0, 62, 99), Binding::Existing(0));
    }

    proptest! {
        #[test]
        fn agrees_with_a_map_while_nothing_is_evicted(
            asks in proptest::collection::vec((0..20_u32, 0..3_u32, 0..40_u32, 0..5_u32), 0..200)
        ) {
            let table = AffinityTable::new(4096);
            let mut oracle: HashMap<(u32, u32), (u32, u32)> = HashMap::new();
            let mut now = 0;
            for (who, service, pause, choice) in asks {
                now += pause;
                let bound = table.get_or_assign((client(who), service), Tick(now), 100, |b| b != 0, || Some(choice));
                let bound_to = oracle.get(&(who, service)).filter(|(b, at)| *b != 0 && now - at <= 100);
                let wanted = bound_to.map_or(choice, |(b, _)| *b);
                oracle.insert((who, service), (wanted, now));
                prop_assert_eq!(bound.backend(), Some(wanted));
            }
        }
    }
}
