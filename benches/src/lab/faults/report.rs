//! The outcome of all cases, as one line of JSON.

use serde::Serialize;
use serde_json::{Map, Value};

use super::case_result::CaseResult;

/// The outcome of all cases.
#[derive(Debug, Default, Serialize)]
pub struct FaultReport {
    /// Cases that ran; skipped ones do not count.
    cases: usize,
    /// Failed cases.
    failed: usize,
    /// Connections that were lost although their backend lived, over all cases.
    lost_connections: u64,
    /// The values of each case.
    detail: Map<String, Value>,
}

impl FaultReport {
    pub(super) fn add(&mut self, name: &str, result: CaseResult) {
        self.cases += usize::from(!result.is_skipped());
        self.failed += usize::from(result.failed());
        self.lost_connections += result.lost_connections();
        self.detail.insert(name.to_owned(), result.json());
    }

    /// Whether cases ran, and none failed.
    pub fn is_success(&self) -> bool {
        self.cases > 0 && self.failed == 0
    }

    /// The report as one line of JSON.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("the report has string keys")
    }
}
