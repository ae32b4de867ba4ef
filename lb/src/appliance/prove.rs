//! Proves for each interface that full-size packets arrive: it sends an echo request as large as the MTU to a neighbour and
//! waits for the reply. Some drivers cut or lose large packets in some modes (zero copy, copy, generic XDP). An interface that
//! loses them in one mode tries the next slower one, and stays there if they arrive. If they arrive in none, the path is to
//! blame and the fastest mode stays.
//!
//! Before there is traffic ([`before_traffic`]) the requests leave by the AF_XDP sockets. An interface without carrier, or
//! without a known neighbour, serves unproven and is probed later ([`Prover`]). Then the workers have the sockets, so the
//! kernel sends the requests, and only receiving is proven. Replies are taken as the XDP program passes them to the kernel.
//! Up to there they come through the same rings of the device as packets for workers, but not through the copy into a frame
//! of copy mode (whose length the kernel checks exactly). Replies arrive on the queue that the device chooses, and requests
//! leave by the first: the queues of a device are assumed to be alike.
//!
//! At most three neighbours per interface get at most nine small and nine large packets. If nobody replies, four more
//! attempts follow within two minutes. Proofs are saved beside the admin socket, so a restart repeats nothing. If nobody
//! ever replies, the lengths that the XDP program records still reveal a driver that cuts packets ([`truncation`]).

mod exchange;
mod probe;
pub(crate) mod proofs;
mod prover;
mod tap;
mod targets;
mod truncation;

use std::io;
use std::time::Duration;

use flowgate_control::netlink;
use flowgate_tables::{InterfaceId, Routing};
use flowgate_xsk::steering::{AttachReport, LinkOrigin, Steering, XdpMode};

use self::probe::{Finding, Target};
use self::proofs::{Mode, Outcome};
use super::Appliance;
use super::workers::Workers;

pub(crate) use self::proofs::remove;
pub(super) use self::prover::{CHECK_EVERY, Prover};

/// Proves the interfaces for which nothing is known, by sockets without traffic, and leaves sockets and XDP programs in the
/// modes that follow.
///
/// # Errors
/// Packets are lost in the only mode that the configuration allows, or sockets cannot be reopened.
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
            // The control plane needs netlink too and reports the error.
            Err(error) => tracing::debug!("interfaces are not proven before the start: {error:#}"),
        }
    }
    let interfaces: Vec<String> = steering.report().iter().map(|report| report.interface.clone()).collect();
    match interfaces.iter().find_map(|interface| workers.proofs.objection(interface)) {
        Some(objection) => {
            // This start fails. A link that an earlier process left must be in the mode that it had.
            for interface in &interfaces {
                let mode = workers.proofs.best(interface).map_or(XdpMode::Native, Mode::xdp);
                steering.change_mode(interface, mode)?;
            }
            anyhow::bail!(objection)
        }
        None => Ok(()),
    }
}

/// Records the outcome for an interface that serves. It is logged unless another mode follows, which is logged with it.
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

/// Brings interfaces that serve into the modes that follow from what is known. Traffic stops meanwhile, so nothing is tried
/// twice in the same state: `tried` is the state of the last time.
fn go_to_planned_modes(Appliance { workers, publishing }: &mut Appliance, tried: &mut Vec<ModeAndPlan>) {
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
    let grace = Grace::Traffic(workers.grace());
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

/// Interfaces whose large packets arrive only in a mode that the configuration forbids stay in their fastest one, with an
/// error in the log. `true` if there is a new one.
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

/// Opens sockets and attaches programs in the modes that follow from what is known, probes those modes, and repeats until no
/// finding changes a mode. The workers must not run.
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

/// Whether there is traffic that must not pass to the kernel meanwhile: it does not know the connections and would reset them.
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

/// Brings sockets and programs into the modes that follow from what is known. Loops, since the kernel may refuse a mode.
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
        // Saved before the modes change: if this process ends suddenly the next one must know why a link is generic.
        workers.proofs.save_changes();
        for (interface, mode) in planned {
            match steering.change_mode(&interface, mode.xdp()) {
                Ok(()) => tracing::info!(interface, mode = mode.xdp().name(), "XDP attached"),
                Err(error) if mode == Mode::Generic => {
                    let how = Outcome::Lost(format!("{mode} is not possible: {error}"));
                    workers.proofs.note(&interface, mode, 0, how);
                }
                Err(error) => {
                    tracing::warn!(interface, "native XDP is not possible any more: {error}");
                    workers.proofs.note_no_native(&interface);
                }
            }
        }
        workers.open_slots(steering.report())?;
        note_modes(workers, steering.report());
        forget_deliveries(steering)?;
    }
}

/// Probes these interfaces by sockets that no worker has yet.
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
        let largest = report.mtu.min(workers.largest_packet());
        let targets = targets::of(routing, device, largest, 0);
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

/// Sends probes by the sockets. Where nobody replies the kernel sends them too: if it gets a reply, and the socket again gets
/// none, the socket does not send ([`Finding::Mute`]).
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

/// The interfaces that were never probed in their present mode.
fn untried(workers: &Workers, attached: &[AttachReport]) -> Vec<(InterfaceId, Mode)> {
    let chunk_len = workers.chunk_len();
    let untried = (0..).map(InterfaceId).zip(attached).filter_map(|(device, report)| {
        let mode = workers.mode(&report.interface)?;
        workers.proofs.is_untried(&report.interface, mode, chunk_len).then_some((device, mode))
    });
    untried.collect()
}

/// Resets the records of delivered lengths: those of another mode or process are no evidence about the present one.
pub(crate) fn forget_deliveries(steering: &mut Steering) -> anyhow::Result<()> {
    let present = steering.report().iter().filter(|report| report.queues > 0);
    let attached: Vec<u32> = present.map(|report| report.ifindex).collect();
    attached.into_iter().try_for_each(|ifindex| Ok(steering.reset_delivery(ifindex)?))
}

pub(super) fn note_modes(workers: &mut Workers, attached: &[AttachReport]) {
    for report in attached {
        if let Some(mode) = workers.mode(&report.interface) {
            workers.proofs.note_mode(report, mode);
        }
    }
}

/// The link to probe.
///
/// # Errors
/// Why the interface cannot be probed now.
fn obstacle(interface: &str, targets: &[Target]) -> Result<tap::Link, String> {
    let link = tap::link(interface).filter(|link| link.is_running).ok_or("no carrier")?;
    if targets.is_empty() { Err("no neighbour is known yet".to_owned()) } else { Ok(link) }
}

/// Waits for carriers: a device may renegotiate its link when a program is attached or sockets are bound, igb for some
/// seconds. One that takes longer is probed later.
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

/// Interfaces, routes and neighbours as the kernel has them now.
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

/// The outcome of a finding, in words.
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
        // The kernel sent these, so the socket is not to blame, and what does not arrive even in part may be lost anywhere on
        // the path: no reason to interrupt traffic.
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

const CARRIER_LOOKS: usize = 20;
/// For a program that was attached just now.
const CARRIER_LOOKS_FRESH: usize = 400;
const CARRIER_PAUSE: Duration = Duration::from_millis(10);
