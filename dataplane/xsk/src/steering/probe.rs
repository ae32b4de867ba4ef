//! Asking the attached program about a packet, by the kernel's BPF_PROG_TEST_RUN. Never sends one anywhere.

use std::time::Duration;

use aya::TestRunOptions;
use aya::programs::TestRun;

use super::{Steering, SteeringError};

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;

/// What the program does with one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// To the kernel.
    Pass,
    /// To a worker's socket.
    Redirect,
    /// To nobody: ours, no socket there, and the program was told to hold.
    Drop,
    /// Another XDP action: never, unless the program is broken.
    Other(u32),
}

impl Steering {
    /// Runs an interface's program on one packet, as received on queue 0, without sending it anywhere. It counts.
    ///
    /// # Errors
    ///
    /// An interface that is not attached, or what the kernel says: it wants 14 bytes at least.
    pub fn probe(&self, ifindex: u32, packet: &[u8]) -> Result<Verdict, SteeringError> {
        self.probe_repeatedly(ifindex, packet, 1).map(|(verdict, _)| verdict)
    }

    /// As [`probe`](Self::probe), `repeat` times in a row; with the verdict, how long one run took on average. The
    /// kernel rounds to a nanosecond.
    ///
    /// # Errors
    ///
    /// As there.
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
