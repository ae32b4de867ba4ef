//! `flowgate trace` against a second, independent model of what kube-proxy does with a packet.
//!
//! Clusters, machines and packets are random but the same in each run. `TRACE_SEEDS=2000` tries so many clusters,
//! `TRACE_FIRST_SEED=17` starts elsewhere. A failure names its seed, the packet and both verdicts.

#[path = "../trace/command.rs"]
mod command;

mod cluster;
mod decide;
mod endpoints;
mod machine;
mod owners;
mod packets;
mod random;

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::net::SocketAddr;

use command::{Answer, Traced};
use decide::{Expected, decide};
use machine::Machine;
use packets::Packet;

/// So many clusters of each role in an ordinary run.
const SEEDS: u64 = 200;
const PACKETS: usize = 120;
const FAILURES_SHOWN: usize = 5;

#[test]
fn d1_to_d6_on_a_node_trace_and_the_model_agree() {
    agree("node", random::node);
}

#[test]
fn d1_to_d6_on_a_gateway_trace_and_the_model_agree() {
    agree("gateway", random::gateway);
}

fn agree(role: &str, machine: fn(&mut fastrand::Rng) -> Machine) {
    let number = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let first = number("TRACE_FIRST_SEED").unwrap_or(0);
    let mut failures = Vec::new();
    let mut verdicts = BTreeMap::<String, usize>::new();
    for seed in first..first + number("TRACE_SEEDS").unwrap_or(SEEDS) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let machine = machine(&mut rng);
        let cluster = random::cluster(&mut rng);
        let packets: Vec<Packet> = (0..PACKETS).map(|_| packets::packet(&mut rng, &cluster)).collect();
        let traced = Traced::new(&cluster.manifests(), machine.flags());
        let lines: Vec<_> = packets.iter().map(Packet::line).collect();
        for (packet, answer) in packets.iter().zip(traced.answers(&lines)) {
            *verdicts.entry(answer.verdict.clone()).or_default() += 1;
            let expected = decide(&cluster, &machine, packet);
            if let Some(difference) = difference(packet, &answer, &expected) {
                failures.push(format!("seed {seed}, {:?}:\n  {difference}", machine.flags()));
            }
        }
    }
    let shown = failures.iter().take(FAILURES_SHOWN).cloned().collect::<Vec<_>>().join("\n");
    assert!(failures.is_empty(), "as a {role}, {} packets differ:\n{shown}", failures.len());
    if number("TRACE_SEEDS").is_none() {
        // Else the packets would prove nothing.
        for verdict in ["forward", "reject", "drop", "pass", "local"] {
            assert!(verdicts.get(verdict).is_some_and(|n| *n > 100), "too few of {verdict}: {verdicts:?}");
        }
    }
}

fn difference(packet: &Packet, answer: &Answer, expected: &Expected) -> Option<String> {
    // P605 depends on who is chosen.
    let backend = answer.backend.as_deref().and_then(|text| text.parse::<SocketAddr>().ok());
    let hairpin = backend.is_some_and(|backend| backend.ip() == packet.src.ip());
    let candidates: BTreeSet<String> = expected.candidates.iter().map(ToString::to_string).collect();
    let same = answer.verdict == expected.verdict
        && answer.service == expected.service
        && answer.candidates == candidates
        && answer.snat == (expected.verdict == "forward" && (expected.masquerade || hairpin));
    (!same).then(|| format!("{packet:?}\n  trace: {answer:?}\n  model: {expected:?}"))
}
