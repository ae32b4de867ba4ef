//! The worker engine: what happens to a packet between its arrival and its departure.
//!
//! [`pipeline`] decides and rewrites, a function of packet, time, tables and flows; [`device`] brings and
//! takes frames; [`worker`] joins the two in a loop on its own core; [`watchdog`] sees when a worker
//! hangs. Never knows Kubernetes, never resolves a name, never logs on the packet path.
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
pub use pipeline_config::{MssClamp, PipelineConfig};
pub use verdict::{DropReason, PassReason, RejectReason, Verdict};
pub use worker::{Worker, WorkerConfig, WorkerHandle};
