//! Runs the attached program on a packet by BPF_PROG_TEST_RUN, without sending it.

use std::time::Duration;

use aya::TestRunOptions;
use aya::programs::TestRun;

use super::{Steering, SteeringError};

// enum xdp_action
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;

/// The program's decision on one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// To the kernel.
    Pass,
    /// To a worker's socket.
    Redirect,
    /// Dropped: ours, no socket in the slot, within the grace period.
    Drop,
    /// Another XDP action, which the program does not use.
    Other(u32),
}

impl Steering {
    /// Runs an interface's program on one packet, as if received on queue 0. The program counts it.
    ///
    /// # Errors
    ///
    /// An interface that is not attached, or those of the kernel, which needs at least 14 bytes.
    pub fn probe(&self, ifindex: u32, packet: &[u8]) -> Result<Verdict, SteeringError> {
        self.probe_repeatedly(ifindex, packet, 1).map(|(verdict, _)| verdict)
    }

    /// As [`probe`](Self::probe), `repeat` times in a row. Also returns the average time of one run, rounded by the kernel to
    /// a nanosecond.
    ///
    /// # Errors
    ///
    /// Those of [`probe`](Self::probe).
    pub fn probe_repeatedly(
        &self,
        ifindex: u32,
        packet: &[u8],
        repeat: u32,
    ) -> Result<(Verdict, Duration), SteeringError> {
        let known = self.reports.iter().position(|report| report.ifindex == ifindex);
        let program = &self.programs[known.ok_or(SteeringError::NoSlot { ifindex, queue: 0 })?];
        let options = TestRunOptions { data_in: Some(packet), repeat, ..TestRunOptions::new() };
        let result = program.xdp.test_run(options)?;
        let verdict = match result.return_value {
            XDP_PASS => Verdict::Pass,
            XDP_REDIRECT => Verdict::Redirect,
            XDP_DROP => Verdict::Drop,
            other => Verdict::Other(other),
        };
        Ok((verdict, result.duration))
    }
}
