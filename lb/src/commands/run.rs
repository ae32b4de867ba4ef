//! `flowgate run`: brings the parts up in the right order and down again. Control plane, supervisor and admin socket share one
//! thread; each worker has its own, and so have the servers of DNS and of probes and metrics.
//!
//! No socket is in the socket map before the first generation of the tables is published. Until then all traffic passes to
//! the kernel, or is dropped during the grace period of an earlier process. So a packet that reaches a worker always finds
//! tables, and the flows of that process.

mod findings_log;
mod log;
mod reload;

use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use flowgate_control::descriptors::{DescriptorBudget, DescriptorLimits};
use flowgate_control::health::{self, HealthInputs, ProbeCounts};
use flowgate_control::log_limit::LogLimit;
use flowgate_control::{Background, Status, SyncMetrics, Update, dns, http};
use flowgate_dataplane::UnservedPorts;
use flowgate_dataplane::worker::Resolver;
use flowgate_flow::Origin;
use flowgate_tables::routing::NeighbourKey;
use flowgate_tables::{PortSet, Publisher, Tables};
use flowgate_xsk::steering::{InterfaceConfig, LinkOrigin, Steering, SteeringConfig, SteeringError};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_blocking;

use crate::admin::AdminServer;
use crate::admin::handler::AdminHandler;
use crate::appliance::Appliance;
use crate::appliance::map_growth::MapGrowth;
use crate::appliance::publish::{Prepared, Publishing};
use crate::appliance::reexec::ExecHistory;
use crate::appliance::source_ports::{EphemeralPorts, SourcePorts};
use crate::appliance::supervisor::{Supervisor, SupervisorHandle, SupervisorOutputs};
use crate::appliance::vlan_offload::VlanOffload;
use crate::appliance::workers::Workers;
use crate::appliance::{flow_files, host, prove, source_ports};
use crate::config::{Config, ConfigFile};
use crate::metrics::{Breakdown, Metrics, MetricsInputs, StallMeter};
use crate::process::memory_need::MemoryNeed;
use crate::process::predecessor::Predecessor;
use crate::process::privileges;
use log::LogHandle;
use reload::Reloader;

/// Serves until a signal.
///
/// # Errors
/// The start fails, or the control plane ends. If a worker hangs the program is executed again, and this returns only when
/// that fails.
pub(crate) fn run((config, file): (Config, Option<ConfigFile>)) -> anyhow::Result<ExitCode> {
    let log = log::init(config.log.level);
    anyhow::ensure!(
        !config.gateway.interfaces.is_empty(),
        "no interface to serve: set gateway.interfaces in the configuration, or pass --interface IF"
    );
    let mut config = config;
    config.gateway.interfaces = host::devices(&config.gateway.interfaces, Path::new("/sys/class/net"))?;
    let privileges = config.privileges.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_start(move || privileges::restrict_helper_thread(&privileges))
        .build()?;
    let local = tokio::task::LocalSet::new();
    let ended = local.block_on(&runtime, serve(&config, file, log));
    // Threads that still compile end with the process; nobody waits for them.
    drop(local);
    runtime.shutdown_background();
    match ended? {
        Ended::Signal(_) => Ok(ExitCode::SUCCESS),
        Ended::Hang(exec_history) => Err(exec_history.exec_again()),
    }
}

