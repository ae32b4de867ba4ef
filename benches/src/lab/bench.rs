//! `lab bench`: packets per second through the gateway against a bare AF_XDP forwarder, in one run.
//!
//! Both sides run alternately, and each round compares measurements close in time, because the speed of the machine
//! varies from one minute to the next. Rates over veth say nothing about rates of a NIC.

mod report;
mod test_bed;

use std::path::Path;
use std::time::Duration;

use super::interrupt;
use super::output::print_line;
use crate::error::{Error, Result};
use crate::loadgen::stop::Stop;
use report::{Round, round_table};
use test_bed::{Sample, TestBed};

pub use report::{BenchReport, PerFlows};

/// How long and how often to measure.
#[derive(Debug, Clone)]
pub struct BenchOptions {
    /// Rounds; each measures everything once.
    pub rounds: usize,
    /// Traffic before a measurement, so that flows are established and caches warm.
    pub warm_up: Duration,
    /// Duration of a measurement.
    pub measure: Duration,
    /// The core of the packet generator.
    pub generator_cpu: usize,
    /// The core of the forwarder.
    pub worker_cpu: usize,
    /// Backend addresses of the receiver. Each allows as many flows as there are SNAT ports.
    pub backends: u8,
}

impl Default for BenchOptions {
    fn default() -> Self {
        Self {
            rounds: 5,
            warm_up: Duration::from_secs(2),
            measure: Duration::from_secs(3),
            generator_cpu: 0,
            worker_cpu: 1,
            backends: 32,
        }
    }
}

const FEW_FLOWS: u32 = 1_000;
const MANY_FLOWS: u32 = 100_000;

/// Runs all rounds, prints a table of each, and returns the figures.
pub fn bench(options: &BenchOptions, flowgate: &Path, stop: &Stop) -> Result<BenchReport> {
    check(options)?;
    let bed = TestBed::build(options)?;
    let mut rounds = Vec::new();
    for number in 1..=options.rounds {
        // The order alternates, so that neither side always follows the other.
        let (bare, few, many) = if number % 2 == 1 {
            let bare = bare(&bed, options, flowgate, stop)?;
            let (few, many) = gateway(&bed, options, flowgate, stop)?;
            (bare, few, many)
        } else {
            let (few, many) = gateway(&bed, options, flowgate, stop)?;
            (bare(&bed, options, flowgate, stop)?, few, many)
        };
        let round = Round { bare, few, many };
        print_line(round_table(number, &round));
        rounds.push(round);
    }
    Ok(BenchReport::of(&rounds))
}

fn check(options: &BenchOptions) -> Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if options.rounds == 0 || options.backends == 0 || options.measure.is_zero() {
        return Err(Error::Option("the comparison needs a round, a backend and a time to measure".into()));
    }
    let highest = options.generator_cpu.max(options.worker_cpu);
    if options.generator_cpu == options.worker_cpu || highest >= cores {
        return Err(Error::Option(format!(
            "generator and worker need a core each of this machine's {cores}, not {} and {}: they would share time, and \
             the figures would mean nothing",
            options.generator_cpu, options.worker_cpu
        )));
    }
    Ok(())
}

fn bare(bed: &TestBed, options: &BenchOptions, flowgate: &Path, stop: &Stop) -> Result<Sample> {
    interrupt::check(stop)?;
    let forwarder = bed.start_bare_forwarder(flowgate, options.worker_cpu)?;
    let sample = bed.measure(FEW_FLOWS, options, stop)?;
    forwarder.stop()?;
    Ok(sample)
}

fn gateway(bed: &TestBed, options: &BenchOptions, flowgate: &Path, stop: &Stop) -> Result<(Sample, Sample)> {
    interrupt::check(stop)?;
    let gateway = bed.start_gateway(flowgate, options.worker_cpu)?;
    let few = bed.measure(FEW_FLOWS, options, stop)?;
    let many = bed.measure(MANY_FLOWS, options, stop)?;
    gateway.detach()?;
    Ok((few, many))
}
