//! A bare AF_XDP forwarder, the baseline of `lab bench`.
//!
//! It has the worker loop, sockets, rings and steering program of the gateway, but no pipeline: every frame from one
//! interface is sent out of the other with new Ethernet addresses, without a look at its headers.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use flowgate_dataplane::device::{RxQueue, XskDevice};
use flowgate_dataplane::exhaustion::{Exhaustion, ExhaustionReporter};
use flowgate_dataplane::verdict::AwaitedFragment;
use flowgate_dataplane::worker::{Resolver, Shared};
use flowgate_dataplane::{
    Context, Counters, PipelineConfig, Process, RxChecksums, Verdict, Worker, WorkerConfig, WorkerNumber,
    WorkerSettings,
};
use flowgate_flow::{AffinityTable, Flows, HashKey, Timeouts};
use flowgate_tables::routing::NeighbourKey;
use flowgate_tables::{InterfaceId, Publisher};
use flowgate_wire::EtherAddrs;
use flowgate_xsk::steering::{
    InterfaceConfig, SetLimits, Steering, SteeringConfig, SteeringSet, VipKey, XdpModePolicy,
};
use flowgate_xsk::{FramePool, UmemConfig, XskSocketConfig};

use crate::clock;
use crate::error::{Error, Result};

/// The options of `lab bare-forward`.
#[derive(Debug, Clone, Args)]
pub struct BareForwardArgs {
    /// The receiving interface, then the sending one.
    #[arg(long = "interface", value_name = "IF", required = true, num_args = 1)]
    pub interfaces: Vec<String>,
    /// UDP to this address and port is forwarded, the rest goes to the kernel.
    #[arg(long, value_name = "IP:PORT")]
    pub vip: std::net::SocketAddrV4,
    /// The core of the worker.
    #[arg(long)]
    pub core: Option<usize>,
    /// Where program and maps are pinned.
    #[arg(long, default_value = "/sys/fs/bpf/flowgate")]
    pub pin_dir: PathBuf,
}

/// Forwards until SIGTERM or SIGINT, then detaches. Prints `ready` once it does.
///
/// # Errors
/// If attaching, sockets or the worker fail; the message names the interface.
#[allow(clippy::print_stdout, reason = "the caller waits for the line")]
pub fn run(args: &BareForwardArgs) -> Result<ExitCode> {
    if args.interfaces.len() != 2 {
        return Err(Error::Option(format!(
            "--interface must be given twice, not {} times",
            args.interfaces.len()
        )));
    }
    let failed = |what: String| move |error: &dyn std::fmt::Display| Error::State(format!("{what}: {error}"));
    let interface = |name: &str| InterfaceConfig { name: name.to_owned(), mode: XdpModePolicy::Auto };
    let config = SteeringConfig {
        pin_dir: args.pin_dir.clone(),
        log_dir: std::env::temp_dir(),
        interfaces: args.interfaces.iter().map(|name| interface(name)).collect(),
        limits: SetLimits::default(),
    };
    let mut steering = Steering::attach(&config).map_err(|e| failed("attach".into())(&e))?;
    let vip = VipKey { addr: (*args.vip.ip()).into(), port: args.vip.port(), protocol: 17 };
    let set = SteeringSet { vips: [vip].into(), ..SteeringSet::default() };
    let refused = steering.remove_stale(&set).map_err(|errors| format!("{errors:?}"));
    refused
        .and_then(|()| steering.add_new(&set).map_err(|missing| format!("{missing:?}")))
        .map_err(|e| failed("steer".into())(&e))?;

    let ports: Vec<_> = args.interfaces.iter().map(|name| XskSocketConfig::new(name.clone(), 0)).collect();
    let frame_count = UmemConfig::frames_for(&ports).next_power_of_two();
    let umem = UmemConfig { frame_count, ..UmemConfig::default() };
    let (pool, opened) = FramePool::new(&umem, &ports).map_err(|e| failed("open sockets".into())(&e))?;
    let mut sockets: Vec<OwnedFd> = Vec::new();
    let mut queues = Vec::new();
    for (socket, id) in opened.into_iter().zip(0..) {
        sockets.push(socket.fd().try_clone_to_owned().map_err(Error::io("duplicate a socket"))?);
        queues.push(RxQueue { interface: InterfaceId(id), checksums: RxChecksums::Complete, socket });
    }
    let publisher = Publisher::new();
    let flows = Flows::new(64, 64, HashKey::random()).map_err(|e| failed("flow table".into())(&e))?;
    let shared = Shared {
        flows: Arc::new(flows),
        affinity: Arc::new(AffinityTable::new(1)),
        resolver: Resolver::new(|_| false),
        exhaustion: ExhaustionReporter::default(),
        started: clock::now(),
    };
    let worker_config = WorkerConfig {
        number: WorkerNumber { index: 0, count: 1 },
        core: args.core,
        settings: WorkerSettings {
            idle_before_sleep: Duration::from_micros(200),
            timeouts: Timeouts::default(),
            pipeline: PipelineConfig::default(),
        },
    };
    let device = XskDevice::new(pool, queues);
    let worker = Worker::new(worker_config, shared, publisher.reader(), device, BareForward);
    let handle = worker.spawn(|| {}).map_err(Error::io("start the worker"))?;
    for (socket, report) in sockets.iter().zip(steering.report()) {
        let set = steering.set_socket(report.ifindex, 0, socket.as_fd());
        set.map_err(|e| failed(report.interface.clone())(&e))?;
    }
    println!("ready");
    wait_for_signal()?;
    steering.clear_all_sockets().map_err(|e| failed("clear".into())(&e))?;
    drop(handle.stop());
    steering.detach().map_err(|e| failed("detach".into())(&e))?;
    Ok(ExitCode::SUCCESS)
}

fn wait_for_signal() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(Error::io("wait for a signal"))?;
    runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate()).map_err(Error::io("wait for SIGTERM"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::io("wait for SIGINT"))?;
        tokio::select! {
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        }
    })
}

/// Forwards every frame to the second interface.
#[derive(Debug)]
struct BareForward;

impl Process for BareForward {
    fn process<F: AsMut<[u8]>>(
        &mut self,
        frames: &mut [F],
        _checksums: RxChecksums,
        _context: &Context<'_>,
        _counters: &mut Counters,
        verdicts: &mut [Verdict],
    ) {
        const ETHER: EtherAddrs = EtherAddrs([2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
        for (frame, verdict) in frames.iter_mut().zip(verdicts) {
            if let Some(head) = frame.as_mut().first_chunk_mut::<12>() {
                *head = ETHER.0;
            }
            *verdict = Verdict::Transmit(InterfaceId(1));
        }
    }

    fn drain_requests(&mut self, _ask: impl FnMut(NeighbourKey)) {}

    fn drain_ready(&mut self, _ready: impl FnMut(AwaitedFragment)) {}

    fn drain_exhaustions(&mut self, _report: impl FnMut(Exhaustion) -> bool) {}
}