/// Why serving has ended.
#[derive(Debug)]
enum Ended {
    /// A signal, named for the log.
    Signal(&'static str),
    /// A worker hangs: the program has to be executed again.
    Hang(ExecHistory),
}

/// How threads that compile share the machine with the workers.
fn background(config: &Config, supervisor: &Supervisor) -> Background {
    Background {
        nice: COMPILE_NICE,
        avoid_cores: supervisor.appliance.workers.cores(),
        confine: Some(privileges::server_thread(&config.privileges)),
    }
}

/// Brings everything up, serves until a signal, and brings it down again. Program, maps, links and flows stay for the next
/// start.
async fn serve(config: &Config, file: Option<ConfigFile>, log: LogHandle) -> anyhow::Result<Ended> {
    // From now on SIGHUP no longer ends the process.
    let hangups = signal(SignalKind::hangup())?;
    let files_max = host::raise_open_files();
    let Opened { admin, dns, appliance, snat_ports, started, requests } = open(config).await?;
    // Not before: a start that fails undoes what it has mounted.
    let capabilities = privileges::restrict_control_thread(&config.privileges)?;
    tracing::info!(capabilities, seccomp = config.privileges.seccomp, "privileges while serving");
    // After all sockets of workers: they are not the servers' to use.
    let budget = DescriptorBudget::new(DescriptorLimits::divide(files_max, host::open_files()));
    let exec_history = ExecHistory::from_env();
    let compile_config = config.compile_config(snat_ports.clone());
    let (status, status_receiver) = watch::channel(Status::default());
    let (desired, desired_receiver) = watch::channel(Arc::default());
    let (unhealthy_reasons, dataplane_health) = watch::channel(Arc::from([]));
    let health_inputs = HealthInputs {
        status: status_receiver.clone(),
        sync_metrics: SyncMetrics::default(),
        dataplane: dataplane_health,
        desired: desired_receiver,
        identity: (&compile_config).into(),
    };
    let probe_counts = ProbeCounts::default();
    let (shutdown, shutdown_receiver) = watch::channel(false);
    let outputs = SupervisorOutputs { unhealthy_reasons, status: status.clone() };
    let (mut supervisor, handle) = Supervisor::new(appliance, outputs, exec_history.clone());
    let handler = AdminHandler { supervisor: handle.clone(), status: status_receiver.clone(), started };
    let stalls = StallMeter::default();
    let metrics_inputs = MetricsInputs {
        dns: dns.as_ref().map(dns::Server::counters),
        breakdown: Breakdown { detail: config.metrics.detail, services_max: config.metrics.services_max },
        budget: Arc::clone(&budget),
        hangs: exec_history.total(),
        stalls: stalls.clone(),
    };
    let metrics = Metrics::new(handle.clone(), health_inputs.clone(), &probe_counts, metrics_inputs);
    let (expositions, exposition_requests) = mpsc::channel(EXPOSITIONS_WAITING);
    let (compile, compile_receiver) = watch::channel(compile_config);
    let control_config = flowgate_control::Config {
        compile: compile_receiver,
        background: background(config, &supervisor),
        source: config.source.clone(),
        interfaces: config.gateway.interfaces.clone(),
        requests,
        dns,
        status,
        desired,
        sync_metrics: health_inputs.sync_metrics.clone(),
        health: health::Config { listen: config.health.listen, inputs: health_inputs, counts: probe_counts },
        metrics: http::metrics::Config { listen: config.metrics.listen, requests: expositions },
        budget: Arc::clone(&budget),
        confine_server: privileges::server_thread(&config.privileges),
        shutdown: shutdown_receiver,
    };
    let reloader = Reloader { file, log, supervisor: handle.clone(), compile, metrics: &metrics, snat_ports };
    let control = flowgate_control::run(control_config, sink(handle));
    let logged = findings_log::run(status_receiver);
    let outcome = tokio::select! {
        ended = control => ended.context("the control plane").map(|()| Ended::Signal("ended")),
        worker = supervisor.until_a_worker_hangs() => {
            tracing::error!(worker, "the program executes itself again; its flows go on");
            Ok(Ended::Hang(exec_history))
        }
        () = logged => Ok(Ended::Signal("ended")),
        () = stalls.measure() => Ok(Ended::Signal("ended")),
        () = admin.serve(Rc::new(handler), budget) => Ok(Ended::Signal("ended")),
        () = metrics.answer(exposition_requests) => Ok(Ended::Signal("ended")),
        () = reloader.follow(hangups) => Ok(Ended::Signal("ended")),
        how = signalled() => how.map(Ended::Signal),
    };
    drop((shutdown, metrics));
    shut_down(config, supervisor.appliance, outcome)
}

/// What a start opens.
struct Opened {
    admin: AdminServer,
    dns: Option<dns::Server>,
    appliance: Appliance,
    /// The source ports that are reserved.
    snat_ports: PortSet,
    /// The instant from which ticks count.
    started: Instant,
    /// Neighbours that workers have packets for.
    requests: mpsc::Receiver<NeighbourKey>,
}

/// Opens everything. What a predecessor that is being killed still holds is waited for.
async fn open(config: &Config) -> anyhow::Result<Opened> {
    let mut predecessor = Predecessor::default();
    // The servers' sockets come first: an address that is in use ends the start before anything is attached.
    let admin = predecessor.outlast(|| AdminServer::bind(&config.admin.socket))?;
    let dns = predecessor.outlast(|| bind_dns(config))?;
    // Not before: a predecessor has given its memory back when it closes its sockets.
    MemoryNeed::of(config).check()?;
    let steering = predecessor.outlast(|| attach(config))?;
    let started = clock_start();
    let (sender, requests) = mpsc::channel(REQUESTS_WAITING);
    let resolver = Resolver::new(move |neighbour| sender.try_send(neighbour).is_ok());
    let (appliance, snat_ports) =
        open_appliance(config, steering, (resolver, started), &mut predecessor).await?;
    Ok(Opened { admin, dns, appliance, snat_ports, started, requests })
}

fn bind_dns(config: &Config) -> anyhow::Result<Option<dns::Server>> {
    let Some(dns_config) = &config.dns else { return Ok(None) };
    let server = dns::Server::bind(dns_config)?;
    let (addresses, domain) = (server.addresses(), Some(&dns_config.domain));
    tracing::info!(?addresses, ?domain, "DNS listens");
    Ok(Some(server))
}

/// Opens flow tables, sockets and workers, reserves the source ports, which it returns, and proves the interfaces.
///
/// # Errors
/// Something cannot be opened, or an interface loses packets in the only mode that is allowed. What was attached by this
/// process is detached again.
async fn open_appliance(
    config: &Config,
    mut steering: Steering,
    (resolver, started): (Resolver, Instant),
    predecessor: &mut Predecessor,
) -> anyhow::Result<(Appliance, PortSet)> {
    let flows = match predecessor.outlast(|| flow_files::open(config)) {
        Ok(flows) => flows,
        Err(error) => return Err(undo_attach(config, steering, error)),
    };
    let origins = flows.1;
    let has_predecessor = steering.report().iter().any(|report| report.link == LinkOrigin::Reused);
    let opened = SourcePorts::reserve(config, &flows.0, has_predecessor).and_then(|ports| {
        let mut workers = Workers::new(config, steering.report(), flows, resolver, started)?;
        predecessor.outlast(|| workers.open_slots(steering.report()))?;
        Ok((workers, ports))
    });
    let (mut workers, ports) = match opened {
        Ok(opened) => opened,
        Err(error) => return Err(undo_start(config, steering, origins, error)),
    };
    if let Err(error) = prove::before_traffic(&mut workers, &mut steering).await {
        // Closes the sockets before the program is detached.
        drop(workers);
        return Err(undo_start(config, steering, origins, error));
    }
    let publishing = Publishing {
        publisher: Publisher::new(),
        steering,
        answers_echo: config.pipeline.echo_vips,
        keeps_unserved: config.pipeline.unserved_ports != UnservedPorts::Pass,
        older_ports: ports.older,
        vlan_offload: VlanOffload::default(),
        map_growth: MapGrowth::default(),
        network_changes: LogLimit::default(),
        next: None,
    };
    Ok((Appliance { workers, publishing }, ports.new))
}

/// Hands the traffic over to the next process. The XDP program drops it during the grace period, so that clients send it
/// again to the successor; after that it passes to the kernel. If the end is an error before anything was served, the start
/// has failed, and what it attached is detached again.
fn shut_down(config: &Config, appliance: Appliance, outcome: anyhow::Result<Ended>) -> anyhow::Result<Ended> {
    let Appliance { workers, mut publishing } = appliance;
    let outcome = match outcome {
        Err(error) if !workers.have_started() => {
            let origins = workers.flow_origins;
            // Closes the sockets before the program is detached.
            workers.stop();
            return Err(undo_start(config, publishing.steering, origins, error));
        }
        outcome => outcome,
    };
    let grace = workers.grace();
    // The traffic goes first, then the workers. The other way round frames would wait in sockets that nobody reads.
    let cleared = stop_traffic(&mut publishing, grace);
    match outcome {
        // A worker that hangs cannot be stopped; exec(2) ends its thread.
        Ok(Ended::Hang(_)) => return outcome,
        Ok(Ended::Signal(how)) => {
            tracing::info!("{how}: traffic is held for a successor, then passes to the kernel")
        }
        Err(_) => {}
    }
    workers.stop();
    cleared.context("taking the traffic away")?;
    outcome
}

/// Takes the traffic from the workers. The grace period is set first: a packet that finds no socket passes to the kernel
/// otherwise, which would reset its connection.
fn stop_traffic(publishing: &mut Publishing, grace: Duration) -> Result<(), SteeringError> {
    publishing.steering.set_grace_period(grace)?;
    publishing.steering.clear_all_sockets()
}

/// Attaches the XDP program.
fn attach(config: &Config) -> anyhow::Result<Steering> {
    host::raise_locked_memory();
    let interfaces = config
        .gateway
        .interfaces
        .iter()
        .map(|name| InterfaceConfig { name: name.clone(), mode: config.xdp.mode })
        .collect();
    let steering = Steering::attach(&SteeringConfig {
        pin_dir: config.xdp.pin_dir.clone(),
        log_dir: config.log_folder(),
        interfaces,
        limits: config.limits.sets(),
    })?;
    steering.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
    if let Some(ports) = EphemeralPorts::beside(&config.snat.ports).filter(EphemeralPorts::are_scarce) {
        tracing::warn!("{ports}");
    }
    steering.notices().iter().for_each(|notice| tracing::info!("{notice}"));
    for report in steering.report().iter().filter(|report| report.queues > 0) {
        let (mode, queues) = (report.mode.name(), report.queues);
        tracing::info!(interface = report.interface, mode, queues, link = report.link.name(), "XDP attached");
        report.messages.iter().for_each(|message| tracing::warn!(interface = report.interface, "{message}"));
    }
    Ok(steering)
}

/// Waits for SIGTERM or SIGINT; its name for the log.
async fn signalled() -> anyhow::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::select! {
        _ = terminate.recv() => "terminated",
        _ = interrupt.recv() => "interrupted",
    })
}

