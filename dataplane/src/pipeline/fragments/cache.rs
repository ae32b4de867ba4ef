//! Packets of which some fragments were seen: a set-associative cache of fixed size.
//!
//! A keyed hash selects one of [`SETS`] sets of [`WAYS`] entries. A packet whose first fragment was decided lately is evicted
//! only for another first fragment, so that a flood of later fragments, which cost a sender nothing, cannot evict it.

use std::net::IpAddr;

use flowgate_flow::Tick;
use flowgate_wire::L4Port;

use super::ranges::Ranges;
use crate::verdict::{AwaitedFragment, Verdict};

/// What all fragments of one packet share (RFC 791 section 3.2, RFC 8200 section 4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) src: IpAddr,
    pub(super) dst: IpAddr,
    pub(super) id: u32,
    /// The transport protocol in IPv4; zero in IPv6, where only the first fragment knows it.
    pub(super) protocol: u8,
}

/// The decision about the first fragment, which the others follow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decided {
    /// Source and destination after translation, of one family.
    pub(super) pair: [IpAddr; 2],
    /// The new identification; `None` when it stays.
    pub(super) id: Option<u32>,
    /// Source and destination port before translation: with the protocol they find the flow, whose counters include all
    /// fragments.
    pub(super) ports: [L4Port; 2],
    pub(super) protocol: flowgate_wire::Protocol,
    /// The flow's hash, so that all fragments take the same of several next hops (ECMP).
    pub(super) flow_hash: u32,
    /// The least length of the fragmentable part in bytes, if the transport header states it (UDP).
    pub(super) end: Option<u16>,
}

/// The state of a packet.
#[derive(Clone, Copy, Debug)]
pub(super) enum State {
    /// The first fragment was not decided yet.
    Expected,
    /// Fragments are forwarded.
    Decided(Decided),
    /// Of an echo request, which is answered.
    Echo,
    /// All fragments get this verdict.
    Ended(Verdict),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    key: Option<Key>,
    stamp: u32,
    since: Tick,
    pub(super) state: State,
    pub(super) ranges: Ranges,
    /// Whether frames may be on hold for the first fragment.
    pub(super) is_awaited: bool,
}

impl Entry {
    const EMPTY: Self = Self {
        key: None,
        stamp: 0,
        since: Tick(0),
        state: State::Expected,
        ranges: Ranges::EMPTY,
        is_awaited: false,
    };

    fn is_expired(&self, now: Tick) -> bool {
        let lifetime = match self.state {
            State::Expected => EXPECTED_MS,
            State::Decided(_) | State::Echo | State::Ended(_) => LIFETIME_MS,
        };
        self.key.is_none() || now.since(self.since) > lifetime
    }

    /// Eviction priority and age in ms, higher first; `None` if the entry must not be evicted for this newcomer.
    fn eviction_priority(&self, newcomer: Newcomer, now: Tick) -> Option<(u8, u32)> {
        let age = now.since(self.since);
        match (self.state, newcomer) {
            _ if self.is_expired(now) => Some((3, age)),
            (State::Ended(_), _) => Some((2, age)),
            (State::Expected, _) => Some((1, age)),
            (State::Decided(_) | State::Echo, Newcomer::First) => Some((0, age)),
            // The fragments of one packet follow one another closely, so an old decision is hardly needed any more. Without
            // this a flood of first fragments would shut out all others for LIFETIME_MS.
            (State::Decided(_) | State::Echo, Newcomer::Later) => (age > EXPECTED_MS).then_some((0, age)),
        }
    }
}

/// The fragment that needs an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Newcomer {
    First,
    Later,
}

/// The cache of one worker.
#[derive(Debug)]
pub(super) struct Cache {
    entries: Box<[Entry]>,
    stamp: u32,
}

impl Cache {
    pub(super) fn new() -> Self {
        Self { entries: vec![Entry::EMPTY; SETS * WAYS].into_boxed_slice(), stamp: 0 }
    }

    /// The slot of the packet with this key and keyed hash, a new one if it has none. `None` if there is no room.
    ///
    /// A first fragment that comes again after [`RENEW_MS`] belongs to another packet: at high rates 16-bit identifications are
    /// reused within seconds (RFC 4963), and duplicates of one packet follow one another closely.
    pub(super) fn slot(&mut self, key: Key, hash: u32, newcomer: Newcomer, now: Tick) -> Option<usize> {
        let first_slot = hash as usize % SETS * WAYS;
        let set = &mut self.entries[first_slot..first_slot + WAYS];
        // Linear search: a set has eight entries, and only fragments come here.
        let known = set.iter().position(|entry| entry.key == Some(key) && !entry.is_expired(now));
        let is_renewed = |entry: &Entry| {
            newcomer == Newcomer::First
                && !matches!(entry.state, State::Expected)
                && now.since(entry.since) > RENEW_MS
        };
        let way = match known {
            Some(way) if !is_renewed(&set[way]) => return Some(first_slot + way),
            // The same key, another packet: the entry starts over, with a new stamp that frames on hold do not match.
            Some(way) => way,
            None => {
                let candidates = set.iter().enumerate();
                let victim = candidates
                    .filter_map(|(way, entry)| Some((entry.eviction_priority(newcomer, now)?, way)))
                    .max()?;
                victim.1
            }
        };
        self.stamp = self.stamp.wrapping_add(1);
        set[way] = Entry { key: Some(key), stamp: self.stamp, since: now, ..Entry::EMPTY };
        Some(first_slot + way)
    }

