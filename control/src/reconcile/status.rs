//! What the loop shows of itself. Never decides anything.

use std::sync::Arc;
use std::time::SystemTime;

use crate::model::ObjectCounts;
use crate::report::Report;
use crate::source::SourceHealth;

/// The state of the control plane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The published generation; 0 before the first.
    pub generation: u64,
    /// When it was published.
    pub last_change: Option<SystemTime>,
    /// How many objects of each kind count.
    pub objects: ObjectCounts,
    /// How many objects of other kinds the source holds.
    pub ignored_objects: usize,
    /// Whether the source is up to date.
    pub source: SourceHealth,
    /// Why the sink refused the newest tables, if it did.
    pub refused: Option<String>,
    /// What is wrong with the objects.
    pub report: Arc<Report>,
}
