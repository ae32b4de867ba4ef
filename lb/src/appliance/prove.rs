//! Each interface proves that full-size packets arrive by it: an echo request as large as its MTU to a neighbour, and
//! the answer. What is lost in one mode is tried in the next lower one (zero copy, copy, generic XDP), and stays there
//! if that helps; if nothing helps the path is to blame, and the best mode stays.
//!
//! Before there is traffic ([`before_traffic`]) the requests leave by the AF_XDP sockets themselves. An interface that
//! has no carrier by then, or no neighbour that is known, serves unproven and is tried later ([`Prover`]); then the
//! workers have the sockets, so that requests leave by the kernel and only receiving is proven. Answers are taken as the
//! XDP program passes them to the kernel, by which they come through the same rings of the device as what workers
//! receive, but not through the copy into a frame of copy mode (whose room the kernel checks exactly). They arrive on
//! the one queue that the device chooses for them, and requests leave by the first: other queues of a device are
//! taken to be alike.
//!
//! At most three neighbours of an interface are asked, with at most nine small packets and nine large ones; one that
//! nobody answers is tried four times more within two minutes. What was found is remembered beside the admin socket,
//! so that a restart tries nothing again. Where nobody answers at all, the steering program's notes of what the interface
//! delivers still tell a driver that cuts packets ([`truncation`]).

mod exchange;
mod probe;
mod proofs;
mod tap;
mod targets;
mod truncation;

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use flowgate_control::netlink;
use flowgate_tables::{InterfaceId, Routing};
use flowgate_xsk::steering::{AttachReport, LinkOrigin, Steering, XdpMode};
use tokio::task::{JoinError, JoinHandle};

use self::probe::{Finding, Target};
use super::Appliance;
use super::publish::Publishing;
use super::workers::Workers;

use self::proofs::Outcome;
pub(crate) use self::proofs::{Mode, ProofStatus, Proofs, remove};
use self::truncation::TruncationDetector;

/// Proves what nobody has tried yet, by sockets that have no traffic yet. Sockets and XDP programs are in the modes
/// that follow from it afterwards.
///
/// # Errors
/// Packets are lost in the only mode that the configuration allows, or sockets cannot be opened anew.
pub(crate) async fn before_traffic(workers: &mut Workers, steering: &mut Steering) -> anyhow::Result<()> {
    note_modes(workers, steering.report());
    forget_deliveries(steering)?;
    apply(workers, steering, Grace::Nothing)?;
    if !workers.proofs.is_on() {
        return Ok(());
    }
    if !untried(workers, steering.report()).is_empty() {
        match neighbourhood(steering.report()).await {
            Ok(routing) => settle(workers, steering, &routing, Grace::Nothing)?,
            // Control will not get far without netlink either, and says so.
            Err(error) => tracing::debug!("interfaces are not proven before the start: {error:#}"),
        }
    }
    let interfaces: Vec<String> = steering.report().iter().map(|report| report.interface.clone()).collect();
    match interfaces.iter().find_map(|interface| workers.proofs.objection(interface)) {
        Some(objection) => {
            // Whatever an earlier process left in native mode is left in that.
            for interface in &interfaces {
                let mode = workers.proofs.best(interface).map_or(XdpMode::Native, Mode::xdp);
                steering.change_mode(interface, mode)?;
            }
            anyhow::bail!(objection)
        }
        None => Ok(()),
    }
}

/// Proves what could not be proven before, for as long as the process runs, also what changed meanwhile.
pub(super) struct Prover {
    /// Grace period that is set again and again while sockets are opened anew.
    grace: Duration,
    attempts: BTreeMap<String, Attempts>,
    detectors: BTreeMap<String, TruncationDetector>,
    tried: Vec<ModeAndPlan>,
    /// Interfaces that are being tried now, on a thread of their own.
    running: Option<JoinHandle<Found>>,
}

/// What was asked, and what came of it.
pub(super) type Found = (Vec<PendingProbe>, io::Result<Vec<Finding>>);

impl Prover {
    pub(super) fn new(grace: Duration) -> Self {
        let (attempts, detectors, tried) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        Self { grace, attempts, detectors, tried, running: None }
    }

