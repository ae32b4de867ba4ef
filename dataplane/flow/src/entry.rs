//! The conntrack entry: one direction of one flow, one cache line for IPv4 and two for IPv6.
//!
//! # Who writes what
//! - The identity (tuple, translation, backend) is written by the owner of the slot under the sequence word, a seqlock
//!   (the peer follows when the second entry is there): odd while it is written. A reader loads the word, the fields, and the word again: equal and even means
//!   that they belong together. Every field is an atomic, so a race gives stale values, which the reader discards.
//! - `next_hop` may be replaced in place by any worker and reset by the sweep: one word that is valid by itself.
//! - `last_seen`, `tcp_seen`, `packets` and `acked_and_bytes` are written by the worker that receives this direction,
//!   with plain loads and stores. Others write seldom: fragments may come by another queue, a reset is recorded for both
//!   directions, and the NIC may move a direction. Then a few counts, or a flag, may be lost, which later packets mend.

use crate::sync::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, fence};
use std::net::{Ipv4Addr, Ipv6Addr};

use flowgate_wire::checksum::Delta;
use flowgate_wire::family::L3Sum;
use flowgate_wire::{Address, FiveTuple, L4Port, Protocol, Translation};

use crate::address::{FlowAddress, PairCell};

/// Coarse time in milliseconds; wraps after 49 days. Differences up to 24 days are right, and expiry visits every entry
/// far more often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Tick(
    /// Milliseconds, wrapping.
    pub u32,
);

impl Tick {
    /// Milliseconds from `earlier` to this one; zero if `earlier` is later.
    #[inline]
    pub const fn since(self, earlier: Self) -> u32 {
        let elapsed = self.0.wrapping_sub(earlier.0);
        // Two workers read the clock on their own: one may be a little ahead.
        if elapsed > u32::MAX / 2 { 0 } else { elapsed }
    }

    /// The later of both.
    #[must_use]
    pub const fn later(self, other: Self) -> Self {
        if self.since(other) > 0 { self } else { other }
    }
}

/// Which direction of its flow an entry stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Side {
    /// Packets from the client.
    Original = 0,
    /// Packets from the backend.
    Reply = 1,
}

/// Position of an entry in the flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct EntryIndex(
    /// Bucket number times the slots of a bucket, plus slot.
    pub u32,
);

impl EntryIndex {
    /// No entry.
    pub const NONE: Self = Self(u32::MAX);
}

/// A next hop and the routing epoch that it was looked up in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct NextHopRef(u32);

impl NextHopRef {
    /// Not looked up yet.
    pub const NONE: Self = Self(ID_MASK);

    /// The next hop `id` (24 bits) as looked up in `epoch`.
    #[inline]
    pub const fn new(id: u32, epoch: u8) -> Self {
        Self((id & ID_MASK) | (epoch as u32) << 24)
    }

    /// The next hop, if it was looked up in this epoch.
    #[inline]
    pub const fn id(self, epoch: u8) -> Option<u32> {
        let id = self.0 & ID_MASK;
        if id == ID_MASK || (self.0 >> 24) as u8 != epoch { None } else { Some(id) }
    }
}

/// One direction of a flow to insert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Direction<A: Address> {
    /// The tuple of its packets when they arrive.
    pub tuple: FiveTuple<A>,
    /// How they are translated.
    pub translation: Translation<A>,
    /// Their next hop.
    pub next_hop: NextHopRef,
}

/// One direction of one flow, plain C: 64 bytes for IPv4, 128 for IPv6.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Entry<A: FlowAddress> {
    sequence: AtomicU32,
    protocol: AtomicU8,
    side: AtomicU8,
    pub(crate) tcp_seen: AtomicU16,
    addrs: A::Pair,
    ports: AtomicU32,
    new_ports: AtomicU32,
    new_addrs: A::Pair,
    l3_sum: AtomicU16,
    l4_delta: AtomicU16,
    next_hop: AtomicU32,
    backend: AtomicU32,
    pub(crate) peer: AtomicU32,
    last_seen: AtomicU32,
    packets: AtomicU32,
    /// The upper half of the last TCP acknowledgement number of this direction in the upper 16 bits, bytes of
    /// IP modulo 2^48 below.
    acked_and_bytes: AtomicU64,
}

const _: () = assert!(size_of::<Entry<Ipv4Addr>>() == 64, "an entry is one cache line");
const _: () = assert!(size_of::<Entry<Ipv6Addr>>() == 128, "an entry is two cache lines");

