//! What must happen to a packet, worked out the plain way: maps, lists and full checksums.
//!
//! Written from the RFCs and the rules of Services, not from the pipeline. It shares no code with the
//! data plane but the descriptions that tables are built from and the verdicts. Where the pipeline may
//! choose (which backend, which source port), the model accepts any legal choice, learns it, and from then
//! on expects it to stay.
#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod checksums;
pub(crate) mod control;
pub(crate) mod flows;
pub(crate) mod packet;
pub(crate) mod pieces;
pub(crate) mod places;
pub(crate) mod reject;
pub(crate) mod services;
pub(crate) mod tracking;
pub(crate) mod verdicts;
pub(crate) mod world;

use std::collections::BTreeMap;

use flowgate_dataplane::{PipelineConfig, Verdict};
use flowgate_flow::Timeouts;
use flowgate_tables::InterfaceId;

use flows::Flows;
use services::{Bindings, Lives};
use world::World;

/// What the pipeline did that the model does not allow, in words.
pub(crate) type Difference = String;

/// Everything that the model knows of one gateway.
#[derive(Clone)]
pub(crate) struct Model {
    /// The tables in force.
    pub(crate) world: World,
    /// Its source ports, ascending.
    pub(crate) ports: Vec<u16>,
    /// All flows.
    pub(crate) flows: Flows,
    /// Which backends and Services live on from earlier tables.
    pub(crate) lives: Lives,
    /// Which backends clients stay with.
    pub(crate) bindings: Bindings,
    /// How long flows may be silent.
    pub(crate) timeouts: Timeouts,
    /// What the operator chose.
    pub(crate) config: PipelineConfig,
    /// Workers that share the flows.
    pub(crate) worker_count: usize,
    /// What each worker must have counted.
    pub(crate) counts: Vec<Counts>,
    /// The fragmented datagrams that each worker knows, and how many there were of all.
    pub(crate) trains: Vec<Vec<pieces::Train>>,
    pub(crate) train_count: u64,
    /// The datagrams whose waiting fragments each worker is to decide again.
    pub(crate) woken: Vec<Vec<u64>>,
}

/// Counts by name: the name of a reason, or of an event.
pub(crate) type Counts = BTreeMap<&'static str, u64>;

/// A packet that was decided.
#[derive(Clone, Debug)]
pub(crate) struct Decided<'a> {
    /// Which worker decided it.
    pub(crate) worker: usize,
    /// Milliseconds since the start.
    pub(crate) now: u64,
    /// The frame as it came.
    pub(crate) before: &'a [u8],
    /// The frame as the pipeline left it.
    pub(crate) after: &'a [u8],
    /// What the pipeline said.
    pub(crate) verdict: Verdict,
}

/// What must become of the frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It leaves as the pipeline left it.
    Sent(InterfaceId),
    /// It waits for this neighbour.
    Waits(places::Neighbour),
    /// It waits for the first fragment of the datagram with this name.
    AwaitsFirst(u64),
    /// Its sender is told that nobody serves it, if it may be told.
    Refused,
    /// It goes back as the answer that it became.
    Answered,
    /// Its sender is told what is wrong with it, if it may be told.
    Reported(flowgate_wire::reject::IcmpError),
    /// Nobody sees it again.
    Ends,
}

impl Model {
    /// A model of a gateway that has just started.
    pub(crate) fn new(
        world: &World,
        timeouts: Timeouts,
        config: PipelineConfig,
        worker_count: usize,
    ) -> Self {
        let mut model = Self {
            world: world.clone(),
            ports: Vec::new(),
            flows: Flows::default(),
            lives: Lives::default(),
            bindings: Bindings::default(),
            timeouts,
            config,
            worker_count,
            counts: vec![Counts::new(); worker_count],
            trains: vec![Vec::new(); worker_count],
            train_count: 0,
            woken: vec![Vec::new(); worker_count],
        };
        model.publish(world, 0);
        model
    }

    /// Other tables come into force.
    pub(crate) fn publish(&mut self, world: &World, now: u64) {
        self.lives.follow(world, now);
        self.ports = world.snat_ports.iter().filter(|port| *port != 0).collect();
        self.world = world.clone();
    }

    /// Adds to what a worker must have counted.
    pub(crate) fn count(&mut self, worker: usize, what: &'static str) {
        *self.counts[worker].entry(what).or_default() += 1;
    }
}
