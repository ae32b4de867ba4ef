//! Neighbours that the worker has to ask the kernel for. Never asks itself.

use flowgate_tables::routing::NeighbourKey;

use crate::counters::{Counters, Event};

/// Neighbours to be resolved, at most a handful between two drains, none twice.
#[derive(Debug, Default)]
pub(super) struct NeighbourRequests {
    asked: [Option<NeighbourKey>; 16],
    len: usize,
}

impl NeighbourRequests {
    #[cold]
    pub(super) fn push(&mut self, neighbour: NeighbourKey, counters: &mut Counters) {
        if self.asked[..self.len].contains(&Some(neighbour)) {
            return;
        }
        match self.asked.get_mut(self.len) {
            Some(free) => {
                *free = Some(neighbour);
                self.len += 1;
            }
            None => counters.add(Event::ResolveOverflows, 1),
        }
    }

    pub(super) fn drain(&mut self, ask: impl FnMut(NeighbourKey)) {
        self.asked[..self.len].iter_mut().filter_map(Option::take).for_each(ask);
        self.len = 0;
    }
}