/// A consistent copy of the identity of an entry.
#[derive(Clone, Copy, Debug)]
pub struct Identity<A: Address> {
    /// The tuple of its packets when they arrive.
    pub tuple: FiveTuple<A>,
    /// How they are translated.
    pub translation: Translation<A>,
    /// Original or reply.
    pub side: Side,
    /// The other direction.
    pub peer: EntryIndex,
    /// The backend, as `BackendId::to_bits`.
    pub backend: u32,
}

/// A consistent copy of what a packet needs from an entry.
#[derive(Clone, Copy, Debug)]
pub struct Forwarding<A: Address> {
    /// How the packet is translated.
    pub translation: Translation<A>,
    /// Its next hop.
    pub next_hop: NextHopRef,
    /// The backend, as `BackendId::to_bits`.
    pub backend: u32,
}

impl<A: FlowAddress> Entry<A> {
    /// A field in the second cache line of an IPv6 entry, to prefetch it by.
    #[inline]
    pub(crate) fn second_line(&self) -> &AtomicU32 {
        &self.last_seen
    }

    /// What a packet with this tuple needs; `None` if the entry is of another tuple or being written.
    #[inline(always)]
    pub(crate) fn forwarding(&self, tuple: &FiveTuple<A>) -> Option<Forwarding<A>> {
        // Acquire: the fields are loaded after the word, so they are at least as new as the write that made it even.
        let sequence = self.sequence.load(Ordering::Acquire);
        let mine = self.addrs.is(tuple.src, tuple.dst)
            && self.ports.load(Ordering::Relaxed) == pack_ports(tuple.src_port, tuple.dst_port)
            && self.protocol.load(Ordering::Relaxed) == tuple.protocol.number();
        if !mine || sequence & 1 == 1 {
            return None;
        }
        let forwarding = Forwarding {
            translation: self.translation(),
            next_hop: NextHopRef(self.next_hop.load(Ordering::Relaxed)),
            backend: self.backend.load(Ordering::Relaxed),
        };
        // The loads above must be done before the word is read again; an acquire load would order only what comes after
        // it (Boehm, MSPC 2012, section 4).
        fence(Ordering::Acquire);
        (self.sequence.load(Ordering::Relaxed) == sequence).then_some(forwarding)
    }

    /// A consistent copy of the identity; `None` while the entry is free or being written.
    pub(crate) fn identity(&self) -> Option<Identity<A>> {
        let sequence = self.sequence.load(Ordering::Acquire);
        let protocol = Protocol::from_number(self.protocol.load(Ordering::Relaxed))?;
        let [src, dst] = self.addrs.load();
        let (src_port, dst_port) = unpack_ports(self.ports.load(Ordering::Relaxed));
        let identity = Identity {
            tuple: FiveTuple { protocol, src, dst, src_port, dst_port },
            translation: self.translation(),
            side: self.side(),
            peer: EntryIndex(self.peer.load(Ordering::Relaxed)),
            backend: self.backend.load(Ordering::Relaxed),
        };
        fence(Ordering::Acquire);
        (sequence & 1 == 0 && self.sequence.load(Ordering::Relaxed) == sequence).then_some(identity)
    }

