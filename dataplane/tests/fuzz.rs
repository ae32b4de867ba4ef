//! Frames that no sane sender would send, for a bounded time: `FUZZ_SECONDS` (default 2).
//!
//! Valid packets are mutated by a seeded generator; the seed of a run is printed and can be given as
//! `FUZZ_SEED`. Whatever comes in, nothing may panic; what leaves must be the packet that came, translated,
//! with checksums as right as they were; what does not leave must be untouched. Frames that once broke
//! something are kept in `corpus/frames/` and replayed first.
#![allow(clippy::unwrap_used, reason = "test support: a panic is the report")]
#![allow(clippy::print_stdout, reason = "the seed and the frame that broke something must be seen")]

mod gateway;

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use etherparse::Icmpv4Type::DestinationUnreachable as Unreachable;
use etherparse::icmpv4::DestUnreachableHeader::{self, Port};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use flowgate_dataplane::{
    Context, Counters, Options, PassReason, Pipeline, Process, RxChecksums, Verdict, WorkerNumber,
};
use flowgate_flow::{AffinityTable, Flows, HashKey, Tick, Timeouts};
use flowgate_tables::Tables;
use flowgate_wire::checksum::Sum;
use flowgate_wire::{Address, Parsed};
use gateway::{World, tcp, udp};

struct Target {
    tables: Tables,
    flows: Flows,
    affinity: AffinityTable,
    pipeline: Pipeline,
    counters: Counters,
    now: u32,
}

impl Target {
    fn new() -> Self {
        Self {
            tables: World::new().tables(&Tables::empty()),
            flows: Flows::new(500, 500, HashKey::random()).unwrap(),
            affinity: AffinityTable::new(64),
            pipeline: Pipeline::new(WorkerNumber { index: 0, count: 1 }),
            counters: Counters::default(),
            now: 0,
        }
    }

    fn run(&mut self, frame: &[u8], checksums: RxChecksums) {
        self.now = self.now.wrapping_add(1);
        let mut burst = [frame.to_vec()];
        let mut verdict = [Verdict::Pass(PassReason::NotOurs)];
        let timeouts = Timeouts::default();
        let context = Context {
            now: Tick(self.now),
            tables: &self.tables,
            flows: &self.flows,
            affinity: &self.affinity,
            timeouts: &timeouts,
            options: &Options::default(),
        };
        self.pipeline.process(&mut burst, checksums, &context, &mut self.counters, &mut verdict);
        self.pipeline.drain_requests(|_| {});
        let [after] = burst;
        match verdict[0] {
            Verdict::Transmit(_) if Ipv4Addr::parse(frame) == Ok(Parsed::Icmp) => {
                check_message(frame, &after)
            }
            Verdict::Transmit(_) => check_translation(frame, &after, checksums),
            Verdict::Answer => assert_eq!(frame.len(), after.len(), "an answer is as long as its question"),
            Verdict::Pass(_)
            | Verdict::Drop(_)
            | Verdict::Reject(_)
            | Verdict::Report(_)
            | Verdict::Hold(_) => {
                assert_eq!(frame, after, "a frame that stays is untouched")
            }
        }
    }
}

fn check_translation(before: &[u8], after: &[u8], checksums: RxChecksums) {
    assert_eq!(before.len(), after.len());
    let (Ok(Parsed::L4(old)), Ok(Parsed::L4(new))) = (Ipv4Addr::parse(before), Ipv4Addr::parse(after)) else {
        panic!("sent what does not parse");
    };
    assert_eq!(old.ttl - 1, new.ttl);
    assert_eq!((old.l4_len, old.l4_offset, old.tcp_flags), (new.l4_len, new.l4_offset, new.tcp_flags));
    let kept_backend = old.tuple.src.octets() == [10, 244, 0, 12] && old.tuple.src_port.number() == 8080;
    assert!(old.tuple != new.tuple || kept_backend, "nothing leaves untranslated");
    let payload = usize::from(old.l4_offset) + 20;
    assert_eq!(before.get(payload..), after.get(payload..), "the payload stays");
    if checksums == RxChecksums::MayBePartial && old.has_partial_checksum() {
        assert!(l4_checksum_is_right(after), "an open checksum was not completed");
    } else {
        assert_eq!(l4_checksum_is_right(before), l4_checksum_is_right(after), "errors end at the receiver");
    }
    assert_eq!(l3_checksum_is_right(before), l3_checksum_is_right(after));
}

/// That an error that was translated is one still, as right or wrong as it was.
fn check_message(before: &[u8], after: &[u8]) {
    assert_eq!(before.len(), after.len());
    assert_eq!(Ipv4Addr::parse(after), Ok(Parsed::Icmp));
    assert_eq!((before[22] - 1, &before[34..36]), (after[22], &after[34..36]));
    let sum = |frame: &[u8]| {
        let datagram = Ipv4Addr::datagram(frame).unwrap();
        Sum::ZERO.bytes(datagram.payload(frame)).checksum()
    };
    assert_eq!(sum(before), sum(after), "errors end at the receiver");
    assert_eq!(l3_checksum_is_right(before), l3_checksum_is_right(after));
}

fn l3_checksum_is_right(frame: &[u8]) -> bool {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(NetSlice::Ipv4(ip)) = sliced.net else { panic!("not IPv4") };
    let header = ip.header().to_header();
    header.header_checksum == header.calc_header_checksum()
}

