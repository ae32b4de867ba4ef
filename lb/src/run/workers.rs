//! Opening every worker's sockets and starting it, and taking its traffic away when it hangs.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use flowgate_dataplane::device::{RxQueue, XskDevice};
use flowgate_dataplane::watchdog::{Alarm, Watchdog};
use flowgate_dataplane::worker::{Resolver, Shared};
use flowgate_dataplane::{Pipeline, RxChecksums, Worker, WorkerConfig, WorkerHandle, WorkerNumber};
use flowgate_flow::{AffinityTable, Flows, HashKey};
use flowgate_tables::{InterfaceId, Publisher};
use flowgate_xsk::steering::{AttachReport, SocketMap, XdpMode};
use flowgate_xsk::{BindMode, FramePool, PortConfig, PortStatistics, UmemConfig};

use crate::config::Config;

/// All workers, running.
pub(crate) struct Workers {
    pub(crate) shared: Shared,
    pub(crate) handles: Vec<WorkerHandle<XskDevice>>,
    /// The sockets of each worker.
    pub(crate) sockets: Vec<Vec<QueueSocket>>,
    watchdog: Watchdog,
}

/// One AF_XDP socket, for the socket map and for people.
pub(crate) struct QueueSocket {
    pub(crate) interface: String,
    pub(crate) ifindex: u32,
    pub(crate) queue: u32,
    pub(crate) xdp: XdpMode,
    pub(crate) mode: BindMode,
    fd: OwnedFd,
}

impl QueueSocket {
    /// The kernel's counters of the socket; none once its device is gone.
    pub(crate) fn statistics(&self) -> Option<PortStatistics> {
        PortStatistics::of(self.fd.as_fd()).ok()
    }
}

impl Workers {
    /// Opens the sockets of all queues of the attached interfaces and starts the workers.
    ///
    /// # Errors
    /// What is missing, with its interface and queue.
    pub(crate) fn start(
        config: &Config,
        attached: &[AttachReport],
        publisher: &Publisher,
        resolve: Resolver,
        started: Instant,
    ) -> anyhow::Result<Self> {
        let fewest = attached.iter().map(|report| report.queues).min().unwrap_or(1).max(1) as usize;
        let count = if config.workers.count == 0 { fewest } else { config.workers.count };
        anyhow::ensure!(
            count <= fewest,
            "workers.count is {count}, but an interface has {fewest} queues: each worker needs one of each"
        );
        let cores = choose_cores(config, count)?;
        let flows = Arc::new(Flows::new(config.flow_capacity, config.flow_capacity_v6, HashKey::random())?);
        let affinity = Arc::new(AffinityTable::new(config.affinity_capacity));
        let shared = Shared { flows, affinity, resolve, started };
        let (mut handles, mut sockets) = (Vec::new(), Vec::new());
        for (index, core) in cores.into_iter().enumerate() {
            let number = WorkerNumber { index, count };
            let (device, own_sockets) = open_device(config, attached, number)?;
            for socket in &own_sockets {
                let (mode, queue) = (socket.mode.name(), socket.queue);
                tracing::info!(worker = index, interface = socket.interface, queue, mode, "AF_XDP socket");
            }
            let worker_config = WorkerConfig {
                number,
                core,
                idle_before_sleep: config.workers.idle_before_sleep,
                timeouts: config.timeouts,
                options: config.options,
            };
            let pipeline = Pipeline::new(number);
            let worker = Worker::new(worker_config, shared.clone(), publisher.reader(), device, pipeline);
            handles.push(worker.spawn().with_context(|| format!("starting worker {index}"))?);
            sockets.push(own_sockets);
        }
        let watchdog = Watchdog::new(count, config.workers.hang, started);
        Ok(Self { shared, handles, sockets, watchdog })
    }

    /// Puts every worker's sockets into the socket map: from here on it has its traffic.
    ///
    /// # Errors
    /// The kernel refuses one.
    pub(crate) fn connect(&self, map: &SocketMap) -> anyhow::Result<()> {
        for socket in self.sockets.iter().flatten() {
            map.set(socket.ifindex, socket.queue, socket.fd.as_fd())
                .with_context(|| format!("{} queue {}", socket.interface, socket.queue))?;
        }
        Ok(())
    }

    /// Looks after the workers: one that hangs or died loses its traffic to the kernel.
    pub(crate) fn watch(&mut self, map: &SocketMap, now: Instant) {
        let heartbeat =
            |handle: &WorkerHandle<XskDevice>| (!handle.is_finished()).then(|| handle.state.heartbeat());
        let heartbeats: Vec<_> = self.handles.iter().map(heartbeat).collect();
        let mut alarm = SocketAlarm { map, sockets: &self.sockets };
        self.watchdog.look(&heartbeats, now, &mut alarm);
    }

    /// `running`, `hanging` or `dead`.
    pub(crate) fn state(&self, worker: usize) -> &'static str {
        if self.handles[worker].is_finished() {
            "dead"
        } else if self.watchdog.hanging().any(|hanging| hanging == worker) {
            "hanging"
        } else {
            "running"
        }
    }

    /// Stops all workers and waits for them.
    pub(crate) fn stop(self) {
        for handle in self.handles {
            drop(handle.stop());
        }
    }
}

