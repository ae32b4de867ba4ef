//! Executes verdicts: sends frames, holds them, answers them, or lets them go.

use flowgate_flow::Tick;
use flowgate_tables::{InterfaceId, Routing};
use flowgate_wire::reject::IcmpError;

use super::held::{Held, HeldForFragment, HeldForNeighbour, PATIENCE_MS};
use super::reject::Rejects;
use super::vlan;
use crate::burst::RxChecksums;
use crate::counters::{Counters, Event};
use crate::device::{Device, NotSent};
use crate::verdict::{DropReason, PassReason, Verdict};

/// What the verdicts on the frames of one burst are executed with.
pub(super) struct Outcomes<'a, D: Device> {
    pub(super) device: &'a mut D,
    pub(super) routing: &'a Routing,
    pub(super) counters: &'a mut Counters,
    pub(super) held_for_neighbour: &'a mut HeldForNeighbour<D::Frame>,
    pub(super) held_for_fragment: &'a mut HeldForFragment<D::Frame>,
    pub(super) rejects: &'a mut Rejects,
    /// Where frames go that are to be decided again without their tags.
    pub(super) untagged: &'a mut Vec<(D::Frame, InterfaceId)>,
    pub(super) checksums: RxChecksums,
    pub(super) arrival: Arrival,
    pub(super) now: Tick,
}

/// Whether a frame was held before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    JustNow,
    Held { since: Tick },
}

impl Arrival {
    /// When the frame was received.
    fn since(self, now: Tick) -> Tick {
        match self {
            Self::JustNow => now,
            Self::Held { since } => since,
        }
    }
}

impl<D: Device> Outcomes<'_, D> {
    /// Queues a finished frame for sending out of an interface, and counts the outcome.
    #[inline]
    pub(super) fn send(&mut self, egress: InterfaceId, mut frame: D::Frame) {
        let (device_interface, tag) = self.routing.device(egress);
        if let Some(identifier) = tag
            && !vlan::push(&mut frame, identifier)
        {
            return self.drop_frame(DropReason::TooBig, frame);
        }
        match self.device.send(device_interface, frame) {
            Ok(()) => self.counters.add(Event::TxPackets, 1),
            Err(NotSent::RingFull) => self.counters.count(&Verdict::Drop(DropReason::TxRingFull)),
            Err(NotSent::NoEgress) => self.counters.count(&Verdict::Drop(DropReason::NoEgress)),
        }
    }

    /// Executes the verdict on a frame that came in by `ingress`.
    pub(super) fn execute(&mut self, verdict: &Verdict, mut frame: D::Frame, ingress: InterfaceId) {
        // With the time of its arrival: one that is decided again and held again does not start over.
        let (arrived, since) = ((self.checksums, ingress), self.arrival.since(self.now));
        let is_new = u64::from(self.arrival == Arrival::JustNow);
        match *verdict {
            Verdict::Transmit(egress) => self.send(egress, frame),
            Verdict::AwaitNeighbour(neighbour) => {
                // RFC 1812 section 5.2.7.1, RFC 4443 section 3.1: it waited in vain, so its sender is told.
                if self.now.since(since) >= PATIENCE_MS && self.routing.has_failed(&neighbour) {
                    self.counters.count(&Verdict::Drop(DropReason::NoNeighbour));
                    return self.report(IcmpError::HostUnreachable, frame, ingress);
                }
                let held = Held::new(frame, neighbour, arrived, since);
                match self.held_for_neighbour.admit(held, self.now) {
                    Ok(()) => self.counters.add(Event::Held, is_new),
                    Err(frame) => self.drop_frame(DropReason::NoNeighbour, frame),
                }
            }
            Verdict::AwaitFragment(of) => {
                let held = Held::new(frame, of, arrived, since);
                let is_late = self.held_for_fragment.is_expired(&held, self.now);
                match self.held_for_fragment.admit(held, self.now) {
                    Ok(()) => self.counters.add(Event::FragmentsAwaiting, is_new),
                    Err(frame) if is_late => self.drop_frame(DropReason::FragmentNoFirst, frame),
                    Err(frame) => self.drop_frame(DropReason::FragmentExcess, frame),
                }
            }
            Verdict::Reject(_) => {
                if self.rejects.refuse(&mut frame, self.now) {
                    self.counters.add(Event::RejectsSent, 1);
                    self.send(ingress, frame);
                } else {
                    self.drop_frame(DropReason::RejectUnanswered, frame);
                }
            }
            Verdict::IcmpError(error) => self.report(error, frame, ingress),
            Verdict::Reply => self.send(ingress, frame),
            Verdict::Untag => {
                let interface = vlan::untag(&mut frame, ingress, self.routing);
                if vlan::is_tagged(&mut frame) {
                    self.counters.count(&Verdict::Pass(PassReason::NotIp));
                    self.device.recycle(frame);
                } else {
                    self.untagged.push((frame, interface));
                }
            }
            Verdict::Pass(_) | Verdict::Drop(_) => self.device.recycle(frame),
        }
    }

    /// Sends an ICMP error about the packet, which is counted already, if its sender may get one now.
    fn report(&mut self, error: IcmpError, mut frame: D::Frame, ingress: InterfaceId) {
        let own = self.routing.interfaces().get(ingress.index());
        let own = own.map_or(&[][..], |interface| &interface.spec.addresses);
        if self.rejects.report(&mut frame, error, own, self.now) {
            self.counters.add(Event::ErrorsSent, 1);
            self.send(ingress, frame);
        } else {
            self.device.recycle(frame);
        }
    }

    /// Drops a frame that cannot be held or sent, and counts it.
    #[cold]
    fn drop_frame(&mut self, reason: DropReason, frame: D::Frame) {
        self.counters.count(&Verdict::Drop(reason));
        self.device.recycle(frame);
    }
}
