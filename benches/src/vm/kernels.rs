//! `lab kernels`: boots other kernels and runs tests of this workspace on each: XDP program, sockets, pipeline, and HTTP
//! through the gateway. On a kernel that is too old the gateway has to refuse with a clear message.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use serde::Serialize;

use super::test_program::{TestMachine, TestProgram};
use super::{Kernel, Store};
use crate::error::{Error, Result};
use crate::lab::gateway::last_lines;
use crate::lab::interrupt;
use crate::lab::output::print_progress;
use crate::loadgen::stop::Stop;

/// What to run.
#[derive(Debug, Clone)]
pub struct KernelOptions {
    /// Where QEMU and kernels are.
    pub store: PathBuf,
    /// The kernels, by the names that `.ci/vm` knows.
    pub kernels: Vec<String>,
    /// The test programs to run on each.
    pub tests: Vec<TestProgram>,
}

/// The outcome for each kernel.
#[derive(Debug, Default, Serialize)]
pub struct KernelReport {
    kernels: BTreeMap<String, String>,
    failed: usize,
}

impl KernelReport {
    /// Whether kernels were tested and none failed.
    pub fn is_success(&self) -> bool {
        !self.kernels.is_empty() && self.failed == 0
    }

    /// The report as one line of JSON.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("the report has string keys")
    }
}

/// Boots each kernel and runs the tests in it; one machine per core at a time.
pub fn kernels(options: &KernelOptions, flowgate: &Path, stop: &Stop) -> Result<KernelReport> {
    let store = Store::new(&options.store);
    let kernels =
        options.kernels.iter().map(|name| Kernel::open(&store, name)).collect::<Result<Vec<_>>>()?;
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let (next, report) = (AtomicUsize::new(0), Mutex::new(KernelReport::default()));
    let run = || -> Result<()> {
        while let Some(kernel) = kernels.get(next.fetch_add(1, Ordering::Relaxed)) {
            interrupt::check(stop)?;
            print_progress(&format!("{}: Linux {}", kernel.version(), kernel.release()));
            let outcome = if kernel.is_supported() {
                run_tests(options, &store, kernel, flowgate, stop)
            } else {
                expect_refusal(&store, kernel, flowgate, stop)
            };
            let outcome = match outcome {
                Err(interrupted @ Error::Interrupted) => return Err(interrupted),
                outcome => outcome.unwrap_or_else(|error| Outcome::Failed(error.to_string())),
            };
            let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
            report.failed += usize::from(matches!(outcome, Outcome::Failed(_)));
            report.kernels.insert(kernel.version(), outcome.summary(&kernel.version()));
        }
        Ok(())
    };
    thread::scope(|scope| {
        let runs: Vec<_> = (0..cores.min(kernels.len())).map(|_| scope.spawn(run)).collect();
        runs.into_iter().try_for_each(|run| run.join().expect("a run of kernels reports its errors"))
    })?;
    Ok(report.into_inner().unwrap_or_else(PoisonError::into_inner))
}

enum Outcome {
    Passed,
    /// Too old, and the gateway refused to start.
    Refused,
    Failed(String),
}

impl Outcome {
    fn summary(self, version: &str) -> String {
        match self {
            Self::Passed => "ok".into(),
            Self::Refused => "refused: too old".into(),
            Self::Failed(why) => {
                print_progress(&format!("{version}: {why}"));
                format!("failed: {}", why.lines().next().unwrap_or_default())
            }
        }
    }
}

fn run_tests(
    options: &KernelOptions,
    store: &Store,
    kernel: &Kernel,
    flowgate: &Path,
    stop: &Stop,
) -> Result<Outcome> {
    let machine = TestMachine { flowgate, tests: &options.tests, programs: &[], modules: &[] };
    let machine = machine.boot(store, kernel, stop)?;
    for test in &options.tests {
        interrupt::check(stop)?;
        let outcome = test.run_in(&machine)?;
        if !outcome.is_success {
            return Ok(Outcome::Failed(outcome.summary));
        }
        print_progress(&format!("{}: {}: {} passed", kernel.version(), test.name(), outcome.tests.len()));
    }
    machine.power_off()?;
    Ok(Outcome::Passed)
}

/// The gateway has to exit at once, with a message that names the kernel version, and must leave nothing attached.
fn expect_refusal(store: &Store, kernel: &Kernel, flowgate: &Path, stop: &Stop) -> Result<Outcome> {
    let machine = TestMachine { flowgate, tests: &[], programs: &[], modules: &[] };
    let machine = machine.boot(store, kernel, stop)?;
    machine.ip("link add up0 type veth peer name client0")?;
    machine.ip("link set up0 up")?;
    machine.write("/etc/flowgate/manifests/none.yaml", "")?;
    let command = ["flowgate", "run", "--manifests", "/etc/flowgate/manifests", "--interface", "up0"];
    let ended = machine.run(&command, Duration::from_secs(60))?;
    let sentence = ended.errors.lines().find_map(|line| line.strip_prefix("flowgate: "));
    let left = machine.ip("-d link show dev up0")?;
    let version = kernel.version();
    machine.power_off()?;
    if left.contains("prog/xdp") {
        return Ok(Outcome::Failed(format!("something is left on the interface: {left}")));
    }
    match sentence.filter(|sentence| sentence.contains(&version) && sentence.contains("older than")) {
        Some(sentence) if ended.code == Some(1) => {
            print_progress(&format!("{version}: {sentence}"));
            Ok(Outcome::Refused)
        }
        _ => {
            let said = last_lines(&ended.errors, 20);
            Ok(Outcome::Failed(format!(
                "the gateway did not refuse Linux {version} with a clear message:\n{said}"
            )))
        }
    }
}
