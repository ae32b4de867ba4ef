//! A small network in one thread: clients and backends that talk through the gateway's own workers, over
//! links that lose, delay, reorder and double, while tables change and time passes. Everything follows from
//! a seed. Each packet is held against the model.

#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod frames;
pub(crate) mod held;
pub(crate) mod network;
pub(crate) mod peers;
pub(crate) mod report;
pub(crate) mod run;
pub(crate) mod spy;
pub(crate) mod test_bed;
pub(crate) mod worlds;
