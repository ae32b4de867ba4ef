//! All objects of all collections, as last read. An interrupted connection removes none of them.
//!
//! A new version of an object that has to be refused leaves the last accepted one in force, as with manifests, until
//! a better one comes or the object is deleted. The API server checks objects before it stores them, so such a
//! version most likely uses something of a newer Kubernetes than this program knows. Removing the object would end
//! traffic that flowed a moment ago; the old version may be out of date, which the report points out.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::reflector::{ConvertedObject, WatchEvent};
use super::resource::{Collection, Necessity};
use crate::model::{Desired, Key, Kind};
use crate::report::{Entry, ObjectRef, RETAINED, Severity};
use crate::source::{Change, Snapshot, SourceEvent};

/// The objects, and which of them changed since the last event that was taken.
#[derive(Debug)]
pub(super) struct Store {
    desired: Desired,
    findings: BTreeMap<ObjectRef, Vec<Entry>>,
    collections: Vec<Collection>,
    /// Collections whose first list is not complete and without which nothing is sent yet.
    awaited: BTreeSet<Kind>,
    /// Collections whose first list was complete once.
    listed: BTreeSet<Kind>,
    sent: Sent,
    changed: BTreeSet<ObjectRef>,
}

/// What the reconciler was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Nothing,
    /// All objects; since then only changes.
    Everything,
}

impl Store {
    /// Begins with what was saved before, if anything, until the lists are complete.
    pub(super) fn new(saved: Desired, collections: Vec<Collection>) -> Self {
        Self {
            desired: saved,
            findings: BTreeMap::new(),
            awaited: collections.iter().map(|collection| collection.kind).collect(),
            listed: BTreeSet::new(),
            collections,
            sent: Sent::Nothing,
            changed: BTreeSet::new(),
        }
    }

    pub(super) const fn desired(&self) -> &Desired {
        &self.desired
    }

    /// Whether all first lists are complete that will be waited for.
    pub(super) fn is_complete(&self) -> bool {
        self.awaited.is_empty()
    }

    /// Whether only collections are missing without which Services can be served.
    pub(super) fn awaits_only_optional(&self) -> bool {
        !self.is_complete() && self.awaited.iter().all(|kind| self.optional(*kind).is_some())
    }

    /// Goes on without the optional collections that are still missing, and says so.
    pub(super) fn stop_waiting(&mut self) {
        let awaited = std::mem::take(&mut self.awaited);
        for kind in awaited {
            match self.optional(kind) {
                Some((plural, _)) if !self.findings.contains_key(&collection_ref(plural)) => {
                    self.unreadable(kind, format!("{plural} were not listed in time"));
                }
                Some(_) => {}
                None => drop(self.awaited.insert(kind)),
            }
        }
    }

    pub(super) fn apply(&mut self, kind: Kind, event: WatchEvent) {
        match event {
            WatchEvent::Listed(objects) => self.listed(kind, objects),
            WatchEvent::Applied(object) => self.applied(kind, object),
            WatchEvent::Deleted(name) => self.deleted(&name),
            WatchEvent::Connected => self.readable(kind),
            WatchEvent::Disconnected { reason, refused, .. } => {
                if self.optional(kind).is_some() {
                    self.unreadable(kind, reason);
                    // Else it may be the connection, which the next attempt may find mended.
                    if refused {
                        self.awaited.remove(&kind);
                    }
                }
            }
        }
    }

    /// The plural of an optional collection, and what is different without it.
    fn optional(&self, kind: Kind) -> Option<(&'static str, &'static str)> {
        let collection = self.collections.iter().find(|collection| collection.kind == kind)?;
        match collection.necessity {
            Necessity::Optional { without } => Some((collection.plural, without)),
            Necessity::Required => None,
        }
    }

    /// What was read or saved of the collection before stays in force.
    fn unreadable(&mut self, kind: Kind, reason: String) {
        let Some((plural, without)) = self.optional(kind) else { return };
        let is_known = self.listed.contains(&kind) || !self.desired.keys(kind).is_empty();
        let then = if is_known { "what is known of them stays in force" } else { without };
        let name = collection_ref(plural);
        let entries = vec![Entry {
            severity: Severity::Warning,
            place: None,
            object: Some(name.clone()),
            reason: format!("{reason}; Services and EndpointSlices go on: {then}"),
        }];
        if self.findings.get(&name) != Some(&entries) {
            self.findings.insert(name.clone(), entries);
            self.changed.insert(name);
        }
    }

    fn readable(&mut self, kind: Kind) {
        let Some((plural, _)) = self.optional(kind) else { return };
        let name = collection_ref(plural);
        if self.findings.remove(&name).is_some() {
            self.changed.insert(name);
        }
    }

