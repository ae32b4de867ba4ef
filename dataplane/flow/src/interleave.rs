//! Threads that take turns at every atomic operation, in an order that follows from a seed.
//!
//! The real code of the table runs in real threads, but only one at a time: before each atomic operation a
//! thread may have to hand over. So a test tries thousands of interleavings of the steps of the protocol, and
//! one that breaks something is found again by its seed. Every interleaving is sequentially consistent: what a
//! processor reorders is not seen here, but by the stress tests on several cores.

use std::cell::RefCell;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use flowgate_wire::hash::{SPLITMIX_STEP, splitmix};

/// Runs all of `bodies` to their ends, interleaved as `seed` says.
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

/// A thread's turn may end here.
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
    /// Whose turn it is.
    whose: usize,
    running: Vec<bool>,
    random: u64,
}

impl Schedule {
    fn new(seed: u64, threads: usize) -> Self {
        // SplitMix64 has no bad seeds.
        let turn = Turn { whose: 0, running: vec![true; threads], random: seed };
        Self { turn: Mutex::new(turn), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hand_over(&self, me: usize) {
        let mut turn = self.lock();
        // Mostly on: bugs need few changes of thread, at the right places (Burckhardt et al., ASPLOS 2010).
        if turn.next_random().is_multiple_of(4) {
            turn.choose();
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
    /// Gives the turn to any thread that runs.
    fn choose(&mut self) {
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

/// A thread's place in the schedule; leaving it, by a panic too, lets the others go on.
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
        turn.choose();
        self.0.changed.notify_all();
    }
}
