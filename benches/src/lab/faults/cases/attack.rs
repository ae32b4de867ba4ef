//! A blind RST attack on established connections, from both sides (RFC 5961).

use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::error::Result;
use crate::lab::faults::case_result::CaseResult;
use crate::lab::faults::gateway_state::event;
use crate::lab::faults::load::{Load, Workload};
use crate::lab::faults::random::Random;
use crate::lab::faults::raw::{self, RawSender};
use crate::lab::faults::test_bed::{TestBed, TestBedOptions, stream_targets};
use crate::lab::faults::{Case, CaseContext};
use crate::lab::gateway::rows;

pub(super) const CASES: [Case; 1] = [Case { name: "rst_attack", run: rst_attack }];

/// Resets per connection and direction.
const ROUNDS: usize = 40;
const ATTACKER: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 66);

fn rst_attack(context: &CaseContext<'_>, result: &mut CaseResult) -> Result<()> {
    let mut inside = None;
    let options = TestBedOptions { clients: 2, ..TestBedOptions::default() };
    let mut bed = TestBed::build(context, options, |topology| {
        inside = Some(topology.add_host("attacker", ATTACKER)?.namespace);
        Ok(())
    })?;
    let workload = Workload::echo(256, Duration::from_millis(200));
    let load = Load::start(bed.client(), &stream_targets(), context.connections.min(400), &workload)?;
    let outside = RawSender::open(&bed.topology.clients()[1].namespace)?;
    let inside = RawSender::open(&inside.expect("the test bed was prepared"))?;
    let flows = bed.gateway.show_json("flows")?;
    let flows: Vec<_> = rows(&flows["flows"]).filter_map(Ends::of).collect();
    result.record("flows", flows.len());

    let (mut random, mut sent) = (Random(context.seed), 0u64);
    for _ in 0..ROUNDS {
        for flow in &flows {
            let forged = raw::reset(flow.client, flow.vip, random.next(), random.next());
            outside.send(&forged, flow.vip.ip())?;
            let forged = raw::reset(flow.backend, flow.snat, random.next(), random.next());
            inside.send(&forged, flow.snat.ip())?;
            sent += 2;
        }
        thread::sleep(Duration::from_millis(50));
    }
    let before = load.exchanges();
    load.await_answers()?;
    thread::sleep(Duration::from_secs(1));
    result.record("resets_sent", sent);
    result.record("gap_ms", load.longest_gap_ms());
    let ignored = event(&bed.gateway, "resets_ignored")?;
    result.record("resets_ignored", ignored);
    result.expect(ignored > 0, || "no reset was counted as ignored".into());
    result.expect(!flows.is_empty() && sent > 0, || "there was no flow to attack".into());
    result.expect(load.exchanges() > before, || "no answers after the attack".into());
    load.finish("service", result)?;
    bed.check_end(result, 0);
    Ok(())
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
