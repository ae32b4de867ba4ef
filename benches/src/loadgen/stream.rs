//! TCP connections that check every byte they receive: an echo protocol or HTTP, persistent or a new connection for each
//! exchange.
//!
//! The loop is closed: a connection sends its next request after the answer to the last one, so that latencies are those
//! of exchanges. For latency under a fixed load use the UDP probe.

mod connection;
mod tally;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::task::LocalSet;
use tokio::time::sleep;

use super::progress::{Progress, ProgressOutput};
use super::raise_open_files;
use super::report::{grouped, human_rate, per_second};
use super::stop::Stop;
use crate::clock;
use crate::error::{Error, Result};
use crate::netns::Namespace;
use connection::{Connection, Next};
use tally::{StreamError, Tally};

pub use tally::{BackendTally, StreamReport};

/// Which connections to open, and their traffic.
#[derive(Debug, Clone)]
pub struct StreamOptions {
    /// Where to connect.
    pub target: SocketAddr,
    /// The number of concurrent connections.
    pub connections: usize,
    /// Duration of the run.
    pub duration: Duration,
    /// A request and its answer.
    pub exchange: Exchange,
    /// Whether a connection serves one exchange or many.
    pub reuse: Reuse,
    /// The pause of a connection between two exchanges.
    pub pause: Duration,
    /// Time limit of a connection attempt.
    pub connect_timeout: Duration,
    /// Time limit of an exchange.
    pub exchange_timeout: Duration,
    /// The seed of the bytes of the echo protocol.
    pub seed: u64,
}

impl StreamOptions {
    /// Persistent connections without pauses and with long time limits.
    pub fn new(target: SocketAddr, connections: usize, duration: Duration, exchange: Exchange) -> Self {
        Self {
            target,
            connections,
            duration,
            exchange,
            reuse: Reuse::KeepAlive,
            pause: Duration::ZERO,
            connect_timeout: Duration::from_secs(5),
            exchange_timeout: Duration::from_secs(10),
            seed: 1,
        }
    }
}

/// One request and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exchange {
    /// Bytes of a [`Pattern`](crate::pattern::Pattern), which the server sends back.
    Echo {
        /// The number of bytes.
        len: usize,
        /// Whether the server first sends a line with its name.
        greeting: Greeting,
    },
    /// `GET path`; the answer to `/bytes/N` is checked byte by byte.
    Http {
        /// The path.
        path: String,
    },
}

/// Whether an echo server first sends a line with its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Greeting {
    /// It sends its name.
    Name,
    /// It waits for the client.
    None,
}

/// How many exchanges a connection serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reuse {
    /// All exchanges.
    KeepAlive,
    /// One.
    PerExchange,
}

/// Runs in the calling thread's namespace until the duration is over.
pub fn run(options: StreamOptions, show: ProgressOutput, stop: &Stop) -> Result<StreamReport> {
    let tally = Arc::new(Mutex::new(Tally::default()));
    let label = options.target.to_string();
    let progress = Progress::start(show, &label, options.duration, {
        let (tally, start) = (Arc::clone(&tally), clock::now());
        move || {
            let tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
            let rate = human_rate(per_second(tally.exchanges, start.elapsed().as_secs_f64()));
            format!("{} exchanges, {rate}, {} failures", grouped(tally.exchanges), tally.failures())
        }
    });
    let report = drive(Arc::new(options), &tally, stop);
    drop(progress);
    report
}

/// Starts in the background in a namespace.
pub fn start(namespace: &Namespace, options: StreamOptions) -> Result<StreamRun> {
    let (options, tally) = (Arc::new(options), Arc::new(Mutex::new(Tally::default())));
    let (stop, begin) = (Stop::default(), clock::now());
    let thread = namespace.spawn_thread("stream-load", {
        let (options, tally, stop) = (Arc::clone(&options), Arc::clone(&tally), stop.clone());
        move || drive(options, &tally, &stop)
    })?;
    Ok(StreamRun { options, tally, stop, begin, thread: Some(thread) })
}

/// A run in the background; stopped when dropped.
#[derive(Debug)]
pub struct StreamRun {
    options: Arc<StreamOptions>,
    tally: Arc<Mutex<Tally>>,
    stop: Stop,
    begin: Instant,
    thread: Option<JoinHandle<Result<StreamReport>>>,
}

impl StreamRun {
    /// The report so far.
    pub fn snapshot(&self) -> StreamReport {
        let tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.report(&self.options, self.begin.elapsed(), clock::now())
    }

    /// Measures [`StreamReport::longest_gap_ms`] from here on.
    pub fn reset_gaps(&self) {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).reset_gaps(clock::now());
    }

    /// Stops after the current exchanges and returns the report.
    pub fn finish(mut self) -> Result<StreamReport> {
        self.stop.stop();
        self.join()
    }

    /// Waits until the duration is over and returns the report.
    pub fn wait(mut self) -> Result<StreamReport> {
        self.join()
    }

    fn join(&mut self) -> Result<StreamReport> {
        let thread = self.thread.take().expect("the thread is joined once, by value or by drop");
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for StreamRun {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            // The report is not needed any more.
            let _ = thread.join();
        }
    }
}

