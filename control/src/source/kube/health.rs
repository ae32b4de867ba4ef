//! Whether the API server is heard, over all collections. Never waits and never asks.

use std::collections::BTreeMap;
use std::time::SystemTime;

use super::follow::What;
use crate::model::Kind;
use crate::source::SourceHealth;

/// How each collection stands.
#[derive(Debug)]
pub(super) struct Contacts {
    contacts: BTreeMap<Kind, Contact>,
    /// When what is served meanwhile was saved.
    saved: Option<SystemTime>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Contact {
    /// Nothing was heard yet.
    Awaited,
    In,
    Out {
        since: SystemTime,
        reason: String,
    },
}

impl Contacts {
    /// Awaits all of `kinds`; until they are heard, what is served is of the time `saved`.
    pub(super) fn new(kinds: impl IntoIterator<Item = Kind>, saved: Option<SystemTime>) -> Self {
        Self { contacts: kinds.into_iter().map(|kind| (kind, Contact::Awaited)).collect(), saved }
    }

    /// Takes news of a collection.
    pub(super) fn take(&mut self, kind: Kind, what: &What) {
        let Some(contact) = self.contacts.get_mut(&kind) else { return };
        match (what, &*contact) {
            (What::OutOfTouch { reason, .. }, Contact::Out { since, .. }) => {
                *contact = Contact::Out { since: *since, reason: reason.clone() };
            }
            (What::OutOfTouch { since, reason }, _) => {
                *contact = Contact::Out { since: *since, reason: reason.clone() };
            }
            (What::Listed(_) | What::InTouch, _) => *contact = Contact::In,
            (What::Applied(_) | What::Deleted(_), _) => {}
        }
    }

    /// The whole. Once all collections were heard at the same time, what was saved no longer matters.
    pub(super) fn health(&mut self) -> SourceHealth {
        let all = || self.contacts.values();
        if all().all(|contact| *contact == Contact::In) {
            self.saved = None;
            return SourceHealth::Synced;
        }
        let out = |contact: &Contact| match contact {
            Contact::Out { since, reason } => Some((*since, reason.clone())),
            Contact::Awaited | Contact::In => None,
        };
        let first = all().find_map(out).map(|(_, reason)| reason);
        let since = all().filter_map(out).map(|(since, _)| since).min();
        match (self.saved, since, first) {
            (Some(saved), _, reason) => {
                let reason = reason.unwrap_or_else(|| "API not reached yet".into());
                SourceHealth::Stale { since: saved, reason: format!("from the snapshot; {reason}") }
            }
            (None, Some(since), Some(reason)) => SourceHealth::Stale { since, reason },
            // While some collections of an interrupted server are heard again and others not yet, the
            // latter are out of touch; so this is the beginning.
            _ => SourceHealth::Starting,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn out(seconds: u64, reason: &str) -> What {
        What::OutOfTouch { since: at(seconds), reason: reason.into() }
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn p1002_the_source_is_stale_since_the_first_collection_went_and_until_the_last_is_back() {
        let mut contacts = Contacts::new([Kind::Service, Kind::EndpointSlice], None);
        assert_eq!(contacts.health(), SourceHealth::Starting);
        contacts.take(Kind::Service, &What::Listed(vec![]));
        assert_eq!(contacts.health(), SourceHealth::Starting);
        contacts.take(Kind::EndpointSlice, &What::Listed(vec![]));
        assert_eq!(contacts.health(), SourceHealth::Synced);
        contacts.take(Kind::EndpointSlice, &out(10, "no slices"));
        contacts.take(Kind::Service, &out(12, "no services"));
        contacts.take(Kind::EndpointSlice, &out(20, "still no slices"));
        let stale = |seconds, reason: &str| SourceHealth::Stale { since: at(seconds), reason: reason.into() };
        assert_eq!(contacts.health(), stale(10, "no services"));
        contacts.take(Kind::Service, &What::InTouch);
        assert_eq!(contacts.health(), stale(10, "still no slices"));
        contacts.take(Kind::EndpointSlice, &What::InTouch);
        assert_eq!(contacts.health(), SourceHealth::Synced);
    }

    #[test]
    fn what_was_saved_is_stale_since_it_was_saved() {
        let mut contacts = Contacts::new([Kind::Service], Some(at(5)));
        let stale = |reason: &str| SourceHealth::Stale { since: at(5), reason: reason.into() };
        assert_eq!(contacts.health(), stale("from the snapshot; API not reached yet"));
        contacts.take(Kind::Service, &out(9, "connection refused"));
        assert_eq!(contacts.health(), stale("from the snapshot; connection refused"));
        contacts.take(Kind::Service, &What::InTouch);
        assert_eq!(contacts.health(), SourceHealth::Synced);
        contacts.take(Kind::Service, &out(30, "connection refused"));
        assert!(matches!(contacts.health(), SourceHealth::Stale { since, .. } if since == at(30)));
    }
}
