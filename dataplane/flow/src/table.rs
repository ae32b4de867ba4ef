//! Finds, inserts and removes flows. Which flow makes room when the table is full is decided in `table/eviction.rs`.

mod eviction;
mod idle;
mod sctp;
mod shares;
mod tcp;
mod udp;
mod view;

use std::fs::File;
use std::hint;

use flowgate_wire::{Address, FiveTuple, Protocol};

use crate::address::FlowAddress;
use crate::arch::prefetch;
use crate::entry::{Direction, Entry, EntryIndex, Forwarding, Identity, NextHopRef, Side, Tick};
use crate::hash::{FlowHash, HashKey};
use crate::memory::{self, Memory, OutOfMemory};
use crate::persistence::{self, Header, Opened, Origin, PersistConfig, PersistError};
use crate::shares::Shares;
use crate::sync::{AtomicBool, AtomicU32, Ordering};
use crate::tags::{BUCKET_SLOTS, Candidates, Slots};
pub use shares::PORT_BLOCK;
pub use tcp::Tracked;
pub use view::FlowView;

/// One fixed-capacity table of the flows of one family, shared by all workers.
#[derive(Debug)]
pub struct FlowTable<A: FlowAddress> {
    key: HashKey,
    memory: Memory<Entry<A>>,
    capacity_flows: u32,
    /// See [`FlowTable::half_open`].
    half_open: AtomicU32,
    /// How many flows each client has.
    shares: Shares,
    /// Striped by hash: one insertion of a tuple at a time. Outside the shared memory, so that a process that dies while it
    /// holds one does not block the next.
    insert_locks: Box<[SpinLock]>,
    /// The lock that excludes other processes from the file, if there is one.
    _lock: Option<File>,
}

/// The places where an entry may be, computed ahead so that its cache lines can be prefetched.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    hash: FlowHash,
    buckets: [u32; 2],
    /// The first entry with the tag.
    likely: EntryIndex,
    /// The other entries with the tag.
    others: Candidates,
}

impl Probe {
    /// A probe that finds nothing.
    pub const EMPTY: Self =
        Self { hash: FlowHash(0), buckets: [0; 2], likely: EntryIndex::NONE, others: Candidates::NONE };

    /// The keyed hash of the tuple.
    pub const fn hash(&self) -> FlowHash {
        self.hash
    }

    /// The entry of the next candidate.
    #[inline]
    fn next_of(&self, candidates: &mut Candidates) -> EntryIndex {
        let [first, second] = self.buckets;
        candidates.next().map_or(EntryIndex::NONE, |(bucket, slot)| {
            entry_index(if bucket == 0 { first } else { second }, slot)
        })
    }
}

/// An entry that was found.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a, A: FlowAddress> {
    /// What the packet needs, consistent at the time of the lookup.
    pub forwarding: Forwarding<A>,
    index: EntryIndex,
    entry: &'a Entry<A>,
}

/// A flow to be inserted.
#[derive(Clone, Copy, Debug)]
pub struct NewFlow<A: Address> {
    /// Packets from the client.
    pub original: Direction<A>,
    /// Packets from the backend.
    pub reply: Direction<A>,
    /// The backend, as `BackendId::to_bits`.
    pub backend: u32,
}

