//! Opens a worker's AF_XDP sockets: assigns queues and cores to workers.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::Context;
use flowgate_dataplane::device::{RxQueue, XskDevice};
use flowgate_dataplane::{RxChecksums, WorkerNumber};
use flowgate_tables::InterfaceId;
use flowgate_xsk::steering::{AttachReport, SocketMap, SteeringError, XdpMode};
use flowgate_xsk::{BindMode, Driver, FramePool, UmemConfig, XdpStatistics, XskSocketConfig, ZeroCopy};

use super::frames::{self, Frames, Receiver};
use crate::config::Config;

/// One AF_XDP socket as the control thread sees it; the worker has its rings.
pub(crate) struct QueueSocket {
    pub(crate) interface: String,
    pub(crate) ifindex: u32,
    pub(crate) queue: u32,
    pub(crate) xdp: XdpMode,
    pub(crate) mode: BindMode,
    fd: OwnedFd,
}

impl QueueSocket {
    /// The kernel's counters of the socket; `None` once its device is gone.
    pub(crate) fn statistics(&self) -> Option<XdpStatistics> {
        XdpStatistics::of(self.fd.as_fd()).ok()
    }

    /// Puts it into the socket map, so that it gets the traffic of its queue.
    pub(crate) fn connect(&self, map: &SocketMap) -> Result<(), SteeringError> {
        map.set(self.ifindex, self.queue, self.fd.as_fd())
    }

    /// Takes it out of the socket map; its traffic passes to the kernel.
    pub(crate) fn disconnect(&self, map: &SocketMap) -> Result<(), SteeringError> {
        map.clear(self.ifindex, self.queue)
    }
}

pub(crate) type SocketCount = fn(&XdpStatistics) -> u64;

/// Name, meaning and count of frames that the kernel drops on the way to and from a worker (af_xdp.rst, "XDP_STATISTICS").
pub(crate) const SOCKET_DROPS: [(&str, &str, SocketCount); 4] = [
    ("rx_ring_full", "The worker did not keep up: its receive ring was full.", |s| s.rx_ring_full),
    ("rx_dropped", "Larger than a frame, or the kernel had no memory.", |s| s.rx_dropped),
    ("rx_no_frame", "The kernel wanted a frame to receive into and the fill ring was empty.", |s| {
        s.rx_fill_ring_empty_descs
    }),
    ("invalid_descriptor", "A bug of Flowgate: the kernel refused a descriptor.", |s| {
        s.rx_invalid_descs + s.tx_invalid_descs
    }),
];

/// The largest number of workers: the queues of the existing interface that has the fewest.
pub(crate) fn workers_possible(attached: &[AttachReport]) -> usize {
    let queues = attached.iter().map(|report| report.queues).filter(|queues| *queues > 0);
    queues.min().unwrap_or(1) as usize
}

