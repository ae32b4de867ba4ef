//! Counters of a run, by kind of failure and by backend.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use std::{fmt, io};

use serde::Serialize;

use super::StreamOptions;
use crate::loadgen::latency::{LatencyRecorder, LatencySummary};
use crate::loadgen::report::{Report, grouped, human_rate, per_second};
use crate::pattern::Mismatch;

/// How a connection failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StreamError {
    Refused,
    Unreachable,
    TimedOut,
    Reset,
    ClosedEarly,
    /// The server closed a persistent connection in place of an answer, as RFC 9112 section 9.5 allows.
    ClosedIdle,
    NoLocalPort,
    Mismatch(Mismatch),
    BadAnswer(String),
    Other(String),
}

impl From<io::Error> for StreamError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Self::Unreachable,
            io::ErrorKind::TimedOut => Self::TimedOut,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Reset,
            io::ErrorKind::UnexpectedEof => Self::ClosedEarly,
            io::ErrorKind::AddrNotAvailable => Self::NoLocalPort,
            _ => Self::Other(error.to_string()),
        }
    }
}

impl StreamError {
    fn kind(&self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed_out",
            Self::Reset => "reset",
            Self::ClosedEarly => "closed_early",
            Self::ClosedIdle => "goodbye",
            Self::NoLocalPort => "no_local_port",
            Self::Mismatch(_) => "mismatch",
            Self::BadAnswer(_) => "bad_answer",
            Self::Other(_) => "other",
        }
    }
}

impl fmt::Display for StreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mismatch(mismatch) => write!(f, "mismatch: {mismatch}"),
            Self::BadAnswer(text) | Self::Other(text) => write!(f, "{}: {text}", self.kind()),
            _ => f.write_str(self.kind()),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Tally {
    connects: u64,
    connect_failures: BTreeMap<&'static str, u64>,
    broken: BTreeMap<&'static str, u64>,
    closed_idle: u64,
    pub(super) exchanges: u64,
    bytes_verified: u64,
    connect_latency: LatencyRecorder,
    latency: LatencyRecorder,
    by_backend: BTreeMap<String, BackendTally>,
    first_failure: Option<String>,
    last_answer: Option<Instant>,
    longest_gap: Duration,
}

impl Tally {
    pub(super) fn failures(&self) -> u64 {
        self.connect_failures.values().chain(self.broken.values()).sum()
    }

    pub(super) fn connected(&mut self, latency: Duration) {
        self.connects += 1;
        self.connect_latency.record(latency);
    }

    pub(super) fn connect_failed(&mut self, failure: &StreamError) {
        *self.connect_failures.entry(failure.kind()).or_default() += 1;
        self.first_failure.get_or_insert_with(|| format!("connect: {failure}"));
    }

    pub(super) fn opened_at(&mut self, backend: &str) {
        let tally = self.at(backend);
        tally.connections += 1;
        tally.open += 1;
    }

    /// Resets the longest time without an answer.
    pub(super) fn reset_gaps(&mut self, now: Instant) {
        self.last_answer = self.last_answer.map(|_| now);
        self.longest_gap = Duration::ZERO;
    }

    pub(super) fn exchanged(&mut self, backend: &str, verified_len: u64, latency: Duration, now: Instant) {
        let last = self.last_answer.replace(now).unwrap_or(now);
        self.longest_gap = self.longest_gap.max(now.saturating_duration_since(last));
        self.exchanges += 1;
        self.bytes_verified += verified_len;
        self.latency.record(latency);
        let tally = self.at(backend);
        tally.exchanges += 1;
        tally.bytes_verified += verified_len;
    }

    pub(super) fn closed_at(&mut self, backend: &str) {
        let tally = self.at(backend);
        tally.open = tally.open.saturating_sub(1);
    }

    /// The server closed the connection between two exchanges, as HTTP allows.
    pub(super) fn closed_idle(&mut self, backend: &str) {
        self.closed_idle += 1;
        self.closed_at(backend);
    }

    pub(super) fn broken(&mut self, backend: Option<&str>, failure: &StreamError) {
        *self.broken.entry(failure.kind()).or_default() += 1;
        self.first_failure
            .get_or_insert_with(|| format!("{}: {failure}", backend.unwrap_or("before any answer")));
        if let Some(backend) = backend {
            self.closed_at(backend);
            self.at(backend).broken += 1;
        }
    }

    fn at(&mut self, backend: &str) -> &mut BackendTally {
        if !self.by_backend.contains_key(backend) {
            self.by_backend.insert(backend.to_owned(), BackendTally::default());
        }
        self.by_backend.get_mut(backend).expect("it is there or was just inserted")
    }

