//! Whole conversations through the gateway's workers, each packet held against an independent model.
//!
//! `SEEDS` runs (default 60) from `FIRST_SEED` (default 1), variables or arguments such as `SEEDS=20`, after the seeds
//! that once failed, which `corpus/seeds.txt` keeps. A failure is shrunk, told and kept there. The last line is
//! `{"seeds":N,"differences":D}`.
#![allow(clippy::unwrap_used, reason = "test support: a panic is the report")]
#![allow(clippy::print_stdout, reason = "progress and failures must be seen")]

mod model;
mod simulation;

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;

use simulation::report::{shrink, story};
use simulation::run::{Tally, run};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        return ExitCode::SUCCESS;
    }
    let number = |name: &str| {
        let argument = arguments.iter().find_map(|argument| argument.strip_prefix(name)?.strip_prefix('='));
        let text = argument.map(str::to_owned).or_else(|| std::env::var(name).ok())?;
        text.parse::<u64>().ok()
    };
    let (seeds, first) = (number("SEEDS").unwrap_or(60), number("FIRST_SEED").unwrap_or(1));
    let kept = kept_seeds();
    let mut differences = 0_u64;
    let mut total = Tally::default();
    for (done, seed) in kept.iter().copied().chain(first..first + seeds).enumerate() {
        match attempt(seed) {
            Ok(tally) => {
                total.frames += tally.frames;
                total.sent += tally.sent;
                total.flows = total.flows.max(tally.flows);
            }
            Err(what) => {
                differences += 1;
                println!("seed {seed} differs:\n{what}");
                keep(&kept, seed);
                if differences == 20 {
                    break;
                }
            }
        }
        if (done + 1) % 1000 == 0 {
            println!("{} runs, {differences} differences", done + 1);
        }
    }
    println!("{} frames came, {} were sent, {} flows at once at most", total.frames, total.sent, total.flows);
    let silent = total.sent * 5 < total.frames;
    if silent && differences == 0 {
        println!("too little was sent: a simulation in which nothing happens shows nothing");
    }
    println!("{{\"seeds\":{seeds},\"differences\":{differences}}}");
    if differences == 0 && !silent { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs a seed; a difference or a panic comes back in words.
fn attempt(seed: u64) -> Result<Tally, String> {
    match catch_unwind(AssertUnwindSafe(|| run(seed))) {
        Ok(Ok(tally)) => Ok(tally),
        Ok(Err(mut failure)) => {
            shrink(&mut failure, 2000);
            Err(story(&failure))
        }
        Err(_) => Err("it panicked".into()),
    }
}

fn corpus() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/seeds.txt")
}

/// Seeds that once failed, one a line.
fn kept_seeds() -> Vec<u64> {
    let text = std::fs::read_to_string(corpus()).unwrap_or_default();
    text.lines().filter_map(|line| line.split('#').next()?.trim().parse().ok()).collect()
}

fn keep(kept: &[u64], seed: u64) {
    if kept.contains(&seed) {
        return;
    }
    let file = std::fs::OpenOptions::new().create(true).append(true).open(corpus());
    if let Err(error) = file.and_then(|mut file| writeln!(file, "{seed}")) {
        println!("{} cannot be written: {error}", corpus().display());
    }
}
