use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;

use flowgate_wire::{FiveTuple, FiveTuple4, L4Port, Protocol};
use proptest::prelude::*;

use super::*;
use crate::entry::{Direction, Entry4};
use crate::tags::{BUCKET_SLOTS, Tags};
use crate::{HashKey, Inserted, Keeping, NewFlow, Origin};

const KEY: HashKey = HashKey([3, 0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f, 0x1656_67b1_9e37_79f9, 5]);
const CAPACITY: u32 = 200;

fn flow(number: u16) -> NewFlow {
    let original = FiveTuple {
        protocol: if number.is_multiple_of(3) { Protocol::Tcp } else { Protocol::Udp },
        src: (0xc000_0200 + u32::from(number % 7)).into(),
        dst: 0x0a60_0001.into(),
        src_port: L4Port::new(number),
        dst_port: L4Port::new(80),
    };
    let reply = FiveTuple {
        src: 0x0af4_000b.into(),
        dst: 0x0af4_0001.into(),
        src_port: L4Port::new(8080),
        dst_port: L4Port::new(40_000 + number),
        ..original
    };
    let direction = |from: FiveTuple4, to: FiveTuple4| Direction {
        tuple: from,
        translation: Translation4::between(&from, &to.reversed()),
        next_hop: NextHopRef::new(1, 0),
    };
    NewFlow { original: direction(original, reply), reply: direction(reply, original), backend: 7 }
}

struct Kept {
    _folder: tempfile::TempDir,
    keeping: Keeping,
}

impl Kept {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let keeping = Keeping { path: folder.path().join("flows"), boot: [1; 16] };
        Self { _folder: folder, keeping }
    }

    fn open(&self) -> (FlowTable, Origin) {
        FlowTable::kept(CAPACITY, KEY, &self.keeping).unwrap()
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        let file = File::options().write(true).open(&self.keeping.path).unwrap();
        file.write_all_at(bytes, at as u64).unwrap();
    }
}

fn entries_offset(table: &FlowTable) -> usize {
    (table.bucket_count() as usize * size_of::<Tags>()).next_multiple_of(4096)
}

/// The bytes of the file that stand for one direction: its tag, and its entry.
fn bytes_of(table: &FlowTable, tuple: &FiveTuple4) -> [std::ops::Range<usize>; 2] {
    let index = table.lookup(tuple).unwrap().index().0;
    let (bucket, slot) = ((index / BUCKET_SLOTS) as usize, (index % BUCKET_SLOTS) as usize);
    let tag = bucket * size_of::<Tags>() + slot;
    let entry = entries_offset(table) + index as usize * size_of::<Entry4>();
    [tag..tag + 1, entry..entry + size_of::<Entry4>()]
}

fn assert_sound(table: &FlowTable, adopted: Adopted) {
    assert_eq!(table.flows().count(), adopted.flows);
    assert_eq!(table.used_entries(), 2 * adopted.flows);
    for index in table.used_indices() {
        assert!(table.is_in_place(index), "{index:?} is not where its tuple is looked up");
        assert!(table.whole_flow(index).is_some(), "{index:?} is half a flow");
    }
}

#[test]
fn flows_outlive_the_table_with_all_that_was_noted_of_them() {
    let kept = Kept::new();
    let (table, origin) = kept.open();
    assert_eq!(origin, Origin::Begun);
    for number in 0..100 {
        let Inserted::New(found) = table.insert(&flow(number), Tick(5)) else { panic!("{number}") };
        found.touch(Tick(10 + u32::from(number)), 100);
    }
    let before: BTreeMap<_, _> = table.flows().map(|view| (view.original.src_port.number(), view)).collect();
    drop(table);

    let (table, origin) = kept.open();
    assert_eq!(origin, Origin::Kept);
    let adopted = table.adopt(|kept| u32::from(kept.original.src_port.number()) + 1000);
    assert_eq!(adopted, Adopted { flows: 100, cleared: 0 });
    assert_sound(&table, adopted);
    for view in table.flows() {
        let number = view.original.src_port.number();
        let mut expected = before[&number].clone();
        expected.backend = u32::from(number) + 1000;
        assert_eq!(format!("{view:?}"), format!("{expected:?}"));
        for tuple in [&view.original, &view.reply] {
            let forwarding = table.lookup(tuple).unwrap().forwarding;
            assert_eq!((forwarding.next_hop, forwarding.backend), (NextHopRef::NONE, expected.backend));
        }
    }
}

