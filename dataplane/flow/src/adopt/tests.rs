use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::marker::PhantomData;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::FileExt;

use flowgate_wire::{FiveTuple, L4Port, Protocol};
use proptest::prelude::*;

use super::*;
use crate::entry::{Direction, Entry};
use crate::tags::{BUCKET_SLOTS, Tags};
use crate::{HashKey, Inserted, NewFlow, Origin, PersistConfig};

const CAPACITY: u32 = 200;

fn addr<A: FlowAddress>(host: u32) -> A {
    let v6 = 0x2001_0db8 << 96 | u128::from(host);
    let of = |addr| A::from_ip(addr);
    of(IpAddr::V4(host.into())).or_else(|| of(IpAddr::V6(v6.into()))).unwrap()
}

fn flow<A: FlowAddress>(number: u16) -> NewFlow<A> {
    let original = FiveTuple {
        protocol: if number.is_multiple_of(3) { Protocol::Tcp } else { Protocol::Udp },
        src: addr(0xc000_0200 + u32::from(number % 7)),
        dst: addr(0x0a60_0001),
        src_port: L4Port::new(number),
        dst_port: L4Port::new(80),
    };
    let reply = FiveTuple {
        src: addr(0x0af4_000b),
        dst: addr(0x0af4_0001),
        src_port: L4Port::new(8080),
        dst_port: L4Port::new(40_000 + number),
        ..original
    };
    let direction = |from: FiveTuple<A>, to: FiveTuple<A>| Direction {
        tuple: from,
        translation: Translation::between(&from, &to.reversed()),
        next_hop: NextHopRef::new(1, 0),
    };
    NewFlow { original: direction(original, reply), reply: direction(reply, original), backend: 7 }
}

struct PersistedFile<A> {
    _folder: tempfile::TempDir,
    config: PersistConfig,
    family: PhantomData<A>,
}

impl<A: FlowAddress> PersistedFile<A> {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = PersistConfig { path: folder.path().join("flows"), boot: [1; 16] };
        Self { _folder: folder, config, family: PhantomData }
    }

    fn open(&self) -> (FlowTable<A>, Origin) {
        FlowTable::persistent(CAPACITY, HashKey::random(), &self.config).unwrap()
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        let file = File::options().write(true).open(&self.config.path).unwrap();
        file.write_all_at(bytes, at as u64).unwrap();
    }
}

fn entries_offset<A: FlowAddress>(table: &FlowTable<A>) -> usize {
    (table.bucket_count() as usize * size_of::<Tags>()).next_multiple_of(4096)
}

/// The bytes of the file that stand for one direction: its tag, and its entry.
fn bytes_of<A: FlowAddress>(table: &FlowTable<A>, tuple: &FiveTuple<A>) -> [std::ops::Range<usize>; 2] {
    let index = table.lookup(tuple).unwrap().index().0;
    let (bucket, slot) = ((index / BUCKET_SLOTS) as usize, (index % BUCKET_SLOTS) as usize);
    let tag = bucket * size_of::<Tags>() + slot;
    let entry = entries_offset(table) + index as usize * size_of::<Entry<A>>();
    [tag..tag + 1, entry..entry + size_of::<Entry<A>>()]
}

fn assert_sound<A: FlowAddress>(table: &FlowTable<A>, adopted: Adopted) {
    assert_eq!(table.flows().count(), adopted.flows);
    assert_eq!(table.used_entries(), 2 * adopted.flows);
    for index in table.used_indices() {
        assert!(table.is_in_place(index), "{index:?} is not where its tuple is looked up");
        assert!(table.whole_flow(index).is_some(), "{index:?} is half a flow");
    }
}

#[test]
fn flows_outlive_the_table_with_all_that_was_noted_of_them() {
    outlive::<Ipv4Addr>();
    outlive::<Ipv6Addr>();
}

fn outlive<A: FlowAddress>() {
    let file = PersistedFile::<A>::new();
    let (table, origin) = file.open();
    assert_eq!(origin, Origin::Created);
    for number in 0..100 {
        let Inserted::New(found) = table.insert(&flow(number), Tick(5)) else { panic!("{number}") };
        found.touch(Tick(10 + u32::from(number)), 100);
    }
    let before: BTreeMap<_, _> = table.flows().map(|view| (view.original.src_port.number(), view)).collect();
    drop(table);

    let (table, origin) = file.open();
    assert_eq!(origin, Origin::Restored);
    let adopted = table.adopt(|flow| u32::from(flow.original.src_port.number()) + 1000);
    assert_eq!(adopted, Adopted { flows: 100, cleared: 0 });
    assert_sound(&table, adopted);
    for view in table.flows() {
        let number = view.original.src_port.number();
        let mut expected = before[&number].clone();
        expected.backend = u32::from(number) + 1000;
        assert_eq!(format!("{view:?}"), format!("{expected:?}"));
        let flow = flow::<A>(number);
        for tuple in [&flow.original.tuple, &flow.reply.tuple] {
            let forwarding = table.lookup(tuple).unwrap().forwarding;
            assert_eq!((forwarding.next_hop, forwarding.backend), (NextHopRef::NONE, expected.backend));
        }
    }
}