    pub(super) fn entry(&mut self, slot: usize) -> &mut Entry {
        &mut self.entries[slot]
    }

    /// The name under which frames are held for the packet in `slot`.
    pub(super) fn awaited(&self, slot: usize) -> AwaitedFragment {
        AwaitedFragment::new(u16::try_from(slot).unwrap_or(u16::MAX), self.entries[slot].stamp)
    }

    pub(super) fn remove(&mut self, slot: usize) {
        self.entries[slot].key = None;
    }
}

const SETS: usize = 128;
const WAYS: usize = 8;

/// How long the decision about a first fragment is valid, in ms. Receivers wait up to 60 s (RFC 8200 section 4.5); here only
/// the spread of fragments on their way has to be bridged.
const LIFETIME_MS: u32 = 15_000;

/// How long a first fragment is awaited, in ms.
pub(crate) const EXPECTED_MS: u32 = 1_000;

/// After this time in ms a first fragment with a known key starts another packet.
const RENEW_MS: u32 = 1_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::DropReason;

    fn key(id: u32) -> Key {
        let addr = "192.0.2.1".parse().unwrap();
        Key { src: addr, dst: addr, id, protocol: 17 }
    }

    fn decided() -> State {
        State::Decided(Decided {
            pair: [key(0).src; 2],
            id: None,
            ports: [L4Port::new(1); 2],
            protocol: flowgate_wire::Protocol::Udp,
            flow_hash: 0,
            end: None,
        })
    }

    #[test]
    fn what_belongs_to_nothing_pushes_no_decided_packet_out() {
        let mut cache = Cache::new();
        let decided_slot = cache.slot(key(0), 7, Newcomer::First, Tick(0)).unwrap();
        cache.entry(decided_slot).state = decided();
        for id in 1..100 {
            assert!(cache.slot(key(id), 7, Newcomer::Later, Tick(1)).is_some());
        }
        assert_eq!(cache.slot(key(0), 7, Newcomer::Later, Tick(2)), Some(decided_slot));
        assert!(matches!(cache.entry(decided_slot).state, State::Decided(_)));
    }

    #[test]
    fn a_set_full_of_decided_packets_takes_a_first_fragment_and_no_other() {
        let mut cache = Cache::new();
        let slots: Vec<usize> = (0..8)
            .map(|id| {
                let slot = cache.slot(key(id), 7, Newcomer::First, Tick(id)).unwrap();
                cache.entry(slot).state = decided();
                slot
            })
            .collect();
        assert_eq!(cache.slot(key(8), 7, Newcomer::Later, Tick(9)), None);
        assert_eq!(cache.slot(key(8), 7, Newcomer::First, Tick(9)), Some(slots[0]), "the oldest");
        cache.entry(slots[0]).state = decided();
        assert_eq!(cache.slot(key(9), 7, Newcomer::Later, Tick(1_010)), Some(slots[1]), "an old one");
    }

    #[test]
    fn a_slot_that_is_used_anew_has_another_name() {
        let mut cache = Cache::new();
        let slot = cache.slot(key(1), 0, Newcomer::Later, Tick(0)).unwrap();
        let before = cache.awaited(slot);
        cache.remove(slot);
        assert_eq!(cache.slot(key(1), 0, Newcomer::First, Tick(1)), Some(slot));
        assert_ne!(cache.awaited(slot), before);
    }

    #[test]
    fn a_first_fragment_begins_anew_once_its_like_is_old() {
        let mut cache = Cache::new();
        let slot = cache.slot(key(1), 0, Newcomer::First, Tick(0)).unwrap();
        cache.entry(slot).state = State::Ended(Verdict::Drop(DropReason::FragmentOverlap));
        cache.slot(key(1), 0, Newcomer::First, Tick(1_000));
        assert!(matches!(cache.entry(slot).state, State::Ended(_)));
        assert_eq!(cache.slot(key(1), 0, Newcomer::First, Tick(1_001)), Some(slot));
        assert!(matches!(cache.entry(slot).state, State::Expected));
    }
}
