//! `lab faults`: fault injection on a real gateway under load, one case after the other.
//!
//! Each case has a network and a gateway of its own. Its `CaseResult` holds the connections that were lost although
//! their backend lived, the longest time without an answer, and failed expectations.

pub(super) mod case_result;
pub(super) mod cases;
pub(super) mod gateway_state;
mod idle;
pub(super) mod load;
pub(super) mod random;
mod raw;
mod report;
pub(super) mod test_bed;

use std::path::Path;
use std::time::Duration;

use super::interrupt;
use super::output::print_progress;
use crate::clock;
use crate::error::{Error, Result};
use crate::loadgen::stop::Stop;
use case_result::CaseResult;

pub use report::FaultReport;

/// Which cases to run, and how.
#[derive(Debug, Clone)]
pub struct FaultOptions {
    /// The names of the cases; empty for all.
    pub cases: Vec<String>,
    /// Open connections in the cases of restarts and floods.
    pub connections: usize,
    /// The seed of all random choices.
    pub seed: u64,
    /// How long the case `listener_abuse` abuses the listening ports.
    pub abuse: Duration,
    /// How many broken objects the case `hostile_objects` applies.
    pub hostile_objects: usize,
}

impl Default for FaultOptions {
    fn default() -> Self {
        Self {
            cases: Vec::new(),
            connections: 1000,
            seed: 1,
            abuse: Duration::from_secs(10),
            hostile_objects: 2000,
        }
    }
}

/// What every case gets.
pub(in crate::lab) struct CaseContext<'a> {
    pub(in crate::lab) flowgate: &'a Path,
    pub(in crate::lab) connections: usize,
    pub(in crate::lab) seed: u64,
    pub(in crate::lab) abuse: Duration,
    pub(in crate::lab) hostile_objects: usize,
    pub(in crate::lab) stop: &'a Stop,
}

/// A named fault case.
#[derive(Clone, Copy)]
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) run: fn(&CaseContext<'_>, &mut CaseResult) -> Result<()>,
}

/// The names of all cases, in their order.
pub fn case_names() -> Vec<&'static str> {
    cases::all().map(|case| case.name).collect()
}

/// Runs the cases. A case that fails does not stop the others.
pub fn faults(options: &FaultOptions, flowgate: &Path, stop: &Stop) -> Result<FaultReport> {
    let unknown = options.cases.iter().find(|name| !case_names().contains(&name.as_str()));
    if let Some(name) = unknown {
        let known = case_names().join(", ");
        return Err(Error::Option(format!("there is no case {name}; there are {known}")));
    }
    if options.connections < 8 {
        return Err(Error::Option("the cases need at least 8 connections: some of each kind".into()));
    }
    let FaultOptions { connections, seed, abuse, hostile_objects, .. } = *options;
    let context = CaseContext { flowgate, connections, seed, abuse, hostile_objects, stop };
    let mut report = FaultReport::default();
    for case in cases::all() {
        if !options.cases.is_empty() && !options.cases.iter().any(|name| name == case.name) {
            continue;
        }
        interrupt::check(stop)?;
        let begin = clock::now();
        let mut result = CaseResult::default();
        match (case.run)(&context, &mut result) {
            Err(Error::Interrupted) => return Err(Error::Interrupted),
            Err(error) => result.fail(error.to_string()),
            Ok(()) => {}
        }
        result.record("seconds", begin.elapsed().as_secs_f64());
        print_progress(&result.line(case.name));
        report.add(case.name, result);
    }
    Ok(report)
}
