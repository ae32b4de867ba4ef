//! `lab vm-tests`: tests that need kernel modules which the host may lack: SCTP, VLAN, bonding, netem. They are marked as
//! ignored in the workspace and run here in a virtual machine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::test_program::{TestMachine, TestProgram};
use super::{Kernel, Store};
use crate::error::Result;
use crate::lab::interrupt;
use crate::lab::output::print_progress;
use crate::loadgen::stop::Stop;

/// Modules for the tests, besides those of the lab.
const MODULES: [&str; 5] = ["sctp", "8021q", "bonding", "sch_netem", "dummy"];
const PROGRAMS: [&str; 1] = ["tc"];

/// What to run.
#[derive(Debug, Clone)]
pub struct ModuleOptions {
    /// Where QEMU and kernels are.
    pub store: PathBuf,
    /// The kernel, by the name that `.ci/vm` knows.
    pub kernel: String,
    /// The test programs to run in it.
    pub tests: Vec<TestProgram>,
}

/// The outcome of each test.
#[derive(Debug, Serialize)]
pub struct ModuleReport {
    kernel: String,
    passed: usize,
    failed: usize,
    tests: BTreeMap<String, &'static str>,
}

impl ModuleReport {
    /// Whether tests ran, and all passed.
    pub fn is_success(&self) -> bool {
        self.passed > 0 && self.failed == 0
    }

    /// The report as one line of JSON.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("the report has string keys")
    }
}

/// Boots the kernel and runs the tests in it.
pub fn modules(options: &ModuleOptions, flowgate: &Path, stop: &Stop) -> Result<ModuleReport> {
    let store = Store::new(&options.store);
    let kernel = Kernel::open(&store, &options.kernel)?;
    print_progress(&format!("Linux {} ({})", kernel.release(), options.kernel));
    let machine = TestMachine { flowgate, tests: &options.tests, programs: &PROGRAMS, modules: &MODULES };
    let machine = machine.boot(&store, &kernel, stop)?;
    let mut report =
        ModuleReport { kernel: kernel.release().to_owned(), passed: 0, failed: 0, tests: BTreeMap::new() };
    for test in &options.tests {
        interrupt::check(stop)?;
        let outcome = test.run_in(&machine)?;
        if !outcome.is_success {
            print_progress(&outcome.summary);
            // A program that failed without a failed test counts as one failure.
            report.failed += usize::from(outcome.tests.iter().all(|(_, passed)| *passed));
        }
        for (name, passed) in outcome.tests {
            print_progress(&format!("  {name}: {}", if passed { "ok" } else { "failed" }));
            report.passed += usize::from(passed);
            report.failed += usize::from(!passed);
            report.tests.insert(name, if passed { "ok" } else { "failed" });
        }
    }
    machine.power_off()?;
    Ok(report)
}