fn drive(options: Arc<StreamOptions>, tally: &Arc<Mutex<Tally>>, stop: &Stop) -> Result<StreamReport> {
    if options.connections == 0 {
        return Err(Error::Option("the number of connections must be at least 1".into()));
    }
    raise_open_files()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::io("make the runtime of the stream generator"))?;
    let begin = clock::now();
    let ended = Stop::default();
    let tasks = LocalSet::new();
    for number in 0..options.connections {
        let worker = Worker {
            number,
            options: Rc::new((*options).clone()),
            tally: Arc::clone(tally),
            ended: ended.clone(),
        };
        tasks.spawn_local(worker.run());
    }
    let timer = {
        let (duration, stop) = (options.duration, stop.clone());
        async move {
            tokio::select! {
                () = sleep(duration) => {}
                () = stop.stopped() => {}
            }
            ended.stop();
        }
    };
    tasks.spawn_local(timer);
    runtime.block_on(tasks);
    Ok(tally.lock().unwrap_or_else(PoisonError::into_inner).report(&options, begin.elapsed(), clock::now()))
}

/// One connection, opened again after each failure.
struct Worker {
    number: usize,
    options: Rc<StreamOptions>,
    tally: Arc<Mutex<Tally>>,
    ended: Stop,
}

impl Worker {
    const RETRY: Duration = Duration::from_millis(50);

    async fn run(self) {
        let mut generation = 0;
        self.pause(self.stagger()).await;
        while !self.ended.is_stopped() {
            let begin = clock::now();
            // Every connection has its own byte stream, so that bytes of another connection are detected.
            let seed =
                self.options.seed ^ (u64::try_from(self.number).unwrap_or_default() << 32) ^ generation;
            generation += 1;
            match Connection::open(&self.options, seed).await {
                Ok(connection) => {
                    self.note(|tally| tally.connected(begin.elapsed()));
                    self.serve(connection).await;
                }
                Err(failure) => {
                    self.note(|tally| tally.connect_failed(&failure));
                    self.pause(Self::RETRY).await;
                }
            }
        }
    }

    /// Exchanges until the end, an orderly close by the server, or a failure.
    async fn serve(&self, mut connection: Connection) {
        let mut backend = connection.greeted_by().map(str::to_owned);
        if let Some(name) = &backend {
            self.note(|tally| tally.opened_at(name));
        }
        loop {
            let begin = clock::now();
            let outcome = tokio::time::timeout(self.options.exchange_timeout, connection.exchange()).await;
            let answer = match outcome.unwrap_or(Err(StreamError::TimedOut)) {
                Ok(answer) => answer,
                Err(StreamError::ClosedIdle) => {
                    return self.note(|tally| tally.closed_idle(backend.as_deref().unwrap_or_default()));
                }
                Err(failure) => return self.note(|tally| tally.broken(backend.as_deref(), &failure)),
            };
            let first_answer = backend.is_none();
            let name = backend.get_or_insert_with(|| answer.backend.clone().unwrap_or_else(|| "-".into()));
            self.note(|tally| {
                if first_answer {
                    tally.opened_at(name);
                }
                tally.exchanged(name, answer.verified_len, begin.elapsed(), clock::now());
                // Another backend in the middle of a connection means that its flow was not kept on one backend.
                if answer.backend.as_ref().is_some_and(|now| now != name) {
                    tally.broken(
                        Some(name),
                        &StreamError::BadAnswer(format!("{name} changed to {:?}", answer.backend)),
                    );
                }
            });
            let last = self.options.reuse == Reuse::PerExchange || answer.next == Next::Closes;
            if last || self.ended.is_stopped() {
                self.note(|tally| tally.closed_at(name));
                return connection.close().await;
            }
            self.pause(self.options.pause).await;
            match connection.still_open().await {
                Ok(true) => {}
                Ok(false) => return self.note(|tally| tally.closed_idle(name)),
                Err(failure) => return self.note(|tally| tally.broken(Some(name), &failure)),
            }
        }
    }

    /// Spreads the starts of pausing connections over one pause, so that they do not all send at the same time.
    fn stagger(&self) -> Duration {
        let count = u32::try_from(self.options.connections.max(1)).unwrap_or(u32::MAX);
        self.options.pause / count * u32::try_from(self.number).unwrap_or_default()
    }

    async fn pause(&self, pause: Duration) {
        if pause.is_zero() {
            return;
        }
        tokio::select! {
            () = sleep(pause) => {}
            () = self.ended.stopped() => {}
        }
    }

    fn note(&self, change: impl FnOnce(&mut Tally)) {
        change(&mut self.tally.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
