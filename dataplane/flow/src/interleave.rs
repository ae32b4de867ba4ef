//! A scheduler for tests: threads take turns at every atomic operation, in an order that follows from a seed.
//!
//! The real code of the table runs in real threads, but only one at a time: before each atomic operation a thread may
//! hand over. A test tries thousands of interleavings, and one that fails is repeated by its seed. All interleavings are
//! sequentially consistent: what a processor reorders shows only in the stress tests on several cores.
//!
//! Why not loom or shuttle: their atomics are objects with state of their own, larger than the integers and created by a
//! constructor. Those of the table are `repr(C)` fields in a memory mapping that begins as zero bytes or as what another
//! process left, so the layout, the mapping and adoption could not be tested with them.

use std::cell::RefCell;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use flowgate_wire::hash::{SPLITMIX_STEP, splitmix};

/// Runs all of `bodies` to their ends, interleaved by `seed`.
///
/// # Panics
/// A body panics.
pub fn run(seed: u64, bodies: Vec<Box<dyn FnOnce() + Send + '_>>) {
    let schedule = Arc::new(Schedule::new(seed, bodies.len()));
    thread::scope(|scope| {
        for (me, body) in bodies.into_iter().enumerate() {
            let schedule = Arc::clone(&schedule);
            scope.spawn(move || {
                let _seat = Seat::take(schedule, me);
                body();
            });
        }
    });
}

/// A point at which the thread may hand over.
pub(crate) fn step() {
    SEAT.with_borrow(|seat| {
        if let Some((schedule, me)) = seat {
            schedule.hand_over(*me);
        }
    });
}

thread_local! {
    static SEAT: RefCell<Option<(Arc<Schedule>, usize)>> = const { RefCell::new(None) };
}

struct Schedule {
    turn: Mutex<Turn>,
    changed: Condvar,
}

struct Turn {
    /// The thread that runs.
    whose: usize,
    running: Vec<bool>,
    random: u64,
}

impl Schedule {
    fn new(seed: u64, threads: usize) -> Self {
        // SplitMix64 has no bad seeds, so tests count them up from zero.
        let turn = Turn { whose: 0, running: vec![true; threads], random: seed };
        Self { turn: Mutex::new(turn), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hand_over(&self, me: usize) {
        let mut turn = self.lock();
        // One switch in four: most bugs need few switches, at the right places (Burckhardt et al., ASPLOS 2010).
        if turn.next_random().is_multiple_of(4) {
            turn.switch();
            self.changed.notify_all();
        }
        self.wait(turn, me);
    }

    fn wait(&self, turn: MutexGuard<'_, Turn>, me: usize) {
        let waited = self.changed.wait_while(turn, |turn| turn.whose != me);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Turn {
    /// Gives the turn to a random thread that has not ended.
    fn switch(&mut self) {
        let running: Vec<usize> = (0..self.running.len()).filter(|&thread| self.running[thread]).collect();
        let choice = self.next_random();
        let count = u64::try_from(running.len()).unwrap_or(1).max(1);
        let at = usize::try_from(choice % count).unwrap_or(0);
        self.whose = running.get(at).copied().unwrap_or(0);
    }

    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(SPLITMIX_STEP);
        splitmix(self.random) >> 8
    }
}

/// A thread's membership in the schedule. Dropped on a panic too, so that the others go on and the test ends.
struct Seat(Arc<Schedule>, usize);

impl Seat {
    fn take(schedule: Arc<Schedule>, me: usize) -> Self {
        SEAT.set(Some((Arc::clone(&schedule), me)));
        schedule.wait(schedule.lock(), me);
        Self(schedule, me)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        SEAT.set(None);
        let mut turn = self.0.lock();
        turn.running[self.1] = false;
        turn.switch();
        self.0.changed.notify_all();
    }
}
