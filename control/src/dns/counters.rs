//! Counters of the DNS server.

use std::sync::atomic::{AtomicU64, Ordering};

use hickory_proto::op::ResponseCode;

/// Counts since the start. Messages that could not be parsed as a query are not counted.
#[derive(Debug, Default)]
pub struct Counters {
    /// NOERROR responses, empty ones included.
    pub no_error: AtomicU64,
    /// NXDOMAIN responses.
    pub no_such_name: AtomicU64,
    /// SERVFAIL responses: no objects were received yet, or no upstream answered.
    pub server_failure: AtomicU64,
    /// REFUSED responses: zone transfers, other classes than IN, and other names while nothing is forwarded or without
    /// the RD bit.
    pub refused: AtomicU64,
    /// Responses with any other code: malformed or unsupported queries.
    pub other: AtomicU64,
    /// Queries over TCP; they are also counted by response code.
    pub over_tcp: AtomicU64,
    /// Responses that were truncated. After one over UDP the client repeats the query over TCP; over TCP it has as many
    /// records as a message holds.
    pub truncated: AtomicU64,
    /// Queries forwarded to upstream resolvers, or answered from the cache of their responses.
    pub forwarded: AtomicU64,
    /// Forwarded queries that no upstream answered in time.
    pub forward_failed: AtomicU64,
    /// Queries not forwarded because too many were waiting already.
    pub overloaded: AtomicU64,
    /// Queries not forwarded because too many of the same client were waiting already.
    pub client_overloaded: AtomicU64,
    /// Responses over UDP that the rate limit left out.
    pub rate_limited: AtomicU64,
    /// Responses over UDP that the rate limit truncated.
    pub rate_slipped: AtomicU64,
    /// TCP connections closed to make room for newer ones, of this or another server of the process.
    pub connections_shed: AtomicU64,
}

impl Counters {
    /// Counts one response.
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

    /// Responses by code, with the names that metrics use: each query counts once.
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

    /// The other counters, with the names that metrics use.
    pub fn events(&self) -> [(&'static str, u64); 9] {
        [
            ("over_tcp", &self.over_tcp),
            ("truncated", &self.truncated),
            ("forwarded", &self.forwarded),
            ("forward_failed", &self.forward_failed),
            ("overloaded", &self.overloaded),
            ("client_overloaded", &self.client_overloaded),
            ("rate_limited", &self.rate_limited),
            ("rate_slipped", &self.rate_slipped),
            ("connections_shed", &self.connections_shed),
        ]
        .map(|(name, counter)| (name, counter.load(Ordering::Relaxed)))
    }
}
