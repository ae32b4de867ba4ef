//! Where objects come from. SourceClassifier send values and never see what becomes of them.

pub mod convert;
pub mod kube;
pub mod manifests;

use std::time::SystemTime;

use crate::model::{Desired, Object};
use crate::report::{Entry, ObjectRef};

/// What a source has to say.
#[derive(Clone, Debug)]
pub enum SourceEvent {
    /// The whole set of objects, complete; replaces what was there.
    Replace(Snapshot),
    /// What some objects are now, each named once; the others are as they were. Means something only after
    /// a [`Self::Replace`].
    Change(Vec<Change>),
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

/// What an object is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The object.
    pub name: ObjectRef,
    /// What it is; none when it is gone, or was never accepted.
    pub object: Option<Object>,
    /// What is wrong with it; nothing else that was said of it before holds any longer.
    pub findings: Vec<Entry>,
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
