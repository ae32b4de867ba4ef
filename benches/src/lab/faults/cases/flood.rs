//! A SYN flood from spoofed addresses over an interface of its own, while connections transfer.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::unistd::gettid;

use crate::error::{Error, Result};
use crate::lab::faults::case_result::CaseResult;
use crate::lab::faults::load::{Load, Workload};
use crate::lab::faults::test_bed::{STREAM, TestBed, TestBedOptions, stream_targets};
use crate::lab::faults::{Case, CaseContext};
use crate::lab::interrupt;
use crate::lab::topology::{HOST_INTERFACE, Link, Topology};
use crate::loadgen::packets::{Generator, PacketKind, PacketOptions, resolve};
use crate::loadgen::progress::ProgressOutput;
use crate::loadgen::stop::Stop;
use crate::netns::Namespace;

pub(super) const CASES: [Case; 1] = [Case { name: "syn_flood", run: syn_flood }];

/// The attacker's interface at the gateway.
pub(in crate::lab) const ATTACK: &str = "up1";
/// Number of spoofed sources.
pub(in crate::lab) const SOURCES: u32 = 1 << 20;
const SLICE: Duration = Duration::from_millis(500);
const SLICES: usize = 7;
/// Minimum throughput under attack, relative to that before.
const MIN_RATIO: f64 = 0.5;

fn syn_flood(context: &CaseContext<'_>, result: &mut CaseResult) -> Result<()> {
    let attacker = Namespace::new("attacker")?;
    let options = TestBedOptions { interfaces: vec![ATTACK.into()], ..TestBedOptions::default() };
    let mut bed = TestBed::build(context, options, |topology| attach_attacker(topology, &attacker))?;
    let workload = Workload::echo(4096, Duration::from_millis(400));
    let load = Load::start(bed.client(), &stream_targets(), context.connections, &workload)?;
    interrupt::sleep(context.stop, Duration::from_secs(1))?;

    let before = slices(&load, SLICES);
    let flood = Flood::start(&attacker, SOURCES, None)?;
    thread::sleep(SLICE);
    let during = slices(&load, SLICES);
    let packets_per_second = flood.end()?;
    let after = slices(&load, 3);

    let ratio = during / before;
    result.record("before_mbytes_per_second", before / 1e6);
    result.record("during_mbytes_per_second", during / 1e6);
    result.record("after_mbytes_per_second", after / 1e6);
    result.record("throughput_ratio", ratio);
    result.record("flood_packets_per_second", packets_per_second.round());
    result.expect(ratio >= MIN_RATIO, || {
        format!("throughput fell to {ratio:.2} of what it was, not at least {MIN_RATIO}")
    });
    result.expect(packets_per_second > 10_000.0, || "the flood was too slow to be one".into());
    load.finish("service", result)?;
    bed.check_end(result, 0);
    Ok(())
}

/// Connects the attacker to a third interface of the gateway.
pub(in crate::lab) fn attach_attacker(topology: &Topology, attacker: &Namespace) -> Result<()> {
    Link { queues: 1, mtu: None }.connect(attacker, HOST_INTERFACE, topology.gateway(), ATTACK)?;
    attacker.ip(&format!("addr add 192.0.3.10/24 dev {HOST_INTERFACE}"))?;
    topology.gateway().ip(&format!("addr add 192.0.3.1/24 dev {ATTACK}"))?;
    // The spoofed addresses are routed back to the attacker.
    topology.gateway().ip("route add 198.18.0.0/15 via 192.0.3.10")?;
    attacker.ip("route add 10.96.0.0/12 via 192.0.3.1").map(drop)
}

/// A flood in the background.
pub(in crate::lab) struct Flood {
    stop: Stop,
    thread: thread::JoinHandle<Result<f64>>,
}

impl Flood {
    /// Starts a flood of SYNs, at most at `rate` packets per second.
    pub(in crate::lab) fn start(attacker: &Namespace, sources: u32, rate: Option<u32>) -> Result<Self> {
        Self::start_kind(attacker, PacketKind::TcpSyn, (STREAM, sources), rate)
    }

    /// Starts a flood of packets of this kind to a Service, from so many forged sources, at most at `rate` packets per second.
    pub(in crate::lab) fn start_kind(
        attacker: &Namespace,
        kind: PacketKind,
        (service, sources): ((Ipv4Addr, u16), u32),
        rate: Option<u32>,
    ) -> Result<Self> {
        let stop = Stop::default();
        let until = stop.clone();
        let thread = attacker.spawn_thread("flood", move || {
            lower_priority()?;
            let target = SocketAddrV4::new(service.0, service.1);
            let hop = resolve(*target.ip())?;
            let (interface, forever) = (hop.interface, Duration::from_secs(3600));
            let mut options = PacketOptions::new(&interface, hop.mac, target, sources, forever);
            (options.kind, options.rate) = (kind, rate);
            options.call = Duration::from_millis(200);
            let report = Generator::load(options)?.run(ProgressOutput::Nothing, &until)?;
            Ok(report.offered_per_second)
        })?;
        Ok(Self { stop, thread })
    }

    /// Ends it; returns the packets per second that were sent.
    pub(in crate::lab) fn end(self) -> Result<f64> {
        self.stop.stop();
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Lowers the priority of the calling thread. A real attacker has its own CPU: only receiving its packets should cost the
/// gateway time, not generating them.
pub(in crate::lab) fn lower_priority() -> Result<()> {
    let thread = gettid().as_raw().to_string();
    let mut command = Command::new("renice");
    command.args(["-n", "5", "-p", &thread]).stdout(Stdio::null()).stderr(Stdio::null());
    let status = command.status().map_err(Error::io("run renice (apt-get install bsdutils)"))?;
    if status.success() {
        Ok(())
    } else {
        Err(Error::State(format!("renice of thread {thread} failed ({status})")))
    }
}

/// The median throughput of some time slices, in bytes per second.
fn slices(load: &Load, count: usize) -> f64 {
    let mut rates: Vec<_> = (0..count)
        .map(|_| {
            let (before, begin) = (load.bytes(), crate::clock::now());
            thread::sleep(SLICE);
            crate::loadgen::report::per_second(load.bytes() - before, begin.elapsed().as_secs_f64())
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    rates[count / 2]
}