/// Outcome of an insertion.
#[derive(Clone, Copy, Debug)]
pub enum Inserted<'a, A: FlowAddress> {
    /// The flow was inserted; its original direction.
    New(Found<'a, A>),
    /// Another worker inserted a flow with this original tuple first; its original direction.
    Existing(Found<'a, A>),
    /// The reply tuple belongs to another flow, whose reply direction this is: try another source port.
    ReplyTaken(Found<'a, A>),
    /// No slot is free and no flow may be evicted.
    Full,
}

impl<A: FlowAddress> FlowTable<A> {
    /// A table for `capacity_flows` flows in anonymous memory.
    ///
    /// # Errors
    /// [`OutOfMemory`]: the kernel refuses the mapping.
    pub fn new(capacity_flows: u32, key: HashKey) -> Result<Self, OutOfMemory> {
        let (capacity_flows, bucket_count) = dimensions(capacity_flows);
        Ok(Self::from_memory(Memory::new(bucket_count, capacity_flows)?, capacity_flows, key, None))
    }

    /// The memory of a table for this number of flows, in bytes.
    pub fn bytes_for(capacity_flows: u32) -> u64 {
        let (capacity_flows, bucket_count) = dimensions(capacity_flows);
        memory::len_bytes::<Entry<A>>(bucket_count) as u64 + Shares::bytes_for(capacity_flows)
    }

    /// A table in a file that outlives the process. Flows of an earlier process ([`Origin::Restored`]) have to be
    /// [adopted](Self::adopt) before the table is used.
    ///
    /// # Errors
    /// [`PersistError`]: another process uses the file, or file system or memory fail.
    pub fn persistent(
        capacity_flows: u32,
        key: HashKey,
        persist: &PersistConfig,
    ) -> Result<(Self, Origin), PersistError> {
        let (capacity_flows, bucket_count) = dimensions(capacity_flows);
        let entry_bytes = u32::try_from(size_of::<Entry<A>>()).expect("an entry is a few cache lines");
        let header = Header { entry_bytes, bucket_count, capacity_flows, boot: persist.boot, key };
        let len = memory::len_bytes::<Entry<A>>(bucket_count) as u64;
        let Opened { file, key, origin } = persistence::open(&persist.path, &header, len)?;
        let path = || persist.path.clone();
        let memory = Memory::in_file(&file, bucket_count, capacity_flows)
            .map_err(|source| PersistError::OutOfMemory { path: path(), source })?;
        if origin != Origin::Restored {
            persistence::write_header(&file, &header, len)
                .map_err(|source| PersistError::Io { path: path(), source })?;
        }
        Ok((Self::from_memory(memory, capacity_flows, key, Some(file)), origin))
    }

    fn from_memory(memory: Memory<Entry<A>>, capacity_flows: u32, key: HashKey, file: Option<File>) -> Self {
        let insert_locks = (0..INSERT_LOCKS).map(|_| SpinLock::default()).collect();
        let half_open = AtomicU32::new(0);
        let shares = Shares::new(capacity_flows);
        Self { key, memory, capacity_flows, half_open, shares, insert_locks, _lock: file }
    }

    /// Capacity in flows.
    pub fn capacity_flows(&self) -> u32 {
        self.capacity_flows
    }

    /// Memory used, in bytes.
    pub fn len_bytes(&self) -> usize {
        self.memory.len_bytes()
    }

    /// Step one of a lookup: hashes the tuple and prefetches the tags of its two buckets.
    #[inline(always)]
    pub fn probe(&self, tuple: &FiveTuple<A>) -> Probe {
        let hash = self.key.hash(tuple);
        let buckets = hash.buckets(self.memory.bucket_count());
        for bucket in buckets {
            prefetch(&self.memory.tags()[bucket as usize]);
        }
        Probe { hash, buckets, ..Probe::EMPTY }
    }

    /// Step two: compares the tags and prefetches the first entry that agrees.
    #[inline(always)]
    pub fn prefetch(&self, probe: &mut Probe) {
        let mut candidates = self.candidates(probe);
        probe.likely = probe.next_of(&mut candidates);
        probe.others = candidates;
        if let Some(entry) = self.memory.entries().get(probe.likely.0 as usize) {
            prefetch(entry);
            if size_of::<Entry<A>>() > CACHE_LINE {
                prefetch(entry.second_line());
            }
        }
    }

    /// Step three: the entry of a packet with this tuple. Takes no lock.
    #[inline(always)]
    pub fn find(&self, probe: &Probe, tuple: &FiveTuple<A>) -> Option<Found<'_, A>> {
        let (mut index, mut others) = (probe.likely, probe.others);
        // One exit with an entry: with several, the compiler merges their results in memory and not in registers.
        loop {
            let entry = self.memory.entries().get(index.0 as usize)?;
            if let Some(forwarding) = entry.forwarding(tuple) {
                return Some(Found { forwarding, index, entry });
            }
            index = probe.next_of(&mut others);
        }
    }

    /// Repeats steps two and three, for a flow that was inserted since: by an earlier packet of the burst or by another
    /// worker. Separate from [`find`](Self::find), which most packets need only.
    #[cold]
    pub fn find_again(&self, probe: &Probe, tuple: &FiveTuple<A>) -> Option<Found<'_, A>> {
        let mut probe = *probe;
        self.prefetch(&mut probe);
        self.find(&probe, tuple)
    }

    /// The slots whose tags agree, as they are now.
    #[inline]
    fn candidates(&self, probe: &Probe) -> Candidates {
        let tags = self.memory.tags();
        let tag = probe.hash.tag();
        let [first, second] = probe.buckets.map(|bucket| tags[bucket as usize].matches(tag));
        Candidates::new(first, second)
    }

    /// All three steps at once, for callers without a burst.
    pub fn lookup(&self, tuple: &FiveTuple<A>) -> Option<Found<'_, A>> {
        let mut probe = self.probe(tuple);
        self.prefetch(&mut probe);
        self.find(&probe, tuple)
    }

    /// Inserts both directions of a flow, or returns the flow that has one of the tuples already.
    pub fn insert(&self, flow: &NewFlow<A>, now: Tick) -> Inserted<'_, A> {
        let NewFlow { original, reply, .. } = flow;
        // The reply direction first: nothing can reply to a packet that was not sent, so no packet finds it before the
        // original one. Two workers that insert the same original tuple with different replies meet at the second step,
        // and the one that loses takes its reply direction back.
        let reply_index = match self.insert_direction(Side::Reply, flow, EntryIndex::NONE, now) {
            DirectionInserted::New(index) => index,
            DirectionInserted::Existing(holder) => return Inserted::ReplyTaken(holder),
            DirectionInserted::Full => return Inserted::Full,
        };
        // Before anybody can find the flow and remove it, so that no count is taken back that was not made.
        self.count(flow);
        match self.insert_direction(Side::Original, flow, reply_index, now) {
            DirectionInserted::New(index) => {
                // The reply entry has had no peer until now: eviction leaves such an entry alone, the sweep for a second.
                self.entry(reply_index).set_peer(index);
                if original.tuple.protocol != Protocol::Udp {
                    self.half_open.fetch_add(1, Ordering::Relaxed);
                }
                let entry = self.entry(index);
                match entry.forwarding(&original.tuple) {
                    Some(forwarding) => Inserted::New(Found { forwarding, index, entry }),
                    // Evicted by another worker within these few instructions: as if there had been no room.
                    None => Inserted::Full,
                }
            }
            DirectionInserted::Existing(found) => {
                self.uncount(flow);
                self.remove_direction(reply_index, &reply.tuple);
                Inserted::Existing(found)
            }
            DirectionInserted::Full => {
                self.uncount(flow);
                self.remove_direction(reply_index, &reply.tuple);
                Inserted::Full
            }
        }
    }

    /// Removes both directions of the flow of `found`. False when another worker removes it or has done so.
    pub fn remove(&self, found: &Found<'_, A>) -> bool {
        found.entry.identity().is_some_and(|identity| self.remove_flow(found.index, &identity))
    }

    /// The number of buckets, for walks over the table.
    pub(crate) fn bucket_count(&self) -> u32 {
        self.memory.bucket_count()
    }

    pub(crate) fn used_slots(&self, bucket: u32) -> Slots {
        self.memory.tags()[bucket as usize].used()
    }

    #[inline]
    pub(crate) fn entry(&self, index: EntryIndex) -> &Entry<A> {
        &self.memory.entries()[index.0 as usize]
    }

    pub(crate) fn entries(&self) -> &[Entry<A>] {
        self.memory.entries()
    }

    pub(crate) fn peer_of(&self, entry: &Entry<A>) -> Option<&Entry<A>> {
        self.memory.entries().get(entry.peer().0 as usize)
    }

    /// Removes both directions of a flow, of which `identity` was read at `index`.
    pub(crate) fn remove_flow(&self, index: EntryIndex, identity: &Identity<A>) -> bool {
        // The original direction is locked first, from whichever side the removal starts: two removals of one flow meet
        // at the same entry, and only one of them gets the lock and counts the flow.
        let (original, reply) = match identity.side {
            Side::Original => (index, identity.peer),
            Side::Reply => (identity.peer, index),
        };
        let peers_with = |at: EntryIndex, peer: EntryIndex| {
            let entry = self.memory.entries().get(at.0 as usize)?;
            entry.identity().filter(|found| found.peer == peer)
        };
        let Some(whole) = peers_with(original, reply) else {
            // Only this direction is left, or the peer's slot has another flow by now. If this one ever had a peer, the
            // flow was counted as removed with it.
            return self.remove_direction(index, &identity.tuple) && identity.peer == EntryIndex::NONE;
        };
        if !self.entry(original).lock(&whole.tuple) {
            return false;
        }
        if whole.tuple.protocol != Protocol::Udp && Self::is_half_open(self.entry(original)) {
            self.decrement_half_open();
        }
        self.uncount_removed(&whole);
        // Read again: between the check and the lock the reply slot may have gone to another flow.
        if let Some(reply_identity) = peers_with(reply, original) {
            self.remove_direction(reply, &reply_identity.tuple);
        }
        self.free(original);
        true
    }

    fn insert_direction(
        &self,
        side: Side,
        flow: &NewFlow<A>,
        peer: EntryIndex,
        now: Tick,
    ) -> DirectionInserted<'_, A> {
        let direction = if side == Side::Original { &flow.original } else { &flow.reply };
        let tuple = &direction.tuple;
        let hash = self.key.hash(tuple);
        // Looking up and claiming must be one step, or two workers that miss the same tuple insert it twice. The lock
        // covers this tuple's stripe only; slots are claimed from all stripes and have their own synchronisation.
        let _guard = self.insert_locks[hash.0 as usize % INSERT_LOCKS].lock();
        if let Some(found) = self.lookup(tuple) {
            return DirectionInserted::Existing(found);
        }
        let buckets = hash.buckets(self.memory.bucket_count());
        // After an eviction another worker may take the freed slot; then the table is full for this flow. No second try:
        // under a flood it would turn into a loop.
        let claimed = self.claim(buckets, hash.tag()).or_else(|| {
            self.evict_from(buckets, flow.original.tuple.src, now);
            self.claim(buckets, hash.tag())
        });
        let Some(index) = claimed else { return DirectionInserted::Full };
        self.entry(index).write(side, direction, flow.backend, peer, now);
        DirectionInserted::New(index)
    }

    /// Claims a free slot in one of the two buckets.
    fn claim(&self, buckets: [u32; 2], tag: u8) -> Option<EntryIndex> {
        let used = buckets.map(|bucket| self.used_slots(bucket).count());
        // The first bucket while it has room to spare, since lookups begin there; else the emptier of the two, which keeps
        // all buckets nearly equally full ("the power of two choices", Mitzenmacher 2001).
        let spill = used[0] >= FIRST_BUCKET_SLOTS && used[1] < used[0];
        let [first, second] = if spill { [buckets[1], buckets[0]] } else { buckets };
        let claim_in =
            |bucket: u32| Some(entry_index(bucket, self.memory.tags()[bucket as usize].claim(tag)?));
        claim_in(first).or_else(|| claim_in(second))
    }

    fn remove_direction(&self, index: EntryIndex, tuple: &FiveTuple<A>) -> bool {
        let locked = self.entry(index).lock(tuple);
        if locked {
            self.free(index);
        }
        locked
    }

    pub(crate) fn free(&self, index: EntryIndex) {
        self.entry(index).clear();
        // The tag goes last: with it the slot can be claimed, and its next owner must not meet this clear.
        self.memory.tags()[(index.0 / BUCKET_SLOTS) as usize].release(index.0 % BUCKET_SLOTS);
    }
}