    /// The event to send, if any: first all objects, once all lists are complete (P1001), then what has changed since
    /// the last call.
    pub(super) fn take_event(&mut self) -> Option<SourceEvent> {
        if !self.is_complete() {
            return None;
        }
        let changed = std::mem::take(&mut self.changed);
        match std::mem::replace(&mut self.sent, Sent::Everything) {
            Sent::Nothing => Some(SourceEvent::Replace(Snapshot {
                desired: self.desired.clone(),
                findings: self.findings.values().flatten().cloned().collect(),
                ignored: 0,
            })),
            Sent::Everything if changed.is_empty() => None,
            Sent::Everything => {
                let now = |name: ObjectRef| {
                    // A collection is no object and has only findings.
                    let object = Kind::from_name(&name.kind)
                        .and_then(|kind| self.desired.get(kind, &Key::new(&name.namespace, &name.name)));
                    let findings = self.findings.get(&name).cloned().unwrap_or_default();
                    Change { name, object, findings }
                };
                Some(SourceEvent::Change(changed.into_iter().map(now).collect()))
            }
        }
    }

    /// A list is the whole collection: what it does not name was deleted while there was no watch.
    fn listed(&mut self, kind: Kind, objects: Vec<ConvertedObject>) {
        let named: HashSet<&ObjectRef> = objects.iter().map(|object| &object.name).collect();
        let known = self.desired.keys(kind).into_iter();
        let known = known.map(|key| ObjectRef::new(kind.name(), key.namespace, key.name));
        // An object that was never accepted has only findings.
        let blamed = self.findings.keys().filter(|name| name.kind == kind.name()).cloned();
        let vanished: Vec<ObjectRef> = known.chain(blamed).filter(|name| !named.contains(name)).collect();
        vanished.iter().for_each(|name| self.deleted(name));
        objects.into_iter().for_each(|object| self.applied(kind, object));
        self.awaited.remove(&kind);
        self.listed.insert(kind);
        self.readable(kind);
    }

    fn applied(&mut self, kind: Kind, converted: ConvertedObject) {
        let ConvertedObject { name, object, findings } = converted;
        let key = Key::new(&name.namespace, &name.name);
        let before = self.desired.get(kind, &key);
        // A refused version leaves the one before.
        let retained = object.is_none() && before.is_some();
        let mut entries: Vec<Entry> = findings
            .into_iter()
            .map(|(severity, reason)| Entry { severity, place: None, object: Some(name.clone()), reason })
            .collect();
        if retained && let Some(entry) = entries.iter_mut().find(|entry| entry.severity == Severity::Error) {
            entry.reason.push_str(RETAINED);
        }
        let same_object = retained || object == before;
        if let Some(object) = object.filter(|_| !same_object) {
            self.desired.apply(key, object, None);
        }
        let findings_before = if entries.is_empty() {
            self.findings.remove(&name)
        } else {
            self.findings.insert(name.clone(), entries)
        };
        // Most updates change only parts that the model does not have, and are no event.
        if !same_object || findings_before.as_ref() != self.findings.get(&name) {
            self.changed.insert(name);
        }
    }

    fn deleted(&mut self, name: &ObjectRef) {
        let known = self.desired.delete(name);
        if self.findings.remove(name).is_some() || known {
            self.changed.insert(name.clone());
        }
    }
}

