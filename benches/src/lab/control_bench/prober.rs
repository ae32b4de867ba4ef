//! A client that opens a new flow every millisecond and records when the first answer with the wanted name arrives.

use std::io;
use std::net::SocketAddrV4;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::clock;
use crate::error::{Error, Result};
use crate::lab::interrupt;
use crate::loadgen::stop::Stop;
use crate::netns::Namespace;

/// Interval between two new flows.
const INTERVAL: Duration = Duration::from_millis(1);
/// Time limit of an answer.
const ANSWER_LIMIT: Duration = Duration::from_millis(500);

/// Probes one or more addresses until each has given the wanted answer; ends when dropped.
pub(super) struct AnswerWatch {
    stop: Stop,
    done: mpsc::Receiver<Instant>,
    thread: Option<JoinHandle<()>>,
}

impl AnswerWatch {
    /// Starts probing all addresses in turn.
    pub(super) fn start(client: &Namespace, targets: Vec<SocketAddrV4>, wanted: &str) -> Result<Self> {
        let (stop, (report, done)) = (Stop::default(), mpsc::channel());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Error::io("make a runtime for the prober"))?;
        let thread = client.spawn_thread("prober", {
            let (stop, wanted) = (stop.clone(), wanted.to_owned());
            move || {
                let tasks = tokio::task::LocalSet::new();
                let seen = runtime.block_on(tasks.run_until(watch(targets, wanted.into(), stop)));
                // The receiver may be dropped.
                seen.map(|seen| report.send(seen).ok());
            }
        })?;
        Ok(Self { stop, done, thread: Some(thread) })
    }

    /// Waits for the wanted answer of all addresses; returns when the last one arrived.
    pub(super) fn await_all(self, limit: Duration, stop: &Stop) -> Result<Instant> {
        let deadline = clock::now() + limit;
        loop {
            if let Ok(seen) = self.done.recv_timeout(Duration::from_millis(20)) {
                return Ok(seen);
            }
            interrupt::check(stop)?;
            if clock::now() > deadline {
                return Err(Error::Timeout {
                    what: "an answer of the new endpoints".into(),
                    after: limit,
                    hint: "check that the forwarder runs and has seen the change".into(),
                });
            }
        }
    }
}

impl Drop for AnswerWatch {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            // A panic has been printed already.
            let _ = thread.join();
        }
    }
}

/// Probes until every target has answered as wanted; returns the time of the last answer, or `None` if stopped before.
async fn watch(targets: Vec<SocketAddrV4>, wanted: Rc<str>, stop: Stop) -> Option<Instant> {
    let mut open: Vec<_> =
        targets.into_iter().map(|target| (target, Rc::new(FirstAnswer::default()))).collect();
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = None;
    for turn in 0usize.. {
        tokio::select! {
            _ = ticks.tick() => {}
            () = open[turn % open.len()].1.notify.notified() => {}
        }
        open.retain(|(_, seen)| match seen.at.get() {
            None => true,
            Some(at) => {
                last = last.max(Some(at));
                false
            }
        });
        if open.is_empty() {
            return last;
        }
        if stop.is_stopped() {
            return None;
        }
        let (target, seen) = &open[turn % open.len()];
        let (target, seen, wanted) = (*target, Rc::clone(seen), Rc::clone(&wanted));
        tokio::task::spawn_local(async move {
            // No answer or an ICMP error: the next flow tries again.
            if let Ok(Ok(true)) = timeout(ANSWER_LIMIT, ask(target, &wanted)).await {
                seen.note(clock::now());
            }
        });
    }
    unreachable!("the turns do not run out")
}

#[derive(Default)]
struct FirstAnswer {
    at: std::cell::Cell<Option<Instant>>,
    notify: Notify,
}

impl FirstAnswer {
    fn note(&self, at: Instant) {
        if self.at.get().is_none() {
            self.at.set(Some(at));
            self.notify.notify_one();
        }
    }
}

/// Whether a new flow gets the wanted answer.
async fn ask(target: SocketAddrV4, wanted: &str) -> io::Result<bool> {
    let socket = UdpSocket::bind("0.0.0.0:0").await?;
    socket.connect(target).await?;
    socket.send(b"who are you?").await?;
    let mut buffer = [0; 128];
    let len = socket.recv(&mut buffer).await?;
    Ok(&buffer[..len] == wanted.as_bytes())
}