impl<A: FlowAddress> Found<'_, A> {
    /// Counts a packet of `ip_len` bytes at `now`.
    #[inline]
    pub fn touch(&self, now: Tick, ip_len: u16) {
        self.entry.touch(now, ip_len);
    }

    /// The direction of the entry.
    #[inline]
    pub fn side(&self) -> Side {
        self.entry.side()
    }

    pub(crate) fn index(&self) -> EntryIndex {
        self.index
    }

    /// When this direction last carried a packet.
    #[inline]
    pub fn last_seen(&self) -> Tick {
        self.entry.last_seen()
    }

    /// Stores a next hop.
    pub fn set_next_hop(&self, next_hop: NextHopRef) {
        self.entry.set_next_hop(next_hop);
    }
}

enum DirectionInserted<'a, A: FlowAddress> {
    New(EntryIndex),
    Existing(Found<'a, A>),
    Full,
}

/// Guards insertions of one stripe. Held for less than a microsecond, so waiting threads spin.
#[derive(Debug, Default)]
struct SpinLock(AtomicBool);

impl SpinLock {
    fn lock(&self) -> SpinGuard<'_> {
        let mut spins = 0_u32;
        while self.0.compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            spins += 1;
            if spins.is_multiple_of(1024) {
                // The holder may have been preempted on this very core.
                std::thread::yield_now();
            }
            hint::spin_loop();
        }
        SpinGuard(self)
    }
}

