//! The control thread: control plane, publishing, watchdog and admin socket on one thread.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use flowgate_control::health::{self, ProbeCounts, Vitals};
use flowgate_control::{Observer, Status, Update, dns};
use flowgate_dataplane::worker::Resolver;
use flowgate_tables::{PortSet, Publisher};
use flowgate_xsk::steering::{InterfaceConfig, LinkOrigin, SocketMap, Steering, SteeringConfig};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use super::answers::Answers;
use super::host;
use super::metrics::Metrics;
use super::steer::Publishing;
use super::workers::Workers;
use crate::admin::AdminServer;
use crate::config::Config;

/// Brings everything up, serves until a signal, and brings the workers down. Program, maps and links stay
/// for the next start; without sockets in the map all traffic passes to the kernel.
pub(crate) async fn serve(config: &Config) -> anyhow::Result<()> {
    let admin = AdminServer::bind(&config.admin_socket)?;
    let dns = config.dns.as_ref().map(dns::Server::bind).transpose()?;
    if let Some(dns) = &dns {
        let (addresses, domain) = (dns.addresses(), config.dns.as_ref().map(|dns| &dns.domain));
        tracing::info!(?addresses, ?domain, "DNS listens");
    }
    let (steering, snat_ports) = attach(config)?;
    let socket_map = steering.sockets();
    let publisher = Publisher::new();
    let started = now();
    let (requests, request_receiver) = mpsc::channel(REQUESTS_WAITING);
    let resolve = Resolver(Arc::new(move |neighbour| requests.try_send(neighbour).is_ok()));
    let workers = match Workers::start(config, steering.report(), &publisher, resolve, started) {
        Ok(workers) => workers,
        Err(error) => return Err(undo_attach(config, steering, error)),
    };
    let settings = super::settings(config, snat_ports);
    let (status, status_receiver) = watch::channel(Status::default());
    let (desired, desired_receiver) = watch::channel(Arc::default());
    let (ailments, ailments_receiver) = watch::channel(Arc::from([]));
    let vitals = Vitals {
        status: status_receiver.clone(),
        observer: Observer::default(),
        dataplane: ailments_receiver,
        desired: desired_receiver,
        identity: (&settings).into(),
    };
    let probe_counts = ProbeCounts::default();
    let (shutdown, shutdown_receiver) = watch::channel(false);
    let workers = Rc::new(RefCell::new(workers));
    let publishing =
        Rc::new(RefCell::new(Publishing { publisher, steering, answers_echo: config.options.echo_vips }));
    let answers = Answers {
        workers: Rc::clone(&workers),
        publishing: Rc::clone(&publishing),
        status: status_receiver.clone(),
        started,
    };
    let sink = Sink {
        publishing: Rc::clone(&publishing),
        workers: Rc::clone(&workers),
        socket_map: socket_map.clone(),
        connected: false,
    };
    let metrics = Metrics::new(
        Rc::clone(&workers),
        Rc::clone(&publishing),
        vitals.clone(),
        &probe_counts,
        dns.as_ref().map(dns::Server::counters),
        config.metrics_detail,
    );
    let metrics_status = status.clone();
    let control = flowgate_control::run(
        flowgate_control::Config {
            settings,
            source: config.source.clone(),
            interfaces: config.interfaces.clone(),
            requests: request_receiver,
            dns,
            status,
            desired,
            observer: vitals.observer.clone(),
            health: health::Config { listen: config.health_listen, vitals, counts: probe_counts },
            shutdown: shutdown_receiver,
        },
        sink.into_fn(),
    );
    let look_after = async {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        loop {
            ticks.tick().await;
            workers.borrow_mut().watch(&socket_map, now());
            show_ailments(&workers.borrow(), &ailments);
            publishing.borrow_mut().publisher.collect();
        }
    };
    let logged = log_reports(status_receiver);
    let signalled = signalled()?;
    let outcome = tokio::select! {
        ended = control => ended.context("the control plane"),
        () = look_after => Ok(()),
        () = logged => Ok(()),
        () = admin.serve(Rc::new(answers)) => Ok(()),
        () = metrics.serve(config.metrics_listen, &metrics_status) => Ok(()),
        how = signalled => {
            tracing::info!("{how}: traffic passes to the kernel");
            Ok(())
        }
    };
    drop((shutdown, metrics));
    // First the traffic, then those who serve it.
    let cleared = socket_map.clear_all();
    if let Ok(workers) = Rc::try_unwrap(workers) {
        workers.into_inner().stop();
    }
    cleared.context("taking the traffic away")?;
    outcome
}

