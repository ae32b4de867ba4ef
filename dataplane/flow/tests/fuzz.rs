//! Any sequence of operations on a flow table, held against a list. Corpora are replayed first;
//! `FUZZ_SECONDS` and `FUZZ_SEED` as `flowgate_fuzz` says.
#![allow(clippy::unwrap_used, reason = "test support: a panic is the report")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use flowgate_flow::{
    Direction, FlowAddress, FlowTable, FlowView, HashKey, Inserted, NewFlow, NextHopRef, Sweep, SweepContext,
    TcpPhase, Tick, Timeouts,
};
use flowgate_fuzz::{Feature, Rng, Target, feature};
use flowgate_wire::{FiveTuple, L4Port, Protocol, TcpFlags, TcpSegment, Translation};

#[test]
fn any_sequence_of_operations_ends_as_it_does_in_a_list() {
    let script = |random: &mut Rng| (0..random.usize(..400)).map(|_| random.u8(..)).collect();
    let check = |script: &[u8]| {
        let v4 = play(script, |n| Ipv4Addr::from_bits(0x0a00_0000 + n));
        let v6 = play(script, |n| Ipv6Addr::from_bits(0xfd00 << 112 | u128::from(n)));
        feature(&(v4, v6))
    };
    Target::new("flow_table", env!("CARGO_MANIFEST_DIR")).run(script, check);
}

/// A flow as it must be in the table.
#[derive(Clone, Debug)]
struct Listed<A> {
    original: FiveTuple<A>,
    reply: FiveTuple<A>,
    backend: u32,
    packets: [u32; 2],
    last: [u32; 2],
    opened: u32,
    is_stream: bool,
}

/// The table and the list beside it.
struct Pair<A: FlowAddress> {
    table: FlowTable<A>,
    list: Vec<Listed<A>>,
    sweep: Sweep,
    now: u32,
    next: u32,
}

/// Plays a script of four bytes an operation: what, on which flow, with what.
fn play<A: FlowAddress>(script: &[u8], addr: impl Fn(u32) -> A) -> Feature {
    let table =
        FlowTable::new(1, HashKey(std::array::from_fn(|i| 0x9e37_79b9_7f4a_7c15 ^ i as u64))).unwrap();
    let sweep = Sweep::new(&table, 0, 1);
    let mut pair = Pair { table, list: Vec::new(), sweep, now: 0, next: 0 };
    let mut story = Vec::new();
    for operation in script.as_chunks::<4>().0 {
        let &[what, a, b, c] = operation;
        let tuples = tuples(a, b, &addr);
        let outcome = match what % 8 {
            0..3 => pair.insert(tuples),
            3 | 4 => pair.use_flow(&if c & 1 == 0 { tuples.0 } else { tuples.1 }, TcpFlags(c & 0x17)),
            5 => pair.remove(&if c & 1 == 0 { tuples.0 } else { tuples.1 }),
            6 => {
                pair.now += u32::from(c) * 100;
                "time"
            }
            _ => pair.sweep(),
        };
        pair.compare();
        story.push(outcome);
    }
    story.dedup();
    feature(&story)
}

/// The tuples of a flow: a few hundred clients, and few enough answers for them to collide.
fn tuples<A>(client: u8, answer: u8, addr: impl Fn(u32) -> A) -> (FiveTuple<A>, FiveTuple<A>) {
    let protocol = [Protocol::Udp, Protocol::Tcp, Protocol::Sctp][usize::from(client) % 3];
    let tuple = |src, dst, src_port, dst_port| FiveTuple {
        protocol,
        src: addr(src),
        dst: addr(dst),
        src_port: L4Port::new(src_port),
        dst_port: L4Port::new(dst_port),
    };
    (tuple(u32::from(client), 1000, 5000, 80), tuple(2000, 3000, 8080, 40_000 + u16::from(answer)))
}