struct SpinGuard<'a>(&'a SpinLock);

impl Drop for SpinGuard<'_> {
    fn drop(&mut self) {
        self.0.0.store(false, Ordering::Release);
    }
}

/// The capacity within the limits, and the buckets that it needs.
fn dimensions(capacity_flows: u32) -> (u32, u32) {
    let capacity_flows = capacity_flows.clamp(64, CAPACITY_MAX);
    // Two entries per flow, and 22 % more slots: up to that load both buckets of a tuple are hardly ever full.
    let slots = u64::from(capacity_flows) * 2 * 122 / 100;
    (capacity_flows, u32::try_from(slots.div_ceil(u64::from(BUCKET_SLOTS))).unwrap_or(u32::MAX))
}

#[inline]
pub(crate) const fn entry_index(bucket: u32, slot: u32) -> EntryIndex {
    EntryIndex(bucket * BUCKET_SLOTS + slot)
}

const CACHE_LINE: usize = 64;

const INSERT_LOCKS: usize = 1024;

/// Used slots of a first bucket from which on the second is considered.
const FIRST_BUCKET_SLOTS: u32 = 28;

/// Entry indices have 32 bits, of which the highest is [`EntryIndex::NONE`].
const CAPACITY_MAX: u32 = 1_500_000_000;

#[cfg(test)]
mod tests;
