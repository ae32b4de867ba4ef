//! Runs the probes of several interfaces at once: sends what is due and hands them the replies. Takes up to 1.4 s.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::time::{Duration, Instant};

use flowgate_wire::echo::Reply;

use super::probe::{Finding, Probe, Target};
use super::tap::Tap;

/// Probes the targets of each device, given by its ifindex; the findings are in the same order. `send` sends a frame by the
/// device at that position of `devices`.
///
/// # Errors
/// There is no packet socket, or reading from it fails.
pub(super) fn run_probes(
    devices: &[(u32, Vec<Target>)],
    mut send: impl FnMut(&Tap, usize, &[u8]) -> io::Result<()>,
) -> io::Result<Vec<Finding>> {
    let first = u16::try_from(RandomState::new().build_hasher().finish() & 0x7fff).unwrap_or_default();
    let ids = first..first + u16::try_from(devices.len()).unwrap_or(u16::MAX >> 1);
    let tap = Tap::open(ids.start, ids.end)?;
    let probe =
        |(id, (ifindex, targets)): (u16, &(u32, Vec<Target>))| Probe::new(*ifindex, id, targets.clone());
    let mut probes: Vec<Probe> = ids.zip(devices).map(probe).collect();
    let mut frame = vec![0; FRAME_LEN_MAX];
    let start = now();
    loop {
        let elapsed = now().duration_since(start);
        for (position, probe) in probes.iter_mut().enumerate() {
            for (request, packet_len) in probe.due(elapsed) {
                let len = request.write(packet_len, &mut frame);
                // A request that cannot be sent counts as one without a reply.
                if let Some(Err(error)) = len.map(|len| send(&tap, position, &frame[..len])) {
                    tracing::debug!(%error, to = %request.dst, "an echo request was not sent");
                }
            }
        }
        let findings: Option<Vec<_>> = probes.iter().map(Probe::finding).collect();
        if let Some(findings) = findings {
            return Ok(findings);
        }
        let Some((ifindex, len)) = tap.receive(&mut frame, STEP)? else { continue };
        if let Some(reply) = Reply::read(&frame[..len]) {
            let elapsed = now().duration_since(start);
            probes.iter_mut().for_each(|probe| probe.receive(ifindex, &reply, elapsed));
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "replies are waited for")]
fn now() -> Instant {
    Instant::now()
}

/// The longest frame that a request or reply can be in.
const FRAME_LEN_MAX: usize = 18 + 65_535;
/// How long one look at the socket waits.
const STEP: Duration = Duration::from_millis(10);