/// Detaches after a start that has failed, and returns its error. What an earlier process left for its successor stays.
fn undo_attach(config: &Config, steering: Steering, error: anyhow::Error) -> anyhow::Error {
    let is_first = steering.report().iter().all(|report| report.link == LinkOrigin::Fresh);
    steering.undo();
    if is_first {
        let undone = source_ports::release(config);
        if let Err(left) = undone.and_then(|()| Ok(prove::remove(config)?)) {
            tracing::error!("the failed start was not undone completely, run `flowgate detach`: {left:#}");
        }
    }
    error
}

/// As [`undo_attach`], and removes the flow tables if this start made them.
fn undo_start(
    config: &Config,
    steering: Steering,
    origins: [Origin; 2],
    error: anyhow::Error,
) -> anyhow::Error {
    if origins == [Origin::Created; 2]
        && let Err(left) = flow_files::remove(&config.flow_folder())
    {
        tracing::error!("the flow tables of the failed start stay, run `flowgate detach`: {left:#}");
    }
    undo_attach(config, steering, error)
}

/// Publishes what the control plane compiled. The first generation starts the workers.
fn sink(supervisor: SupervisorHandle) -> impl AsyncFnMut(Update) -> anyhow::Result<()> {
    let mut is_first = true;
    async move |update: Update| {
        let begins = std::mem::take(&mut is_first);
        let prepared = spawn_blocking(move || Prepared::new(update)).await?;
        supervisor.request(|appliance| appliance.publishing.take_up(prepared)).await?;
        while supervisor.request(|appliance| appliance.publishing.withdraw_some()).await? {}
        supervisor.request(move |appliance| publish(appliance, begins)).await??;
        while supervisor.request(|appliance| appliance.publishing.extend_some()).await? {}
        let complete = |appliance: &mut Appliance| {
            appliance.publishing.complete(tokio::time::Instant::now().into_std());
        };
        Ok(supervisor.request(complete).await?)
    }
}

