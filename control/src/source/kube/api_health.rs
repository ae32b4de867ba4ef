//! Health of the source: the worst over all collections that are required, with the earliest time and one reason.

use std::collections::BTreeMap;
use std::time::SystemTime;

use super::reflector::WatchEvent;
use crate::model::Kind;
use crate::source::SourceHealth;

/// The connection of each collection.
#[derive(Debug)]
pub(super) struct ApiHealth {
    connections: BTreeMap<Kind, Connection>,
    /// When the state that is served meanwhile was saved; `None` if none is.
    saved: Option<SystemTime>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Connection {
    /// Before the first event.
    Pending,
    Connected,
    Disconnected {
        since: SystemTime,
        reason: String,
    },
}

impl ApiHealth {
    /// All of `kinds` are pending; until they are connected, what is served is of the time `saved`.
    pub(super) fn new(kinds: impl IntoIterator<Item = Kind>, saved: Option<SystemTime>) -> Self {
        Self { connections: kinds.into_iter().map(|kind| (kind, Connection::Pending)).collect(), saved }
    }

    pub(super) fn apply(&mut self, kind: Kind, event: &WatchEvent) {
        let Some(connection) = self.connections.get_mut(&kind) else { return };
        match (event, &*connection) {
            // The reason is the newest one, the time that of the first failure.
            (WatchEvent::Disconnected { reason, .. }, Connection::Disconnected { since, .. }) => {
                *connection = Connection::Disconnected { since: *since, reason: reason.clone() };
            }
            (WatchEvent::Disconnected { since, reason, .. }, _) => {
                *connection = Connection::Disconnected { since: *since, reason: reason.clone() };
            }
            (WatchEvent::Listed(_) | WatchEvent::Connected, _) => *connection = Connection::Connected,
            (WatchEvent::Applied(_) | WatchEvent::Deleted(_), _) => {}
        }
    }

    /// The health of the source. Once all collections are connected at the same time, the saved state is history: a
    /// later interruption counts from when it began.
    pub(super) fn health(&mut self) -> SourceHealth {
        let all = || self.connections.values();
        if all().all(|connection| *connection == Connection::Connected) {
            self.saved = None;
            return SourceHealth::Synced;
        }
        let disconnected = |connection: &Connection| match connection {
            Connection::Disconnected { since, reason } => Some((*since, reason.clone())),
            Connection::Pending | Connection::Connected => None,
        };
        let first = all().find_map(disconnected).map(|(_, reason)| reason);
        let since = all().filter_map(disconnected).map(|(since, _)| since).min();
        match (self.saved, since, first) {
            (Some(saved), _, reason) => {
                let reason = reason.unwrap_or_else(|| "API not reached yet".into());
                SourceHealth::Stale { since: saved, reason: format!("from the snapshot; {reason}") }
            }
            (None, Some(since), Some(reason)) => SourceHealth::Stale { since, reason },
            // None is disconnected and at least one is pending. Collections are pending only before their first
            // event, so this is the start.
            _ => SourceHealth::Starting,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn out(seconds: u64, reason: &str) -> WatchEvent {
        WatchEvent::Disconnected { since: at(seconds), reason: reason.into(), refused: false }
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn p1002_the_source_is_stale_since_the_first_collection_went_and_until_the_last_is_back() {
        let mut api_health = ApiHealth::new([Kind::Service, Kind::EndpointSlice], None);
        assert_eq!(api_health.health(), SourceHealth::Starting);
        api_health.apply(Kind::Service, &WatchEvent::Listed(vec![]));
        assert_eq!(api_health.health(), SourceHealth::Starting);
        api_health.apply(Kind::EndpointSlice, &WatchEvent::Listed(vec![]));
        assert_eq!(api_health.health(), SourceHealth::Synced);
        api_health.apply(Kind::EndpointSlice, &out(10, "no slices"));
        api_health.apply(Kind::Service, &out(12, "no services"));
        api_health.apply(Kind::EndpointSlice, &out(20, "still no slices"));
        let stale = |seconds, reason: &str| SourceHealth::Stale { since: at(seconds), reason: reason.into() };
        assert_eq!(api_health.health(), stale(10, "no services"));
        api_health.apply(Kind::Service, &WatchEvent::Connected);
        assert_eq!(api_health.health(), stale(10, "still no slices"));
        api_health.apply(Kind::EndpointSlice, &WatchEvent::Connected);
        assert_eq!(api_health.health(), SourceHealth::Synced);
    }

    #[test]
    fn what_was_saved_is_stale_since_it_was_saved() {
        let mut api_health = ApiHealth::new([Kind::Service], Some(at(5)));
        let stale = |reason: &str| SourceHealth::Stale { since: at(5), reason: reason.into() };
        assert_eq!(api_health.health(), stale("from the snapshot; API not reached yet"));
        api_health.apply(Kind::Service, &out(9, "connection refused"));
        assert_eq!(api_health.health(), stale("from the snapshot; connection refused"));
        api_health.apply(Kind::Service, &WatchEvent::Connected);
        assert_eq!(api_health.health(), SourceHealth::Synced);
        api_health.apply(Kind::Service, &out(30, "connection refused"));
        assert!(matches!(api_health.health(), SourceHealth::Stale { since, .. } if since == at(30)));
    }
}
