//! The findings of the source, in the order in which they came. Those about one object are replaced without looking at the
//! others: ten thousand refused objects may change one after the other.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::report::{Entry, ObjectRef};

#[derive(Debug, Default)]
pub(super) struct Findings {
    in_order: BTreeMap<u64, Arc<Entry>>,
    by_object: HashMap<ObjectRef, Vec<u64>>,
    /// The number of the next one.
    next: u64,
}

impl Findings {
    /// Removes what is known about an object.
    pub(super) fn remove(&mut self, object: &ObjectRef) {
        for number in self.by_object.remove(object).into_iter().flatten() {
            self.in_order.remove(&number);
        }
    }

    /// All of them; the entries are shared.
    pub(super) fn all(&self) -> Vec<Arc<Entry>> {
        self.in_order.values().map(Arc::clone).collect()
    }
}

impl Extend<Entry> for Findings {
    fn extend<I: IntoIterator<Item = Entry>>(&mut self, entries: I) {
        for entry in entries {
            if let Some(object) = &entry.object {
                self.by_object.entry(object.clone()).or_default().push(self.next);
            }
            self.in_order.insert(self.next, Arc::new(entry));
            self.next += 1;
        }
    }
}

impl FromIterator<Entry> for Findings {
    fn from_iter<I: IntoIterator<Item = Entry>>(entries: I) -> Self {
        let mut findings = Self::default();
        findings.extend(entries);
        findings
    }
}
