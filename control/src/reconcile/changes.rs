//! How one set of objects differs from another, counted. Never judges an object.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use crate::model::{Desired, EndpointSlice, Kept, Key, SliceFamily};

/// What has changed, as metrics count it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Services that came, went or became different.
    pub services: u64,
    /// EndpointSlices and Endpoints that did.
    pub endpoints: u64,
    /// When the changes that those slices tell of happened (P1203).
    pub triggers: Vec<(SliceFamily, SystemTime)>,
}

impl Changes {
    /// From `old` to `new`.
    pub fn between(old: &Desired, new: &Desired) -> Self {
        let mut changes = Self::default();
        each_difference(old.services(), new.services(), |_, _| changes.services += 1);
        each_difference(old.endpoints(), new.endpoints(), |_, _| changes.endpoints += 1);
        each_difference(old.slices(), new.slices(), |old, new| changes.slice(old, new));
        changes
    }

    /// Adds one slice that came, went or became different.
    pub fn slice(&mut self, old: Option<&EndpointSlice>, new: Option<&EndpointSlice>) {
        self.endpoints += 1;
        let before = old.and_then(|slice| slice.triggered_at);
        if let Some(slice) = new
            && let Some(at) = slice.triggered_at.filter(|_| slice.triggered_at != before)
        {
            self.triggers.push((slice.family, at));
        }
    }
}

/// Walks both maps side by side.
fn each_difference<T: PartialEq>(
    old: &BTreeMap<Key, Kept<T>>,
    new: &BTreeMap<Key, Kept<T>>,
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
        let before = old.next_if(|_| order.is_le()).map(|(_, kept)| &kept.object);
        let after = new.next_if(|_| order.is_ge()).map(|(_, kept)| &kept.object);
        let same = matches!((before, after), (Some(a), Some(b)) if Arc::ptr_eq(a, b) || a == b);
        if !same {
            found(before.map(Arc::as_ref), after.map(Arc::as_ref));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Object;

    fn slice(seconds: Option<u64>) -> EndpointSlice {
        EndpointSlice {
            service: Some("web".into()),
            is_mirror: false,
            family: SliceFamily::V4,
            endpoints: vec![],
            ports: vec![],
            hidden_by: None,
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
}
