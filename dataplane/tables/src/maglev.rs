//! Maglev consistent hashing (Eisenbud et al., NSDI 2016, section 3.4).
//!
//! Each member has a permutation of the slots that follows from its name alone. Members take turns to claim the next free
//! slot of their permutation until the lookup table is full. Every node that knows the same members builds the same
//! table, and when a member comes or goes few slots of the others move.

use std::hash::Hasher;

use flowgate_wire::hash::splitmix;

/// Lookup table sizes by the largest number of members for which they are used; prime, so that every skip visits every
/// slot.
// Measured on removal of one member: of the flows of other members, 0.4 % move with 10 members in 32,749 slots and 0.9 %
// with 100; with a quarter of the slots 2 to 3 % move. Another size moves most new flows once, so the limits are few and
// lie where a Service rarely crosses them.
const SIZES: [(usize, u32); 4] = [(1, 1), (100, 32_749), (1_000, 131_071), (usize::MAX, 655_373)];

/// Lookup table sizes where memory counts more than flows that move; prime.
const COMPACT_SIZES: [u32; 3] = [1_021, 8_191, 65_521];

/// A lookup table over members numbered from 0.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Maglev {
    slots: Slots,
}

/// The member of each slot, in as few bits as the number of members needs.
// Most Services have few members: with half a byte per slot thousands of tables take a quarter of the memory.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Slots {
    /// Even slots are in the low halves of their bytes.
    Nibble {
        pairs: Box<[u8]>,
        len: usize,
    },
    Byte(Box<[u8]>),
    Short(Box<[u16]>),
    Word(Box<[u32]>),
}

impl Default for Slots {
    fn default() -> Self {
        Self::Byte(Box::default())
    }
}

/// One member to build a table from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member<'a> {
    /// Identifies the member; the same on every node.
    pub name: &'a [u8],
    /// Its share relative to the others; 0 counts as 1.
    pub weight: u16,
}