fn publish(Appliance { workers, publishing }: &mut Appliance, begins: bool) -> anyhow::Result<()> {
    let Some(Tables { generation, services, .. }) = publishing.next_tables() else { return Ok(()) };
    let has_other_services = !Arc::ptr_eq(services, &publishing.publisher.current().services);
    let (generation, services, backends) =
        (*generation, services.services().len(), services.backends().len());
    if begins {
        // From now on the maps name our traffic, but the sockets enter the socket map only when the workers start. Without the
        // grace period such packets would pass to the kernel in between, and be reset.
        if let Err(error) = publishing.steering.set_grace_period(workers.grace()) {
            tracing::error!(%error, "connections may be reset in this moment, since the grace period cannot be set");
        }
    }
    publishing.publish();
    workers.start(&publishing.start_context())?;
    if has_other_services {
        tracing::info!(generation, services, backends, "published");
    } else if let Some(more) = publishing.network_changes.due(tokio::time::Instant::now().into_std()) {
        tracing::info!(generation, services, backends, more, "published other routes or neighbours");
    }
    Ok(())
}

/// The instant from which ticks count: the zero of the host's monotonic clock, so that ticks in the flow table of one process
/// are valid for the next, in whatever time namespace each runs.
fn clock_start() -> Instant {
    let since = flowgate_xsk::host_monotonic().unwrap_or_default();
    #[expect(clippy::disallowed_methods, reason = "the clock that workers and watchdog share")]
    let now = Instant::now();
    now.checked_sub(since).unwrap_or(now)
}

const REQUESTS_WAITING: usize = 1024;
const EXPOSITIONS_WAITING: usize = 64;
/// Added to the nice value of threads that compile: a worker that is busy on the same core gets ten times as much of it.
const COMPILE_NICE: i32 = 10;