    /// Begins to try what is to be tried, and looks at what is known.
    pub(super) fn look(&mut self, appliance: &mut Appliance, now: Instant) {
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

    /// What came of a probe; waits for ever while there is none.
    pub(super) async fn found(&mut self) -> Result<Found, JoinError> {
        let found = match &mut self.running {
            Some(running) => running.await,
            None => std::future::pending().await,
        };
        self.running = None;
        found
    }

    /// Goes by what came of a probe.
    pub(super) fn conclude(&mut self, appliance: &mut Appliance, found: Result<Found, JoinError>) {
        match found {
            Ok((open, Ok(found))) => conclude(appliance, &open, &found),
            Ok((_, Err(error))) => tracing::warn!(%error, "interfaces cannot be proven"),
            Err(panic) => tracing::error!(%panic, "interfaces cannot be proven"),
        }
        self.act(appliance);
    }

    fn act(&mut self, appliance: &mut Appliance) {
        watch_deliveries(&mut appliance.workers, &appliance.publishing, &mut self.detectors);
        go_to_planned_modes(appliance, &mut self.tried, self.grace);
        appliance.workers.proofs.save_changes();
    }
}

/// Notes which interfaces that nobody could prove cut what they deliver. Those that were proven do not, whatever comes.
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

/// An interface that is to be tried while workers have its sockets.
pub(super) struct PendingProbe {
    interface: String,
    ifindex: u32,
    mode: Mode,
    chunk_len: u32,
    link: tap::Link,
    targets: Vec<Target>,
}

/// How often an interface was tried in one mode without an answer, and when it is tried again.
#[derive(Clone, Copy, Debug)]
struct Attempts {
    of: (Mode, u32, u32),
    count: usize,
    next: Instant,
}

/// What is to be asked now. Notes what stands in the way of the others.
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
        let targets = targets::of(&tables.routing, device, report.mtu, round.count);
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

/// Notes what was found while workers had the sockets.
fn conclude(Appliance { workers, publishing }: &mut Appliance, open: &[PendingProbe], found: &[Finding]) {
    for (pending, finding) in open.iter().zip(found) {
        let PendingProbe { interface, ifindex, mode, chunk_len, .. } = pending;
        let is_same = |report: &AttachReport| report.interface == *interface && report.ifindex == *ifindex;
        let still = publishing.steering.report().iter().any(is_same);
        if !still || workers.mode(interface) != Some(*mode) || workers.chunk_len() != *chunk_len {
            continue; // it has changed meanwhile: another question
        }
        note(workers, interface, *mode, *chunk_len, outcome(*finding, *mode, Sender::Kernel));
    }
}

/// Notes what was found of an interface that serves, and says it unless another mode follows, which says more.
fn note(workers: &mut Workers, interface: &str, mode: Mode, chunk_len: u32, outcome: Outcome) {
    if let Outcome::Lost(how) = &outcome {
        tracing::warn!(interface, "{how}");
    }
    if !workers.proofs.note(interface, mode, chunk_len, outcome) {
        tell(workers, interface);
    }
}

/// The mode of an interface, and the one that follows from what is known.
type ModeAndPlan = (String, Option<Mode>, Option<Mode>);

/// Takes interfaces that serve to the modes that follow from what is known. `tried` is with what this was tried last: once
/// is enough, since nobody is served meanwhile.
fn go_to_planned_modes(
    Appliance { workers, publishing }: &mut Appliance,
    tried: &mut Vec<ModeAndPlan>,
    grace: Duration,
) {
    refuse_what_is_not_allowed(workers, publishing.steering.report());
    let mode_and_plan = |AttachReport { interface, .. }: &AttachReport| {
        (interface.clone(), workers.mode(interface), workers.proofs.plan(interface))
    };
    let now: Vec<_> = publishing.steering.report().iter().map(mode_and_plan).collect();
    let is_amiss = |(_, mode, plan): &ModeAndPlan| mode.is_some() && mode != plan;
    if !workers.is_serving() || !now.iter().any(is_amiss) || *tried == now {
        return;
    }
    *tried = now;
    let routing = &publishing.publisher.current().routing;
    let grace = Grace::Traffic(grace);
    let settled = workers.pause().and_then(|()| settle(workers, &mut publishing.steering, routing, grace));
    let goes_on = settled.and_then(|()| {
        if refuse_what_is_not_allowed(workers, publishing.steering.report()) {
            apply(workers, &mut publishing.steering, grace)?;
        }
        workers.restarts.fallback += 1;
        workers.resume(&publishing.start_context())
    });
    if let Err(error) = goes_on {
        tracing::error!("the sockets cannot be opened in another mode yet: {error:#}");
    }
}

/// Leaves interfaces in their best mode whose packets arrive only in one that the configuration does not allow. Whether
/// there is any.
fn refuse_what_is_not_allowed(workers: &mut Workers, attached: &[AttachReport]) -> bool {
    let mut any = false;
    for interface in attached.iter().map(|report| &report.interface) {
        if !workers.proofs.is_refused(interface)
            && let Some(objection) = workers.proofs.objection(interface)
        {
            tracing::error!("{objection}");
            workers.proofs.refuse(interface, objection);
            any = true;
        }
    }
    any
}

/// Opens sockets, and attaches programs, in the modes that follow from what is known, and tries those that nobody has
/// tried, until nothing is left to try. The workers must not run.
fn settle(
    workers: &mut Workers,
    steering: &mut Steering,
    routing: &Routing,
    grace: Grace,
) -> anyhow::Result<()> {
    loop {
        apply(workers, steering, grace)?;
        grace.prolong(steering)?;
        let untried = untried(workers, steering.report());
        let outcomes = try_out(workers, steering.report(), routing, &untried);
        let chunk_len = workers.chunk_len();
        let mut changes = false;
        for (interface, mode, outcome) in outcomes {
            if let Outcome::Lost(how) = &outcome {
                tracing::warn!(interface, "{how}");
            }
            changes |= workers.proofs.note(&interface, mode, chunk_len, outcome);
        }
        if !changes {
            steering.report().iter().for_each(|report| tell(workers, &report.interface));
            return Ok(());
        }
    }
}

/// Whether there is traffic that must not pass to the kernel while nobody serves it, which would answer it with resets.
#[derive(Clone, Copy)]
enum Grace {
    Nothing,
    /// Dropped for this long after each step, as it is for a successor process.
    Traffic(Duration),
}

impl Grace {
    fn prolong(self, steering: &mut Steering) -> anyhow::Result<()> {
        match self {
            Self::Traffic(time) if !time.is_zero() => Ok(steering.set_grace_period(time)?),
            Self::Traffic(_) | Self::Nothing => Ok(()),
        }
    }
}

/// Brings sockets and programs into the modes that follow from what is known.
fn apply(workers: &mut Workers, steering: &mut Steering, grace: Grace) -> anyhow::Result<()> {
    loop {
        grace.prolong(steering)?;
        let planned = steering.report().iter().filter_map(|report| {
            let mode = workers.proofs.plan(&report.interface)?;
            (report.queues > 0 && mode.xdp() != report.mode).then(|| (report.interface.clone(), mode))
        });
        let planned: Vec<_> = planned.collect();
        if planned.is_empty() && workers.is_open_as_planned() {
            return Ok(());
        }
        workers.close();
        // Whoever comes after a sudden end must know why a link is in generic mode.
        workers.proofs.save_changes();
        for (interface, mode) in planned {
            match steering.change_mode(&interface, mode.xdp()) {
                Ok(()) => tracing::info!(interface, mode = mode.xdp().name(), "XDP attached"),
                Err(error) if mode == Mode::Generic => {
                    let how = Outcome::Lost(format!("{mode} cannot be had: {error}"));
                    workers.proofs.note(&interface, mode, 0, how);
                }
                Err(error) => {
                    tracing::warn!(interface, "native XDP cannot be had again: {error}");
                    workers.proofs.note_no_native(&interface);
                }
            }
        }
        workers.open_slots(steering.report())?;
        note_modes(workers, steering.report());
        forget_deliveries(steering)?;
    }
}

/// Holds the probes of these interfaces, by the sockets that no worker has yet.
fn try_out(
    workers: &mut Workers,
    attached: &[AttachReport],
    routing: &Routing,
    interfaces: &[(InterfaceId, Mode)],
) -> Vec<(String, Mode, Outcome)> {
    let mut outcomes = Vec::new();
    let (mut devices, mut asked) = (Vec::new(), Vec::new());
    wait_for_carriers(interfaces.iter().map(|(device, _)| &attached[device.index()]).collect());
    for &(device, mode) in interfaces {
        let report = &attached[device.index()];
        let targets = targets::of(routing, device, report.mtu, 0);
        match obstacle(&report.interface, &targets) {
            Ok(link) => {
                devices.push((report.ifindex, targets));
                asked.push((device, mode, link));
            }
            Err(why) => outcomes.push((report.interface.clone(), mode, Outcome::Unproven(why))),
        }
    }
    if devices.is_empty() {
        return outcomes;
    }
    let links: Vec<_> = asked.iter().map(|(.., link)| *link).collect();
    let found = probe_by_sockets(&devices, &links, |at, frame| workers.send(asked[at].0, frame));
    match found {
        Ok(found) => outcomes.extend(asked.into_iter().zip(found).map(|((device, mode, _), finding)| {
            let interface = attached[device.index()].interface.clone();
            (interface, mode, outcome(finding, mode, Sender::Socket))
        })),
        Err(error) => tracing::warn!(%error, "interfaces cannot be proven"),
    }
    outcomes
}

/// Asks by sockets, and where nobody answers also by the kernel: if that gets an answer, and the socket once more does not,
/// the socket sends nothing.
fn probe_by_sockets(
    devices: &[(u32, Vec<Target>)],
    links: &[tap::Link],
    mut send: impl FnMut(usize, &[u8]) -> io::Result<()>,
) -> io::Result<Vec<Finding>> {
    let mut found = exchange::run_probes(devices, |_, at, frame| send(at, frame))?;
    let silent: Vec<_> = (0..found.len()).filter(|at| found[*at].target().is_none()).collect();
    if silent.is_empty() {
        return Ok(found);
    }
    let again: Vec<_> = silent.iter().map(|at| devices[*at].clone()).collect();
    let by_kernel =
        exchange::run_probes(&again, |tap, at, frame| tap.send(&links[silent[at]].address, frame))?;
    if by_kernel.iter().all(|finding| finding.target().is_none()) {
        return Ok(found);
    }
    let by_socket = exchange::run_probes(&again, |_, at, frame| send(silent[at], frame))?;
    for (at, (by_kernel, by_socket)) in silent.into_iter().zip(by_kernel.into_iter().zip(by_socket)) {
        found[at] = match (by_kernel.target(), by_socket.target()) {
            (Some(target), None) => Finding::Mute { target },
            _ => by_socket,
        };
    }
    Ok(found)
}

/// The interfaces of which nobody knows anything in the mode that they are in.
fn untried(workers: &Workers, attached: &[AttachReport]) -> Vec<(InterfaceId, Mode)> {
    let chunk_len = workers.chunk_len();
    let untried = (0..).map(InterfaceId).zip(attached).filter_map(|(device, report)| {
        let mode = workers.mode(&report.interface)?;
        workers.proofs.is_untried(&report.interface, mode, chunk_len).then_some((device, mode))
    });
    untried.collect()
}

/// What was delivered in other modes, or to another process, says nothing of the present ones.
pub(crate) fn forget_deliveries(steering: &mut Steering) -> anyhow::Result<()> {
    let present = steering.report().iter().filter(|report| report.queues > 0);
    let attached: Vec<u32> = present.map(|report| report.ifindex).collect();
    attached.into_iter().try_for_each(|ifindex| Ok(steering.reset_delivery(ifindex)?))
}

fn note_modes(workers: &mut Workers, attached: &[AttachReport]) {
    for report in attached {
        if let Some(mode) = workers.mode(&report.interface) {
            workers.proofs.note_mode(report, mode);
        }
    }
}

/// Why an interface cannot be tried now.
fn obstacle(interface: &str, targets: &[Target]) -> Result<tap::Link, String> {
    let link = tap::link(interface).filter(|link| link.is_running).ok_or("no carrier")?;
    if targets.is_empty() { Err("no neighbour is known yet".to_owned()) } else { Ok(link) }
}

/// A device may renegotiate its link when a program is attached or sockets are bound, igb for some seconds. One that takes
/// longer is tried later.
fn wait_for_carriers(mut missing: Vec<&AttachReport>) {
    for look in 0..CARRIER_LOOKS_FRESH {
        missing.retain(|report| {
            let may_wait = report.link == LinkOrigin::Fresh || look < CARRIER_LOOKS;
            may_wait && tap::link(&report.interface).is_some_and(|link| link.is_up && !link.is_running)
        });
        if missing.is_empty() {
            return;
        }
        std::thread::sleep(CARRIER_PAUSE);
    }
}

/// What the kernel knows of the network now.
async fn neighbourhood(attached: &[AttachReport]) -> anyhow::Result<Routing> {
    let names = attached.iter().map(|report| report.interface.clone()).collect();
    let listed = tokio::task::spawn_blocking(move || {
        // The connection to the kernel ends with this runtime; by itself it would wait for events that nobody reads.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (netlink, _tracker) = runtime.block_on(netlink::open(names))?;
        let state = netlink.state.borrow().clone();
        anyhow::Ok(state)
    });
    let state = listed.await??;
    let interfaces = state.interfaces.to_vec();
    Ok(Routing::build(&Routing::default(), interfaces, &state.routes, &state.neighbours)?)
}

/// Who sent the requests.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sender {
    Socket,
    Kernel,
}

