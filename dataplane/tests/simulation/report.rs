//! Failures made small and told in words.

use std::fmt::Write as _;

use super::run::{Failure, replay};
use super::test_bed::Step;
use crate::model::packet::{Kind, hex, read};

/// Leaves out whatever the difference does not need, for as long as that takes less than `tries` replays.
pub(crate) fn shrink(failure: &mut Failure, mut tries: usize) {
    let mut chunk = failure.steps.len().div_ceil(2).max(1);
    loop {
        let mut at = 0;
        while at < failure.steps.len() && tries > 0 {
            tries -= 1;
            let mut fewer = failure.steps.clone();
            fewer.drain(at..(at + chunk).min(fewer.len()));
            match replay(&failure.setup, &fewer) {
                Err(difference) => (failure.steps, failure.difference) = (fewer, difference),
                Ok(()) => at += chunk,
            }
        }
        if chunk == 1 || tries == 0 {
            return;
        }
        chunk = chunk.div_ceil(2);
    }
}

/// The failure in words.
pub(crate) fn story(failure: &Failure) -> String {
    let setup = &failure.setup;
    let mut story = format!(
        "{} workers, table for {} flows, {:?}, {:?}, started {} ms ago\n",
        setup.workers, setup.capacity_flows, setup.timeouts, setup.config, setup.age_ms
    );
    describe_world(&mut story, &setup.world);
    for step in &failure.steps {
        match step {
            Step::Publish(world) => {
                story.push_str("other tables:\n");
                describe_world(&mut story, world);
            }
            Step::Turn { worker, pause_ms, frames } => {
                writeln!(story, "+{pause_ms} ms, worker {worker}").unwrap();
                for (by, frame) in frames {
                    let what = match read(frame) {
                        Kind::Segment(s) => format!(
                            "{} {} -> {} {:?} ttl {} len {}",
                            s.tuple.protocol, s.tuple.src, s.tuple.dst, s.flags, s.ttl, s.ip_len
                        ),
                        other => format!("{other:?}"),
                    };
                    writeln!(story, "  {by:?} {what}\n    {}", hex(frame)).unwrap();
                }
            }
        }
    }
    writeln!(story, "=> {}", failure.difference).unwrap();
    story
}

fn describe_world(story: &mut String, world: &crate::model::world::World) {
    for service in &world.services {
        let sets: Vec<Vec<_>> =
            service.endpoint_sets.iter().map(|set| set.iter().map(|e| e.addr).collect()).collect();
        writeln!(
            story,
            "  {} {} sets {sets:?} serving {:?}",
            service.name, service.protocol, service.serving
        )
        .unwrap();
        for f in &service.frontends {
            writeln!(story, "    {}:{} {:?} allowed {:?}", f.addr, f.port, f.policies, f.allowed).unwrap();
        }
    }
    for i in &world.interfaces {
        writeln!(story, "  {} mtu {} up {} {:?}", i.name, i.mtu, i.up, i.addresses).unwrap();
    }
    for route in &world.routes {
        writeln!(story, "  {} by {:?} metric {}", route.prefix, route.hops, route.metric).unwrap();
    }
    for n in &world.neighbours {
        writeln!(story, "  {} on {} is {:?}", n.addr, n.interface, n.mac).unwrap();
    }
    let ports: Vec<u16> = world.snat_ports.iter().collect();
    writeln!(story, "  source ports {:?} to {:?}", ports.first(), ports.last()).unwrap();
}