/// What a process leaves that dies between two stores of one operation.
#[test]
fn what_was_left_half_done_is_cleared_and_the_rest_goes_on() {
    let kept = Kept::new();
    let (table, _) = kept.open();
    for number in 0..50 {
        table.insert(&flow(number), Tick(5));
    }
    let place = |number: u16| {
        let flow = flow(number);
        [&flow.original, &flow.reply].map(|direction| bytes_of(&table, &direction.tuple))
    };
    // The writer of an entry was interrupted; a slot was claimed and not written, or cleared and not
    // released; a reply was not linked to its original yet; an original went and its reply is left.
    let [[_, torn], _] = place(1);
    let [[_, empty], _] = place(2);
    let [_, [_, unlinked]] = place(3);
    let [[tag, _], _] = place(4);
    drop(table);
    kept.write(torn.start, &[1]);
    kept.write(empty.start + 4, &[0]);
    let peer = std::mem::offset_of!(Entry4, peer);
    kept.write(unlinked.start + peer, &u32::MAX.to_ne_bytes());
    kept.write(tag.start, &[0]);

    let (table, _) = kept.open();
    let adopted = table.adopt(|_| 7);
    // Of the last flow only the reply is in use.
    assert_eq!(adopted, Adopted { flows: 46, cleared: 7 });
    assert_sound(&table, adopted);
    for number in 1..5 {
        assert!(matches!(table.insert(&flow(number), Tick(6)), Inserted::New(_)), "{number} begins anew");
    }
}

/// Any word, and those that look like something more often than chance has it.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![any::<u64>(), any::<u64>().prop_map(|word| word & 0x00ff_0000_ff00_00ff), Just(0), 0_u64..600]
}

proptest! {
    #[test]
    fn whatever_happened_to_the_memory_what_is_left_are_whole_flows_and_none_is_lost_without_need(
        numbers in prop::collection::hash_set(0_u16..400, 1..150),
        removed in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        damage in prop::collection::vec((any::<prop::sample::Index>(), word()), 0..30),
    ) {
        let kept = Kept::new();
        let (table, _) = kept.open();
        let mut alive: HashSet<u16> = numbers.iter().copied().collect();
        for number in &alive {
            table.insert(&flow(*number), Tick(5));
        }
        let numbers: Vec<_> = numbers.into_iter().collect();
        for index in removed {
            let number = *index.get(&numbers);
            if let Some(found) = table.lookup(&flow(number).original.tuple) {
                table.remove(&found);
                alive.remove(&number);
            }
        }
        let entries = entries_offset(&table);
        let words = (entries + table.bucket_count() as usize * 32 * size_of::<Entry4>()) / 8;
        let damage: Vec<_> = damage.iter().map(|(at, value)| (at.index(words) * 8, *value)).collect();
        let untouched: HashSet<u16> = alive.iter().copied().filter(|number| {
            let flow = flow(*number);
            let mut bytes =
                [&flow.original, &flow.reply].into_iter().flat_map(|d| bytes_of(&table, &d.tuple));
            bytes.all(|range| damage.iter().all(|(at, _)| at + 8 <= range.start || *at >= range.end))
        }).collect();
        drop(table);
        damage.iter().for_each(|(at, value)| kept.write(*at, &value.to_ne_bytes()));

        let (table, origin) = kept.open();
        prop_assert_eq!(origin, Origin::Kept);
        let adopted = table.adopt(|_| 9);
        assert_sound(&table, adopted);
        for view in table.flows() {
            let number = view.original.src_port.number();
            prop_assert!(alive.contains(&number));
            prop_assert_eq!((view.original, view.reply), (flow(number).original.tuple, flow(number).reply.tuple));
        }
        for number in &untouched {
            prop_assert!(table.lookup(&flow(*number).original.tuple).is_some(), "{} is lost", number);
        }
        for number in 0..200 {
            prop_assert!(!matches!(table.insert(&flow(number), Tick(6)), Inserted::Full));
        }
    }
}
