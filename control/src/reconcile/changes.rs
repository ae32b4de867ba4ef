//! Differences between sets of objects, counted, and changes applied to a set.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use super::findings::Findings;
use crate::model::{Desired, EndpointSlice, Key, Kind, Object, SliceFamily, Stored};
use crate::source::Change;

/// Numbers of changed objects, as metrics count them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Services that were added, removed or changed.
    pub services: u64,
    /// EndpointSlices and Endpoints that were added, removed or changed.
    pub endpoints: u64,
    /// When the changes behind those slices happened (P1203).
    pub triggers: Vec<(SliceFamily, SystemTime)>,
}

impl Changes {
    /// The changes from `old` to `new`.
    pub fn between(old: &Desired, new: &Desired) -> Self {
        let mut changes = Self::default();
        each_difference(old.services(), new.services(), |_, _| changes.services += 1);
        each_difference(old.endpoints(), new.endpoints(), |_, _| changes.endpoints += 1);
        each_difference(old.slices(), new.slices(), |old, new| changes.slice(old, new));
        changes
    }

    /// Counts one object.
    fn object(&mut self, old: Option<&Object>, new: Option<&Object>) {
        if old == new {
            return;
        }
        match (old, new) {
            (Some(Object::Service(_)), _) | (_, Some(Object::Service(_))) => self.services += 1,
            (Some(Object::Endpoints(_)), _) | (_, Some(Object::Endpoints(_))) => self.endpoints += 1,
            _ => {
                let slice = |object: Option<&Object>| match object {
                    Some(Object::EndpointSlice(slice)) => Some(Arc::clone(slice)),
                    _ => None,
                };
                let (old, new) = (slice(old), slice(new));
                if old.is_some() || new.is_some() {
                    self.slice(old.as_deref(), new.as_deref());
                }
            }
        }
    }

    /// Counts one slice that was added, removed or changed.
    pub fn slice(&mut self, old: Option<&EndpointSlice>, new: Option<&EndpointSlice>) {
        self.endpoints += 1;
        let before = old.and_then(|slice| slice.triggered_at);
        // The annotation of an earlier change may still be there: only a new time is a new trigger.
        if let Some(slice) = new
            && let Some(at) = slice.triggered_at.filter(|_| slice.triggered_at != before)
        {
            self.triggers.push((slice.family, at));
        }
    }
}

/// Applies changes to the set and its findings. If a generation still holds the set it is copied first: the names,
/// since objects are shared.
pub(super) fn apply(desired: &mut Arc<Desired>, findings: &mut Findings, changes: Vec<Change>) -> Changes {
    // All earlier findings about the changed objects go; the changes have the new ones.
    changes.iter().for_each(|change| findings.remove(&change.name));
    let mut counted = Changes::default();
    for Change { name, object, findings: found } in changes {
        let key = Key::new(&name.namespace, &name.name);
        let before = Kind::from_name(&name.kind).and_then(|kind| desired.get(kind, &key));
        counted.object(before.as_ref(), object.as_ref());
        if before != object {
            let desired = Arc::make_mut(desired);
            match object {
                Some(object) => desired.apply(key, object, None),
                None => drop(desired.delete(&name)),
            }
        }
        findings.extend(found);
    }
    counted
}

/// Calls `found` for each key whose object differs: a merge of both sorted maps.
fn each_difference<T: PartialEq>(
    old: &BTreeMap<Key, Stored<T>>,
    new: &BTreeMap<Key, Stored<T>>,
    mut found: impl FnMut(Option<&T>, Option<&T>),
) {
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((before, _)), Some((after, _))) => before.cmp(after),
        };
        let before = old.next_if(|_| order.is_le()).map(|(_, stored)| &stored.object);
        let after = new.next_if(|_| order.is_ge()).map(|(_, stored)| &stored.object);
        // Most objects are shared by both sets, so the pointers decide.
        let same = matches!((before, after), (Some(a), Some(b)) if Arc::ptr_eq(a, b) || a == b);
        if !same {
            found(before.map(Arc::as_ref), after.map(Arc::as_ref));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Namespace;
    use crate::report::{Entry, ObjectRef, Severity};

    fn slice(seconds: Option<u64>) -> EndpointSlice {
        EndpointSlice {
            service: Some("web".into()),
            is_mirror: false,
            family: SliceFamily::V4,
            endpoints: vec![],
            ports: vec![],
            excluded_by: None,
            triggered_at: seconds.map(|s| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(s)),
        }
    }

    fn set(slices: &[(&str, Option<u64>)]) -> Desired {
        let mut desired = Desired::default();
        for (name, triggered) in slices {
            desired.apply(
                Key::new("default", *name),
                Object::EndpointSlice(Arc::new(slice(*triggered))),
                None,
            );
        }
        desired
    }

    #[test]
    fn what_came_went_or_became_different_counts_once() {
        let old = set(&[("a", None), ("b", Some(1)), ("c", Some(1)), ("e", None)]);
        let new = set(&[("b", Some(1)), ("c", Some(2)), ("d", Some(3)), ("e", None)]);
        let changes = Changes::between(&old, &new);
        let at = |s| (SliceFamily::V4, SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(s));
        assert_eq!(changes, Changes { services: 0, endpoints: 3, triggers: vec![at(2), at(3)] });
        assert_eq!(Changes::between(&new, &new), Changes::default());
        assert_eq!(Changes::between(&Desired::default(), &new).endpoints, 4);
    }

    fn applied(name: &str, label: &str) -> Change {
        let labels = [("l".to_owned(), label.to_owned())].into();
        Change {
            name: ObjectRef::new("Namespace", "", name),
            object: Some(Object::Namespace(Arc::new(Namespace { labels }))),
            findings: vec![],
        }
    }

    fn blamed(name: &str, reason: &str) -> Entry {
        let object = Some(ObjectRef::new("Namespace", "", name));
        Entry { severity: Severity::Error, place: None, object, reason: reason.into() }
    }

    fn said(findings: &Findings) -> Vec<Entry> {
        findings.all().iter().map(|entry| Entry::clone(entry)).collect()
    }

    #[test]
    fn p1003_a_change_touches_its_object_and_what_was_said_of_it_and_nothing_else() {
        let mut desired = Arc::new(Desired::default());
        let general = Entry { object: None, ..blamed("", "of nobody") };
        let mut findings = Findings::from_iter([general.clone(), blamed("a", "old"), blamed("b", "stays")]);
        apply(&mut desired, &mut findings, vec![applied("a", "1"), applied("b", "1"), applied("c", "1")]);
        assert_eq!(said(&findings), std::slice::from_ref(&general), "an accepted object is not to blame");
        let published = Arc::clone(&desired);
        let gone = Change { object: None, findings: vec![blamed("a", "refused")], ..applied("a", "") };
        apply(&mut desired, &mut findings, vec![gone, applied("c", "2")]);
        assert_eq!(said(&findings), [general, blamed("a", "refused")]);
        assert_eq!((published.counts().namespaces, desired.counts().namespaces), (3, 2), "copied on write");
        let label = |desired: &Desired, name: &str| {
            desired.namespaces()[&Key::new("", name)].object.labels["l"].clone()
        };
        assert_eq!((label(&published, "c"), label(&desired, "c")), ("1".into(), "2".into()));
        let shared = |desired: &Desired| Arc::as_ptr(&desired.namespaces()[&Key::new("", "b")].object);
        assert_eq!(shared(&published), shared(&desired), "what did not change is shared");
    }
}
