//! The conntrack entry: one direction of one flow, one cache line for IPv4 and two for IPv6.
//!
//! # Who writes what
//! - The identity (tuple, translation, backend) is written by the owner of the slot under the sequence word, a seqlock
//!   (the peer follows when the second entry is there): odd while it is written. A reader loads the word, the fields, and the word again: equal and even means
//!   that they belong together. Every field is an atomic, so a race gives stale values, which the reader discards.
//! - `next_hop` may be replaced in place by any worker and reset by the sweep: one word that is valid by itself.
//! - `last_seen`, `counters` and the state of the connection (`connection`, `end`, `acked`) are written by the worker that
//!   receives this direction, with plain loads and stores. Others write seldom: fragments may come by another queue, a
//!   reset is recorded for both directions, and the NIC may move a direction. Then a few counts, or a flag, may be lost,
//!   which later packets mend.
//!
//! # How 64 bytes suffice
//! Protocol and direction share the sequence word. IPv4 stores one of two checksum changes and derives the other. Counters
//! are narrower than in a process's memory: 24 bits of packets, 40 bits of bytes. See decision record 33.

use crate::sync::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};
use std::net::{Ipv4Addr, Ipv6Addr};

use flowgate_wire::family::L3Sum;
use flowgate_wire::{Address, FiveTuple, L4Port, Protocol, Translation};