/// A finding in words.
fn outcome(finding: Finding, mode: Mode, sender: Sender) -> Outcome {
    match finding {
        Finding::Proven { target, bytes } => {
            let by = if sender == Sender::Kernel { ", sent by the kernel" } else { "" };
            Outcome::Proven(format!("{bytes} bytes to {target} and back{by}"))
        }
        Finding::Silent { asked: 1 } => {
            Outcome::Unproven("the one neighbour asked does not answer".to_owned())
        }
        Finding::Silent { asked } => Outcome::Unproven(format!("none of {asked} neighbours answers")),
        Finding::Lost { target, bytes, arrived: Some(arrived) } => Outcome::Lost(format!(
            "of packets of {bytes} bytes from {target} only {arrived} bytes arrive in {mode}"
        )),
        // By the kernel only receiving is tried, and packets that arrive in no piece at all are lost by anybody: no reason
        // to interrupt who is served.
        Finding::Lost { target, bytes, arrived: None } if sender == Sender::Kernel => {
            Outcome::Unproven(format!("packets of {bytes} bytes get no answer from {target}"))
        }
        Finding::Mute { target } => Outcome::Lost(format!(
            "{target} answers what the kernel sends, and nothing that the AF_XDP socket sends in {mode}"
        )),
        Finding::Lost { target, bytes, arrived: None } => {
            Outcome::Lost(format!("packets of {bytes} bytes get no answer from {target} in {mode}"))
        }
    }
}

fn tell(workers: &Workers, interface: &str) {
    let Some(mode) = workers.mode(interface) else { return };
    let shown = workers.proof(interface);
    if let Some(why) = shown.fell_back {
        tracing::warn!(interface, "works in {mode} only: {why}");
    }
    match shown.state {
        "path" => tracing::warn!(interface, "{}", shown.detail),
        state => tracing::info!(interface, state, "{}", shown.detail),
    }
}

/// How often there is a look at what is to be tried.
pub(super) const CHECK_EVERY: Duration = Duration::from_millis(500);
/// How long an interface is left alone after a probe that nobody answered; four times as long after each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// How often it is tried.
const ATTEMPTS_MAX: usize = 4;
const CARRIER_LOOKS: usize = 20;
/// For a program that was attached just now.
const CARRIER_LOOKS_FRESH: usize = 400;
const CARRIER_PAUSE: Duration = Duration::from_millis(10);
