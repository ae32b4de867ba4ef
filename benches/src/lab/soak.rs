//! `lab soak`: random faults for a given time under mixed load in both families. The seed determines the sequence of
//! faults, not their timing relative to the load.

mod actions;
mod leftovers;
mod memory;

use std::path::Path;
use std::time::Duration;

use super::faults::CaseContext;
use super::faults::case_result::CaseResult;
use super::faults::cases::flood::{ATTACK, attach_attacker};
use super::faults::cases::leak::LeakDetector;
use super::faults::load::{Load, Workload};
use super::faults::random::Random;
use super::faults::test_bed::{TestBed, TestBedOptions, datagram_targets, stream_targets};
use super::interrupt;
use super::output::print_progress;
use crate::clock;
use crate::error::Result;
use crate::lab::gateway::rows;
use crate::loadgen::progress::ProgressOutput;
use crate::loadgen::stop::Stop;
use crate::loadgen::udp::{self, UdpOptions, UdpReport};
use crate::netns::Namespace;
use actions::Actions;
use memory::Memory;

/// Largest number of packets inside a worker at once: held for neighbours or first fragments, and in the current burst.
const WAITING: u64 = 256;

/// Duration and load.
#[derive(Debug, Clone)]
pub struct SoakOptions {
    /// How long to inject faults.
    pub duration: Duration,
    /// Open TCP connections.
    pub connections: usize,
    /// The seed of all random choices.
    pub seed: u64,
}

/// The outcome of a soak.
#[derive(Debug)]
pub struct SoakReport {
    result: CaseResult,
}

impl SoakReport {
    /// Whether no expectation failed.
    pub fn is_success(&self) -> bool {
        !self.result.failed()
    }

    /// The report as one line of JSON.
    pub fn json(self) -> String {
        self.result.json().to_string()
    }
}

/// Injects faults for the set time, then checks for lost connections, leaks and leftovers.
pub fn soak(options: &SoakOptions, flowgate: &Path, stop: &Stop) -> Result<SoakReport> {
    let (connections, seed, abuse, hostile_objects) = (options.connections, options.seed, Duration::ZERO, 0);
    let context = CaseContext { flowgate, connections, seed, abuse, hostile_objects, stop };
    let attacker = Namespace::new("attacker")?;
    let bed_options = TestBedOptions { interfaces: vec![ATTACK.into()], ..TestBedOptions::default() };
    let mut bed = TestBed::build(&context, bed_options, |topology| {
        attach_attacker(topology, &attacker)?;
        actions::prepare(topology)
    })?;
    let mut result = CaseResult::default();
    let secret: Vec<_> = bed.topology.backends().iter().map(|host| host.address.into()).collect();
    let watch = LeakDetector::start(bed.client(), secret)?;
    let web = bed.web_load(options.connections / 2)?;
    let workload = Workload::echo(2048, Duration::from_millis(300));
    let streams = Load::start(bed.client(), &stream_targets(), options.connections / 2, &workload)?;
    let node_load = bed.node_load()?;
    let datagrams = Datagrams::start(bed.client())?;

    let mut memory = Memory::default();
    let mut actions = Actions::new(&bed, attacker, Random(options.seed));
    let deadline = clock::now() + options.duration;
    while clock::now() < deadline {
        interrupt::check(stop)?;
        let name = actions.next(&mut bed)?;
        memory.sample(&bed)?;
        let left = deadline.saturating_duration_since(clock::now()).as_secs();
        print_progress(&format!(
            "{name}; {left} s left, {} answers so far",
            web.exchanges() + streams.exchanges()
        ));
    }
    actions.restore_backends(&mut bed)?;
    web.await_answers()?;
    streams.await_answers()?;

    datagrams.end(&mut result)?;
    for (who, load) in [("http", web), ("stream", streams), ("node", node_load)] {
        load.finish(who, &mut result)?;
    }
    let (seen, leaked) = watch.end()?;
    result.record("packets_seen", seen);
    result.expect(leaked.is_empty(), || format!("a backend address leaked: {leaked:?}"));
    memory.check_growth(&mut result);
    counters(&bed, &mut result)?;
    bed.check_end(&mut result, actions.panics());
    actions.count(&mut result);
    leftovers::check(bed, &mut result)?;
    print_progress(&result.line("soak"));
    Ok(SoakReport { result })
}

/// The counters of workers must add up: every received packet was sent, dropped, or is still held.
fn counters(bed: &TestBed, result: &mut CaseResult) -> Result<()> {
    let workers = bed.gateway.show_json("workers")?;
    for worker in rows(&workers) {
        let count = |name: &str| worker[name].as_u64().unwrap_or_default();
        let event = |name: &str| {
            let of_name = rows(&worker["events"]).find(|event| event[0] == name);
            of_name.and_then(|event| event[1].as_u64()).unwrap_or_default()
        };
        // A rejected packet counts as a drop, and the ICMP error or RST in its place as sent.
        let answers = event("rejects_sent") + event("errors_sent");
        let (received, done) = (count("rx_packets"), count("tx_packets") + count("drops"));
        let adds_up = done.saturating_sub(answers) <= received && received <= done + WAITING;
        result.expect(received > 0 && adds_up, || format!("the counters do not add up: {worker}"));
        result.expect(worker["state"] == "running", || format!("a worker does not run: {worker}"));
    }
    result.expect(rows(&workers).len() > 0, || "there are no workers".into());
    Ok(())
}

/// A steady stream of datagrams in both families. Loss during restarts is only counted; corruption is a failure.
struct Datagrams {
    stop: Stop,
    threads: Vec<std::thread::JoinHandle<Result<UdpReport>>>,
}

impl Datagrams {
    fn start(client: &Namespace) -> Result<Self> {
        let stop = Stop::default();
        let start = |(_, target)| {
            let until = stop.clone();
            client.spawn_thread("datagrams", move || {
                let options = UdpOptions::new(target, 200, Duration::from_secs(24 * 3600));
                udp::run(&options, ProgressOutput::Nothing, &until)
            })
        };
        let threads = datagram_targets().into_iter().map(start).collect::<Result<_>>()?;
        Ok(Self { stop, threads })
    }

    fn end(self, result: &mut CaseResult) -> Result<()> {
        self.stop.stop();
        let (mut sent, mut lost) = (0, 0);
        for thread in self.threads {
            let report = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            (sent, lost) = (sent + report.sent, lost + report.lost);
            result.expect(report.mismatches == 0, || {
                format!("{} datagrams came back damaged from {}", report.mismatches, report.target)
            });
            result.expect(report.received > 0, || format!("no datagram came back from {}", report.target));
        }
        result.record("datagrams_sent", sent);
        result.record("datagrams_lost", lost);
        Ok(())
    }
}