/// Opens the sockets of worker `w` of `n`: it has the queues `w`, `w + n`, ... of every interface, so it can send by each
/// without sharing a queue. An interface that does not exist has no queues.
pub(crate) fn open(
    config: &Config,
    attached: &[AttachReport],
    number: WorkerNumber,
    frames: &Frames,
) -> anyhow::Result<(XskDevice, Vec<QueueSocket>)> {
    let mut ports = Vec::new();
    let mut owners = Vec::new();
    for (interface, report) in attached.iter().enumerate() {
        for queue in (0..report.queues).filter(|queue| *queue as usize % number.count == number.index) {
            ports.push(XskSocketConfig {
                rx_ring_len: config.rings.rx,
                tx_ring_len: config.rings.tx,
                fill_ring_len: config.rings.fill,
                completion_ring_len: config.rings.tx,
                zero_copy: frames.zero_copy,
                ..XskSocketConfig::new(report.interface.clone(), queue)
            });
            owners.push(InterfaceId(u8::try_from(interface).context("too many interfaces")?));
        }
    }
    let umem = UmemConfig {
        frame_count: UmemConfig::frames_for(&ports).next_power_of_two(),
        chunk_len: frames.chunk_len,
        ..UmemConfig::default()
    };
    let (pool, opened) = FramePool::new(&umem, &ports)?;
    if let Some(reason) = pool.zero_copy_refusal() {
        tracing::info!(worker = number.index, reason, "AF_XDP works in copy mode");
    }
    pool.missing_features()
        .filter(|feature| feature.is_first_report())
        .for_each(|feature| tracing::info!("{feature}"));
    let mut sockets = Vec::new();
    let mut queues = Vec::new();
    for (socket, interface) in opened.into_iter().zip(owners) {
        let report = &attached[interface.index()];
        let (worker, mode, queue) = (number.index, socket.bind_mode().name(), socket.queue());
        tracing::info!(worker, interface = report.interface, queue, mode, "AF_XDP socket");
        sockets.push(QueueSocket {
            interface: report.interface.clone(),
            ifindex: report.ifindex,
            queue,
            xdp: report.mode,
            mode: socket.bind_mode(),
            fd: socket.fd().try_clone_to_owned()?,
        });
        // A zero-copy NIC delivers what was on the wire. Other devices may be virtual ones, which deliver packets of the local
        // stack with partial checksums (CHECKSUM_PARTIAL); detecting these costs a few additions.
        let checksums = match socket.bind_mode() {
            BindMode::ZeroCopy => RxChecksums::Complete,
            BindMode::Copy => RxChecksums::MayBePartial,
        };
        queues.push(RxQueue { interface, checksums, socket });
    }
    Ok((XskDevice::new(pool, queues), sockets))
}

/// Chooses the frames for the interfaces that exist.
pub(crate) fn choose_frames(
    config: &Config,
    attached: &[AttachReport],
    zero_copy: ZeroCopy,
) -> anyhow::Result<Frames> {
    let present = attached.iter().filter(|report| report.queues > 0);
    let receiver = |report: &AttachReport| Receiver {
        interface: report.interface.clone(),
        driver: Driver::of(&report.interface),
        mtu: report.mtu,
    };
    // Some drivers bind a socket in zero copy under a generic program, and then never send (igb_xsk_wakeup in
    // drivers/net/ethernet/intel/igb/igb_xsk.c wants a native one).
    let generic = present.clone().find(|report| report.mode == XdpMode::Generic);
    let zero_copy = match (zero_copy, generic) {
        (ZeroCopy::Force, Some(AttachReport { interface, .. })) => {
            anyhow::bail!("xdp.zero_copy is force, but {interface} has generic XDP: set it to auto")
        }
        (_, Some(_)) => ZeroCopy::Off,
        (wanted, None) => wanted,
    };
    let receivers: Vec<_> = present.map(receiver).collect();
    frames::choose(&receivers, zero_copy, config.rings.frame_bytes)
}

/// One core per worker; by default the last ones, since interrupts and other processes tend to be on the first.
pub(crate) fn choose_cores(config: &Config, count: usize) -> anyhow::Result<Vec<Option<usize>>> {
    let allowed: Vec<usize> =
        core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect();
    if !config.workers.cores.is_empty() {
        if let Some(missing) = config.workers.cores.iter().find(|core| !allowed.contains(core)) {
            anyhow::bail!(
                "workers.cores: core {missing} is not among the cores that this process may use {allowed:?}"
            );
        }
        anyhow::ensure!(
            config.workers.cores.len() >= count,
            "workers.cores names {} cores, but the queues make {count} workers",
            config.workers.cores.len()
        );
        return Ok(config.workers.cores.iter().take(count).copied().map(Some).collect());
    }
    if allowed.len() < count {
        tracing::warn!(
            cores = allowed.len(),
            workers = count,
            "fewer cores than workers: workers are not bound to cores"
        );
        return Ok(vec![None; count]);
    }
    Ok(allowed[allowed.len() - count..].iter().copied().map(Some).collect())
}
