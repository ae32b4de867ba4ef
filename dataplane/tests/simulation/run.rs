//! One run: everything that happens follows from its seed.

use std::sync::Arc;

use fastrand::Rng;
use flowgate_dataplane::BURST;

use super::network::Network;
use super::test_bed::{Frames, Setup, Step, TestBed};
use super::worlds::{changed, setup};
use crate::model::Difference;
use crate::model::pieces::piece;

/// A run in which gateway and model differ.
pub(crate) struct Failure {
    pub(crate) difference: Difference,
    pub(crate) setup: Setup,
    pub(crate) steps: Vec<Step>,
}

/// What runs came to, so that nobody takes silence for success.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) frames: usize,
    pub(crate) sent: usize,
    pub(crate) flows: usize,
}

/// Runs a seed.
///
/// # Errors
/// Gateway and model differ.
pub(crate) fn run(seed: u64) -> Result<Tally, Box<Failure>> {
    let mut random = Rng::with_seed(seed);
    let setup = setup(&mut random);
    let mut steps = Vec::new();
    let mut tally = Tally::default();
    match play(&setup, &mut random, &mut steps, &mut tally) {
        Ok(()) => Ok(tally),
        Err(difference) => Err(Box::new(Failure { difference, setup, steps })),
    }
}

/// Repeats steps that were taken before.
///
/// # Errors
/// Gateway and model differ.
pub(crate) fn replay(setup: &Setup, steps: &[Step]) -> Result<(), Difference> {
    let mut test_bed = TestBed::new(setup);
    for step in steps {
        test_bed.step(step)?;
    }
    test_bed.end()
}

fn play(setup: &Setup, random: &mut Rng, steps: &mut Vec<Step>, tally: &mut Tally) -> Result<(), Difference> {
    let mut test_bed = TestBed::new(setup);
    let mut network = Network::new(random);
    let mut world = setup.world.clone();
    for _ in 0..random.usize(50..250) {
        let pause_ms = pause(random);
        for _ in 0..random.usize(..4) {
            network.stir(&world, test_bed.now() + pause_ms, random);
        }
        if random.u8(..12) == 0 {
            world = changed(&world, random);
            steps.push(Step::Publish(Arc::new(world.clone())));
            test_bed.step(&steps[steps.len() - 1])?;
        }
        let crowded = setup.capacity_flows == 1 || world.snat_ports.len() < 100;
        let mut pause_ms = pause_ms;
        for (worker, frames) in
            by_worker(network.arrived(test_bed.now() + pause_ms), setup.workers, crowded, random)
        {
            tally.frames += frames.len();
            steps.push(Step::Turn { worker, pause_ms, frames });
            let sent = test_bed.step(&steps[steps.len() - 1])?;
            pause_ms = 0;
            tally.sent += sent.len();
            tally.flows = tally.flows.max(test_bed.flow_count());
            network.receive(&sent, test_bed.now(), random);
        }
    }
    test_bed.end()
}

/// Frames for each worker's turn: one at a time when the table is small or ports are few, for then it matters which
/// flow makes room for which.
fn by_worker(frames: Frames, workers: usize, crowded: bool, random: &mut Rng) -> Vec<(usize, Frames)> {
    let mut turns: Vec<(usize, Frames)> = (0..workers).map(|w| (w, vec![])).collect();
    for frame in frames {
        // Mostly by the source port, as a NIC spreads flows; now and then by any queue.
        let port = match piece(&frame.1) {
            Some(piece) => usize::try_from(piece.id).unwrap(),
            None => usize::from(frame.1.get(35).copied().unwrap_or(0)),
        };
        let worker = if random.u8(..10) == 0 { random.usize(..workers) } else { port % workers };
        if crowded {
            turns.push((worker, vec![frame]));
        } else {
            turns[worker].1.push(frame);
        }
    }
    // A worker takes a burst from each queue in a turn.
    let bursts = turns.into_iter().flat_map(|(worker, frames)| {
        let mut bursts: Vec<_> = frames.chunks(BURST).map(|burst| (worker, burst.to_vec())).collect();
        bursts.resize_with(bursts.len().max(1), || (worker, vec![]));
        bursts
    });
    bursts.collect()
}

fn pause(random: &mut Rng) -> u64 {
    match random.u8(..40) {
        0 => random.u64(..100_000),
        1..4 => random.u64(..5_000),
        4..8 => 0,
        _ => random.u64(..20),
    }
}
