//! The command lines of `flowgate lab` and `flowgate loadgen`: options, and what they run. The binary only dispatches.

mod lab;
mod loadgen;

pub use lab::{LabCommand, run_lab};
pub use loadgen::{LoadgenArgs, LoadgenCommand, run_loadgen};