impl<A: FlowAddress> Pair<A> {
    fn insert(&mut self, (original, reply): (FiveTuple<A>, FiveTuple<A>)) -> &'static str {
        let before: Vec<FlowView> = self.table.flows().collect();
        self.next += 1;
        let direction = |from: &FiveTuple<A>, to: &FiveTuple<A>| Direction {
            tuple: *from,
            translation: Translation::between(from, &to.reversed()),
            next_hop: NextHopRef::NONE,
        };
        let flow = NewFlow {
            original: direction(&original, &reply),
            reply: direction(&reply, &original),
            backend: self.next,
        };
        let inserted = self.table.insert(&flow, Tick(self.now));
        let has = |list: &[Listed<A>], tuple: &FiveTuple<A>| {
            list.iter().find(|f| f.original == *tuple || f.reply == *tuple).map(|f| f.backend)
        };
        // Nobody makes room before it is known whose the answers are.
        match inserted {
            Inserted::New(_) => assert_eq!(has(&self.list, &reply), None, "answers of another flow"),
            Inserted::ReplyTaken(_) => assert!(has(&self.list, &reply).is_some(), "nobody's answers"),
            Inserted::Existing(_) | Inserted::Full => {}
        }
        forget_evicted(&mut self.list, &self.table, &before);
        match inserted {
            Inserted::New(found) => {
                // A flow with the same tuple may have made room for this one's answers.
                assert_eq!(has(&self.list, &original), None, "two flows of one tuple");
                assert_eq!(found.forwarding.translation, flow.original.translation);
                let last = [self.now; 2];
                let (backend, opened) = (self.next, self.now);
                let packets = [0; 2];
                self.list.push(Listed { original, reply, backend, packets, last, opened, is_stream: false });
                "new"
            }
            Inserted::Existing(found) => {
                assert_eq!(has(&self.list, &original), Some(found.forwarding.backend));
                "existing"
            }
            Inserted::ReplyTaken(_) => "reply taken",
            Inserted::Full => {
                assert!(before.len() * 2 >= 32, "full with {} flows", before.len());
                "full"
            }
        }
    }

    fn use_flow(&mut self, tuple: &FiveTuple<A>, flags: TcpFlags) -> &'static str {
        let known = self.list.iter_mut().find(|flow| flow.original == *tuple || flow.reply == *tuple);
        let found = self.table.lookup(tuple);
        assert_eq!(found.is_some(), known.is_some(), "{tuple}");
        let (Some(found), Some(known)) = (found, known) else { return "not found" };
        if tuple.protocol != Protocol::Udp {
            // Of few numbers, so that some of them fit.
            let segment = TcpSegment {
                flags,
                sequence: self.now / 100 % 3,
                end: self.now / 100 % 3 + 1,
                acknowledgement: self.now / 100 % 2,
                ..TcpSegment::default()
            };
            self.table.track_segment(&found, &segment, || true);
        } else if found.may_become_stream(Tick(self.now)) {
            self.table.record_datagram(&found, Tick(self.now));
        }
        found.touch(Tick(self.now), 60);
        let is_old = self.now - known.opened > 2_000;
        known.is_stream |= tuple.protocol == Protocol::Udp && known.packets[1] > 0 && is_old;
        let side = usize::from(known.reply == *tuple);
        known.packets[side] += 1;
        known.last[side] = self.now;
        "used"
    }

    fn remove(&mut self, tuple: &FiveTuple<A>) -> &'static str {
        let Some(found) = self.table.lookup(tuple) else { return "nothing to remove" };
        assert!(self.table.remove(&found));
        self.list.retain(|flow| flow.original != *tuple && flow.reply != *tuple);
        "removed"
    }

    fn sweep(&mut self) -> &'static str {
        let timeouts = Timeouts {
            udp_unanswered: Duration::from_secs(5),
            udp_answered: Duration::from_secs(10),
            ..Timeouts::default()
        };
        let (now, buckets) = (self.now, self.sweep.len());
        let context = SweepContext { now: Tick(now), timeouts: &timeouts, epoch: 0 };
        let removed = self.sweep.step(&self.table, buckets, context, |_, _| false);
        let before = self.list.len();
        let left: Vec<FiveTuple<IpAddr>> = self.table.flows().map(|flow| flow.original).collect();
        self.list.retain(|flow| {
            let idle = now - flow.last.into_iter().max().unwrap();
            let is_there = left.contains(&flow.original.any_family());
            if flow.original.protocol == Protocol::Udp {
                let allowed = if flow.is_stream { 10_000 } else { 5_000 };
                assert_eq!(is_there, idle <= allowed, "idle for {idle} ms");
            } else {
                assert!(is_there || idle > 10_000, "a connection ended after {idle} ms");
            }
            is_there
        });
        assert_eq!(before - self.list.len(), removed as usize);
        if removed > 0 { "expired" } else { "swept" }
    }

    fn compare(&self) {
        assert_eq!(self.table.used_entries(), 2 * self.list.len());
        for flow in &self.list {
            let client = flow.original.src.client();
            let of_client = self.list.iter().filter(|other| other.original.src.client() == client);
            assert!(self.table.flows_of(client) as usize >= of_client.count(), "too few were counted");
        }
        assert!(!self.list.is_empty() || self.table.flows_of(A::UNSPECIFIED) == 0, "counts are left");
        for view in self.table.flows() {
            let is_it = |flow: &&Listed<A>| flow.original.any_family() == view.original;
            let flow = self.list.iter().find(is_it).expect("the table has a flow of its own");
            assert_eq!((flow.reply.any_family(), flow.backend), (view.reply, view.backend));
            assert_eq!((flow.packets, flow.is_stream), (view.packets, view.is_stream));
        }
    }
}

/// Whoever made room must have been allowed to: the connection was half open or over, or the datagrams were no stream.
fn forget_evicted<A: FlowAddress>(list: &mut Vec<Listed<A>>, table: &FlowTable<A>, before: &[FlowView]) {
    // Each flow has a backend of its own.
    let left: Vec<u32> = table.flows().map(|flow| flow.backend).collect();
    let gone: Vec<&FlowView> = before.iter().filter(|flow| !left.contains(&flow.backend)).collect();
    assert!(gone.len() <= 2, "{} flows made room for one", gone.len());
    for flow in gone {
        let may_go = match flow.tcp_phase {
            Some(TcpPhase::SynSent | TcpPhase::SynReceived | TcpPhase::Reset | TcpPhase::TimeWait) => true,
            Some(_) => false,
            None => !flow.is_stream,
        };
        assert!(may_go && before.len() * 2 >= 32, "{flow:?} made room");
        list.retain(|listed| listed.backend != flow.backend);
    }
}
