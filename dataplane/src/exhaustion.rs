//! New flows that were refused because a resource was used up, counted per Service, so that an operator learns whom it hurts
//! and what to raise.

use std::fmt;
use std::sync::Arc;

use flowgate_tables::{InterfaceId, ServiceId};

use crate::verdict::DropReason;

/// A bounded resource that a new flow needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ExhaustedResource {
    /// Source ports of the SNAT addresses of the egress interface.
    SnatPorts,
    /// Reply tuples of a client whose address is preserved: all source ports towards its backend are in use.
    ReplyTuples,
    /// Entries of the flow table.
    FlowTable,
    /// The share of the flow table for half-open connections.
    HalfOpen,
    /// One client's share of the flow table or of the source ports to a backend.
    ClientShare,
}

impl ExhaustedResource {
    /// The resource for whose lack a new flow is dropped with this reason; `None` for drops with another cause.
    pub const fn of(reason: DropReason) -> Option<Self> {
        match reason {
            DropReason::SnatPortsExhausted => Some(Self::SnatPorts),
            DropReason::ReplyTupleTaken => Some(Self::ReplyTuples),
            DropReason::FlowTableFull => Some(Self::FlowTable),
            DropReason::HalfOpenLimit => Some(Self::HalfOpen),
            DropReason::ClientLimit => Some(Self::ClientShare),
            _ => None,
        }
    }

    /// The reason under which the dropped packets are counted.
    pub const fn reason(self) -> DropReason {
        match self {
            Self::SnatPorts => DropReason::SnatPortsExhausted,
            Self::ReplyTuples => DropReason::ReplyTupleTaken,
            Self::FlowTable => DropReason::FlowTableFull,
            Self::HalfOpen => DropReason::HalfOpenLimit,
            Self::ClientShare => DropReason::ClientLimit,
        }
    }
}

/// New flows of one Service that one worker refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhaustion {
    /// What was used up.
    pub resource: ExhaustedResource,
    /// The Service port that the flows were for.
    pub service: ServiceId,
    /// The egress interface; `None` where the flow was refused before it was routed.
    pub egress: Option<InterfaceId>,
    /// Number of first packets; a client that retries counts again.
    pub flows: u64,
}

/// Where workers report exhaustion. They call it between bursts, so it must not block.
#[derive(Clone)]
pub struct ExhaustionReporter(Arc<dyn Fn(Exhaustion) -> bool + Send + Sync>);

impl ExhaustionReporter {
    /// Reports by `report`, which returns false when it has no room for another event.
    pub fn new(report: impl Fn(Exhaustion) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(report))
    }

    /// Reports an event; false when it was not accepted and is to be reported again later.
    pub fn report(&self, exhaustion: Exhaustion) -> bool {
        (self.0)(exhaustion)
    }
}

impl fmt::Debug for ExhaustionReporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ExhaustionReporter")
    }
}

impl Default for ExhaustionReporter {
    /// Accepts all events and forgets them.
    fn default() -> Self {
        Self::new(|_| true)
    }
}

/// Exhaustion events of one worker that were not reported yet, merged by (resource, Service, interface).
#[derive(Debug, Default)]
pub(crate) struct UnreportedExhaustions {
    events: [Option<Exhaustion>; MERGED_MAX],
}

impl UnreportedExhaustions {
    /// Adds one refused flow. When all places are taken by other Services the flow is counted as a drop only.
    #[cold]
    pub(crate) fn add(
        &mut self,
        resource: ExhaustedResource,
        service: ServiceId,
        egress: Option<InterfaceId>,
    ) {
        let same =
            |other: &Exhaustion| (other.resource, other.service, other.egress) == (resource, service, egress);
        for place in &mut self.events {
            match place {
                Some(other) if same(other) => other.flows += 1,
                Some(_) => continue,
                None => *place = Some(Exhaustion { resource, service, egress, flows: 1 }),
            }
            return;
        }
    }

    /// Hands each event to `report`; those that it does not accept stay and go on counting.
    pub(crate) fn drain(&mut self, mut report: impl FnMut(Exhaustion) -> bool) {
        for place in &mut self.events {
            if place.is_some_and(&mut report) {
                *place = None;
            }
        }
    }
}

/// Different events that a worker counts at the same time. They are drained after each burst, so a flood to more Services
/// than this within one burst is the only case that is not attributed.
const MERGED_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exhaustions_are_added_up_until_they_are_accepted() {
        let mut exhaustions = UnreportedExhaustions::default();
        for service in [1, 2, 1] {
            exhaustions.add(ExhaustedResource::SnatPorts, ServiceId(service), Some(InterfaceId(0)));
        }
        exhaustions.drain(|exhaustion| exhaustion.service == ServiceId(2));
        exhaustions.add(ExhaustedResource::SnatPorts, ServiceId(1), Some(InterfaceId(0)));
        let mut accepted = Vec::new();
        exhaustions.drain(|exhaustion| {
            accepted.push((exhaustion.service, exhaustion.flows));
            true
        });
        assert_eq!(accepted, [(ServiceId(1), 3)]);
        exhaustions.drain(|_| panic!("all were accepted"));
    }

    #[test]
    fn a_resource_and_its_drop_reason_are_one() {
        for reason in DropReason::ALL {
            assert!(ExhaustedResource::of(*reason).is_none_or(|resource| resource.reason() == *reason));
        }
    }
}
