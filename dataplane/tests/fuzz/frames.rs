//! Frames through a whole worker, several in a row: a script of bytes.
//!
//! A script is one byte that chooses the world, then any number of frames, each behind three bytes: how it
//! arrives, and how long it is.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use flowgate_dataplane::device::MemoryDevice;
use flowgate_dataplane::exhaustion::ExhaustionReporter;
use flowgate_dataplane::worker::{Resolver, Shared};
use flowgate_dataplane::{Pipeline, Verdict, Worker, WorkerConfig, WorkerNumber, WorkerSettings};
use flowgate_flow::{AffinityTable, Flows};
use flowgate_fuzz::{Feature, Rng, feature};
use flowgate_tables::{InterfaceId, Publisher, Tables};

use crate::model::checksums::judge_translation;
use crate::model::control::{Control, Message};
use crate::model::packet::{Kind, Segment, addresses, has_extensions, hex, read};
use crate::model::services::{frontend, may_answer_kept};
use crate::model::world::World;
use crate::simulation::network::Network;
use crate::simulation::spy::{Record, Spy};
use crate::simulation::test_bed::Setup;
use crate::simulation::worlds::setup;

/// A few frames of clients and servers, as hosts would send them.
pub(crate) fn script(random: &mut Rng) -> Vec<u8> {
    let world = random.u8(..);
    let mut network = Network::new(random);
    let mut script = vec![world];
    let worlds = worlds();
    let (setup, _) = &worlds[usize::from(world) % worlds.len()];
    for _ in 0..random.usize(1..6) {
        network.stir(&setup.world, 0, random);
    }
    for (by, frame) in network.arrived(1000) {
        let arrival = by.0 | random.u8(..) << 1;
        script.push(arrival);
        script.extend(u16::try_from(frame.len()).unwrap().to_be_bytes());
        script.extend(frame);
    }
    script
}

/// Plays a script and looks at everything that happens.
pub(crate) fn check(script: &[u8]) -> Feature {
    let Some((world, mut rest)) = script.split_first() else { return 0 };
    let worlds = worlds();
    let (setup, tables) = &worlds[usize::from(*world) % worlds.len()];
    let mut gateway = Gateway::new(setup, tables);
    let mut story = Vec::new();
    for _ in 0..FRAMES_MAX {
        let [arrival, high, low, bytes @ ..] = rest else { break };
        let (frame, behind) = bytes.split_at(usize::from(u16::from_be_bytes([*high, *low])).min(bytes.len()));
        rest = behind;
        let pause = [0, 1, 5_000, 40_000][usize::from(arrival >> 1) % 4];
        gateway.receive(InterfaceId(arrival & 1), frame, pause, &mut story);
    }
    feature(&story)
}

/// A few worlds and their tables.
fn worlds() -> &'static [(Setup, Tables)] {
    static WORLDS: OnceLock<Vec<(Setup, Tables)>> = OnceLock::new();
    WORLDS.get_or_init(|| {
        let world = |seed| {
            let mut setup = setup(&mut Rng::with_seed(seed));
            setup.workers = 1;
            let tables = setup.world.tables(&Tables::empty());
            (setup, tables)
        };
        (1..=16).map(world).collect()
    })
}

struct Gateway<'a> {
    world: &'a World,
    worker: Worker<MemoryDevice, Spy>,
    records: Rc<RefCell<Vec<Record>>>,
    started: Instant,
    now: u64,
}

impl<'a> Gateway<'a> {
    fn new(setup: &'a Setup, tables: &Tables) -> Self {
        let mut publisher = Publisher::new();
        publisher.publish(tables.clone());
        let number = WorkerNumber { index: 0, count: 1 };
        let records = Rc::new(RefCell::new(Vec::new()));
        #[expect(clippy::disallowed_methods, reason = "only differences matter")]
        let started = Instant::now();
        let config = WorkerConfig {
            number,
            core: None,
            settings: WorkerSettings {
                idle_before_sleep: Duration::ZERO,
                timeouts: setup.timeouts,
                pipeline: setup.config,
            },
        };
        let shared = Shared {
            flows: Arc::new(Flows::new(1, 1, setup.key).unwrap()),
            affinity: Arc::new(AffinityTable::new(8)),
            resolver: Resolver::new(|_| true),
            exhaustion: ExhaustionReporter::default(),
            started,
        };
        let spy = Spy::new(Pipeline::new(number), Rc::clone(&records));
        let device = MemoryDevice::new(setup.world.interfaces.len(), 1024);
        let worker = Worker::new(config, shared, publisher.reader(), device, spy);
        Self { world: &setup.world, worker, records, started, now: 0 }
    }