struct SocketAlarm<'a> {
    map: &'a SocketMap,
    sockets: &'a [Vec<QueueSocket>],
}

impl Alarm for SocketAlarm<'_> {
    fn hangs(&mut self, worker: usize) {
        tracing::error!(worker, "worker hangs or died: its traffic passes to the kernel");
        for socket in &self.sockets[worker] {
            if let Err(error) = self.map.clear(socket.ifindex, socket.queue) {
                tracing::error!(worker, %error, "cannot take its traffic away");
            }
        }
    }

    fn recovers(&mut self, worker: usize) {
        tracing::info!(worker, "worker moves again: it gets its traffic back");
        for socket in &self.sockets[worker] {
            if let Err(error) = self.map.set(socket.ifindex, socket.queue, socket.fd.as_fd()) {
                tracing::error!(worker, %error, "cannot give its traffic back");
            }
        }
    }
}

/// Queues are dealt to workers in turn: worker `w` of `n` has the queues `w`, `w + n`, ... of every
/// interface, so each worker can send by each interface.
fn open_device(
    config: &Config,
    attached: &[AttachReport],
    number: WorkerNumber,
) -> anyhow::Result<(XskDevice, Vec<QueueSocket>)> {
    let mut ports = Vec::new();
    let mut owners = Vec::new();
    for (interface, report) in attached.iter().enumerate() {
        for queue in (0..report.queues).filter(|queue| *queue as usize % number.count == number.index) {
            ports.push(PortConfig {
                rx_ring_len: config.rings.rx,
                tx_ring_len: config.rings.tx,
                fill_ring_len: config.rings.fill,
                completion_ring_len: config.rings.tx,
                zero_copy: config.zero_copy,
                ..PortConfig::new(report.interface.clone(), queue)
            });
            owners.push(InterfaceId(u8::try_from(interface).context("too many interfaces")?));
        }
    }
    let umem = UmemConfig {
        frame_count: UmemConfig::frames_for(&ports).next_power_of_two(),
        chunk_len: chunk_len(config, attached)?,
        ..UmemConfig::default()
    };
    let (pool, opened) = FramePool::new(&umem, &ports)?;
    if let Some(reason) = pool.zero_copy_refusal() {
        tracing::info!(worker = number.index, reason, "AF_XDP works in copy mode");
    }
    let mut sockets = Vec::new();
    let mut queues = Vec::new();
    for (port, interface) in opened.into_iter().zip(owners) {
        let report = &attached[interface.index()];
        sockets.push(QueueSocket {
            interface: report.interface.clone(),
            ifindex: report.ifindex,
            queue: port.queue(),
            xdp: report.mode,
            mode: port.bind_mode(),
            fd: port.fd().try_clone_to_owned()?,
        });
        // A zero-copy NIC delivers what was on the wire; anything else may be a virtual device or the
        // kernel's own stack, and telling costs a few additions.
        let checksums = match port.bind_mode() {
            BindMode::ZeroCopy => RxChecksums::Complete,
            BindMode::Copy => RxChecksums::MayBePartial,
        };
        queues.push(RxQueue { interface, checksums, port });
    }
    Ok((XskDevice::new(pool, queues), sockets))
}

/// A chunk must hold the 256 bytes that the kernel keeps, an Ethernet header with a tag, and a packet.
fn chunk_len(config: &Config, attached: &[AttachReport]) -> anyhow::Result<u32> {
    let mut largest = 0;
    for report in attached {
        let path = format!("/sys/class/net/{}/mtu", report.interface);
        let mtu = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse::<u32>().ok());
        largest = largest.max(mtu.unwrap_or(1500));
    }
    let needed = largest + KERNEL_HEADROOM + ETHERNET_AND_TAG;
    let chosen = match config.rings.frame_bytes {
        0 if needed <= 2048 => 2048,
        0 => 4096,
        configured => configured,
    };
    anyhow::ensure!(
        needed <= chosen,
        "an MTU of {largest} does not fit into frames of {chosen} bytes: at most {} does",
        chosen - KERNEL_HEADROOM - ETHERNET_AND_TAG
    );
    Ok(chosen)
}

/// The last cores by default: interrupts and the rest of the system gather on the first.
fn choose_cores(config: &Config, count: usize) -> anyhow::Result<Vec<Option<usize>>> {
    let allowed: Vec<usize> =
        core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect();
    if !config.workers.cores.is_empty() {
        if let Some(missing) = config.workers.cores.iter().find(|core| !allowed.contains(core)) {
            anyhow::bail!(
                "workers.cores: core {missing} is not among the cores that this process may use {allowed:?}"
            );
        }
        anyhow::ensure!(
            config.workers.cores.len() == count,
            "workers.cores names {} cores, but the queues make {count} workers",
            config.workers.cores.len()
        );
        return Ok(config.workers.cores.iter().copied().map(Some).collect());
    }
    if allowed.len() < count {
        tracing::warn!(
            cores = allowed.len(),
            workers = count,
            "fewer cores than workers: they are not bound"
        );
        return Ok(vec![None; count]);
    }
    Ok(allowed[allowed.len() - count..].iter().copied().map(Some).collect())
}

const KERNEL_HEADROOM: u32 = 256;
const ETHERNET_AND_TAG: u32 = 18;
