//! Sockets of one interface are closed and opened while the workers serve the others: no worker stops, and no frame of the
//! others is lost.

use std::sync::mpsc;
use std::time::Duration;

use flowgate_dataplane::device::XskDevice;
use flowgate_tables::InterfaceId;
use flowgate_xsk::steering::{AttachReport, SocketMap};
use flowgate_xsk::{BindMode, Driver, XskSocket, ZeroCopy};

use super::slot::Stage;
use super::{StartContext, WorkerSlot, Workers};
use crate::appliance::{frames, sockets};

impl Workers {
    /// Closes the sockets of an interface that is gone or is to be opened anew. Frames that the kernel keeps are lost for the
    /// packet memory until all sockets are opened again.
    ///
    /// # Errors
    /// A worker does not answer.
    pub(crate) fn close_interface(&mut self, interface: InterfaceId, map: &SocketMap) -> anyhow::Result<()> {
        let is_its = |socket: &sockets::QueueSocket| socket.number == interface;
        let slots = self.slots.iter_mut().filter(|slot| slot.sockets.iter().any(is_its));
        let mut slots: Vec<_> = slots.collect();
        if slots.is_empty() {
            return Ok(());
        }
        // The kernel first: what it delivers later would be lost.
        for socket in slots.iter().flat_map(|slot| &slot.sockets).filter(|socket| is_its(socket)) {
            // Fails for a device that is gone, which delivers nothing.
            let _ = socket.disconnect(map);
        }
        map.wait_for_readers();
        let (sender, removed) = mpsc::channel::<(Vec<XskSocket>, usize)>();
        for slot in &mut slots {
            slot.sockets.retain(|socket| !is_its(socket));
            let sender = sender.clone();
            change(slot, move |device| {
                // The receiver is gone if this took too long: then the sockets are closed here.
                let _ = sender.send(device.remove(interface));
            });
        }
        drop(sender);
        let mut lost = 0;
        for _ in slots.iter().filter(|slot| !matches!(slot.stage, Stage::Empty)) {
            // Closed here, as that waits for the kernel.
            let (_sockets, of_worker) = removed.recv_timeout(ANSWER_LIMIT)?;
            lost += of_worker;
        }
        self.lost_frames += lost;
        Ok(())
    }

    /// Opens the sockets of an interface that has none, and gives them its traffic.
    ///
    /// # Errors
    /// What is missing, with its queue; or a worker does not answer. Then the interface may have some of its sockets: close
    /// it before another attempt.
    pub(crate) fn open_interface(
        &mut self,
        interface: InterfaceId,
        context: &StartContext<'_>,
    ) -> anyhow::Result<()> {
        let Some(report) = context.attached.get(interface.index()) else { return Ok(()) };
        self.proofs.forget_others(context.attached);
        let zero_copy = self.zero_copy_of(report)?;
        let (sender, answers) = mpsc::channel();
        let mut expected = 0;
        for slot in &mut self.slots {
            let Some(room) = &slot.room else { continue };
            let (queues, opened) =
                sockets::open_interface(&self.config, (interface, report), slot.number, zero_copy, room)?;
            slot.sockets.extend(opened);
            let sender = sender.clone();
            expected += usize::from(!matches!(slot.stage, Stage::Empty));
            change(slot, move |device| {
                device.add(queues);
                let _ = sender.send(());
            });
        }
        // A socket gets traffic when it has frames to receive into.
        (0..expected).try_for_each(|_| answers.recv_timeout(ANSWER_LIMIT))?;
        if self.started {
            let all = self.slots.iter().flat_map(|slot| &slot.sockets);
            let mut own = all.filter(|socket| socket.number == interface);
            own.try_for_each(|socket| socket.connect(&context.map))?;
        }
        self.warn_of_shortages(context.attached);
        Ok(())
    }

    /// Whether a worker has a socket at all.
    pub(crate) fn has_any_socket(&self) -> bool {
        self.slots.iter().any(|slot| !slot.sockets.is_empty())
    }

    /// Whether so many frames were lost with closed sockets that the others may run short.
    pub(crate) fn has_lost_frames(&self) -> bool {
        self.lost_frames > LOST_FRAMES_MAX
    }

    /// Whether packets of the MTU would not arrive whole in the mode in which the interface is open.
    pub(crate) fn cuts_packets(&self, report: &AttachReport) -> bool {
        let is_zero_copy = |slot: &WorkerSlot| {
            slot.sockets.iter().any(|s| s.interface == report.interface && s.mode == BindMode::ZeroCopy)
        };
        self.slots.iter().any(is_zero_copy)
            && self.zero_copy_of(report).is_ok_and(|zero_copy| zero_copy == ZeroCopy::Off)
    }

    /// Warns once of each interface with an MTU that the frames do not hold.
    pub(crate) fn warn_of_shortages(&mut self, attached: &[AttachReport]) {
        let chunk_len = self.frames.chunk_len;
        for AttachReport { interface, mtu, .. } in attached.iter().filter(|report| report.queues > 0) {
            let Some(shortage) = frames::shortage(interface, *mtu, chunk_len, self.config.rings.frame_bytes)
            else {
                if self.too_large.remove(interface).is_some() {
                    tracing::info!(interface, mtu, "the MTU fits into a frame again");
                }
                continue;
            };
            if self.too_large.insert(interface.clone(), *mtu) != Some(*mtu) {
                tracing::warn!("{shortage}");
            }
        }
    }

    /// The largest IP packet, in bytes, that a frame holds.
    pub(crate) fn largest_packet(&self) -> u32 {
        frames::largest_packet(self.frames.chunk_len)
    }

    /// Zero copy for one interface, with the frames that there are.
    fn zero_copy_of(&self, report: &AttachReport) -> anyhow::Result<ZeroCopy> {
        let policy = self.proofs.zero_copy();
        let frames = sockets::choose_frames(&self.config, std::slice::from_ref(report), policy)?;
        let driver = Driver::of(&report.interface);
        let arrives_whole = driver.longest_frame(self.frames.chunk_len);
        let fits = arrives_whole.is_some_and(|longest| longest >= report.mtu + frames::ETHERNET_AND_TAG);
        Ok(if fits || frames.zero_copy == ZeroCopy::Force { frames.zero_copy } else { ZeroCopy::Off })
    }
}

/// Changes the device of a slot: at once, or by its worker.
fn change(slot: &mut WorkerSlot, act: impl FnOnce(&mut XskDevice) + Send + 'static) {
    match &mut slot.stage {
        Stage::Ready(device) => act(device),
        Stage::Running(worker) => worker.order(act),
        Stage::Empty => {}
    }
}

/// Frames of the packet memory that may be lost: in copy mode few ever are, in zero copy a whole fill ring.
const LOST_FRAMES_MAX: usize = 1024;

/// How long the control thread waits for a worker. One that sleeps wakes after 100 ms at most.
const ANSWER_LIMIT: Duration = Duration::from_millis(500);
