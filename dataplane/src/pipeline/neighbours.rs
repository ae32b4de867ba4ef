//! Neighbours to be resolved by the kernel. The worker passes them on between bursts.

use flowgate_tables::routing::NeighbourKey;

use crate::counters::{Counters, Event};

/// Neighbours to be resolved: a few between two drains, each once.
#[derive(Debug, Default)]
pub(super) struct NeighbourRequests {
    wanted: [Option<NeighbourKey>; 16],
    len: usize,
}

impl NeighbourRequests {
    #[cold]
    pub(super) fn push(&mut self, neighbour: NeighbourKey, counters: &mut Counters) {
        if self.wanted[..self.len].contains(&Some(neighbour)) {
            return;
        }
        match self.wanted.get_mut(self.len) {
            Some(free) => {
                *free = Some(neighbour);
                self.len += 1;
            }
            None => counters.add(Event::ResolveOverflows, 1),
        }
    }

    pub(super) fn drain(&mut self, resolve: impl FnMut(NeighbourKey)) {
        self.wanted[..self.len].iter_mut().filter_map(Option::take).for_each(resolve);
        self.len = 0;
    }
}
