//! Makes a generation current and retires the one before; readers take no lock.

use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};

use crate::Tables;

/// The one writer. Holds every retired generation until no reader refers to it, so that memory is freed on its thread and
/// not on a worker's.
#[derive(Debug)]
pub struct Publisher {
    current: Arc<ArcSwap<Tables>>,
    retired: Vec<Arc<Tables>>,
}

impl Default for Publisher {
    fn default() -> Self {
        Self::new()
    }
}

impl Publisher {
    /// Starts with the empty generation.
    pub fn new() -> Self {
        Self { current: Arc::new(ArcSwap::from_pointee(Tables::empty())), retired: Vec::new() }
    }

    /// Makes `tables` current and frees the retired generations that no reader holds.
    pub fn publish(&mut self, tables: Tables) {
        // The swap releases what was written while the tables were built; a reader's load acquires it (arc-swap).
        let previous = self.current.swap(Arc::new(tables));
        self.retired.push(previous);
        self.collect();
    }

    /// Frees retired generations that no reader holds; returns the number that are still held.
    pub fn collect(&mut self) -> usize {
        // Readers clone only the current generation, so a retired one whose count is one has ours as its last reference
        // and the count cannot grow again. Dropped by a worker instead, a large table would cost it milliseconds.
        self.retired.retain(|tables| Arc::strong_count(tables) > 1);
        self.retired.len()
    }

    /// The current generation.
    pub fn current(&self) -> Arc<Tables> {
        self.current.load_full()
    }

    /// A new reader, for one thread.
    pub fn reader(&self) -> TablesReader {
        TablesReader { cache: Cache::new(Arc::clone(&self.current)) }
    }
}

/// One thread's view of the current generation.
#[derive(Clone, Debug)]
pub struct TablesReader {
    cache: Cache<Arc<ArcSwap<Tables>>, Arc<Tables>>,
}

impl TablesReader {
    /// The current generation. To be called once per burst, so that a burst sees one generation.
    #[inline]
    pub fn current(&mut self) -> &Tables {
        // One load and a comparison while nothing was published: the cache holds its own reference, so the count that all
        // readers share is touched only after a publication.
        self.cache.load()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    fn generation(number: u64) -> Tables {
        Tables { generation: number, ..Tables::empty() }
    }

    #[test]
    fn a_generation_in_use_is_kept_and_then_freed_by_the_publisher() {
        let mut publisher = Publisher::new();
        publisher.publish(generation(1));
        let mut reader = publisher.reader();
        assert_eq!(reader.current().generation, 1);
        publisher.publish(generation(2));
        assert_eq!(publisher.collect(), 1, "the reader still holds generation 1");
        assert_eq!(reader.current().generation, 2);
        assert_eq!(publisher.collect(), 0);
    }

    #[test]
    fn readers_see_generations_in_order_and_never_free_one() {
        let mut publisher = Publisher::new();
        let stop = Arc::new(AtomicBool::new(false));
        let readers: Vec<_> = (0..3)
            .map(|_| {
                let (mut reader, stop) = (publisher.reader(), Arc::clone(&stop));
                thread::spawn(move || {
                    let mut last = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let generation = reader.current().generation;
                        assert!(generation >= last);
                        last = generation;
                    }
                })
            })
            .collect();
        let mut witnesses = Vec::new();
        for number in 1..2_000 {
            publisher.publish(generation(number));
            witnesses.push(Arc::downgrade(&publisher.current()));
            // Every generation that is neither retired nor current must have been freed by `publish`.
            let held = publisher.retired.len() + 1;
            let alive = witnesses.iter().filter(|w| w.strong_count() > 0).count();
            assert!(alive <= held, "{alive} alive, {held} accounted for");
        }
        stop.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.join().unwrap();
        }
        assert_eq!(publisher.collect(), 0);
    }
}
