//! Long work beside the control thread: on threads of its own, which leave cores and time to the workers.

use std::panic::resume_unwind;
use std::thread;

use rustix::process::{getpriority_process, setpriority_process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tokio::task::{JoinHandle, spawn_blocking};

/// How threads that compile share the machine with the workers.
#[derive(Clone, Debug, Default)]
pub struct Background {
    /// Added to the nice value of the process: with 10 a worker that is busy gets ten times as much of a core.
    pub nice: i32,
    /// Cores that are left alone unless there are no others: those that workers are bound to.
    pub avoid_cores: Vec<usize>,
    /// What these threads call first, to give up privileges: they read what strangers wrote.
    pub confine: Option<fn()>,
    /// Stops work before it begins.
    #[cfg(test)]
    pub(super) gate: super::tests::Gate,
}

impl Background {
    /// Runs `work` on a thread for it alone; threads that it starts inherit the priority. The result is an error if it
    /// panics.
    pub(super) fn spawn<R: Send + 'static>(
        &self,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> JoinHandle<R> {
        let background = self.clone();
        // tokio's pool waits for the thread, since other work on the pool must not inherit the priority, which cannot be
        // raised again without a privilege.
        spawn_blocking(move || {
            thread::scope(|scope| {
                let thread = thread::Builder::new().name("flowgate-compile".to_owned());
                let lowered = || {
                    background.lower_this_thread();
                    if let Some(confine) = background.confine {
                        confine();
                    }
                    #[cfg(test)]
                    background.gate.pass();
                    work()
                };
                let thread = thread.spawn_scoped(scope, lowered).expect("the system has a thread left");
                thread.join().unwrap_or_else(|panic| resume_unwind(panic))
            })
        })
    }

    /// What the kernel refuses is left as it is: then the work takes more from the workers, and is done all the same.
    fn lower_this_thread(&self) {
        // Without a process id both calls are about the calling thread (setpriority(2), "C library/kernel differences").
        let _ = getpriority_process(None).and_then(|nice| setpriority_process(None, nice + self.nice));
        let _ = sched_getaffinity(None).map(|allowed| {
            let others = without(allowed, &self.avoid_cores);
            (others.count() > 0).then(|| sched_setaffinity(None, &others))
        });
    }
}

fn without(mut cores: CpuSet, avoided: &[usize]) -> CpuSet {
    for &core in avoided.iter().filter(|&&core| core < CpuSet::MAX_CPU) {
        cores.unset(core);
    }
    cores
}

/// Drops `value` on another thread: freeing the objects or tables of a large cluster takes many milliseconds.
pub(super) fn release<T: Send + 'static>(value: T) {
    // Nobody waits for it.
    drop(spawn_blocking(move || drop(value)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed() -> Vec<usize> {
        let cores = sched_getaffinity(None).unwrap();
        (0..CpuSet::MAX_CPU).filter(|&core| cores.is_set(core)).collect()
    }

    #[tokio::test]
    async fn background_work_yields_to_workers_and_keeps_off_their_cores_if_there_are_others() {
        let (nice, cores) = (getpriority_process(None).unwrap(), allowed());
        let look = || (getpriority_process(None).unwrap(), allowed());
        let on = |avoid_cores| Background { nice: 3, avoid_cores, ..Background::default() };
        let last = *cores.last().unwrap();
        let (lowered, elsewhere) = on(vec![last]).spawn(look).await.unwrap();
        assert_eq!(lowered, (nice + 3).min(19));
        if cores.len() > 1 {
            assert_eq!(elsewhere, cores[..cores.len() - 1]);
        }
        assert_eq!(on(cores.clone()).spawn(look).await.unwrap().1, cores, "all cores have workers");
        assert_eq!(
            (getpriority_process(None).unwrap(), allowed()),
            (nice, cores),
            "this thread is as before"
        );
    }

    #[tokio::test]
    async fn a_panic_in_background_work_is_an_error() {
        let outcome = Background::default().spawn(|| panic!("a defect")).await;
        assert!(outcome.unwrap_err().is_panic());
    }
}
