//! Blind attacks on established connections, from both sides (RFC 5961): resets between packets, and storms of every kind of
//! segment while the connections are idle.

use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::error::Result;
use crate::lab::faults::case_result::CaseResult;
use crate::lab::faults::gateway_state::event;
use crate::lab::faults::load::{Load, Workload};
use crate::lab::faults::random::Random;
use crate::lab::faults::raw::{RawSender, Segment};
use crate::lab::faults::test_bed::{TestBed, TestBedOptions, stream_targets};
use crate::lab::faults::{Case, CaseContext};
use crate::lab::gateway::rows;
use crate::lab::interrupt;
use crate::lab::wait::eventually;
use crate::lab::wire::{ACK, FIN, RST, SYN};

pub(super) const CASES: [Case; 2] =
    [Case { name: "rst_attack", run: rst_attack }, Case { name: "blind_storm", run: blind_storm }];

/// Resets per connection and direction.
const ROUNDS: usize = 40;
const ATTACKER: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 66);

/// What the storm is made of; each kind comes with right and with wrong checksums.
const STORM: [u8; 8] = [RST, RST | ACK, FIN | ACK, FIN, ACK, SYN, SYN | ACK, 0];
/// Segments of each kind per connection and direction.
const STORM_ROUNDS: usize = 32;
/// A connection that a storm had ended for the gateway would be removed after a second, by a sweep that takes 16 s.
const SHORT_TIMEOUTS: &str = "[flows]\ntcp_reset_s = 1\ntcp_time_wait_s = 1\ntcp_half_closed_s = 1\n";
/// Between two exchanges of a connection. Longer than the timeouts above, and two of them are longer than a sweep.
const IDLE: Duration = Duration::from_secs(10);

fn rst_attack(context: &CaseContext<'_>, result: &mut CaseResult) -> Result<()> {
    let workload = Workload::echo(256, Duration::from_millis(200));
    let attack = Attack::prepare(context, context.connections.min(400), &workload, String::new())?;
    result.record("flows", attack.flows.len());
    let mut random = Random(context.seed);
    let mut sent = 0;
    for _ in 0..ROUNDS {
        sent += attack.send(RST | ACK, 0, &mut random)?;
        thread::sleep(Duration::from_millis(50));
    }
    let before = attack.load.exchanges();
    attack.load.await_answers()?;
    thread::sleep(Duration::from_secs(1));
    result.record("resets_sent", sent);
    result.record("gap_ms", attack.load.longest_gap_ms());
    let ignored = event(&attack.bed.gateway, "resets_ignored")?;
    result.record("resets_ignored", ignored);
    result.expect(ignored > 0, || "no reset was counted as ignored".into());
    result.expect(sent > 0, || "there was no flow to attack".into());
    result.expect(attack.load.exchanges() > before, || "no answers after the attack".into());
    attack.end(result)
}

/// Hardly anybody speaks while every kind of segment is forged. Afterwards all connections go on, and then end as they should.
fn blind_storm(context: &CaseContext<'_>, result: &mut CaseResult) -> Result<()> {
    let workload = Workload::echo(256, IDLE);
    let attack = Attack::prepare(context, context.connections.min(100), &workload, SHORT_TIMEOUTS.into())?;
    result.record("flows", attack.flows.len());
    let mut random = Random(context.seed);
    let mut sent = 0;
    for _ in 0..STORM_ROUNDS {
        for flags in STORM {
            for damage in [0, 0x0101] {
                sent += attack.send(flags, damage, &mut random)?;
            }
        }
        interrupt::check(context.stop)?;
    }
    result.record("segments_sent", sent);
    let gateway = &attack.bed.gateway;
    let ignored = event(gateway, "segments_ignored")? + event(gateway, "resets_ignored")?;
    result.record("segments_ignored", ignored);
    result.expect(ignored > sent / 2, || format!("{ignored} of {sent} forged segments were ignored"));
    let ended = attack.flows_in(&["reset", "half-closed", "time-wait"])?;
    result.expect(ended == 0, || format!("the storm ended {ended} flows"));
    let all = u64::try_from(attack.flows.len()).expect("a count fits 64 bits");
    // Two rounds, so that each connection has spoken after the sweep.
    let mut wanted = attack.load.exchanges() + all;
    for _ in 0..2 {
        interrupt::sleep(context.stop, IDLE)?;
        eventually("every connection goes on after the storm", || Ok(attack.load.exchanges() >= wanted))?;
        wanted += all;
    }
    attack.end(result)
}

/// Open connections, and an attacker on each side of the gateway.
struct Attack {
    bed: TestBed,
    load: Load,
    flows: Vec<Ends>,
    outside: RawSender,
    inside: RawSender,
}

impl Attack {
    fn prepare(
        context: &CaseContext<'_>,
        connections: usize,
        workload: &Workload,
        config: String,
    ) -> Result<Self> {
        let mut inside = None;
        let options = TestBedOptions { clients: 2, config, ..TestBedOptions::default() };
        let bed = TestBed::build(context, options, |topology| {
            inside = Some(topology.add_host("attacker", ATTACKER)?.namespace);
            Ok(())
        })?;
        let load = Load::start(bed.client(), &stream_targets(), connections, workload)?;
        let outside = RawSender::open(&bed.topology.clients()[1].namespace)?;
        let inside = RawSender::open(&inside.expect("the test bed was prepared"))?;
        let flows = bed.gateway.show_json("flows")?;
        let flows = rows(&flows["flows"]).filter_map(Ends::of).collect();
        Ok(Self { bed, load, flows, outside, inside })
    }

    /// Forges one segment of each direction of each connection; returns their number.
    fn send(&self, flags: u8, damage: u16, random: &mut Random) -> Result<u64> {
        let mut sent = 0;
        for flow in &self.flows {
            let ways = [(&self.outside, flow.client, flow.vip), (&self.inside, flow.backend, flow.snat)];
            for (sender, source, destination) in ways {
                let (sequence, acknowledgement) = (random.next(), random.next());
                let forged = Segment { source, destination, flags, sequence, acknowledgement, damage };
                sender.send(&forged.packet(), destination.ip())?;
                sent += 1;
            }
        }
        Ok(sent)
    }

    /// The number of flows in one of these phases.
    fn flows_in(&self, phases: &[&str]) -> Result<usize> {
        let flows = self.bed.gateway.show_json("flows")?;
        let is_in = |flow: &&Value| flow["state"].as_str().is_some_and(|phase| phases.contains(&phase));
        Ok(rows(&flows["flows"]).filter(is_in).count())
    }

    /// Ends the connections in order, which must count.
    fn end(self, result: &mut CaseResult) -> Result<()> {
        let Self { mut bed, load, flows, .. } = self;
        result.expect(!flows.is_empty(), || "there was no flow to attack".into());
        load.finish("service", result)?;
        eventually("no flow is established after its connection has ended", || {
            let flows = bed.gateway.show_json("flows")?;
            Ok(!rows(&flows["flows"]).any(|flow| flow["state"] == "established"))
        })?;
        bed.check_end(result, 0);
        Ok(())
    }
}

/// The addresses of a flow on both sides of the NAT.
struct Ends {
    client: SocketAddr,
    vip: SocketAddr,
    snat: SocketAddr,
    backend: SocketAddr,
}

impl Ends {
    fn of(flow: &Value) -> Option<Self> {
        let end = |name: &str| flow[name].as_str()?.parse().ok();
        Some(Self { client: end("client")?, vip: end("vip")?, snat: end("snat")?, backend: end("backend")? })
    }
}
