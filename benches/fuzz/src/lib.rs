//! The fuzz loop on stable Rust: replay the corpus, then generate and mutate inputs until the time is over.
//!
//! Inputs are bytes. A target generates new ones and reduces what each did to a [`Feature`], in place of coverage
//! instrumentation: an input with a new feature joins the pool that later inputs are mutated from. One that panics is
//! minimized, written to the corpus of its target (`tests/corpus/NAME/` of the package) and fails the test. `cargo
//! test` replays the corpora and fuzzes briefly; `make fuzz` divides `FUZZ_SECONDS` among all targets.
#![forbid(unsafe_code)]

mod mutate;
pub mod objects;

use std::collections::HashSet;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use mutate::mutated;

pub use fastrand::Rng;

/// All fuzz targets of the workspace: each gets an even share of the time.
pub const TARGETS: [&str; 10] =
    ["admin", "config", "dns", "flow_table", "frames", "headers", "kube", "manifests", "netlink", "trace"];

/// A hash of what the target did with an input. Inputs with the same feature are equivalent.
pub type Feature = u64;

/// The feature of anything that can be hashed.
pub fn feature(observed: &impl Hash) -> Feature {
    let mut hasher = DefaultHasher::new();
    observed.hash(&mut hasher);
    hasher.finish()
}

/// One fuzz target.
#[derive(Debug)]
pub struct Target {
    name: &'static str,
    corpus: PathBuf,
    dictionary: &'static [&'static [u8]],
}

impl Target {
    /// The target `name` of the package in `manifest_dir`.
    ///
    /// # Panics
    /// If the name is not in [`TARGETS`].
    pub fn new(name: &'static str, manifest_dir: &str) -> Self {
        assert!(TARGETS.contains(&name), "{name} is in no list of targets, so it would get no time");
        let corpus = PathBuf::from(manifest_dir).join("tests/corpus").join(name);
        Self { name, corpus, dictionary: &[] }
    }

    /// Tokens that mutation inserts, such as keywords of the format.
    #[must_use]
    pub fn dictionary(self, dictionary: &'static [&'static [u8]]) -> Self {
        Self { dictionary, ..self }
    }

    /// Replays the corpus, then tries inputs until the target's time is over: some from `make`, the others mutated
    /// from inputs with a new feature. `check` panics if an invariant does not hold.
    ///
    /// # Panics
    /// If an input makes `check` panic, or the corpus is missing or empty.
    pub fn run(&self, mut make: impl FnMut(&mut Rng) -> Vec<u8>, mut check: impl FnMut(&[u8]) -> Feature) {
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let seed = number("FUZZ_SEED").unwrap_or_else(|| fastrand::u64(..));
        let mut random = Rng::with_seed(seed);
        let mut pool = self.read_corpus();
        let mut features: HashSet<Feature> = HashSet::new();
        for input in &pool {
            features.insert(self.attempt(input, seed, &mut check));
        }
        let deadline = now() + time_share(number("FUZZ_SECONDS"));
        let mut tried = 0_u64;
        while now() < deadline {
            for _ in 0..16 {
                let input = match random.u8(..4) {
                    0 => make(&mut random),
                    1 => mutated(&make(&mut random), &pool, self.dictionary, &mut random),
                    _ => mutated(&pool[random.usize(..pool.len())], &pool, self.dictionary, &mut random),
                };
                if features.insert(self.attempt(&input, seed, &mut check)) && pool.len() < POOL_MAX {
                    pool.push(input);
                }
                tried += 1;
            }
        }
        self.report(tried, features.len(), seed);
    }

    fn read_corpus(&self) -> Vec<Vec<u8>> {
        let entries = fs::read_dir(&self.corpus);
        let entries = entries.unwrap_or_else(|error| panic!("{}: {error}", self.corpus.display()));
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        let inputs: Vec<Vec<u8>> = paths.iter().filter_map(|path| fs::read(path).ok()).collect();
        assert!(!inputs.is_empty(), "{}: the corpus is committed", self.corpus.display());
        inputs
    }

    fn attempt(&self, input: &[u8], seed: u64, check: &mut impl FnMut(&[u8]) -> Feature) -> Feature {
        match catch_unwind(AssertUnwindSafe(|| check(input))) {
            Ok(feature) => feature,
            Err(panic) => {
                let smallest = minimized(input, check);
                let path = self.corpus.join(format!("crash-{:016x}", feature(&smallest)));
                let written = fs::write(&path, &smallest);
                let text = String::from_utf8_lossy(&smallest);
                eprintln!("{}: FUZZ_SEED={seed}: {} bytes: {text:?}", self.name, smallest.len());
                eprintln!("{}: {}: {written:?}", self.name, path.display());
                resume_unwind(panic)
            }
        }
    }

    /// Prints a line of JSON, and appends it to the file `FUZZ_REPORT` where `make fuzz` sums the targets up.
    fn report(&self, inputs: u64, features: usize, seed: u64) {
        let line = format!(
            "{{\"target\":\"{}\",\"inputs\":{inputs},\"behaviours\":{features},\"seed\":{seed}}}",
            self.name
        );
        eprintln!("{line}");
        if let Ok(path) = std::env::var("FUZZ_REPORT") {
            let file = fs::OpenOptions::new().create(true).append(true).open(&path);
            let written = file.and_then(|mut file| writeln!(file, "{line}"));
            written.unwrap_or_else(|error| panic!("{path}: {error}"));
        }
    }
}

/// Removes ever smaller pieces, as long as the input still panics (delta debugging).
fn minimized(input: &[u8], check: &mut impl FnMut(&[u8]) -> Feature) -> Vec<u8> {
    let mut best = input.to_vec();
    let mut piece = best.len().div_ceil(2).max(1);
    let until = now() + MINIMIZE_LIMIT;
    loop {
        let mut at = 0;
        while at < best.len() && now() < until {
            let mut less = best.clone();
            less.drain(at..(at + piece).min(less.len()));
            if catch_unwind(AssertUnwindSafe(|| check(&less))).is_err() {
                best = less;
            } else {
                at += piece;
            }
        }
        if piece == 1 || now() >= until {
            return best;
        }
        piece = piece.div_ceil(2);
    }
}

/// The time of one target: an even share of `FUZZ_SECONDS`.
fn time_share(all_seconds: Option<u64>) -> Duration {
    match all_seconds {
        Some(seconds) => Duration::from_secs(seconds) / u32::try_from(TARGETS.len()).unwrap_or(1),
        None => DEFAULT_TIME,
    }
}

#[expect(clippy::disallowed_methods, reason = "fuzzing is bounded by time")]
fn now() -> Instant {
    Instant::now()
}

/// Time of a target without `FUZZ_SECONDS`.
const DEFAULT_TIME: Duration = Duration::from_millis(300);

/// Time limit of minimizing.
const MINIMIZE_LIMIT: Duration = Duration::from_secs(5);

/// Largest number of inputs to mutate from.
const POOL_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panicking_input_is_reduced_to_what_makes_it_panic() {
        let mut check = |input: &[u8]| {
            assert!(!input.contains(&7) || !input.contains(&9));
            0
        };
        assert_eq!(minimized(&[1, 2, 7, 3, 4, 5, 9, 9, 6], &mut check), [7, 9]);
    }

    #[test]
    fn all_targets_share_the_time() {
        assert_eq!(time_share(Some(60)), Duration::from_secs(6));
        assert_eq!(time_share(None), DEFAULT_TIME);
    }
}