/// What a process leaves that dies between two stores of one operation.
#[test]
fn what_was_left_half_done_is_cleared_and_the_rest_goes_on() {
    half_done::<Ipv4Addr>();
    half_done::<Ipv6Addr>();
}

fn half_done<A: FlowAddress>() {
    let file = PersistedFile::<A>::new();
    let (table, _) = file.open();
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
    // The lowest byte of the sequence word: locked, and without a protocol.
    file.write(torn.start, &[0b0001_1010]);
    file.write(empty.start, &[0b0001_0000]);
    let peer = std::mem::offset_of!(Entry<A>, peer);
    file.write(unlinked.start + peer, &u32::MAX.to_ne_bytes());
    file.write(tag.start, &[0]);

    let (table, _) = file.open();
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

/// A table of some flows, some of them removed, that was damaged here and there.
#[derive(Clone, Debug)]
struct Wreck {
    numbers: HashSet<u16>,
    removed: Vec<prop::sample::Index>,
    damage: Vec<(prop::sample::Index, u64)>,
}

fn wreck() -> impl Strategy<Value = Wreck> {
    let numbers = prop::collection::hash_set(0_u16..400, 1..150);
    let removed = prop::collection::vec(any::<prop::sample::Index>(), 0..20);
    let damage = prop::collection::vec((any::<prop::sample::Index>(), word()), 0..30);
    (numbers, removed, damage).prop_map(|(numbers, removed, damage)| Wreck { numbers, removed, damage })
}

proptest! {
    #[test]
    fn whatever_happened_to_the_memory_what_is_left_are_whole_flows_and_none_is_lost_without_need(
        wreck in wreck(),
    ) {
        salvage::<Ipv4Addr>(&wreck);
        salvage::<Ipv6Addr>(&wreck);
    }
}

fn salvage<A: FlowAddress>(wreck: &Wreck) {
    let file = PersistedFile::<A>::new();
    let (table, _) = file.open();
    let mut alive = wreck.numbers.clone();
    for number in &alive {
        table.insert(&flow(*number), Tick(5));
    }
    let numbers: Vec<_> = alive.iter().copied().collect();
    for index in &wreck.removed {
        let number = *index.get(&numbers);
        if let Some(found) = table.lookup(&flow(number).original.tuple) {
            table.remove(&found);
            alive.remove(&number);
        }
    }
    let words = (entries_offset(&table) + table.bucket_count() as usize * 32 * size_of::<Entry<A>>()) / 8;
    let damage: Vec<_> = wreck.damage.iter().map(|(at, value)| (at.index(words) * 8, *value)).collect();
    let is_untouched = |number: &u16| {
        let flow = flow(*number);
        let mut bytes = [&flow.original, &flow.reply].into_iter().flat_map(|d| bytes_of(&table, &d.tuple));
        bytes.all(|range| damage.iter().all(|(at, _)| at + 8 <= range.start || *at >= range.end))
    };
    let untouched: Vec<u16> = alive.iter().copied().filter(is_untouched).collect();
    drop(table);
    damage.iter().for_each(|(at, value)| file.write(*at, &value.to_ne_bytes()));

    let (table, origin) = file.open();
    assert_eq!(origin, Origin::Restored);
    let adopted = table.adopt(|_| 9);
    assert_sound(&table, adopted);
    for view in table.flows() {
        let number = view.original.src_port.number();
        let expected = flow::<A>(number);
        assert!(alive.contains(&number), "{number} had been removed");
        assert_eq!(view.original, expected.original.tuple.any_family());
        assert_eq!(view.reply, expected.reply.tuple.any_family());
    }
    for number in &untouched {
        assert!(table.lookup(&flow(*number).original.tuple).is_some(), "{number} is lost");
    }
    for number in 0..200 {
        assert!(!matches!(table.insert(&flow(number), Tick(6)), Inserted::Full));
    }
}
