//! The output of the demo: one line per step with its time and findings, as plain text.

use std::fmt::Display;
use std::time::Instant;

use crate::clock;
use crate::error::Result;
use crate::lab::interrupt;
use crate::lab::output::print_line;
use crate::loadgen::stop::Stop;

/// Prints steps and collects failures.
pub(super) struct Steps<'a> {
    stop: &'a Stop,
    begin: Instant,
    passed: usize,
    failures: Vec<String>,
}

/// What a step found.
#[derive(Default)]
pub(super) struct Findings {
    details: Vec<String>,
    failures: Vec<String>,
}

impl Findings {
    /// Adds lines below the step.
    pub(super) fn detail(&mut self, text: impl Display) {
        self.details.extend(text.to_string().lines().map(str::to_owned));
    }

    /// Adds `text`, as a failure unless `holds`.
    pub(super) fn expect(&mut self, holds: bool, text: impl Display) {
        if holds {
            self.detail(text);
        } else {
            self.failures.push(text.to_string());
        }
    }
}

impl<'a> Steps<'a> {
    pub(super) fn new(stop: &'a Stop) -> Self {
        Self { stop, begin: clock::now(), passed: 0, failures: Vec::new() }
    }

    /// Runs a step. An error ends the demo; a failed expectation is counted.
    pub(super) fn step<T>(
        &mut self,
        title: &str,
        work: impl FnOnce(&mut Findings) -> Result<T>,
    ) -> Result<T> {
        interrupt::check(self.stop)?;
        let (begin, mut findings) = (clock::now(), Findings::default());
        let outcome = work(&mut findings);
        let took = begin.elapsed();
        let good = outcome.is_ok() && findings.failures.is_empty();
        print_line(format!("{} {title} ({:.2} s)", if good { '✓' } else { '✗' }, took.as_secs_f64()));
        for detail in &findings.details {
            print_line(format!("    {detail}"));
        }
        for failure in &findings.failures {
            print_line(format!("    FAILED: {failure}"));
        }
        self.passed += usize::from(good);
        self.failures.extend(findings.failures.into_iter().map(|failure| format!("{title}: {failure}")));
        // Ctrl-C breaks child processes too: report the interruption instead of their failure.
        outcome.map_err(|error| interrupt::check(self.stop).err().unwrap_or(error))
    }

    /// Whether an expectation failed so far.
    pub(super) const fn has_failures(&self) -> bool {
        !self.failures.is_empty()
    }

    pub(super) fn summary(self) -> DemoOutcome {
        DemoOutcome {
            seconds: self.begin.elapsed().as_secs_f64(),
            passed: self.passed,
            failures: self.failures,
        }
    }
}

/// The outcome of the demo.
#[derive(Debug, Clone, PartialEq)]
pub struct DemoOutcome {
    /// Its duration.
    pub seconds: f64,
    /// Steps without a failed expectation.
    pub passed: usize,
    /// The failed expectations.
    pub failures: Vec<String>,
}

impl DemoOutcome {
    /// Whether no expectation failed.
    pub fn is_success(&self) -> bool {
        self.failures.is_empty()
    }
}