    fn receive(&mut self, by: InterfaceId, frame: &[u8], pause_ms: u64, story: &mut Vec<String>) {
        self.now += pause_ms;
        self.worker.device().deliver(by, frame.to_vec());
        // Debug builds count the frames of the device after each turn.
        self.worker.poll_once(self.started + Duration::from_millis(self.now));
        let mut sent: Vec<(InterfaceId, Vec<u8>)> = Vec::new();
        for interface in (0..2).map(InterfaceId) {
            sent.extend(self.worker.device().take_sent(interface).into_iter().map(|f| (interface, f.0)));
        }
        // As decided, without a priority tag; also those that have waited since earlier turns.
        let mut asked: Vec<Vec<u8>> = Vec::new();
        for record in self.records.take() {
            asked.push(record.before.clone());
            story.push(shape(&record));
            match record.verdict {
                Verdict::Transmit(egress) => {
                    check_translation(self.world, &record);
                    let left = sent.iter().position(|s| *s == (egress, record.after.clone()));
                    sent.remove(left.unwrap_or_else(|| panic!("not sent: {}", hex(&record.after))));
                }
                // It became an echo reply, which is looked at below.
                Verdict::Reply => {}
                _ => assert_eq!(record.before, record.after, "a frame that is not sent stays as it is"),
            }
        }
        for (egress, answer) in sent {
            let is_back = |asked: &&Vec<u8>| asked[..6] == answer[6..12] && asked[6..12] == answer[..6];
            let is_to_sender = |asked: &&Vec<u8>| {
                let pairs = addresses(asked).zip(addresses(&answer));
                pairs.is_some_and(|([src, _], [_, dst])| src == dst)
            };
            let asked = asked.iter().find(|asked| is_back(asked) && is_to_sender(asked));
            let asked = asked.unwrap_or_else(|| panic!("an answer to nobody: {}", hex(&answer)));
            assert!(
                asked.as_slice() != frame || egress == by,
                "an answer goes back by the link that it came by"
            );
            // The checksum of an echo reply in fragments is that of the whole.
            if read(&answer) != Kind::Fragment {
                check_answer(asked, &answer);
            }
        }
    }
}

/// What kind of thing happened, without addresses.
fn shape(record: &Record) -> String {
    let kind = match read(&record.before) {
        Kind::Segment(Segment { tuple, flags, .. }) => {
            format!("{} {flags:?} {}", tuple.protocol, tuple.src.is_ipv4())
        }
        other => format!("{other:?}"),
    };
    let verdict = match record.verdict {
        Verdict::AwaitNeighbour(_) => "hold".into(),
        Verdict::AwaitFragment(_) => "await".into(),
        other => format!("{other:?}"),
    };
    format!("{kind} {verdict}")
}

fn check_translation(world: &World, record: &Record) {
    let Record { before, after, .. } = record;
    assert_eq!(before.len(), after.len());
    let (old, new) = match (read(before), read(after)) {
        (Kind::Segment(old), Kind::Segment(new)) => (old, new),
        // An error, about a packet that was translated or routed as an answer to a kept client.
        (Kind::Control(old), Kind::Control(new)) => {
            assert_eq!(old.ttl - 1, new.ttl);
            assert!(is_error(&old) && is_error(&new), "only errors are passed on: {}", hex(before));
            return;
        }
        // Fragments have a test of their own, with whole packets as the oracle.
        (Kind::Fragment, Kind::Fragment) => return,
        _ => {
            assert!(has_extensions(before), "sent what is no packet: {} as {}", hex(before), hex(after));
            return;
        }
    };
    let ether = *after.first_chunk::<12>().unwrap();
    let (was, is) = (old.tuple, new.tuple);
    judge_translation(before, after, &old, &is, &ether).unwrap_or_else(|what| panic!("{what}"));
    assert!(was != is || may_answer_kept(world, &was), "nothing leaves untranslated: {was:?}");
    if let Some((service, _)) = frontend(world, &was) {
        let mut backends = service.endpoint_sets.iter().flatten();
        let is_one = backends.any(|e| e.addr == is.dst.ip() && e.port.number() == is.dst.port());
        assert!(is_one, "{was:?} left as {is:?}");
    }
    let own = world.interfaces.iter().flat_map(|i| &i.addresses).any(|addr| *addr == is.dst.ip());
    assert!(!own, "a packet to ourselves left: {is:?}");
}

fn is_error(control: &Control) -> bool {
    matches!(control.kind, Message::Error { .. })
}

/// A reset, an ABORT of SCTP or an ICMP error: right in itself, and addressed to whoever sent the frame.
fn check_answer(frame: &[u8], answer: &[u8]) {
    assert_eq!((&answer[..6], &answer[6..12]), (&frame[6..12], &frame[..6]));
    let sliced = etherparse::SlicedPacket::from_ethernet(answer).unwrap();
    let v4 = frame[12..14] == [8, 0];
    let (sender, receiver) = if v4 { (26..30, 30..34) } else { (22..38, 38..54) };
    assert_eq!(frame[sender], answer[receiver], "an answer goes to the sender");
    let Some(transport) = sliced.transport else {
        // etherparse knows no SCTP. RFC 9260 section 3.3.7: chunk type 6.
        let at = if v4 { 14 + 20 } else { 14 + 40 };
        assert_eq!(answer[at + 12..], [6, 0, 0, 4], "an ABORT and nothing else: {}", hex(answer));
        assert!(crate::model::checksums::are_right(answer));
        return;
    };
    match transport {
        etherparse::TransportSlice::Tcp(tcp) => {
            assert!(tcp.rst() && crate::model::checksums::are_right(answer));
        }
        etherparse::TransportSlice::Icmpv4(icmp) => {
            assert_eq!(icmp.icmp_type().calc_checksum(icmp.payload()), icmp.header().checksum);
        }
        etherparse::TransportSlice::Icmpv6(icmp) => {
            let Some(etherparse::NetSlice::Ipv6(ip)) = sliced.net else { panic!("not IPv6") };
            let (src, dst) = (ip.header().source(), ip.header().destination());
            let sum = icmp.icmp_type().calc_checksum(src, dst, icmp.payload()).unwrap();
            assert_eq!(sum, icmp.header().checksum);
        }
        other => panic!("{other:?}"),
    }
}

/// Frames of a script at most.
const FRAMES_MAX: usize = 40;