use crate::address::{DeltaCell, FlowAddress, PairCell};
use crate::state::Connection;

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
    /// [`SIDE`], protocol ([`protocol_code`]), [`LOCKED`], and above it the number of writes.
    sequence: AtomicU32,
    next_hop: AtomicU32,
    addrs: A::Pair,
    ports: AtomicU32,
    new_ports: AtomicU32,
    new_addrs: A::Pair,
    l3_sum: AtomicU16,
    /// The bits of a [`Connection`]; of UDP, those of `table/udp.rs`.
    connection: AtomicU16,
    backend: AtomicU32,
    pub(crate) peer: AtomicU32,
    last_seen: AtomicU32,
    /// TCP: the number after the highest octet that this direction has sent. SCTP: the verification tag that the other
    /// direction must carry. UDP: when the flow was opened.
    end: AtomicU32,
    /// TCP: the last acknowledgement number of this direction; until there is one, the number after its SYN. SCTP: a tag of an
    /// association that is being opened.
    acked: AtomicU32,
    /// Packets in the upper 24 bits, bytes of IP modulo 2^40 below.
    counters: AtomicU64,
    l4_delta: A::L4Delta,
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
        let ports = self.ports.load(Ordering::Relaxed);
        // One comparison for the protocol and for an entry that is not being written.
        let mine = self.addrs.is(tuple.src, tuple.dst)
            && ports == pack_ports(tuple.src_port, tuple.dst_port)
            && sequence & (PROTOCOL_MASK | LOCKED) == protocol_code(tuple.protocol);
        if !mine {
            return None;
        }
        let forwarding = Forwarding {
            translation: self.translation(ports),
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
        let protocol = protocol_of(sequence)?;
        let [src, dst] = self.addrs.load();
        let ports = self.ports.load(Ordering::Relaxed);
        let (src_port, dst_port) = unpack_ports(ports);
        let identity = Identity {
            tuple: FiveTuple { protocol, src, dst, src_port, dst_port },
            translation: self.translation(ports),
            side: side_of(sequence),
            peer: EntryIndex(self.peer.load(Ordering::Relaxed)),
            backend: self.backend.load(Ordering::Relaxed),
        };
        fence(Ordering::Acquire);
        (sequence & LOCKED == 0 && self.sequence.load(Ordering::Relaxed) == sequence).then_some(identity)
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
        self.sequence.store(sequence | LOCKED, Ordering::Relaxed);
        fence(Ordering::Release);
        let Direction { tuple, translation, next_hop } = direction;
        self.addrs.store([tuple.src, tuple.dst]);
        self.ports.store(pack_ports(tuple.src_port, tuple.dst_port), Ordering::Relaxed);
        self.new_addrs.store([translation.src, translation.dst]);
        self.new_ports.store(pack_ports(translation.src_port, translation.dst_port), Ordering::Relaxed);
        self.l3_sum.store(translation.l3_sum.to_bits(), Ordering::Relaxed);
        self.l4_delta.store(translation.l4_delta);
        self.next_hop.store(next_hop.0, Ordering::Relaxed);
        self.backend.store(backend, Ordering::Relaxed);
        self.peer.store(peer.0, Ordering::Relaxed);
        self.last_seen.store(now.0, Ordering::Relaxed);
        self.connection.store(0, Ordering::Relaxed);
        self.end.store(if tuple.protocol == Protocol::Udp { now.0 } else { 0 }, Ordering::Relaxed);
        self.acked.store(0, Ordering::Relaxed);
        self.counters.store(0, Ordering::Relaxed);
        // Unlocked again, after all of the above.
        let kind = protocol_code(tuple.protocol) | side as u32;
        self.sequence.store(after(sequence) | kind, Ordering::Release);
    }

    /// Locks the entry if it still has this tuple: sets [`LOCKED`], after which only the caller may
    /// [`clear`](Self::clear) it. False when another writer was first.
    pub(crate) fn lock(&self, tuple: &FiveTuple<A>) -> bool {
        let sequence = self.sequence.load(Ordering::Acquire);
        if sequence & LOCKED != 0 || self.identity().is_none_or(|identity| identity.tuple != *tuple) {
            return false;
        }
        // Fails if the word has changed since the tuple was compared, even if the same tuple was inserted again: that is
        // another flow.
        let locked = self
            .sequence
            .compare_exchange(sequence, sequence | LOCKED, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok();
        fence(Ordering::Release);
        locked
    }

    /// Locks the entry whatever it holds. The caller must be the table's only user.
    pub(crate) fn lock_unchecked(&self) {
        self.sequence.fetch_or(LOCKED, Ordering::AcqRel);
    }

    /// Clears a locked entry; its slot may be released afterwards.
    pub(crate) fn clear(&self) {
        self.addrs.store([A::UNSPECIFIED; 2]);
        self.ports.store(0, Ordering::Relaxed);
        self.peer.store(EntryIndex::NONE.0, Ordering::Relaxed);
        // Without a protocol the entry is free. Readers that saw the word before the lock find it changed.
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(after(sequence), Ordering::Release);
    }

    /// Counts a packet of `ip_len` bytes at `now`.
    #[inline]
    pub(crate) fn touch(&self, now: Tick, ip_len: u16) {
        // Load and store in place of `fetch_add`: one worker writes these, and a locked instruction per packet would cost
        // more than the rest of this function.
        self.last_seen.store(now.0, Ordering::Relaxed);
        // Bytes that overflow their 40 bits count as a packet.
        let counters = self.counters.load(Ordering::Relaxed);
        let counters = counters.wrapping_add(1 << BYTES_BITS | u64::from(ip_len));
        self.counters.store(counters, Ordering::Relaxed);
    }

    /// The state of the connection in this direction.
    #[inline(always)]
    pub(crate) fn connection(&self) -> Connection {
        Connection::from_bits(self.connection.load(Ordering::Relaxed))
    }

    #[inline(always)]
    pub(crate) fn set_connection(&self, connection: Connection) {
        self.connection.store(connection.to_bits(), Ordering::Relaxed);
    }

    /// UDP: what `table/udp.rs` has recorded.
    #[inline(always)]
    pub(crate) fn udp_bits(&self) -> u16 {
        self.connection.load(Ordering::Relaxed)
    }

    /// Adds to what `table/udp.rs` has recorded; the worker of the other direction may do the same at any time.
    pub(crate) fn add_udp_bits(&self, bits: u16) {
        self.connection.fetch_or(bits, Ordering::Relaxed);
    }

    /// UDP: when the flow was opened.
    #[inline(always)]
    pub(crate) fn opened(&self) -> Tick {
        Tick(self.end.load(Ordering::Relaxed))
    }

    /// TCP: the number after the highest octet sent. SCTP: the tag that the other direction must carry.
    #[inline(always)]
    pub(crate) fn end(&self) -> u32 {
        self.end.load(Ordering::Relaxed)
    }

    #[inline(always)]
    pub(crate) fn set_end(&self, end: u32) {
        self.end.store(end, Ordering::Relaxed);
    }

    /// TCP: the last acknowledgement number, or the number after the SYN. SCTP: the tag of an opening association.
    #[inline(always)]
    pub(crate) fn acked(&self) -> u32 {
        self.acked.load(Ordering::Relaxed)
    }

    #[inline(always)]
    pub(crate) fn set_acked(&self, acked: u32) {
        self.acked.store(acked, Ordering::Relaxed);
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

    /// Packets (modulo 2^24) and bytes of IP (modulo 2^40) counted so far.
    pub(crate) fn counts(&self) -> (u32, u64) {
        let counters = self.counters.load(Ordering::Relaxed);
        (u32::try_from(counters >> BYTES_BITS).unwrap_or(0), counters & BYTES_MASK)
    }

    /// Whether this direction has carried a packet.
    pub(crate) fn has_carried(&self) -> bool {
        // Not by the packets alone, whose 24 bits come to zero now and then.
        self.counters.load(Ordering::Relaxed) != 0
    }

    /// Original or reply.
    #[inline]
    pub(crate) fn side(&self) -> Side {
        side_of(self.sequence.load(Ordering::Relaxed))
    }

    #[inline]
    fn translation(&self, ports: u32) -> Translation<A> {
        let [src, dst] = self.new_addrs.load();
        let new_ports = self.new_ports.load(Ordering::Relaxed);
        let (src_port, dst_port) = unpack_ports(new_ports);
        let l3_sum = A::L3Sum::from_bits(self.l3_sum.load(Ordering::Relaxed));
        let l4_delta = self.l4_delta.load(l3_sum, [ports, new_ports]);
        Translation { src, dst, src_port, dst_port, l3_sum, l4_delta }
    }
}

const BYTES_BITS: u32 = 40;
const BYTES_MASK: u64 = (1 << BYTES_BITS) - 1;

/// The bit of the sequence word that tells the directions apart.
const SIDE: u32 = 1;
/// The bits of the sequence word that name the protocol; zero in a free entry.
const PROTOCOL_MASK: u32 = 0b110;
/// Set in the sequence word while the entry is written. One bit below the number of writes, so that an addition of this
/// unlocks and counts.
const LOCKED: u32 = 0b1000;

const fn protocol_code(protocol: Protocol) -> u32 {
    match protocol {
        Protocol::Tcp => 0b010,
        Protocol::Udp => 0b100,
        Protocol::Sctp => 0b110,
    }
}

const fn protocol_of(sequence: u32) -> Option<Protocol> {
    match sequence & PROTOCOL_MASK {
        0b010 => Some(Protocol::Tcp),
        0b100 => Some(Protocol::Udp),
        0b110 => Some(Protocol::Sctp),
        _ => None,
    }
}

const fn side_of(sequence: u32) -> Side {
    if sequence & SIDE == 0 { Side::Original } else { Side::Reply }
}

/// The word of a free entry after a write: unlocked, whether or not a process died before it unlocked this one.
const fn after(sequence: u32) -> u32 {
    ((sequence | LOCKED) & !(SIDE | PROTOCOL_MASK)).wrapping_add(LOCKED)
}

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
            next_hop: AtomicU32::default(),
            addrs: AtomicU64::default(),
            ports: AtomicU32::default(),
            new_ports: AtomicU32::default(),
            new_addrs: AtomicU64::default(),
            l3_sum: AtomicU16::default(),
            connection: AtomicU16::default(),
            backend: AtomicU32::default(),
            peer: AtomicU32::default(),
            last_seen: AtomicU32::default(),
            end: AtomicU32::default(),
            acked: AtomicU32::default(),
            counters: AtomicU64::default(),
            l4_delta: Default::default(),
        }
    }

    #[test]
    fn packets_and_bytes_share_a_word_and_an_entry_that_carried_any_is_never_taken_for_unused() {
        let entry = entry();
        assert!(!entry.has_carried());
        entry.touch(Tick(1), 1500);
        assert_eq!(entry.counts(), (1, 1500));
        entry.counters.store(u64::MAX << BYTES_BITS | 7, Ordering::Relaxed);
        entry.touch(Tick(1), 1500);
        assert_eq!((entry.counts(), entry.has_carried()), ((0, 1507), true));
    }

    #[test]
    fn an_entry_that_a_dead_process_left_locked_can_be_written_again() {
        let entry = entry();
        entry.lock_unchecked();
        for side in [Side::Original, Side::Reply] {
            entry.write(side, &direction(7), 1, EntryIndex(3), Tick(5));
            let identity = entry.identity().unwrap();
            assert_eq!((identity.side, identity.tuple), (side, direction(7).tuple));
        }
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
