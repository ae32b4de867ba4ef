//! The configuration of a worker, and the part of it that may change while it runs.

use std::time::Duration;

use flowgate_flow::Timeouts;

use crate::burst::WorkerNumber;
use crate::pipeline_config::PipelineConfig;

/// The configuration of one worker.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Its number.
    pub number: WorkerNumber,
    /// The core that it is pinned to; `None` to let the kernel choose.
    pub core: Option<usize>,
    /// What may change while it runs.
    pub settings: WorkerSettings,
}

/// The part of a worker's configuration that may change while it runs.
#[derive(Clone, Copy, Debug)]
pub struct WorkerSettings {
    /// For how long it polls without receiving a frame before it sleeps.
    pub idle_before_sleep: Duration,
    /// Idle timeouts of flows.
    pub timeouts: Timeouts,
    /// The operator's choices about the treatment of packets.
    pub pipeline: PipelineConfig,
}
