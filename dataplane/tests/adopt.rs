//! Flows that outlive the process: what the next one makes of them, with tables of its own.
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

use std::path::Path;
use std::time::Duration;

use crate::gateway::{FAB0, World, destination, service, tcp, udp};
use flowgate_dataplane::BURST;
use flowgate_dataplane::adopt::{Adoption, adopt};
use flowgate_dataplane::{
    Context, Counters, Event, PassReason, Pipeline, PipelineConfig, Process, RxChecksums, Verdict,
    WorkerNumber,
};
use flowgate_flow::{AffinityTable, Flows, HashKey, Origin, Tick, Timeouts};
use flowgate_tables::{BackendId, Tables};
use flowgate_wire::Protocol;

/// One life of the process.
struct Life {
    flows: Flows,
    affinity: AffinityTable,
    tables: Tables,
    pipeline: Pipeline,
    counters: Counters,
}

impl Life {
    fn begin(world: &World, folder: &Path) -> (Self, Adoption) {
        let (flows, origins) = Flows::persistent([1000, 64], HashKey::random(), folder, [1; 16]).unwrap();
        let tables = world.tables(&Tables::empty());
        let affinity = AffinityTable::new(64);
        let adopted = if origins == [Origin::Restored; 2] {
            adopt(&flows, &affinity, &tables.services)
        } else {
            Adoption::default()
        };
        let pipeline = Pipeline::new(WorkerNumber { index: 0, count: 1 });
        (Self { flows, affinity, tables, pipeline, counters: Counters::default() }, adopted)
    }

    /// Where a packet goes.
    fn forward(&mut self, frame: Vec<u8>, now: u32) -> Option<String> {
        let mut burst = [frame];
        let mut verdicts = [Verdict::Pass(PassReason::NotOurs); BURST];
        let timeouts = Timeouts::default();
        let context = Context {
            now: Tick(now),
            tables: &self.tables,
            flows: &self.flows,
            affinity: &self.affinity,
            timeouts: &timeouts,
            config: &PipelineConfig::default(),
            ingress: &[],
        };
        self.pipeline.process(
            &mut burst,
            RxChecksums::MayBePartial,
            &context,
            &mut self.counters,
            &mut verdicts[..1],
        );
        (verdicts[0] == Verdict::Transmit(FAB0)).then(|| destination(&burst[0]))
    }
}

fn client(number: u16) -> String {
    format!("192.0.2.10:{}", 1000 + number)
}

#[test]
fn connections_go_on_to_their_backends_under_other_numbers_and_those_of_lost_backends_too() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::new();
    let (mut life, adopted) = Life::begin(&world, folder.path());
    assert_eq!(adopted, Adoption::default());
    let backends: Vec<_> =
        (0..60).map(|n| life.forward(tcp(&client(n), "10.96.0.80:80", "S"), 1).unwrap()).collect();
    let datagrams: Vec<_> =
        (0..20).map(|n| life.forward(udp(&client(n), "10.96.0.53:53", b"x"), 1).unwrap()).collect();
    assert_eq!(life.counters.event(Event::FlowsOpened), 80);
    drop(life);

    // Other Services come first, one backend of `web` is gone, and so is all of `dns`.
    world.services.insert(0, service("another", Protocol::Tcp, "10.96.0.1:443", 6443, &[11, 12, 13]));
    world.services.retain(|service| service.name.name != "dns");
    let web = world.services.iter_mut().find(|service| service.name.name == "web").unwrap();
    web.serving.retain(|(addr, _)| addr.to_string() != "10.244.0.12");
    for set in &mut web.endpoint_sets {
        set.retain(|endpoint| endpoint.addr.to_string() != "10.244.0.12");
    }
    let (mut life, adopted) = Life::begin(&world, folder.path());
    let lost = backends.iter().filter(|backend| backend.starts_with("10.244.0.12:")).count();
    assert!(lost > 5 && lost < 40, "{lost}");
    let expected = Adoption { flows: 80, without_backend: lost + 20, bindings: 0, cleared: 0 };
    assert_eq!(adopted, expected);

    for (number, backend) in (0..).zip(&backends) {
        let to = life.forward(tcp(&client(number), "10.96.0.80:80", "A"), 2);
        assert_eq!(to.as_ref(), Some(backend), "a connection goes on, whatever became of its backend");
    }
    assert_eq!(life.counters.event(Event::FlowsOpened), 0);
    for view in life.flows.views() {
        let known = life.tables.services.backends().get(BackendId::from_bits(view.backend));
        let address = known.map(|backend| backend.addr);
        let expected = (view.reply.src.to_string() != "10.244.0.12"
            && view.original.protocol == Protocol::Tcp)
            .then_some(view.reply.src);
        assert_eq!(address, expected, "{view:?}");
    }
    assert!(datagrams.iter().all(|to| to.starts_with("10.244.0.1")));
}

#[test]
fn clients_stay_with_the_backend_that_their_flows_name() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::new();
    let web = world.services.iter_mut().find(|service| service.name.name == "web").unwrap();
    web.affinity = Some(Duration::from_secs(60));
    let (mut life, _) = Life::begin(&world, folder.path());
    let first = life.forward(tcp(&client(0), "10.96.0.80:80", "S"), 1).unwrap();
    drop(life);
    let (mut life, adopted) = Life::begin(&world, folder.path());
    assert_eq!((adopted.flows, adopted.bindings), (1, 1));
    for number in 1..30 {
        let to = life.forward(tcp(&client(number), "10.96.0.80:80", "S"), 2);
        assert_eq!(to.as_ref(), Some(&first), "connection {number}");
    }
    assert_eq!(life.counters.event(Event::AffinityKept), 29);
}
