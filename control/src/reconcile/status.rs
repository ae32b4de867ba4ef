//! The state of the control plane as `flowgate show tables`, health and metrics see it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch;

use crate::model::ObjectCounts;
use crate::report::{Entry, Report};
use crate::source::SourceHealth;

/// The state of the control plane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The published generation; 0 before the first.
    pub generation: u64,
    /// When it was published.
    pub last_change: Option<SystemTime>,
    /// How many objects of each kind there are.
    pub objects: ObjectCounts,
    /// How many objects of other kinds the source ignores.
    pub ignored_objects: usize,
    /// Whether the source has sent a first set of objects.
    pub received: bool,
    /// Whether the source is up to date.
    pub source: SourceHealth,
    /// Why the sink refused the newest tables, if it did.
    pub refused: Option<String>,
    /// What is wrong with the objects.
    pub report: Arc<Report>,
    /// Findings about servers that cannot listen, by purpose. Shared: each probe takes a copy of the status.
    pub listeners: BTreeMap<&'static str, Arc<[Entry]>>,
}

impl Status {
    /// All findings: about objects, then about servers.
    pub fn findings(&self) -> impl Iterator<Item = &Entry> {
        self.report.entries.iter().chain(self.listeners.values().flat_map(|findings| findings.iter()))
    }

    /// Shows what is wrong with the servers for one purpose, in place of what was; receivers wake only if that
    /// differs.
    pub fn show_listener_findings(shown: &watch::Sender<Self>, purpose: &'static str, findings: Vec<Entry>) {
        shown.send_if_modified(|status| status.set_listener_findings(purpose, findings));
    }

    /// Replaces what is wrong with the servers for one purpose; returns whether that changed anything.
    pub fn set_listener_findings(&mut self, purpose: &'static str, findings: Vec<Entry>) -> bool {
        if self.listeners.get(purpose).map_or(&[][..], AsRef::as_ref) == findings {
            return false;
        }
        self.listeners.insert(purpose, findings.into());
        true
    }
}