    /// Writes the entry of a slot that the caller has claimed.
    pub(crate) fn write(
        &self,
        side: Side,
        direction: &Direction<A>,
        backend: u32,
        peer: EntryIndex,
        now: Tick,
    ) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        // The slot is ours, so plain stores do. The fence keeps the stores below from becoming visible before the odd
        // word; a release store would order only what comes before it.
        self.sequence.store(sequence.wrapping_add(1) | 1, Ordering::Relaxed);
        fence(Ordering::Release);
        let Direction { tuple, translation, next_hop } = direction;
        self.protocol.store(tuple.protocol.number(), Ordering::Relaxed);
        self.side.store(side as u8, Ordering::Relaxed);
        self.tcp_seen.store(0, Ordering::Relaxed);
        self.addrs.store([tuple.src, tuple.dst]);
        self.ports.store(pack_ports(tuple.src_port, tuple.dst_port), Ordering::Relaxed);
        self.new_addrs.store([translation.src, translation.dst]);
        self.new_ports.store(pack_ports(translation.src_port, translation.dst_port), Ordering::Relaxed);
        self.l3_sum.store(translation.l3_sum.to_bits(), Ordering::Relaxed);
        self.l4_delta.store(translation.l4_delta.to_bits(), Ordering::Relaxed);
        self.next_hop.store(next_hop.0, Ordering::Relaxed);
        self.backend.store(backend, Ordering::Relaxed);
        self.peer.store(peer.0, Ordering::Relaxed);
        self.last_seen.store(now.0, Ordering::Relaxed);
        self.packets.store(0, Ordering::Relaxed);
        self.acked_and_bytes.store(0, Ordering::Relaxed);
        // Even again, after all of the above. `| 1` since a process may have died here and left the word odd.
        self.sequence.store((sequence | 1).wrapping_add(1), Ordering::Release);
    }

    /// Locks the entry if it still has this tuple: makes the sequence word odd, after which only the caller may
    /// [`clear`](Self::clear) it. False when another writer was first.
    pub(crate) fn lock(&self, tuple: &FiveTuple<A>) -> bool {
        let sequence = self.sequence.load(Ordering::Acquire);
        if sequence & 1 == 1 || self.identity().is_none_or(|identity| identity.tuple != *tuple) {
            return false;
        }
        // Fails if the word has changed since the tuple was compared, even if the same tuple was inserted again: that is
        // another flow.
        let locked = self
            .sequence
            .compare_exchange(sequence, sequence | 1, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok();
        fence(Ordering::Release);
        locked
    }

    /// Locks the entry whatever it holds. The caller must be the table's only user.
    pub(crate) fn lock_unchecked(&self) {
        self.sequence.fetch_or(1, Ordering::AcqRel);
    }

    /// Clears a locked entry; its slot may be released afterwards.
    pub(crate) fn clear(&self) {
        self.protocol.store(0, Ordering::Relaxed);
        self.addrs.store([A::UNSPECIFIED; 2]);
        self.ports.store(0, Ordering::Relaxed);
        self.peer.store(EntryIndex::NONE.0, Ordering::Relaxed);
        // From odd to even: readers that saw the word before the lock find it changed.
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(sequence.wrapping_add(1), Ordering::Release);
    }

    /// Counts a packet of `ip_len` bytes at `now`.
    #[inline]
    pub(crate) fn touch(&self, now: Tick, ip_len: u16) {
        // Load and store in place of `fetch_add`: one worker writes these, and a locked instruction per packet would cost
        // more than the rest of this function.
        self.last_seen.store(now.0, Ordering::Relaxed);
        self.packets.store(self.packets.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        // A carry out of the 48 bits runs into the acknowledgement number, which the next segment replaces.
        let word = self.acked_and_bytes.load(Ordering::Relaxed).wrapping_add(u64::from(ip_len));
        self.acked_and_bytes.store(word, Ordering::Relaxed);
    }

    /// Stores the upper half of an acknowledgement number.
    #[inline]
    pub(crate) fn record_ack(&self, high: u16) {
        let bytes = self.acked_and_bytes.load(Ordering::Relaxed) & BYTES_MASK;
        self.acked_and_bytes.store(u64::from(high) << BYTES_BITS | bytes, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn last_seen(&self) -> Tick {
        Tick(self.last_seen.load(Ordering::Relaxed))
    }

    #[inline]
    pub(crate) fn peer(&self) -> EntryIndex {
        EntryIndex(self.peer.load(Ordering::Relaxed))
    }

    pub(crate) fn set_peer(&self, peer: EntryIndex) {
        self.peer.store(peer.0, Ordering::Relaxed);
    }

    /// The caller must be the table's only user: the sequence word does not change.
    pub(crate) fn set_backend(&self, backend: u32) {
        self.backend.store(backend, Ordering::Relaxed);
    }

    pub(crate) fn set_next_hop(&self, next_hop: NextHopRef) {
        self.next_hop.store(next_hop.0, Ordering::Relaxed);
    }

    /// Resets a next hop of another epoch; one that is stored at the same time stays.
    pub(crate) fn forget_next_hop_unless(&self, epoch: u8) {
        let stored = self.next_hop.load(Ordering::Relaxed);
        if stored != NextHopRef::NONE.0 && NextHopRef(stored).id(epoch).is_none() {
            let (none, order) = (NextHopRef::NONE.0, Ordering::Relaxed);
            // A failure means that a worker has just stored a current one, which a plain store would overwrite.
            let _ = self.next_hop.compare_exchange(stored, none, order, order);
        }
    }

    /// Packets (modulo 2^32) and bytes of IP (modulo 2^48) counted so far.
    pub(crate) fn counts(&self) -> (u32, u64) {
        (self.packets.load(Ordering::Relaxed), self.acked_and_bytes.load(Ordering::Relaxed) & BYTES_MASK)
    }

    /// The upper half of the last acknowledgement number that this direction sent.
    pub(crate) fn acked(&self) -> u16 {
        (self.acked_and_bytes.load(Ordering::Relaxed) >> BYTES_BITS) as u16
    }

    /// Original or reply.
    #[inline]
    pub(crate) fn side(&self) -> Side {
        if self.side.load(Ordering::Relaxed) == 0 { Side::Original } else { Side::Reply }
    }

    #[inline]
    fn translation(&self) -> Translation<A> {
        let [src, dst] = self.new_addrs.load();
        let (src_port, dst_port) = unpack_ports(self.new_ports.load(Ordering::Relaxed));
        let l3_sum = A::L3Sum::from_bits(self.l3_sum.load(Ordering::Relaxed));
        let l4_delta = Delta::from_bits(self.l4_delta.load(Ordering::Relaxed));
        Translation { src, dst, src_port, dst_port, l3_sum, l4_delta }
    }
}

const BYTES_BITS: u32 = 48;
const BYTES_MASK: u64 = (1 << BYTES_BITS) - 1;
const ID_MASK: u32 = 0x00ff_ffff;

// Wire order in memory: a C reader sees source, then destination.

#[inline]
fn pack_ports(src: L4Port, dst: L4Port) -> u32 {
    let ([a, b], [c, d]) = (src.wire(), dst.wire());
    u32::from_ne_bytes([a, b, c, d])
}

#[inline]
fn unpack_ports(packed: u32) -> (L4Port, L4Port) {
    let [a, b, c, d] = packed.to_ne_bytes();
    (L4Port::from_wire([a, b]), L4Port::from_wire([c, d]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn direction(port: u16) -> Direction<Ipv4Addr> {
        let tuple = FiveTuple {
            protocol: Protocol::Udp,
            src: Ipv4Addr::new(192, 0, 2, 1),
            dst: Ipv4Addr::new(10, 96, 0, 1),
            src_port: L4Port::new(port),
            dst_port: L4Port::new(53),
        };
        Direction {
            tuple,
            translation: Translation::between(&tuple, &tuple.reversed()),
            next_hop: NextHopRef::new(5, 9),
        }
    }

    fn entry() -> Entry<Ipv4Addr> {
        Entry {
            sequence: AtomicU32::default(),
            protocol: AtomicU8::default(),
            side: AtomicU8::default(),
            tcp_seen: AtomicU16::default(),
            addrs: AtomicU64::default(),
            ports: AtomicU32::default(),
            new_ports: AtomicU32::default(),
            new_addrs: AtomicU64::default(),
            l3_sum: AtomicU16::default(),
            l4_delta: AtomicU16::default(),
            next_hop: AtomicU32::default(),
            backend: AtomicU32::default(),
            peer: AtomicU32::default(),
            last_seen: AtomicU32::default(),
            packets: AtomicU32::default(),
            acked_and_bytes: AtomicU64::default(),
        }
    }

    #[test]
    fn acknowledgements_and_bytes_share_a_word_and_do_not_meet() {
        let entry = entry();
        entry.acked_and_bytes.store(BYTES_MASK, Ordering::Relaxed);
        entry.touch(Tick(1), 1500);
        entry.record_ack(0xffff);
        assert_eq!((entry.acked(), entry.counts()), (0xffff, (1, 1499)));
        entry.touch(Tick(1), 1);
        entry.record_ack(7);
        assert_eq!((entry.acked(), entry.counts()), (7, (2, 1500)));
    }

    #[test]
    fn what_is_written_is_read_and_a_cleared_entry_is_free() {
        let entry = entry();
        let direction = direction(1000);
        assert!(entry.identity().is_none());
        entry.write(Side::Reply, &direction, 77, EntryIndex(3), Tick(5));
        let forwarding = entry.forwarding(&direction.tuple).unwrap();
        assert_eq!(
            (forwarding.translation, forwarding.next_hop),
            (direction.translation, direction.next_hop)
        );
        assert_eq!((forwarding.backend, entry.side()), (77, Side::Reply));
        assert_eq!(entry.identity().unwrap().tuple, direction.tuple);
        assert!(entry.forwarding(&direction.tuple.reversed()).is_none());
        assert!(entry.lock(&direction.tuple));
        assert!(!entry.lock(&direction.tuple), "already locked");
        assert!(entry.forwarding(&direction.tuple).is_none(), "being written");
        entry.clear();
        assert!(entry.identity().is_none());
    }

    #[test]
    fn a_next_hop_of_another_epoch_must_be_looked_up_again() {
        let stored = NextHopRef::new(7, 255);
        assert_eq!(stored.id(255), Some(7));
        assert_eq!(stored.id(0), None);
        assert_eq!(NextHopRef::NONE.id(0), None);
    }

    #[test]
    fn time_differences_survive_the_wrap_and_a_clock_that_is_a_little_ahead() {
        assert_eq!(Tick(5).since(Tick(u32::MAX - 4)), 10);
        assert_eq!(Tick(5).since(Tick(6)), 0);
    }
}
