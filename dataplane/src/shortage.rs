//! What new flows were refused for, by Service: so that whoever can help learns whom it hurts. Never refuses one.

use std::fmt;
use std::sync::Arc;

use flowgate_tables::{InterfaceId, ServiceId};

use crate::verdict::DropReason;

/// What there was too little of for a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lack {
    /// Source ports at the way out.
    SnatPorts,
    /// Source ports of a client whose address is kept.
    ReplyTuples,
    /// Room in the flow table.
    FlowTable,
    /// Room for connections that nobody has answered yet.
    HalfOpen,
}

impl Lack {
    /// What is lacking when a new flow is dropped for this reason; none when it is dropped for another cause.
    pub const fn of(reason: DropReason) -> Option<Self> {
        match reason {
            DropReason::SnatPortsExhausted => Some(Self::SnatPorts),
            DropReason::ReplyTupleTaken => Some(Self::ReplyTuples),
            DropReason::FlowTableFull => Some(Self::FlowTable),
            DropReason::HalfOpenLimit => Some(Self::HalfOpen),
            _ => None,
        }
    }

    /// The reason under which its packets are counted.
    pub const fn reason(self) -> DropReason {
        match self {
            Self::SnatPorts => DropReason::SnatPortsExhausted,
            Self::ReplyTuples => DropReason::ReplyTupleTaken,
            Self::FlowTable => DropReason::FlowTableFull,
            Self::HalfOpen => DropReason::HalfOpenLimit,
        }
    }
}

/// New flows of one Service that were refused by one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// What there was too little of.
    pub lack: Lack,
    /// Whose flows they were.
    pub service: ServiceId,
    /// The way out that they were to take; none where it was not looked for.
    pub egress: Option<InterfaceId>,
    /// How many first packets; a client that tries again counts again.
    pub flows: u64,
}

/// Tells of shortages; false when too much is told already. It must not block: workers call it between bursts.
#[derive(Clone)]
pub struct Teller(
    /// Does it.
    pub Arc<dyn Fn(Shortage) -> bool + Send + Sync>,
);

impl fmt::Debug for Teller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Teller")
    }
}

impl Default for Teller {
    /// Tells nobody.
    fn default() -> Self {
        Self(Arc::new(|_| true))
    }
}

/// Those of one worker that were not told yet: a few, each with its count.
#[derive(Debug, Default)]
pub(crate) struct Shortages {
    few: [Option<Shortage>; FEW],
}

impl Shortages {
    /// Adds one flow. Beyond a few Services at once it is counted as a drop only.
    #[cold]
    pub(crate) fn add(&mut self, lack: Lack, service: ServiceId, egress: Option<InterfaceId>) {
        let same = |other: &Shortage| (other.lack, other.service, other.egress) == (lack, service, egress);
        for place in &mut self.few {
            match place {
                Some(other) if same(other) => other.flows += 1,
                Some(_) => continue,
                None => *place = Some(Shortage { lack, service, egress, flows: 1 }),
            }
            return;
        }
    }

    /// Hands each to `tell`; those that it does not take are kept and go on counting.
    pub(crate) fn drain(&mut self, mut tell: impl FnMut(Shortage) -> bool) {
        for place in &mut self.few {
            if place.is_some_and(&mut tell) {
                *place = None;
            }
        }
    }
}

/// Services and lacks told at once by a worker.
const FEW: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortages_are_added_up_and_kept_until_they_are_heard() {
        let mut shortages = Shortages::default();
        for service in [1, 2, 1] {
            shortages.add(Lack::SnatPorts, ServiceId(service), Some(InterfaceId(0)));
        }
        shortages.drain(|shortage| shortage.service == ServiceId(2));
        shortages.add(Lack::SnatPorts, ServiceId(1), Some(InterfaceId(0)));
        let mut heard = Vec::new();
        shortages.drain(|shortage| {
            heard.push((shortage.service, shortage.flows));
            true
        });
        assert_eq!(heard, [(ServiceId(1), 3)]);
        shortages.drain(|_| panic!("all was told"));
    }

    #[test]
    fn a_lack_and_its_reason_are_one() {
        for reason in DropReason::ALL {
            assert!(Lack::of(*reason).is_none_or(|lack| lack.reason() == *reason));
        }
    }
}
