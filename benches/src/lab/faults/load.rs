//! Long-lived connections that must survive a fault.

use std::net::SocketAddr;
use std::time::Duration;

use super::case_result::CaseResult;
use crate::error::Result;
use crate::lab::wait::eventually;
use crate::loadgen::stream::{self, Exchange, Greeting, Reuse, StreamOptions, StreamReport, StreamRun};
use crate::netns::Namespace;

/// Longer than any case; dropping a [`Load`] ends it.
const UNLIMITED: Duration = Duration::from_secs(24 * 3600);
/// A connection without an answer for this long counts as lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Persistent connections, one group per target; ended when dropped.
pub(in crate::lab) struct Load {
    groups: Vec<Group>,
}

struct Group {
    label: &'static str,
    wanted: u64,
    run: StreamRun,
}

/// The traffic of a connection.
#[derive(Debug, Clone)]
pub(in crate::lab) struct Workload {
    /// A request and its answer.
    pub(in crate::lab) exchange: Exchange,
    /// The pause of a connection between two exchanges.
    pub(in crate::lab) pause: Duration,
}

impl Workload {
    /// Small HTTP requests, a few each second.
    pub(in crate::lab) fn http() -> Self {
        Self { exchange: Exchange::Http { path: "/bytes/512".into() }, pause: Duration::from_millis(400) }
    }

    /// `len` bytes to an echo server, which first sends its name, and back.
    pub(in crate::lab) fn echo(len: usize, pause: Duration) -> Self {
        Self { exchange: Exchange::Echo { len, greeting: Greeting::Name }, pause }
    }
}

impl Load {
    /// Starts `connections`, divided among the targets, and waits until each had an answer.
    pub(in crate::lab) fn start(
        client: &Namespace,
        targets: &[(&'static str, SocketAddr)],
        connections: usize,
        workload: &Workload,
    ) -> Result<Self> {
        let each = connections.div_ceil(targets.len());
        let mut groups = Vec::new();
        for (seed, &(label, target)) in (1..).zip(targets) {
            let mut options = StreamOptions::new(target, each, UNLIMITED, workload.exchange.clone());
            (options.pause, options.exchange_timeout, options.seed) = (workload.pause, ANSWER_TIMEOUT, seed);
            options.connect_timeout = ANSWER_TIMEOUT;
            let wanted = u64::try_from(each).expect("a count fits 64 bits");
            groups.push(Group { label, wanted, run: stream::start(client, options)? });
        }
        let load = Self { groups };
        eventually(&format!("the answers of {connections} connections"), || {
            Ok(load.groups.iter().all(|group| {
                let report = group.run.snapshot();
                open(&report) >= group.wanted && report.exchanges >= group.wanted
            }))
        })?;
        load.reset_gaps();
        Ok(load)
    }

    /// Measures [`longest_gap_ms`](Self::longest_gap_ms) from here on.
    pub(in crate::lab) fn reset_gaps(&self) {
        self.groups.iter().for_each(|group| group.run.reset_gaps());
    }

    /// Answers so far.
    pub(in crate::lab) fn exchanges(&self) -> u64 {
        self.groups.iter().map(|group| group.run.snapshot().exchanges).sum()
    }

    /// Verified bytes so far.
    pub(in crate::lab) fn bytes(&self) -> u64 {
        self.groups.iter().map(|group| group.run.snapshot().bytes_verified).sum()
    }

    /// Waits until every group has answers again, and returns how long that took.
    pub(in crate::lab) fn await_answers(&self) -> Result<Duration> {
        let before: Vec<_> = self.groups.iter().map(|group| group.run.snapshot().exchanges).collect();
        eventually("every group of connections has answers again", || {
            let now = self.groups.iter().map(|group| group.run.snapshot().exchanges);
            Ok(now.zip(&before).all(|(now, before)| now > *before))
        })
    }

    /// The longest time without an answer in any group, in milliseconds.
    pub(in crate::lab) fn longest_gap_ms(&self) -> f64 {
        self.groups.iter().map(|group| group.run.snapshot().longest_gap_ms).fold(0.0, f64::max)
    }

    /// Ends the connections and records which were lost, under names that begin with `who`.
    pub(in crate::lab) fn finish(self, who: &str, result: &mut CaseResult) -> Result<()> {
        let (mut connections, mut exchanges) = (0, 0);
        for group in self.groups {
            let report = group.run.finish()?;
            connections += report.connects;
            exchanges += report.exchanges;
            let why = report.first_failure.as_ref().map(|why| {
                let (broken, refused) = (&report.broken, &report.connect_failures);
                format!("{} to {}: {why}; {broken:?} {refused:?}", group.label, report.target)
            });
            result.record_lost(report.failures() + report.closed_idle, why.as_deref());
        }
        result.record(&format!("{who}_connections"), connections);
        result.record(&format!("{who}_exchanges"), exchanges);
        Ok(())
    }
}

fn open(report: &StreamReport) -> u64 {
    report.by_backend.values().map(|tally| tally.open).sum()
}

/// Opens a new connection per exchange for `duration`, two at a time.
pub(in crate::lab) fn new_connections_work(
    client: &Namespace,
    target: SocketAddr,
    exchange: &Exchange,
    duration: Duration,
) -> Result<StreamReport> {
    let mut options = StreamOptions::new(target, 2, duration, exchange.clone());
    options.reuse = Reuse::PerExchange;
    options.pause = Duration::from_millis(20);
    options.connect_timeout = Duration::from_secs(2);
    options.exchange_timeout = Duration::from_secs(2);
    stream::start(client, options)?.wait()
}
