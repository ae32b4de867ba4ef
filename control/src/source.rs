//! Sources of objects: the Kubernetes API, or a directory of manifests. Sources send values and know no receiver.

pub mod convert;
pub mod kube;
pub mod manifests;

use std::time::SystemTime;

use crate::model::{Desired, Object};
use crate::report::{Entry, ObjectRef};

/// An event of a source.
#[derive(Clone, Debug)]
pub enum SourceEvent {
    /// The whole set of objects, complete; replaces what was there.
    Replace(Snapshot),
    /// The new state of some objects, each at most once; the others are unchanged. Only after a [`Self::Replace`].
    Change(Vec<Change>),
    /// The source lost or regained its connection; the last set stays in force.
    Health(SourceHealth),
}

/// A complete set of objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The objects.
    pub desired: Desired,
    /// What is wrong with objects, in the order of reading; those with errors are not in `desired`.
    pub findings: Vec<Entry>,
    /// How many objects of other kinds were ignored.
    pub ignored: usize,
}

/// The new state of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The object.
    pub name: ObjectRef,
    /// `None` if it is gone, or was never accepted.
    pub object: Option<Object>,
    /// What is wrong with it; replaces all earlier findings about it.
    pub findings: Vec<Entry>,
}

/// Whether the last set of objects is up to date.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SourceHealth {
    /// Nothing was read yet.
    #[default]
    Starting,
    /// Up to date.
    Synced,
    /// Disconnected; the last good state stays in force.
    Stale {
        /// The beginning of the interruption.
        since: SystemTime,
        /// The reason, with what to do about it.
        reason: String,
    },
}
