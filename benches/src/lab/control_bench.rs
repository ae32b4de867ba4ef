//! `lab bench-control`: the time from a change of endpoints to a change of forwarding, with many Services on a real API
//! server, for the gateway and, in the same run, for real kube-proxy.
//!
//! Both are measured from outside in the same way: from the event at an independent watcher to the first answer of a new
//! endpoint to a new flow. Only one runs at a time, since they would compete for CPU.

mod events;
mod prober;
mod report;
mod test_bed;

use std::path::Path;
use std::time::{Duration, Instant};

use super::interrupt;
use super::output::print_line;
use crate::clock;
use crate::error::Result;
use crate::loadgen::stop::Stop;
use events::SliceEvents;
use report::Samples;
use test_bed::{Forwarder, TestBed};

pub use report::ControlBenchReport;

/// What to measure.
#[derive(Debug, Clone)]
pub struct ControlBenchOptions {
    /// Total number of Services.
    pub services: u32,
    /// Endpoints per Service.
    pub endpoints: u32,
    /// Measured changes of endpoints per proxy.
    pub changes: u32,
}

impl Default for ControlBenchOptions {
    fn default() -> Self {
        Self { services: 5000, endpoints: 10, changes: 100 }
    }
}

/// Runs the measurement and removes everything it created.
pub fn control_bench(
    options: &ControlBenchOptions,
    flowgate: &Path,
    stop: &Stop,
) -> Result<ControlBenchReport> {
    let mut bed = TestBed::build(options)?;
    let before = bed.start(Forwarder::Flowgate(flowgate))?;
    let baseline_rss_mb = before.rss_mb()?;
    drop(before);
    interrupt::check(stop)?;
    let begin = clock::now();
    bed.create_services(options)?;
    print_line(format!("created in {:.0} s", begin.elapsed().as_secs_f64()));
    let events = SliceEvents::start(&bed.client(), test_bed::MEASURED_LABEL)?;

    let mut outcomes = Vec::new();
    for forwarder in [Forwarder::Flowgate(flowgate), Forwarder::KubeProxy] {
        interrupt::check(stop)?;
        print_line(format!("{}: cold start", forwarder.name()));
        // The cold start counts from the start of the process.
        let running = bed.start_and_await_all(forwarder, stop)?;
        print_line(format!(
            "    {:.2} s until every measured Service answers",
            running.cold_start.as_secs_f64()
        ));
        print_line(format!("{}: {} changes of endpoints", forwarder.name(), options.changes));
        let samples = changes(&mut bed, &events, options, stop)?;
        print_line(format!("    {}", samples.line()));
        let rss_mb = running.instance.rss_mb()?;
        print_line(format!("    resident memory {rss_mb:.0} MB"));
        outcomes.push((samples, running.cold_start, rss_mb));
        running.instance.stop()?;
    }
    let theirs = outcomes.pop().expect("there were two");
    let ours = outcomes.pop().expect("there were two");
    print_line(format!("resident memory of flowgate without Services: {baseline_rss_mb:.0} MB"));
    Ok(ControlBenchReport::of(&ours, &theirs))
}

/// Moves one Service after the other to new endpoints, at irregular intervals, and measures the delays.
fn changes(
    bed: &mut TestBed,
    events: &SliceEvents,
    options: &ControlBenchOptions,
    stop: &Stop,
) -> Result<Samples> {
    let mut samples = Samples::default();
    // kube-proxy syncs at most once per second: intervals must cover all phases of that period.
    let mut pause = uneven_pauses();
    for number in 0..options.changes {
        interrupt::sleep(stop, pause.next().expect("pauses never end"))?;
        let (service, backend) = bed.next_move(number);
        let watch = bed.watch(service, backend)?;
        let written = bed.write(service, backend)?;
        let event = events.await_version(&written)?;
        let seen = watch.await_all(CHANGE_LIMIT, stop)?;
        samples.add(after(event, seen));
    }
    Ok(samples)
}

/// Long enough for the slowest sync of kube-proxy at this size.
const CHANGE_LIMIT: Duration = Duration::from_secs(60);

/// Zero if forwarding changed before the watcher got its event.
fn after(event: Instant, seen: Instant) -> Duration {
    seen.saturating_duration_since(event)
}

/// Pseudo-random pauses from 0.1 to 1.6 s (xorshift32), the same in every run.
fn uneven_pauses() -> impl Iterator<Item = Duration> {
    let mut state: u32 = 0x9e37_79b9;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        Duration::from_millis(100 + u64::from(state % 1500))
    })
}
