//! A slot for one worker: its sockets, its thread, and its counters, which survive the worker.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use flowgate_dataplane::device::XskDevice;
use flowgate_dataplane::{Counters, WorkerHandle, WorkerNumber};
use flowgate_xsk::steering::SteeringError;

use crate::appliance::sockets::{MemoryRoom, QueueSocket};

/// One worker number with its core and sockets. It stays when its worker is replaced.
pub(crate) struct WorkerSlot {
    pub(super) number: WorkerNumber,
    pub(super) core: Option<usize>,
    pub(crate) sockets: Vec<QueueSocket>,
    /// By which sockets are opened while the worker runs.
    pub(super) room: Option<MemoryRoom>,
    pub(super) stage: Stage,
    /// Counters of the workers before the present one.
    pub(super) counted: Counters,
    /// When workers of this slot panicked in the last minute.
    pub(super) panics: VecDeque<Instant>,
}

/// What a slot has at the moment.
pub(super) enum Stage {
    /// Its sockets are open.
    Ready(XskDevice),
    Running(WorkerHandle<XskDevice>),
    /// It has neither worker nor sockets.
    Empty,
}

impl WorkerSlot {
    /// Counters of all workers that this slot has had.
    pub(crate) fn counters(&self) -> Counters {
        match &self.stage {
            Stage::Running(handle) => handle.state.counters.read(),
            Stage::Ready(_) | Stage::Empty => self.counted,
        }
    }

    /// The core that the worker is bound to; `None` if it is not, or does not run.
    pub(crate) fn core(&self) -> Option<u64> {
        match &self.stage {
            Stage::Running(handle) => handle.state.core(),
            Stage::Ready(_) | Stage::Empty => None,
        }
    }

    /// Injects a fault into the worker. `false`: no worker runs.
    #[cfg(feature = "lab")]
    pub(crate) fn inject(&self, fault: flowgate_dataplane::fault::Fault) -> bool {
        let running = if let Stage::Running(handle) = &self.stage { Some(handle) } else { None };
        running.map(|handle| handle.state.inject(fault)).is_some()
    }

    /// The progress of the worker; `None` if none runs.
    pub(super) fn heartbeat(&self) -> Option<u64> {
        match &self.stage {
            Stage::Running(handle) if !handle.is_finished() => Some(handle.state.heartbeat()),
            _ => None,
        }
    }

    /// Ends the worker and closes its sockets. Waits for the thread, so it must not be called for a worker that hangs.
    pub(super) fn teardown(&mut self) {
        self.counted = self.counters();
        self.sockets.clear();
        self.room = None;
        if let Stage::Running(handle) = std::mem::replace(&mut self.stage, Stage::Empty) {
            drop(handle.stop());
        }
    }

    /// Polls, since a thread has no join with a limit.
    pub(super) fn has_stopped_within(&self, limit: Duration) -> bool {
        let finished = || match &self.stage {
            Stage::Running(handle) => handle.is_finished(),
            Stage::Ready(_) | Stage::Empty => true,
        };
        (0..limit.as_millis() / STEP.as_millis()).any(|_| {
            let done = finished();
            if !done {
                std::thread::sleep(STEP);
            }
            done
        })
    }

    /// Whether there were at most [`PANICS_MAX`] panics in the last [`PANICS_WINDOW`].
    pub(super) fn may_try_again(&mut self, now: Instant) -> bool {
        while self.panics.front().is_some_and(|at| now.duration_since(*at) > PANICS_WINDOW) {
            self.panics.pop_front();
        }
        self.panics.len() <= PANICS_MAX
    }

    /// Applies `act` to each socket; errors are logged as "cannot `what`".
    pub(super) fn for_each_socket(
        &self,
        what: &str,
        act: impl Fn(&QueueSocket) -> Result<(), SteeringError>,
    ) {
        for socket in &self.sockets {
            if let Err(error) = act(socket) {
                let (interface, queue) = (&socket.interface, socket.queue);
                tracing::error!(worker = self.number.index, interface, queue, %error, "cannot {what}");
            }
        }
    }
}

/// A slot's worker is replaced at most so many times in this time.
pub(super) const PANICS_MAX: usize = 5;
pub(super) const PANICS_WINDOW: Duration = Duration::from_secs(60);
/// How often a stop is polled for.
const STEP: Duration = Duration::from_millis(2);