fn l4_checksum_is_right(frame: &[u8]) -> bool {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(NetSlice::Ipv4(ip)) = sliced.net else { panic!("not IPv4") };
    let header = ip.header().to_header();
    match sliced.transport.unwrap() {
        TransportSlice::Udp(udp) => {
            let right = udp.to_header().calc_checksum_ipv4(&header, udp.payload()).unwrap();
            udp.checksum() == 0 || udp.checksum() == right
        }
        TransportSlice::Tcp(tcp) => {
            let right = tcp.to_header().calc_checksum_ipv4(&header, tcp.payload()).unwrap();
            // One's complement has two zeros; both verify.
            tcp.checksum() == right || (tcp.checksum() == 0xffff && right == 0)
        }
        other => panic!("{other:?}"),
    }
}

/// xorshift64* (Marsaglia 2003, Vigna 2016).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap() % bound.max(1)
    }
}

/// An error about a packet that may be one of a flow: of a client, or to a backend.
fn error(random: &mut Random, client: &str, payload: &[u8]) -> Vec<u8> {
    let (from, sender, about) = match random.below(3) {
        0 => ([198, 51, 100, 9], [10, 96, 0, 53], udp("10.96.0.53:53", client, payload)),
        1 => ([198, 51, 100, 9], [10, 96, 0, 80], tcp("10.96.0.80:80", client, "A")),
        _ => {
            let ours = format!("10.244.0.1:{}", 40_000 + random.below(100));
            ([10, 244, 0, 11], [10, 244, 0, 1], udp(&ours, "10.244.0.11:5353", payload))
        }
    };
    let kinds =
        [Unreachable(DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1400 }), Unreachable(Port)];
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([4, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 1])
        .ipv4(from, sender, 64)
        .icmpv4(kinds[random.below(2)].clone())
        .write(&mut frame, &about[14..about.len() - random.below(about.len() - 40)])
        .unwrap();
    frame
}

fn frame(random: &mut Random) -> Vec<u8> {
    let client = format!("192.0.2.10:{}", 1 + random.below(300));
    let payload = vec![0xa5; random.below(60)];
    let vips = ["10.96.0.80:80", "192.0.2.1:30380", "203.0.113.7:80", "10.96.0.99:80", "10.244.0.1:40050"];
    let mut frame = match random.below(4) {
        3 => error(random, &client, &payload),
        0 => udp(&client, "10.96.0.53:53", &payload),
        1 => udp(
            &format!("10.244.0.1{}:5353", 1 + random.below(2)),
            &format!("10.244.0.1:{}", 40_000 + random.below(100)),
            &payload,
        ),
        _ => tcp(&client, vips[random.below(vips.len())], ["S", "A", "SA", "FA", "R", "SF"][random.below(6)]),
    };
    for _ in 0..random.below(4) {
        let at = random.below(frame.len());
        match random.below(6) {
            0 => frame[at] ^= 1 << random.below(8),
            1 => frame[at] = [0, 0xff, 0x7f, 0x80][random.below(4)],
            2 => frame.truncate(at),
            3 => frame.extend(std::iter::repeat_n(0, random.below(40))),
            4 => {
                // Header fields are where it hurts.
                let field = [12, 13, 14, 16, 17, 20, 21, 22, 23, 34, 36, 38, 39, 46][random.below(14)];
                if let Some(byte) = frame.get_mut(field) {
                    *byte = u8::try_from(random.below(256)).unwrap();
                }
            }
            _ => {
                frame.remove(at);
            }
        }
        if frame.is_empty() {
            break;
        }
    }
    frame
}

#[test]
fn frames_that_once_broke_something_do_not_any_more() {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/frames");
    let mut replayed = 0;
    for entry in std::fs::read_dir(corpus).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        for checksums in [RxChecksums::Complete, RxChecksums::MayBePartial] {
            Target::new().run(&bytes, checksums);
        }
        replayed += 1;
    }
    assert!(replayed > 0, "the corpus is committed");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "bounded by time")]
fn mutated_frames_break_nothing() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seconds = number("FUZZ_SECONDS").unwrap_or(2);
    let seed = number("FUZZ_SEED")
        .unwrap_or_else(|| u64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_micros()).unwrap());
    println!("FUZZ_SEED={seed}");
    let mut random = Random(seed | 1);
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let (mut target, mut frames) = (Target::new(), 0_u64);
    while Instant::now() < deadline {
        for _ in 0..1000 {
            let frame = frame(&mut random);
            let checksums =
                if random.below(2) == 0 { RxChecksums::Complete } else { RxChecksums::MayBePartial };
            let outcome =
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| target.run(&frame, checksums)));
            if let Err(panic) = outcome {
                let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
                println!("after {frames} frames, seed {seed}, {checksums:?}: {hex}");
                std::panic::resume_unwind(panic);
            }
            frames += 1;
        }
    }
    println!("{frames} frames");
    let sent = target.counters.event(flowgate_dataplane::Event::FlowsOpened);
    let translated = target.counters.event(flowgate_dataplane::Event::IcmpErrorsTranslated);
    assert!(sent > 0 && translated > 0, "a fuzzer that reaches nothing finds nothing");
}