/// A collection in findings.
fn collection_ref(plural: &str) -> ObjectRef {
    ObjectRef::new("Collection", "", plural)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::source::convert;

    fn service(name: &str, port: u16) -> ConvertedObject {
        let name = ObjectRef::new("Service", "default", name);
        let value = json!({
            "metadata": {"name": name.name, "namespace": "default"},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": port}]},
        });
        let (object, findings) = convert::object(Kind::Service, &name, value);
        ConvertedObject { name, object, findings }
    }

    fn required(kinds: &[Kind]) -> Vec<Collection> {
        let of = |&kind| Collection { kind, plural: "required", necessity: Necessity::Required };
        kinds.iter().map(of).collect()
    }

    fn names(event: Option<SourceEvent>) -> Vec<(String, bool, usize)> {
        let Some(SourceEvent::Change(changes)) = event else { panic!("{event:?} is no change") };
        changes.into_iter().map(|c| (c.name.name, c.object.is_some(), c.findings.len())).collect()
    }

    #[test]
    fn p1001_nothing_is_told_before_all_first_lists_are_in() {
        let mut store = Store::new(Desired::default(), required(&[Kind::Service, Kind::EndpointSlice]));
        store.apply(Kind::Service, WatchEvent::Listed(vec![service("a", 80)]));
        store.apply(Kind::Service, WatchEvent::Applied(service("b", 80)));
        assert!(store.take_event().is_none());
        store.apply(Kind::EndpointSlice, WatchEvent::Listed(vec![]));
        let Some(SourceEvent::Replace(snapshot)) = store.take_event() else { panic!("everything at first") };
        assert_eq!(snapshot.desired.services().len(), 2);
        assert!(store.take_event().is_none(), "and then only what changes");
    }

    #[test]
    fn a_new_list_takes_away_what_vanished_and_tells_only_what_differs() {
        let mut store = Store::new(Desired::default(), required(&[Kind::Service]));
        store.apply(
            Kind::Service,
            WatchEvent::Listed(vec![service("a", 80), service("b", 80), service("bad", 0)]),
        );
        assert!(matches!(store.take_event(), Some(SourceEvent::Replace(s)) if s.findings.len() == 1));
        store.apply(Kind::Service, WatchEvent::Listed(vec![service("b", 80), service("c", 80)]));
        assert_eq!(
            names(store.take_event()),
            [("a".into(), false, 0), ("bad".into(), false, 0), ("c".into(), true, 0)]
        );
    }

    #[test]
    fn a_refused_version_leaves_the_accepted_one_in_force_until_the_object_is_deleted() {
        let mut store = Store::new(Desired::default(), required(&[Kind::Service]));
        store.apply(Kind::Service, WatchEvent::Listed(vec![service("a", 80)]));
        let _ = store.take_event();
        store.apply(Kind::Service, WatchEvent::Applied(service("a", 0)));
        let Some(SourceEvent::Change(changes)) = store.take_event() else { panic!("a finding is a change") };
        assert!(changes[0].object.is_some());
        assert!(changes[0].findings[0].reason.ends_with(RETAINED));
        store.apply(Kind::Service, WatchEvent::Applied(service("a", 81)));
        assert_eq!(names(store.take_event()), [("a".into(), true, 0)]);
        store.apply(Kind::Service, WatchEvent::Deleted(ObjectRef::new("Service", "default", "a")));
        assert_eq!(names(store.take_event()), [("a".into(), false, 0)]);
    }

    #[test]
    fn p1010_what_is_deleted_and_made_anew_in_one_go_is_told_once_as_it_is_now() {
        let mut store = Store::new(Desired::default(), required(&[Kind::Service]));
        store.apply(Kind::Service, WatchEvent::Listed(vec![service("a", 80)]));
        let _ = store.take_event();
        store.apply(Kind::Service, WatchEvent::Deleted(ObjectRef::new("Service", "default", "a")));
        store.apply(Kind::Service, WatchEvent::Applied(service("a", 8080)));
        assert_eq!(names(store.take_event()), [("a".into(), true, 0)]);
        store.apply(Kind::Service, WatchEvent::Applied(service("a", 8080)));
        assert!(store.take_event().is_none(), "the same again is no news");
    }
    #[test]
    fn an_optional_collection_that_is_refused_is_named_and_keeps_nobody_waiting() {
        let mut collections = required(&[Kind::Service]);
        let necessity = Necessity::Optional { without: "all is the same" };
        collections.push(Collection { kind: Kind::ServiceCidr, plural: "servicecidrs", necessity });
        let mut store = Store::new(Desired::default(), collections);
        let out = |reason: &str, refused| WatchEvent::Disconnected {
            since: std::time::SystemTime::UNIX_EPOCH,
            reason: reason.into(),
            refused,
        };
        store.apply(Kind::Service, WatchEvent::Listed(vec![service("a", 80)]));
        store.apply(Kind::ServiceCidr, out("no answer", false));
        assert!(store.take_event().is_none() && store.awaits_only_optional());
        store.apply(Kind::ServiceCidr, out("forbidden", true));
        let Some(SourceEvent::Replace(snapshot)) = store.take_event() else { panic!("Services go on") };
        assert_eq!(
            snapshot.findings[0].to_string(),
            "Collection servicecidrs: forbidden; Services and EndpointSlices go on: all is the same"
        );
        store.apply(Kind::ServiceCidr, out("forbidden", true));
        assert!(store.take_event().is_none(), "the same again is no news");
        store.apply(Kind::ServiceCidr, WatchEvent::Listed(vec![]));
        assert_eq!(names(store.take_event()), [("servicecidrs".into(), false, 0)]);
        store.apply(Kind::ServiceCidr, out("forbidden", true));
        let Some(SourceEvent::Change(changes)) = store.take_event() else { panic!("a finding is a change") };
        assert!(changes[0].findings[0].reason.ends_with("what is known of them stays in force"));
    }
}
