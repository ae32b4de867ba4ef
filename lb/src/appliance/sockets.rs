//! Opens a worker's AF_XDP sockets: assigns queues and cores to workers.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::Context;
use flowgate_dataplane::device::{RxQueue, XskDevice};
use flowgate_dataplane::{RxChecksums, WorkerNumber};
use flowgate_tables::InterfaceId;
use flowgate_xsk::steering::{AttachReport, SocketMap, SteeringError, XdpMode};
use flowgate_xsk::{
    BindMode, Driver, FramePool, OpenedSockets, PacketMemory, UmemConfig, XdpStatistics, XskSocketConfig,
    ZeroCopy,
};

use super::frames::{self, Frames, Receiver};
use crate::config::Config;

/// One AF_XDP socket as the control thread sees it; the worker has its rings.
pub(crate) struct QueueSocket {
    pub(crate) interface: String,
    pub(crate) number: InterfaceId,
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

/// The largest number of workers: the queues of the existing interface that has the fewest; `None` if there is none.
pub(crate) fn workers_possible(attached: &[AttachReport]) -> Option<usize> {
    attached.iter().map(|report| report.queues as usize).filter(|queues| *queues > 0).min()
}

/// What one worker is opened with.
pub(crate) struct Opened {
    pub(crate) device: XskDevice,
    pub(crate) sockets: Vec<QueueSocket>,
    pub(crate) room: MemoryRoom,
}

/// The packet memory of a worker as the control thread has it, to open sockets while the worker runs.
pub(crate) struct MemoryRoom {
    memory: PacketMemory,
    /// For how many sockets of each interface the memory is large enough.
    sockets: Vec<usize>,
}

/// Opens the sockets of worker `w` of `n`: it has the queues `w`, `w + n`, ... of every interface, so it can send by each
/// without sharing a queue. An interface that does not exist has no queues; there is memory for one.
pub(crate) fn open(
    config: &Config,
    attached: &[AttachReport],
    number: WorkerNumber,
    frames: &Frames,
) -> anyhow::Result<Opened> {
    let mut ports = Vec::new();
    let mut owners = Vec::new();
    let (mut reserved, mut room) = (Vec::new(), Vec::new());
    for (interface, report) in attached.iter().enumerate() {
        let interface = InterfaceId(u8::try_from(interface).context("too many interfaces")?);
        let own = configure(config, report, number, frames.zero_copy);
        room.push(own.len().max(1));
        if own.is_empty() {
            reserved.push(socket_config(config, &report.interface, 0, frames.zero_copy));
        }
        owners.extend(own.iter().map(|_| interface));
        ports.extend(own);
    }
    let all: Vec<_> = ports.iter().chain(&reserved).cloned().collect();
    let umem = UmemConfig {
        frame_count: UmemConfig::frames_for(&all).next_power_of_two(),
        chunk_len: frames.chunk_len,
        ..UmemConfig::default()
    };
    let pool = FramePool::map(&umem)?;
    let room = MemoryRoom { memory: pool.memory(), sockets: room };
    let opened = room.memory.open(&ports)?;
    let (queues, sockets) = describe(opened, owners, attached, number)?;
    Ok(Opened { device: XskDevice::new(pool, queues), sockets, room })
}

/// Opens a worker's sockets of one interface, while its others are open. If there are more than its memory was made for,
/// each has a smaller share of it.
pub(crate) fn open_interface(
    config: &Config,
    (interface, report): (InterfaceId, &AttachReport),
    number: WorkerNumber,
    zero_copy: ZeroCopy,
    room: &MemoryRoom,
) -> anyhow::Result<(Vec<RxQueue>, Vec<QueueSocket>)> {
    let mut ports = configure(config, report, number, zero_copy);
    let planned = room.sockets.get(interface.index()).copied().unwrap_or(1);
    if ports.len() > planned {
        let share = config.rings.fill as usize * planned / ports.len();
        let fill = u32::try_from(share.max(SMALLEST_FILL) / 2 + 1)?.next_power_of_two();
        ports.iter_mut().for_each(|port| port.fill_ring_len = fill);
        tracing::info!(
            worker = number.index,
            interface = report.interface,
            fill,
            "more queues than there is packet memory for: shorter fill rings until the next start"
        );
    }
    let opened = room.memory.open(&ports)?;
    let owners = vec![interface; ports.len()];
    describe(opened, owners, std::slice::from_ref(report), number)
}

/// The sockets of one worker on one interface.
fn configure(
    config: &Config,
    report: &AttachReport,
    number: WorkerNumber,
    zero_copy: ZeroCopy,
) -> Vec<XskSocketConfig> {
    let own = (0..report.queues).filter(|queue| *queue as usize % number.count == number.index);
    own.map(|queue| socket_config(config, &report.interface, queue, zero_copy)).collect()
}

fn socket_config(config: &Config, interface: &str, queue: u32, zero_copy: ZeroCopy) -> XskSocketConfig {
    XskSocketConfig {
        rx_ring_len: config.rings.rx,
        tx_ring_len: config.rings.tx,
        fill_ring_len: config.rings.fill,
        completion_ring_len: config.rings.tx,
        zero_copy,
        ..XskSocketConfig::new(interface, queue)
    }
}

/// The two halves of opened sockets: the worker's and the control thread's. `attached` has the interface of each.
fn describe(
    opened: OpenedSockets,
    owners: Vec<InterfaceId>,
    attached: &[AttachReport],
    number: WorkerNumber,
) -> anyhow::Result<(Vec<RxQueue>, Vec<QueueSocket>)> {
    if let Some(reason) = opened.zero_copy_refusal {
        tracing::info!(worker = number.index, reason, "AF_XDP works in copy mode");
    }
    let missing = opened.missing_features.into_iter();
    missing.filter(|feature| feature.is_first_report()).for_each(|feature| tracing::info!("{feature}"));
    let (mut queues, mut sockets) = (Vec::new(), Vec::new());
    for (socket, interface) in opened.sockets.into_iter().zip(owners) {
        let report = attached.iter().find(|report| report.interface == socket.interface());
        let report = report.context("a socket of an interface that is not attached")?;
        let (worker, mode, queue) = (number.index, socket.bind_mode().name(), socket.queue());
        tracing::info!(worker, interface = report.interface, queue, mode, "AF_XDP socket");
        sockets.push(QueueSocket {
            interface: report.interface.clone(),
            number: interface,
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
    Ok((queues, sockets))
}

/// The shortest fill ring, in frames: a few bursts.
const SMALLEST_FILL: usize = 256;

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
