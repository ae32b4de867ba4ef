//! What the control thread looks after between publications: workers, interfaces, and that the steering
//! program holds the traffic for a successor as long as there is reason to expect one.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flowgate_xsk::steering::Device;
use tokio::sync::watch;

use super::prove;
use super::publish::Publishing;
use super::reexec::Reexecutions;
use super::workers::{Given, Workers};

/// Looks after everything that may break while traffic flows.
pub(crate) struct Care {
    workers: Rc<RefCell<Workers>>,
    publishing: Rc<RefCell<Publishing>>,
    ailments: watch::Sender<Arc<[String]>>,
    reexecutions: Reexecutions,
    /// How long the traffic is held for a successor after the end of this process.
    hold: Duration,
    held_at: Option<Instant>,
    looked_at: Option<Instant>,
    /// The devices as the sockets were opened for, and as they were seen last.
    opened_for: Vec<Option<Device>>,
    seen: Vec<Option<Device>>,
}

impl Care {
    pub(crate) fn new(
        workers: Rc<RefCell<Workers>>,
        publishing: Rc<RefCell<Publishing>>,
        ailments: watch::Sender<Arc<[String]>>,
        reexecutions: Reexecutions,
        hold: Duration,
    ) -> Self {
        let devices = devices(&publishing.borrow());
        Self {
            workers,
            publishing,
            ailments,
            reexecutions,
            hold,
            held_at: None,
            looked_at: None,
            opened_for: devices.clone(),
            seen: devices,
        }
    }

    /// Looks after everything until a worker hangs that only another process can replace: its number.
    pub(crate) async fn until_a_worker_hangs(mut self) -> usize {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        // After a long operation the next look is due later, not several at once.
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // A late tick tells when it was due. Workers would seem to have stood still since then.
            ticks.tick().await;
            let now = tokio::time::Instant::now().into_std();
            if let Some(worker) = self.look_after_workers(now) {
                return worker;
            }
            if self.looked_at.is_none_or(|at| now.duration_since(at) >= INTERFACES_EVERY) {
                self.looked_at = Some(now);
                self.look_after_interfaces();
            }
            self.hold_on(now);
            self.look_after_services(now);
            show_ailments(&self.workers.borrow(), &self.ailments);
            self.publishing.borrow_mut().publisher.collect();
        }
    }

    /// Says whose new flows are refused, and what would help.
    fn look_after_services(&self, now: Instant) {
        let tables = self.publishing.borrow().publisher.current();
        for warning in self.workers.borrow_mut().short.look(&tables, now) {
            tracing::warn!("{warning}");
        }
    }

    fn look_after_workers(&self, now: Instant) -> Option<usize> {
        let publishing = self.publishing.borrow();
        let hanging = self.workers.borrow_mut().watch(&given(&publishing), now);
        let worker = hanging.first().copied()?;
        if self.reexecutions.may_go_on() {
            return Some(worker);
        }
        tracing::error!("this happens again and again: the process is left alone");
        None
    }

    /// Opens the sockets anew when an interface has come, gone or changed. Two looks must agree: a device may
    /// be in the middle of it.
    fn look_after_interfaces(&mut self) {
        let devices = devices(&self.publishing.borrow());
        let settled = devices == self.seen;
        self.seen.clone_from(&devices);
        let due = devices != self.opened_for || self.workers.borrow().to_be_reopened;
        if !due || !settled || devices.iter().all(Option::is_none) {
            return;
        }
        let mut publishing = self.publishing.borrow_mut();
        for (report, device) in publishing.steering.report().iter().zip(&devices) {
            let interface = &report.interface;
            match device {
                Some(Device { ifindex, queues, mtu }) => {
                    tracing::info!(interface, ifindex, queues, mtu, "sockets are opened anew")
                }
                None => tracing::warn!(interface, "is gone: the others are served without it"),
            }
        }
        for error in publishing.steering.follow().err().into_iter().flatten() {
            tracing::error!("an interface is served no more: {error}");
        }
        self.opened_for = devices;
        if let Err(error) = prove::forget_deliveries(&mut publishing.steering) {
            tracing::error!("what the interfaces deliver is not watched: {error:#}");
        }
        if let Err(error) = self.workers.borrow_mut().reopen(&given(&publishing)) {
            tracing::error!("the sockets cannot be opened anew yet: {error:#}");
        }
    }

    /// While all is well, whoever comes next has the time to take over. A worker that stays dead or hangs
    /// loses its traffic to the kernel when that time is over.
    fn hold_on(&mut self, now: Instant) {
        let due = self.held_at.is_none_or(|at| now.duration_since(at) >= HOLD_EVERY);
        if self.hold.is_zero() || !due || !self.workers.borrow().are_well() {
            return;
        }
        self.held_at = Some(now);
        if let Err(error) = self.publishing.borrow_mut().steering.hold_for(self.hold) {
            tracing::error!(%error, "the next restart may be seen by clients");
        }
    }
}

/// What workers are given now.
pub(crate) fn given(publishing: &Publishing) -> Given<'_> {
    Given {
        attached: publishing.steering.report(),
        publisher: &publishing.publisher,
        map: publishing.steering.sockets(),
    }
}

/// The devices of all interfaces as they are now.
fn devices(publishing: &Publishing) -> Vec<Option<Device>> {
    publishing.steering.report().iter().map(|report| Device::named(&report.interface)).collect()
}

/// Tells health which workers are not well.
fn show_ailments(workers: &Workers, ailments: &watch::Sender<Arc<[String]>>) {
    let states = (0..workers.posts.len()).map(|index| (index, workers.state(index)));
    let unwell = states
        .filter(|(_, state)| ["hanging", "dead"].contains(state))
        .map(|(index, state)| format!("worker {index} is {state}: its traffic passes to the kernel"));
    let no_sockets = workers.to_be_reopened.then(|| "no sockets after a change of the interfaces".to_owned());
    let unwell: Arc<[String]> = unwell.chain(no_sockets).collect();
    ailments.send_if_modified(|shown| {
        let changed = *shown != unwell;
        *shown = unwell;
        changed
    });
}

/// How often heartbeats are looked at and retired generations freed.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often devices are looked at.
const INTERFACES_EVERY: Duration = Duration::from_millis(200);
/// How often the hold is prolonged.
const HOLD_EVERY: Duration = Duration::from_millis(500);
