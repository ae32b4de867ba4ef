//! Proves interfaces while they serve: those that could not be proven before there was traffic, and those that have changed.
//! Probes run on a thread of their own, since they wait for replies.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use flowgate_tables::InterfaceId;
use flowgate_xsk::steering::AttachReport;
use tokio::task::{JoinError, JoinHandle};

use super::probe::{Finding, Target};
use super::proofs::{Mode, Outcome};
use super::truncation::TruncationDetector;
use super::{
    ModeAndPlan, Sender, exchange, go_to_planned_modes, note, note_modes, obstacle, outcome, tap, targets,
};
use crate::appliance::Appliance;
use crate::appliance::publish::Publishing;
use crate::appliance::workers::Workers;

/// What the supervisor calls every [`CHECK_EVERY`].
#[derive(Default)]
pub(in crate::appliance) struct Prover {
    attempts: BTreeMap<String, Attempts>,
    detectors: BTreeMap<String, TruncationDetector>,
    tried: Vec<ModeAndPlan>,
    /// The probes that run now.
    running: Option<JoinHandle<Found>>,
}

/// Probes and their findings, in the same order.
pub(in crate::appliance) type Found = (Vec<PendingProbe>, io::Result<Vec<Finding>>);

impl Prover {
    /// Starts the probes that are due. If there are none, applies what is known.
    pub(in crate::appliance) fn look(&mut self, appliance: &mut Appliance, now: Instant) {
        let Appliance { workers, publishing } = appliance;
        if self.running.is_some() || !workers.is_serving() {
            return;
        }
        note_modes(workers, publishing.steering.report());
        let open = due_probes(workers, publishing, &mut self.attempts, now);
        if open.is_empty() {
            return self.act(appliance);
        }
        self.running = Some(tokio::task::spawn_blocking(move || {
            let devices: Vec<_> =
                open.iter().map(|pending| (pending.ifindex, pending.targets.clone())).collect();
            let found =
                exchange::run_probes(&devices, |tap, at, frame| tap.send(&open[at].link.address, frame));
            (open, found)
        }));
    }

    /// The findings of the running probes; pending while none run. May be cancelled: they stay available.
    pub(in crate::appliance) async fn found(&mut self) -> Result<Found, JoinError> {
        let found = match &mut self.running {
            Some(running) => running.await,
            None => std::future::pending().await,
        };
        self.running = None;
        found
    }

    /// Records findings and applies them.
    pub(in crate::appliance) fn conclude(
        &mut self,
        appliance: &mut Appliance,
        found: Result<Found, JoinError>,
    ) {
        match found {
            Ok((open, Ok(found))) => conclude(appliance, &open, &found),
            Ok((_, Err(error))) => tracing::warn!(%error, "interfaces cannot be proven"),
            Err(panic) => tracing::error!(%panic, "interfaces cannot be proven"),
        }
        self.act(appliance);
    }

    fn act(&mut self, appliance: &mut Appliance) {
        watch_deliveries(&mut appliance.workers, &appliance.publishing, &mut self.detectors);
        go_to_planned_modes(appliance, &mut self.tried);
        appliance.workers.proofs.save_changes();
    }
}

/// Records which interfaces cut the frames that they deliver. Only unproven ones are examined: a proof is better evidence.
fn watch_deliveries(
    workers: &mut Workers,
    publishing: &Publishing,
    detectors: &mut BTreeMap<String, TruncationDetector>,
) {
    if !workers.proofs.is_on() {
        return;
    }
    let chunk_len = workers.chunk_len();
    for report in publishing.steering.report() {
        let interface = &report.interface;
        let is_open = |mode| mode == Mode::ZeroCopy && workers.proofs.is_open(interface, mode, chunk_len);
        let Some(mode) = workers.mode(interface).filter(|mode| is_open(*mode)) else { continue };
        let Ok(delivery) = publishing.steering.delivery(report.ifindex) else { continue };
        let Some(len) = detectors.entry(interface.clone()).or_default().look(delivery) else { continue };
        let how = Outcome::Lost(format!("packets are cut to frames of {len} bytes in {mode}"));
        note(workers, interface, mode, chunk_len, how);
    }
}

/// A probe of an interface that serves, with the state for which its finding holds.
pub(in crate::appliance) struct PendingProbe {
    interface: String,
    ifindex: u32,
    mode: Mode,
    chunk_len: u32,
    link: tap::Link,
    targets: Vec<Target>,
}

/// Probes of an interface in one mode, frame length and ifindex (`of`) without a reply, and when the next one is due.
#[derive(Clone, Copy, Debug)]
struct Attempts {
    of: (Mode, u32, u32),
    count: usize,
    next: Instant,
}

/// The probes that are due now. Records why others are not possible.
fn due_probes(
    workers: &mut Workers,
    publishing: &Publishing,
    attempts: &mut BTreeMap<String, Attempts>,
    now: Instant,
) -> Vec<PendingProbe> {
    if !workers.proofs.is_on() {
        return Vec::new();
    }
    let (tables, chunk_len) = (publishing.publisher.current(), workers.chunk_len());
    let mut open = Vec::new();
    for (device, report) in (0..).map(InterfaceId).zip(publishing.steering.report()) {
        let interface = &report.interface;
        let Some(mode) = workers.mode(interface) else { continue };
        if !workers.proofs.is_open(interface, mode, chunk_len) || workers.proofs.is_refused(interface) {
            continue;
        }
        let key = (mode, chunk_len, report.ifindex);
        let round = attempts.entry(interface.clone()).or_insert(Attempts { of: key, count: 0, next: now });
        if round.of != key {
            *round = Attempts { of: key, count: 0, next: now };
        }
        if round.count >= ATTEMPTS_MAX || now < round.next {
            continue;
        }
        let largest = report.mtu.min(workers.largest_packet());
        let targets = targets::of(&tables.routing, device, largest, round.count);
        match obstacle(interface, &targets) {
            Ok(link) => {
                round.next = now + FIRST_PAUSE * 4_u32.pow(u32::try_from(round.count).unwrap_or_default());
                round.count += 1;
                let (interface, ifindex) = (interface.clone(), report.ifindex);
                open.push(PendingProbe { interface, ifindex, mode, chunk_len, link, targets });
            }
            Err(why) => {
                workers.proofs.note(interface, mode, chunk_len, Outcome::Unproven(why));
            }
        }
    }
    open
}

/// Records the findings of probes that ran while workers had the sockets.
fn conclude(Appliance { workers, publishing }: &mut Appliance, open: &[PendingProbe], found: &[Finding]) {
    for (pending, finding) in open.iter().zip(found) {
        let PendingProbe { interface, ifindex, mode, chunk_len, .. } = pending;
        let is_same = |report: &AttachReport| report.interface == *interface && report.ifindex == *ifindex;
        let still = publishing.steering.report().iter().any(is_same);
        if !still || workers.mode(interface) != Some(*mode) || workers.chunk_len() != *chunk_len {
            continue; // The interface has changed since the probe began, so that the finding is about another state.
        }
        note(workers, interface, *mode, *chunk_len, outcome(*finding, *mode, Sender::Kernel));
    }
}

/// How often due probes are looked for.
pub(in crate::appliance) const CHECK_EVERY: Duration = Duration::from_millis(500);
/// Pause after the first probe without a reply; four times as long after each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Probes without a reply after which an interface stays unproven.
const ATTEMPTS_MAX: usize = 4;