    /// The longest time without an answer on any connection, including the current one.
    fn longest_gap(&self, now: Instant) -> Duration {
        let last = self.last_answer.unwrap_or(now);
        self.longest_gap.max(now.saturating_duration_since(last))
    }

    pub(super) fn report(&self, options: &StreamOptions, elapsed: Duration, now: Instant) -> StreamReport {
        let owned = |counts: &BTreeMap<&'static str, u64>| {
            counts.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect()
        };
        let seconds = elapsed.as_secs_f64();
        StreamReport {
            target: options.target.to_string(),
            connections: options.connections,
            seconds,
            connects: self.connects,
            connect_failures: owned(&self.connect_failures),
            broken: owned(&self.broken),
            closed_idle: self.closed_idle,
            exchanges: self.exchanges,
            exchanges_per_second: per_second(self.exchanges, seconds),
            bytes_verified: self.bytes_verified,
            connect_latency: self.connect_latency.summary(),
            latency: self.latency.summary(),
            by_backend: self.by_backend.clone(),
            first_failure: self.first_failure.clone(),
            longest_gap_ms: self.longest_gap(now).as_secs_f64() * 1e3,
        }
    }
}

/// The connections that one backend served.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct BackendTally {
    /// Connections that it served.
    pub connections: u64,
    /// Connections open at the time of the report.
    pub open: u64,
    /// Exchanges completed.
    pub exchanges: u64,
    /// Received bytes that were correct.
    pub bytes_verified: u64,
    /// Connections that failed after the backend was known.
    pub broken: u64,
}

/// The outcome of a stream run.
#[derive(Debug, Clone, Serialize)]
pub struct StreamReport {
    /// Where the connections went.
    pub target: String,
    /// The number of concurrent connections.
    pub connections: usize,
    /// Duration in seconds.
    pub seconds: f64,
    /// Connections made.
    pub connects: u64,
    /// Connection attempts that failed, by kind.
    pub connect_failures: BTreeMap<String, u64>,
    /// Connections that failed later, by kind.
    pub broken: BTreeMap<String, u64>,
    /// Connections that the server closed between two exchanges; not a failure.
    pub closed_idle: u64,
    /// Complete exchanges.
    pub exchanges: u64,
    /// Exchanges per second.
    pub exchanges_per_second: f64,
    /// Received bytes that were correct.
    pub bytes_verified: u64,
    /// Latency of connection attempts.
    pub connect_latency: LatencySummary,
    /// Latency from the request to the last byte of the answer.
    pub latency: LatencySummary,
    /// Counters by backend name.
    pub by_backend: BTreeMap<String, BackendTally>,
    /// The first failure.
    pub first_failure: Option<String>,
    /// The longest time without an answer on any connection after the first answer, in milliseconds.
    pub longest_gap_ms: f64,
}

impl StreamReport {
    /// Connections that failed after they were made, of one kind such as `reset` or `mismatch`.
    pub fn broken_by(&self, kind: &str) -> u64 {
        self.broken.get(kind).copied().unwrap_or_default()
    }

    /// All failures: attempts and connections.
    pub fn failures(&self) -> u64 {
        self.connect_failures.values().chain(self.broken.values()).sum()
    }
}

impl Report for StreamReport {
    fn rows(&self) -> Vec<(String, String)> {
        let mut rows = vec![
            ("target".into(), self.target.clone()),
            (
                "connections".into(),
                format!("{} at a time, {} made", self.connections, grouped(self.connects)),
            ),
            (
                "exchanges".into(),
                format!("{} ({})", grouped(self.exchanges), human_rate(self.exchanges_per_second)),
            ),
            ("bytes verified".into(), grouped(self.bytes_verified)),
            ("connect".into(), self.connect_latency.line()),
            ("exchange".into(), self.latency.line()),
        ];
        for (backend, tally) in &self.by_backend {
            let text = format!("{} connections, {} exchanges", tally.connections, grouped(tally.exchanges));
            rows.push((format!("at {backend}"), text));
        }
        for (what, counts) in [("connect failures", &self.connect_failures), ("broken", &self.broken)] {
            let text: Vec<_> = counts.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
            rows.push((what.into(), if text.is_empty() { "none".into() } else { text.join(", ") }));
        }
        rows.extend(self.first_failure.iter().map(|failure| ("first failure".into(), failure.clone())));
        rows
    }

    fn is_clean(&self) -> bool {
        self.failures() == 0 && self.exchanges > 0
    }
}
