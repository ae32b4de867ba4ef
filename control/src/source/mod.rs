//! Where objects come from. Sources send values and never see what becomes of them.

pub mod convert;
pub mod manifests;

use std::time::SystemTime;

use crate::model::Desired;
use crate::report::Entry;

/// What a source has to say.
#[derive(Clone, Debug)]
pub enum SourceEvent {
    /// The whole set of objects, complete; replaces what was there.
    Replace(Snapshot),
    /// The source lost or regained touch; the last set stays in force.
    Health(SourceHealth),
}

/// A complete set of objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The objects.
    pub desired: Desired,
    /// What was wrong with those that were refused, in the order of reading.
    pub findings: Vec<Entry>,
    /// How many objects were of kinds that do not matter here.
    pub ignored: usize,
}

/// Whether what a source said last is still what it would say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SourceHealth {
    /// Nothing was read yet.
    #[default]
    Starting,
    /// Up to date.
    Synced,
    /// Out of touch; the last good state stays in force.
    Stale {
        /// Since when.
        since: SystemTime,
        /// Why, for whoever must act.
        reason: String,
    },
}
