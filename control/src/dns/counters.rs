//! What the server did, in numbers. Never decides anything.

use std::sync::atomic::{AtomicU64, Ordering};

use hickory_proto::op::ResponseCode;

/// Counts since the start. Messages that could not be read as a question are not among the queries.
#[derive(Debug, Default)]
pub struct Counters {
    /// Answers without an error, empty ones included.
    pub no_error: AtomicU64,
    /// Answers that the name does not exist.
    pub no_such_name: AtomicU64,
    /// Answers that it cannot be told now: nothing was read from the cluster yet, or no upstream answered.
    pub server_failure: AtomicU64,
    /// Refused: transfers, other classes than IN, and names of others while nothing is forwarded.
    pub refused: AtomicU64,
    /// Answers with any other code: malformed or unsupported queries.
    pub other: AtomicU64,
    /// Queries over TCP; they are also counted by their answers.
    pub over_tcp: AtomicU64,
    /// Answers over UDP that did not fit; a client asks again over TCP.
    pub truncated: AtomicU64,
    /// Questions asked of upstream resolvers, or answered from what they said before.
    pub forwarded: AtomicU64,
    /// Forwarded questions that no upstream answered in time.
    pub forward_failed: AtomicU64,
    /// Questions not forwarded because too many were waiting already.
    pub overloaded: AtomicU64,
    /// TCP connections closed at once because too many were open.
    pub connections_refused: AtomicU64,
}

impl Counters {
    pub(super) fn answered(&self, code: ResponseCode) {
        Self::add(match code {
            ResponseCode::NoError => &self.no_error,
            ResponseCode::NXDomain => &self.no_such_name,
            ResponseCode::ServFail => &self.server_failure,
            ResponseCode::Refused => &self.refused,
            _ => &self.other,
        });
    }

    pub(super) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// How queries were answered, by name: each query once.
    pub fn answers(&self) -> [(&'static str, u64); 5] {
        [
            ("no_error", &self.no_error),
            ("no_such_name", &self.no_such_name),
            ("server_failure", &self.server_failure),
            ("refused", &self.refused),
            ("other", &self.other),
        ]
        .map(|(name, counter)| (name, counter.load(Ordering::Relaxed)))
    }

    /// What else happened, by name.
    pub fn events(&self) -> [(&'static str, u64); 6] {
        [
            ("over_tcp", &self.over_tcp),
            ("truncated", &self.truncated),
            ("forwarded", &self.forwarded),
            ("forward_failed", &self.forward_failed),
            ("overloaded", &self.overloaded),
            ("connections_refused", &self.connections_refused),
        ]
        .map(|(name, counter)| (name, counter.load(Ordering::Relaxed)))
    }
}
