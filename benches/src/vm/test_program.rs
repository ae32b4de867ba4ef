//! Test programs of this workspace, run inside a machine.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use super::{Image, Kernel, Machine, MachineOptions, Store};
use crate::error::{Error, Result};
use crate::lab::gateway::last_lines;
use crate::loadgen::stop::Stop;

/// The modules of the lab. (Debian kernels have IPv6 built in.)
const LAB_MODULES: [&str; 2] = ["veth", "bridge"];
/// Time limit of a test program; everything is many times slower inside.
const TEST_LIMIT: Duration = Duration::from_secs(900);

/// A test program built by `cargo test --no-run`: its path, then its arguments, separated by blanks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestProgram {
    path: PathBuf,
    arguments: Vec<String>,
}

impl FromStr for TestProgram {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split_ascii_whitespace();
        let path = words.next().ok_or("an empty name of a test program")?;
        Ok(Self { path: path.into(), arguments: words.map(str::to_owned).collect() })
    }
}

/// The outcome of a test program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TestOutcome {
    /// Each test that ran, and whether it passed.
    pub(super) tests: Vec<(String, bool)>,
    /// Whether the program exited with 0 and all its tests passed.
    pub(super) is_success: bool,
    /// Output and console, to print after a failure.
    pub(super) summary: String,
}

impl TestProgram {
    /// Its name without the folder and cargo's hash.
    pub(super) fn name(&self) -> String {
        let stem = self.path.file_stem().unwrap_or_default().to_string_lossy();
        stem.rsplit_once('-').map_or_else(|| stem.as_ref(), |(name, _)| name).to_owned()
    }

    /// Its path, which is the same on the host and inside.
    fn absolute(&self) -> Result<PathBuf> {
        self.path.canonicalize().map_err(Error::io(format!("find {}", self.path.display())))
    }

    fn add_to(&self, image: &Image) -> Result<()> {
        let path = self.absolute()?;
        image.program(&path, &path.to_string_lossy())?;
        // Integration tests start the binary that was built beside them.
        let beside = path.parent().and_then(Path::parent).map(|folder| folder.join("flowgate"));
        match beside.filter(|beside| beside.exists()) {
            Some(beside) => image.program(&beside, &beside.to_string_lossy()),
            None => Ok(()),
        }
    }

    /// Runs it inside with one test thread.
    pub(super) fn run_in(&self, machine: &Machine) -> Result<TestOutcome> {
        let path = self.absolute()?;
        let path = path.to_string_lossy();
        let mut command = vec![path.as_ref(), "--test-threads=1"];
        command.extend(self.arguments.iter().map(String::as_str));
        let ended = machine.run(&command, TEST_LIMIT)?;
        let tests = tests_of(&ended.output);
        // A program without the standard test harness counts as one test.
        let has_harness = ended.output.lines().any(|line| line.starts_with("running "));
        let tests = if has_harness { tests } else { vec![(self.name(), ended.code == Some(0))] };
        let is_success =
            ended.code == Some(0) && !tests.is_empty() && tests.iter().all(|(_, passed)| *passed);
        let said = format!("{}\n{}", ended.output, ended.errors);
        let console = last_lines(&machine.console(), 10);
        let failed = tests.iter().filter(|(_, passed)| !passed).count();
        let summary = format!(
            "{}: {failed} of {} failed\n{}\nthe last lines of the console:\n{console}",
            self.name(),
            tests.len(),
            last_lines(&said, 60)
        );
        Ok(TestOutcome { tests, is_success, summary })
    }
}

/// What a machine that runs tests holds, besides what the lab needs.
pub(super) struct TestMachine<'a> {
    pub(super) flowgate: &'a Path,
    pub(super) tests: &'a [TestProgram],
    /// Programs of this system to copy into it.
    pub(super) programs: &'a [&'a str],
    /// Kernel modules to copy and load.
    pub(super) modules: &'a [&'a str],
}

impl TestMachine<'_> {
    pub(super) fn boot(&self, store: &Store, kernel: &Kernel, stop: &Stop) -> Result<Machine> {
        let image = Image::new(self.flowgate)?;
        for test in self.tests {
            test.add_to(&image)?;
        }
        image.programs(&["setpriv", "taskset", "ethtool"])?;
        image.programs(self.programs)?;
        let modules = [&LAB_MODULES, self.modules].concat();
        image.modules(kernel, &modules)?;
        let machine = Machine::boot(store, kernel, image.pack()?, &MachineOptions::default(), stop)?;
        machine.load_modules(&modules)?;
        machine.ip("link set lo up")?;
        Ok(machine)
    }
}

/// The tests in the output of a test program: `test NAME ... ok`. Output of a test may separate name and result.
fn tests_of(output: &str) -> Vec<(String, bool)> {
    let mut running = None;
    let mut tests = Vec::new();
    for line in output.lines() {
        if let Some((name, rest)) = line.strip_prefix("test ").and_then(|line| line.split_once(" ... ")) {
            running = Some(name.split(" - ").next().unwrap_or(name).to_owned());
            if rest.starts_with("ignored") {
                running = None;
            }
        }
        let outcome = if line == "ok" || line.ends_with(" ... ok") {
            Some(true)
        } else if line == "FAILED" || line.ends_with(" ... FAILED") {
            Some(false)
        } else {
            None
        };
        if let (Some(passed), Some(name)) = (outcome, &running) {
            tests.push((name.clone(), passed));
            running = None;
        }
    }
    // A test that aborted the program has no result: it failed.
    tests.extend(running.map(|name| (name, false)));
    tests
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_program_is_named_without_the_suffix_of_cargo() {
        let test: TestProgram = "target/debug/deps/gateway-0123456789abcdef http_".parse().unwrap();
        assert_eq!((test.name(), test.arguments), ("gateway".to_owned(), vec!["http_".to_owned()]));
        assert!(" ".parse::<TestProgram>().is_err());
    }

    #[test]
    fn a_test_counts_by_its_own_outcome() {
        let output = "running 5 tests\ntest a ... ok\ntest b ... FAILED\ntest c ... ignored, needs sctp\n\
                      test d ... it says something\nok\ntest e ... ";
        let expected = [("a", true), ("b", false), ("d", true), ("e", false)];
        assert_eq!(tests_of(output), expected.map(|(name, passed)| (name.to_owned(), passed)));
    }
}
