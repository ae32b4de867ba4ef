//! `lab soak`: everything that can happen to a gateway, at random and all at once, for a time, under load of both
//! families. The same seed makes the same choices; how they meet is up to the machine.

mod actions;
mod memory;
mod traces;

use std::path::Path;
use std::time::Duration;

use super::faults::cases::attack::Random;
use super::faults::cases::flood::{ATTACK, attach_attacker};
use super::faults::cases::leak::Watch;
use super::faults::figures::Figures;
use super::faults::load::{Load, Work};
use super::faults::rig::{Rig, RigOptions, datagram_targets, stream_targets};
use super::faults::show::{rows, show};
use super::faults::{Setting, say};
use super::interrupt;
use crate::clock;
use crate::error::Result;
use crate::loadgen::progress::Show;
use crate::loadgen::stop::Stop;
use crate::loadgen::udp::{self, UdpOptions, UdpReport};
use crate::netns::Namespace;
use actions::Actions;
use memory::Memory;

/// Packets that may wait in a worker at one moment: for neighbours, for their first fragment, and in a burst.
const WAITING: u64 = 256;

/// How long to go on, and with what.
#[derive(Debug, Clone)]
pub struct SoakOptions {
    /// For how long things happen.
    pub duration: Duration,
    /// TCP connections at work.
    pub connections: usize,
    /// What the choices follow from.
    pub seed: u64,
}

/// What a soak came to.
#[derive(Debug)]
pub struct SoakReport {
    figures: Figures,
}

impl SoakReport {
    /// Whether everything was as it must be.
    pub fn is_success(&self) -> bool {
        !self.figures.failed()
    }

    /// The report as one line of JSON.
    pub fn json(self) -> String {
        self.figures.json().to_string()
    }
}

/// Runs for the set time, then looks at what was lost and what is left.
pub fn soak(options: &SoakOptions, flowgate: &Path, stop: &Stop) -> Result<SoakReport> {
    let setting = Setting { flowgate, connections: options.connections, seed: options.seed, stop };
    let attacker = Namespace::new("attacker")?;
    let rig_options = RigOptions { interfaces: vec![ATTACK.into()], ..RigOptions::default() };
    let mut rig = Rig::build(&setting, rig_options, |topology| {
        attach_attacker(topology, &attacker)?;
        actions::prepare(topology)
    })?;
    let mut figures = Figures::default();
    let secret: Vec<_> = rig.topology.backends().iter().map(|host| host.address.into()).collect();
    let watch = Watch::start(rig.client(), secret)?;
    let web = rig.web_load(options.connections / 2)?;
    let work = Work::echo(2048, Duration::from_millis(300));
    let streams = Load::start(rig.client(), &stream_targets(), options.connections / 2, &work)?;
    let own = rig.own_load()?;
    let datagrams = Datagrams::start(rig.client())?;

    let mut memory = Memory::default();
    let mut actions = Actions::new(&rig, attacker, Random(options.seed));
    let deadline = clock::now() + options.duration;
    while clock::now() < deadline {
        interrupt::check(stop)?;
        let name = actions.next(&mut rig)?;
        memory.sample(&rig)?;
        let left = deadline.saturating_duration_since(clock::now()).as_secs();
        say(&format!("{name}; {left} s left, {} answers so far", web.exchanges() + streams.exchanges()));
    }
    actions.settle(&mut rig)?;
    web.await_answers()?;
    streams.await_answers()?;

    datagrams.end(&mut figures)?;
    for (who, load) in [("http", web), ("stream", streams), ("node", own)] {
        load.finish(who, &mut figures)?;
    }
    let (seen, leaked) = watch.end()?;
    figures.figure("packets_seen", seen);
    figures.expect(leaked.is_empty(), || format!("a backend's address was seen outside: {leaked:?}"));
    memory.judge(&mut figures);
    counters(&rig, &mut figures)?;
    rig.check_end(&mut figures, actions.panics());
    actions.count(&mut figures);
    traces::check(rig, &mut figures)?;
    say(&figures.line("soak"));
    Ok(SoakReport { figures })
}

/// What workers counted must add up: a packet that came was sent, ended for a reason, or still waits for a neighbour.
fn counters(rig: &Rig, figures: &mut Figures) -> Result<()> {
    let workers = show(&rig.gateway, "workers")?;
    for worker in rows(&workers) {
        let count = |name: &str| worker[name].as_u64().unwrap_or_default();
        let event = |name: &str| {
            let of_name = rows(&worker["events"]).iter().find(|event| event[0] == name);
            of_name.and_then(|event| event[1].as_u64()).unwrap_or_default()
        };
        // A refused packet has ended, and its refusal is sent.
        let answers = event("rejects_sent") + event("errors_sent");
        let (received, done) = (count("rx_packets"), count("tx_packets") + count("drops"));
        let adds_up = done.saturating_sub(answers) <= received && received <= done + WAITING;
        figures.expect(received > 0 && adds_up, || format!("the counters do not add up: {worker}"));
        figures.expect(worker["state"] == "running", || format!("a worker does not run: {worker}"));
    }
    figures.expect(!rows(&workers).is_empty(), || "there are no workers".into());
    Ok(())
}

/// A steady flow of datagrams of both families. What is lost while the gateway is away is counted, and no failure; what
/// comes back damaged is one.
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
                udp::run(&options, Show::Nothing, &until)
            })
        };
        let threads = datagram_targets().into_iter().map(start).collect::<Result<_>>()?;
        Ok(Self { stop, threads })
    }

    fn end(self, figures: &mut Figures) -> Result<()> {
        self.stop.stop();
        let (mut sent, mut lost) = (0, 0);
        for thread in self.threads {
            let report = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            (sent, lost) = (sent + report.sent, lost + report.lost);
            figures.expect(report.mismatches == 0, || {
                format!("{} datagrams came back damaged from {}", report.mismatches, report.target)
            });
            figures.expect(report.received > 0, || format!("no datagram came back from {}", report.target));
        }
        figures.figure("datagrams_sent", sent);
        figures.figure("datagrams_lost", lost);
        Ok(())
    }
}
