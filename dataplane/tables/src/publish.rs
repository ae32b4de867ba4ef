//! Makes a generation current and retires the one before; readers take no lock.

use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread;

use arc_swap::{ArcSwap, Cache};

use crate::Tables;

/// The one writer. Holds every retired generation until no reader refers to it; then a thread of its own frees it, since the
/// tables of a large cluster take longer to free than a worker or the writer may be away.
#[derive(Debug)]
pub struct Publisher {
    current: Arc<ArcSwap<Tables>>,
    retired: Vec<Arc<Tables>>,
    freeing: FreeingThread,
}

impl Default for Publisher {
    fn default() -> Self {
        Self::new()
    }
}

impl Publisher {
    /// Starts with the empty generation.
    pub fn new() -> Self {
        Self {
            current: Arc::new(ArcSwap::from_pointee(Tables::empty())),
            retired: Vec::new(),
            freeing: FreeingThread::default(),
        }
    }

    /// Makes `tables` current and has the retired generations freed that no reader holds.
    pub fn publish(&mut self, tables: Tables) {
        // The swap releases what was written while the tables were built; a reader's load acquires it (arc-swap).
        let previous = self.current.swap(Arc::new(tables));
        self.retired.push(previous);
        self.collect();
    }

    /// Has retired generations freed that no reader holds; returns the number that are still held.
    pub fn collect(&mut self) -> usize {
        // Readers clone only the current generation, so a retired one whose count is one has ours as its last reference
        // and the count cannot grow again.
        for tables in self.retired.extract_if(.., |tables| Arc::strong_count(tables) == 1) {
            self.freeing.free(tables);
        }
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

/// Frees generations; started with the first one, and ends with its owner.
#[derive(Debug, Default)]
struct FreeingThread {
    sender: Option<Sender<Arc<Tables>>>,
}

impl FreeingThread {
    /// Frees `tables`, of which the caller has the last reference.
    fn free(&mut self, tables: Arc<Tables>) {
        if self.sender.is_none() {
            let (sender, retired) = mpsc::channel();
            let free = move || retired.into_iter().for_each(drop);
            let started = thread::Builder::new().name("flowgate-free".to_owned()).spawn(free);
            self.sender = started.is_ok().then_some(sender);
        }
        // Where the system has no thread left, the tables are freed here.
        let _ = self.sender.as_ref().map(|sender| sender.send(tables));
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
    use std::sync::Weak;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn generation(number: u64) -> Tables {
        Tables { generation: number, ..Tables::empty() }
    }

    #[test]
    fn a_generation_in_use_is_kept_and_then_freed() {
        let mut publisher = Publisher::new();
        publisher.publish(generation(1));
        let mut reader = publisher.reader();
        assert_eq!(reader.current().generation, 1);
        let first = Arc::downgrade(&publisher.current());
        publisher.publish(generation(2));
        assert_eq!(publisher.collect(), 1, "the reader still holds generation 1");
        assert!(first.upgrade().is_some());
        assert_eq!(reader.current().generation, 2);
        assert_eq!(publisher.collect(), 0);
        all_freed(&publisher, &[first]);
    }

    /// Returns once the publisher's thread has freed all of these generations.
    fn all_freed(publisher: &Publisher, generations: &[Weak<Tables>]) {
        let Some(sender) = &publisher.freeing.sender else {
            return assert!(generations.is_empty(), "no generation was retired yet");
        };
        // The thread frees one after the other: once this one is gone, so are those before it.
        let last = Arc::new(generation(0));
        let is_freed = Arc::downgrade(&last);
        sender.send(last).unwrap();
        while is_freed.strong_count() > 0 {
            thread::yield_now();
        }
        assert!(generations.iter().all(|generation| generation.strong_count() == 0));
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
        let mut witnesses: Vec<(u64, Weak<Tables>)> = Vec::new();
        for number in 1..2_000 {
            publisher.publish(generation(number));
            // Every generation that is neither retired nor current is freed, and nobody else has a reference to it.
            let held: Vec<u64> = publisher.retired.iter().map(|tables| tables.generation).collect();
            let is_held = |(generation, _): &(u64, Weak<Tables>)| held.contains(generation);
            let (still_held, gone): (Vec<_>, Vec<_>) = witnesses.into_iter().partition(is_held);
            let gone: Vec<Weak<Tables>> = gone.into_iter().map(|(_, witness)| witness).collect();
            all_freed(&publisher, &gone);
            witnesses = still_held;
            witnesses.push((number, Arc::downgrade(&publisher.current())));
        }
        stop.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.join().unwrap();
        }
        assert_eq!(publisher.collect(), 0);
    }
}
