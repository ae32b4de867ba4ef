//! The worker engine: what happens to a packet between its arrival and its departure.
//!
//! Read `pipeline.rs` first: [`pipeline`] decides about packets and rewrites them, a function of packet, time, tables and
//! flows. [`device`] receives and sends frames, [`worker`] joins the two in a loop on a core of its own, and
//! [`watchdog`] notices a worker that hangs. [`verdict`] lists every fate of a packet, [`counters`] everything that is
//! counted.
//!
//! This crate knows neither Kubernetes nor names, and does not log on the packet path. Ids such as P801 or D1 in comments
//! are behaviours of Services; `control/KUBERNETES.md` defines them.
#![forbid(unsafe_code)]

pub mod adopt;
pub mod burst;
pub mod counters;
pub mod device;
pub mod exhaustion;
#[cfg(feature = "lab")]
pub mod fault;
pub mod pipeline;
pub mod pipeline_config;
mod token_bucket;
pub mod verdict;
pub mod watchdog;
pub mod worker;

pub use burst::{BURST, FrameBuffer, RxChecksums, WorkerNumber};
pub use counters::{Counters, Event, SharedCounters};
pub use device::Device;
pub use pipeline::{Context, Pipeline, Process};
pub use pipeline_config::{MssClamp, PipelineConfig, UnservedPorts};
pub use verdict::{DropReason, PassReason, RejectReason, Verdict};
pub use worker::{Worker, WorkerConfig, WorkerHandle, WorkerSettings};