impl Maglev {
    /// Builds the table with as many slots as [`table_size`] has for it.
    pub fn build(members: &[Member<'_>]) -> Self {
        Self::build_sized(members, table_size(members.len()))
    }

    /// Builds the table with this many slots, a prime. Each member gets one as long as there are not more members than slots.
    ///
    /// The order of `members` numbers them but does not decide who gets which slot.
    pub fn build_sized(members: &[Member<'_>], size: u32) -> Self {
        // The largest number of each type marks a free slot.
        let slots = match members.len() {
            0 => return Self::default(),
            len if len <= NIBBLE_MEMBERS => Slots::in_nibbles(&populate(members, size, u8::MAX)),
            len if len <= BYTE_MEMBERS => Slots::Byte(populate(members, size, u8::MAX).into()),
            len if len <= SHORT_MEMBERS => Slots::Short(populate(members, size, u16::MAX).into()),
            _ => Slots::Word(populate(members, size, u32::MAX).into()),
        };
        Self { slots }
    }

    /// The member for a flow with this hash; `None` when there is no member.
    #[inline]
    pub fn pick(&self, maglev_hash: u32) -> Option<usize> {
        // Multiply and shift (Lemire 2019) in place of a division: maps the hash evenly onto the slots.
        let slot = ((u64::from(maglev_hash) * self.slots.len() as u64) >> 32) as usize;
        self.slots.get(slot)
    }

    /// Memory of the slots.
    pub fn len_bytes(&self) -> usize {
        match &self.slots {
            Slots::Nibble { pairs, .. } => size_of_val(&**pairs),
            Slots::Byte(slots) => size_of_val(&**slots),
            Slots::Short(slots) => size_of_val(&**slots),
            Slots::Word(slots) => size_of_val(&**slots),
        }
    }

    /// The member of each slot, in order.
    pub fn slots(&self) -> Vec<usize> {
        (0..self.slots.len()).filter_map(|slot| self.slots.get(slot)).collect()
    }
}

impl Slots {
    fn in_nibbles(slots: &[u8]) -> Self {
        let pair = |pair: &[u8]| pair[0] | pair.get(1).unwrap_or(&0) << 4;
        Self::Nibble { pairs: slots.chunks(2).map(pair).collect(), len: slots.len() }
    }

    fn len(&self) -> usize {
        match self {
            Self::Nibble { len, .. } => *len,
            Self::Byte(slots) => slots.len(),
            Self::Short(slots) => slots.len(),
            Self::Word(slots) => slots.len(),
        }
    }

    #[inline]
    fn get(&self, slot: usize) -> Option<usize> {
        match self {
            Self::Nibble { pairs, .. } => {
                let pair = pairs.get(slot / 2)?;
                Some(usize::from(if slot.is_multiple_of(2) { pair & 0x0f } else { pair >> 4 }))
            }
            Self::Byte(slots) => slots.get(slot).map(|&member| usize::from(member)),
            Self::Short(slots) => slots.get(slot).map(|&member| usize::from(member)),
            Self::Word(slots) => slots.get(slot).map(|&member| member as usize),
        }
    }
}

/// Members at most whose numbers fit into half a byte.
const NIBBLE_MEMBERS: usize = 16;
/// Members at most whose numbers fit into a byte, beside the mark of a free slot.
const BYTE_MEMBERS: usize = u8::MAX as usize;
/// The same for two bytes.
const SHORT_MEMBERS: usize = u16::MAX as usize;

/// Fills the lookup table; `free` marks a free slot and is the number of no member.
fn populate<S: Slot>(members: &[Member<'_>], size: u32, free: S) -> Vec<S> {
    let mut permutations: Vec<Permutation> =
        members.iter().zip(0..).map(|(m, number)| Permutation::new(m, number, size)).collect();
    // The paper has members take turns in a fixed order. Here it is that of the names' hashes, so that all nodes agree
    // whatever order their members are in.
    permutations.sort_unstable_by_key(|permutation| permutation.name_hash);
    let heaviest = u32::from(members.iter().map(|m| m.weight.max(1)).max().unwrap_or(1));
    let mut slots = vec![free; size as usize];
    let mut left = size;
    while left > 0 {
        for permutation in &mut permutations {
            // Weights: a member that has half the weight of the heaviest takes every second turn.
            permutation.credit += permutation.weight;
            if permutation.credit < heaviest {
                continue;
            }
            permutation.credit -= heaviest;
            // The table is full in the middle of a round: the last members have one slot fewer.
            if left == 0 {
                break;
            }
            let slot = permutation.next_free(&slots, size, free);
            slots[slot] = S::of(permutation.number);
            left -= 1;
        }
    }
    slots
}

/// The size of the lookup table for this many members: a prime.
pub fn table_size(member_count: usize) -> u32 {
    SIZES.iter().find(|(up_to, _)| member_count <= *up_to).map_or(1, |(_, size)| *size)
}

/// The size of a table that takes little memory: eight slots per member, so that shares differ by an eighth at most. More
/// flows of other members move when one comes or goes.
pub fn compact_table_size(member_count: usize) -> u32 {
    let fits = |size: &&u32| member_count.saturating_mul(8) <= **size as usize;
    COMPACT_SIZES
        .iter()
        .find(fits)
        .map_or_else(|| table_size(member_count), |&size| size.min(table_size(member_count)))
}

/// Memory of the slots of a table with so many members and slots, in bytes.
pub const fn slot_bytes(member_count: usize, size: u32) -> usize {
    let size = size as usize;
    match member_count {
        0 => 0,
        len if len <= NIBBLE_MEMBERS => size.div_ceil(2),
        len if len <= BYTE_MEMBERS => size,
        len if len <= SHORT_MEMBERS => size * 2,
        _ => size * 4,
    }
}

/// A member's number as a slot stores it.
// One byte where it fits: claiming walks the table at random, and one of bytes lies in the L1 cache.
trait Slot: Copy + PartialEq {
    /// The number, which fits.
    fn of(number: u32) -> Self;
}

impl Slot for u8 {
    fn of(number: u32) -> Self {
        Self::try_from(number).unwrap_or(Self::MAX)
    }
}

impl Slot for u16 {
    fn of(number: u32) -> Self {
        Self::try_from(number).unwrap_or(Self::MAX)
    }
}

impl Slot for u32 {
    fn of(number: u32) -> Self {
        number
    }
}

/// One member's permutation of the slots: `slot`, `slot + skip`, `slot + 2 * skip` and so on, modulo the table size.
struct Permutation {
    name_hash: u64,
    number: u32,
    weight: u32,
    credit: u32,
    slot: u32,
    skip: u32,
}

impl Permutation {
    fn new(member: &Member<'_>, number: u32, size: u32) -> Self {
        let name_hash = stable_hash(0, member.name);
        let reduce = |hash: u64, modulus: u32| {
            u32::try_from(hash % u64::from(modulus)).expect("a remainder is below its modulus")
        };
        Self {
            name_hash,
            number,
            weight: u32::from(member.weight.max(1)),
            credit: 0,
            // The paper's offset and skip: two independent hashes of the name. As the size is prime, every skip from 1
            // to size - 1 visits each slot once.
            slot: reduce(name_hash, size),
            skip: reduce(stable_hash(1, member.name), (size - 1).max(1)) + 1,
        }
    }

    fn next_free<S: Slot>(&mut self, slots: &[S], size: u32, free: S) -> usize {
        loop {
            let slot = self.slot as usize;
            // Subtraction in place of a remainder: this loop is where building spends its time.
            self.slot += self.skip;
            if self.slot >= size {
                self.slot -= size;
            }
            if slots[slot] == free {
                return slot;
            }
        }
    }
}

/// A hash that is the same on every node and in every version: FNV-1a with a finisher. It needs no key, since no attacker
/// chooses the addresses of endpoints.
// Another hash would be as good, but moves flows between gateways of different versions: a test pins the result.
fn stable_hash(seed: u64, bytes: &[u8]) -> u64 {
    let mut hasher = Fnv1a(0xcbf2_9ce4_8422_2325 ^ seed);
    hasher.write(bytes);
    // FNV mixes its last bytes poorly: they have passed through one multiplication only.
    splitmix(hasher.finish())
}

struct Fnv1a(u64);

impl Hasher for Fnv1a {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(numbers: impl IntoIterator<Item = usize>) -> Vec<String> {
        numbers.into_iter().map(|n| format!("10.244.{}.{}:8080", n / 256, n % 256)).collect()
    }

    fn build(names: &[String]) -> Maglev {
        let members: Vec<_> = names.iter().map(|n| Member { name: n.as_bytes(), weight: 1 }).collect();
        Maglev::build(&members)
    }

    fn shares(table: &Maglev, members: usize) -> Vec<usize> {
        let mut shares = vec![0; members];
        for member in table.slots() {
            shares[member] += 1;
        }
        shares
    }

    #[test]
    fn sizes_are_prime() {
        for size in SIZES.map(|(_, size)| size).into_iter().chain(COMPACT_SIZES) {
            assert!((2..).take_while(|d| d * d <= size).all(|d| size % d != 0), "{size}");
        }
    }

    #[test]
    fn no_member_no_pick_and_one_member_takes_all() {
        assert_eq!(Maglev::build(&[]).pick(7), None);
        let one = build(&names([3]));
        assert!((0..=u32::MAX).step_by(1 << 22).all(|hash| one.pick(hash) == Some(0)));
    }

    #[test]
    fn shares_differ_by_at_most_one_slot_per_turn() {
        for count in [2, 3, 10, 100, 1000] {
            let shares = shares(&build(&names(0..count)), count);
            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            assert!(most - least <= 1, "{count} members: {least} to {most}");
        }
    }

    #[test]
    fn a_member_with_three_times_the_weight_gets_three_times_the_slots() {
        let members = [
            Member { name: b"a", weight: 3 },
            Member { name: b"b", weight: 1 },
            Member { name: b"c", weight: 2 },
        ];
        let table = Maglev::build(&members);
        let shares = shares(&table, 3);
        let slots = table.slots().len();
        for (share, weight) in shares.iter().zip([3, 1, 2]) {
            assert!(share.abs_diff(slots * weight / 6) <= 3, "{shares:?}");
        }
    }

    #[test]
    fn the_order_of_members_does_not_matter() {
        let forward = names(0..20);
        let backward: Vec<_> = forward.iter().rev().cloned().collect();
        let (a, b) = (build(&forward), build(&backward));
        for (x, y) in a.slots().into_iter().zip(b.slots()) {
            assert_eq!(forward[x], backward[y]);
        }
    }

    #[test]
    fn the_table_is_the_same_on_every_node_and_in_every_version() {
        let table = build(&names(0..3));
        let digest = table.slots().iter().fold(0_u64, |d, &s| d.wrapping_mul(31).wrapping_add(s as u64));
        assert_eq!(
            digest, 17_188_011_456_391_056_255,
            "a change here moves flows between gateways of different versions"
        );
    }

    /// Share of hashes of unaffected members that changed their member, removing one of `count`.
    fn excess_moved(count: usize) -> f64 {
        let all = names(0..count);
        let before = build(&all);
        let mut worst: f64 = 0.0;
        for gone in (0..count).step_by(count.div_ceil(10)) {
            let rest: Vec<_> = all.iter().filter(|n| **n != all[gone]).cloned().collect();
            let after = build(&rest);
            let hashes = (0..=u32::MAX).step_by(1 << 14);
            let (mut total, mut moved) = (0_u32, 0_u32);
            for hash in hashes {
                total += 1;
                let old = &all[before.pick(hash).unwrap()];
                moved += u32::from(*old != all[gone] && *old != rest[after.pick(hash).unwrap()]);
            }
            worst = worst.max(f64::from(moved) / f64::from(total));
        }
        worst
    }

    #[test]
    fn removing_a_member_moves_few_flows_of_the_others() {
        for count in [3, 4, 5, 8, 10, 20, 32, 50, 99, 150, 200] {
            let excess = excess_moved(count);
            assert!(excess <= 0.01, "{count} members: {excess}");
        }
    }

    #[test]
    fn a_compact_table_has_eight_slots_per_member_and_is_never_larger_than_a_full_one() {
        for count in [0, 1, 2, 16, 100, 127, 128, 1_001, 8_000, 8_190, 8_191, 70_000] {
            let (compact, full) = (compact_table_size(count), table_size(count));
            assert!(
                compact <= full && (compact == full || compact as usize >= 8 * count),
                "{count}: {compact}"
            );
        }
        let names = names(0..1_001);
        let members: Vec<_> = names.iter().map(|n| Member { name: n.as_bytes(), weight: 1 }).collect();
        let table = Maglev::build_sized(&members, compact_table_size(1_001));
        let shares = shares(&table, 1_001);
        assert!(shares.iter().all(|share| [8, 9].contains(share)), "{shares:?}");
    }

    #[test]
    fn every_member_of_a_very_large_set_gets_a_slot() {
        for count in [65_535, 65_536, 70_000] {
            let shares = shares(&build(&names(0..count)), count);
            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            assert!(*least > 0 && most - least <= 1, "{count} members: {least} to {most}");
        }
    }

    #[test]
    fn a_table_is_as_large_as_foretold() {
        for count in [0, 1, 16, 17, 255, 256, 1_001, 65_535, 65_536] {
            let table = build(&names(0..count));
            assert_eq!(table.len_bytes(), slot_bytes(count, table_size(count)), "{count} members");
        }
    }

    proptest! {
        #[test]
        fn every_slot_has_a_member_and_every_member_a_slot(count in 1_usize..300, salt in any::<u16>()) {
            let names: Vec<_> = (0..count).map(|n| format!("{salt}-{n}")).collect();
            let table = build(&names);
            prop_assert_eq!(table.slots().len(), table_size(count) as usize);
            prop_assert!(shares(&table, count).iter().all(|&share| share > 0));
        }
    }
}
