//! The loop of the fuzz targets: a corpus that is replayed, then inputs that are made, broken and tried.
//!
//! Inputs are bytes. A target makes new ones from random numbers and says of each what it saw: an input
//! that shows something new joins the pool that later ones are bred from. One that panics is made smaller,
//! kept in the corpus of its target (`tests/corpus/NAME/` of the package) and ends the test. `cargo test`
//! replays the corpora and tries for a moment; `make fuzz` shares `FUZZ_SECONDS` among all targets.
#![forbid(unsafe_code)]

mod mutate;

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

/// What an input showed: inputs with the same value are alike to the target.
pub type Seen = u64;

/// Boils down anything that can be hashed to what was seen.
pub fn seen(what: &impl Hash) -> Seen {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

/// One fuzz target.
#[derive(Debug)]
pub struct Target {
    name: &'static str,
    corpus: PathBuf,
    words: &'static [&'static [u8]],
}

impl Target {
    /// The target `name` of the package in `manifest_dir`.
    ///
    /// # Panics
    /// The name is not in [`TARGETS`].
    pub fn new(name: &'static str, manifest_dir: &str) -> Self {
        assert!(TARGETS.contains(&name), "{name} is in no list of targets, so it would get no time");
        let corpus = PathBuf::from(manifest_dir).join("tests/corpus").join(name);
        Self { name, corpus, words: &[] }
    }

    /// Pieces that inputs are likely to hold.
    #[must_use]
    pub fn words(self, words: &'static [&'static [u8]]) -> Self {
        Self { words, ..self }
    }

    /// Replays the corpus, then tries inputs until the target's time is over: some from `make`, the others
    /// bred from those that showed something new to `check`, which panics at what must not be.
    ///
    /// # Panics
    /// An input makes `check` panic, or the corpus is missing or empty.
    pub fn run(&self, mut make: impl FnMut(&mut Rng) -> Vec<u8>, mut check: impl FnMut(&[u8]) -> Seen) {
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let seed = number("FUZZ_SEED").unwrap_or_else(|| fastrand::u64(..));
        let mut random = Rng::with_seed(seed);
        let mut pool = self.kept();
        let mut news: HashSet<Seen> = HashSet::new();
        for input in &pool {
            news.insert(self.attempt(input, seed, &mut check));
        }
        let deadline = now() + share(number("FUZZ_SECONDS"));
        let mut tried = 0_u64;
        while now() < deadline {
            for _ in 0..16 {
                let input = match random.u8(..4) {
                    0 => make(&mut random),
                    1 => mutated(&make(&mut random), &pool, self.words, &mut random),
                    _ => mutated(&pool[random.usize(..pool.len())], &pool, self.words, &mut random),
                };
                if news.insert(self.attempt(&input, seed, &mut check)) && pool.len() < POOL_MAX {
                    pool.push(input);
                }
                tried += 1;
            }
        }
        self.report(tried, news.len(), seed);
    }

    /// The inputs of the corpus.
    fn kept(&self) -> Vec<Vec<u8>> {
        let entries = fs::read_dir(&self.corpus);
        let entries = entries.unwrap_or_else(|error| panic!("{}: {error}", self.corpus.display()));
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        let inputs: Vec<Vec<u8>> = paths.iter().filter_map(|path| fs::read(path).ok()).collect();
        assert!(!inputs.is_empty(), "{}: the corpus is committed", self.corpus.display());
        inputs
    }

    fn attempt(&self, input: &[u8], seed: u64, check: &mut impl FnMut(&[u8]) -> Seen) -> Seen {
        match catch_unwind(AssertUnwindSafe(|| check(input))) {
            Ok(seen) => seen,
            Err(panic) => {
                let smallest = smaller(input, check);
                let path = self.corpus.join(format!("crash-{:016x}", seen(&smallest)));
                let kept = fs::write(&path, &smallest);
                let text = String::from_utf8_lossy(&smallest);
                eprintln!("{}: FUZZ_SEED={seed}: {} bytes: {text:?}", self.name, smallest.len());
                eprintln!("{}: {}: {kept:?}", self.name, path.display());
                resume_unwind(panic)
            }
        }
    }

    /// A line for whoever adds the targets up.
    fn report(&self, inputs: u64, seen: usize, seed: u64) {
        let line = format!(
            "{{\"target\":\"{}\",\"inputs\":{inputs},\"behaviours\":{seen},\"seed\":{seed}}}",
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

/// Leaves out what the panic does not need.
fn smaller(input: &[u8], check: &mut impl FnMut(&[u8]) -> Seen) -> Vec<u8> {
    let mut best = input.to_vec();
    let mut piece = best.len().div_ceil(2).max(1);
    let until = now() + SHRINK_FOR;
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

/// The share of one target in all the time there is.
fn share(all_seconds: Option<u64>) -> Duration {
    match all_seconds {
        Some(seconds) => Duration::from_secs(seconds) / u32::try_from(TARGETS.len()).unwrap_or(1),
        None => A_MOMENT,
    }
}

#[expect(clippy::disallowed_methods, reason = "fuzzing is bounded by time")]
fn now() -> Instant {
    Instant::now()
}

/// How long a target tries without `FUZZ_SECONDS`.
const A_MOMENT: Duration = Duration::from_millis(300);

/// How long a panicking input is made smaller.
const SHRINK_FOR: Duration = Duration::from_secs(5);

/// Inputs that others are bred from, at most.
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
        assert_eq!(smaller(&[1, 2, 7, 3, 4, 5, 9, 9, 6], &mut check), [7, 9]);
    }

    #[test]
    fn all_targets_share_the_time() {
        assert_eq!(share(Some(60)), Duration::from_secs(6));
        assert_eq!(share(None), A_MOMENT);
    }
}