/// Attaches the XDP program and takes the source ports from the kernel.
fn attach(config: &Config) -> anyhow::Result<(Steering, PortSet)> {
    host::raise_locked_memory();
    let interfaces = config
        .interfaces
        .iter()
        .map(|name| InterfaceConfig { name: name.clone(), mode: config.xdp_mode })
        .collect();
    let steering = Steering::attach(&SteeringConfig { pin_dir: config.pin_dir.clone(), interfaces })?;
    let snat_ports = host::reserve_ports(&config.snat_ports)?;
    steering.notices().iter().for_each(|notice| tracing::info!("{notice}"));
    for report in steering.report() {
        let (mode, queues) = (report.mode.name(), report.queues);
        tracing::info!(interface = report.interface, mode, queues, link = report.link.name(), "XDP attached");
        report.messages.iter().for_each(|message| tracing::warn!(interface = report.interface, "{message}"));
    }
    Ok((steering, snat_ports))
}

/// Waits for the signal that ends a run, and says which it was.
fn signalled() -> anyhow::Result<impl Future<Output = &'static str>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => "terminated",
            _ = interrupt.recv() => "interrupted",
        }
    })
}

/// A start that failed leaves nothing behind, unless an earlier flowgate had left it for its successor.
fn undo_attach(config: &Config, steering: Steering, error: anyhow::Error) -> anyhow::Error {
    if steering.report().iter().all(|report| report.link == LinkOrigin::Fresh) {
        let undone = steering.detach().map_err(anyhow::Error::from);
        let undone = undone.and_then(|_| host::release_ports(&config.snat_ports));
        if let Err(left) = undone {
            tracing::error!("not all was undone, run `flowgate detach`: {left:#}");
        }
    }
    error
}

/// Publishes what control compiled; the first generation brings the traffic.
struct Sink {
    publishing: Rc<RefCell<Publishing>>,
    workers: Rc<RefCell<Workers>>,
    socket_map: SocketMap,
    connected: bool,
}

impl Sink {
    fn into_fn(mut self) -> impl FnMut(Update) -> anyhow::Result<()> {
        move |update| {
            let generation = update.tables.generation;
            let (services, backends) =
                (update.tables.services.services().len(), update.tables.services.backends().len());
            self.publishing.borrow_mut().publish(update)?;
            if !self.connected {
                self.workers.borrow().connect(&self.socket_map)?;
                self.connected = true;
            }
            tracing::info!(generation, services, backends, "published");
            Ok(())
        }
    }
}

/// Tells health which workers are not well.
fn show_ailments(workers: &Workers, ailments: &watch::Sender<Arc<[String]>>) {
    let states = (0..workers.handles.len()).map(|index| (index, workers.state(index)));
    let unwell: Arc<[String]> = states
        .filter(|(_, state)| *state != "running")
        .map(|(index, state)| format!("worker {index} is {state}: its traffic passes to the kernel"))
        .collect();
    ailments.send_if_modified(|shown| {
        let changed = *shown != unwell;
        *shown = unwell;
        changed
    });
}

/// Each finding is logged once, when it appears.
async fn log_reports(mut status: watch::Receiver<Status>) {
    let mut known = Vec::new();
    loop {
        let (findings, refused) = {
            let status = status.borrow_and_update();
            (status.findings().cloned().collect::<Vec<_>>(), status.refused.clone())
        };
        for entry in findings.iter().filter(|entry| !known.contains(*entry)) {
            tracing::warn!("{entry}");
        }
        known = findings;
        if let Some(reason) = refused {
            tracing::error!("the newest tables were not published: {reason}");
        }
        if status.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the start of the clock that workers and watchdog share")]
fn now() -> Instant {
    Instant::now()
}

/// How often heartbeats are looked at and retired generations freed.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const REQUESTS_WAITING: usize = 1024;
