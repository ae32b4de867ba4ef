//! What came of a device, as one line.

use serde::Serialize;
use serde_json::{Map, Value};

/// What came of a device.
#[derive(Debug, Serialize)]
pub struct DeviceReport {
    device: &'static str,
    kernel: String,
    /// `native` or `generic`, as the kernel says; `mixed` where the NICs differ.
    pub(super) mode: String,
    /// Whether the kernel says that every socket is in zero copy.
    pub(super) zero_copy: bool,
    queues: u32,
    /// Workers that received packets, of those that there are.
    pub(super) workers_used: usize,
    pub(super) workers: usize,
    /// Bodies that went to the backend and came back.
    transfers: u64,
    /// Those of them that did not come back as they went.
    different: u64,
    /// The longest packet that was asked of the device, in bytes.
    pub(super) largest_mtu: u32,
    failed: Vec<&'static str>,
    detail: Map<String, Value>,
}

impl DeviceReport {
    pub(super) fn new(device: &'static str, kernel: String, queues: u32) -> Self {
        Self {
            device,
            kernel,
            mode: "none".into(),
            zero_copy: false,
            queues,
            workers_used: 0,
            workers: 0,
            transfers: 0,
            different: 0,
            largest_mtu: 0,
            failed: Vec::new(),
            detail: Map::new(),
        }
    }

    pub(super) fn add(&mut self, transfers: u64, different: u64) {
        self.transfers += transfers;
        self.different += different;
    }

    pub(super) fn fail(&mut self, step: &'static str) {
        self.failed.push(step);
    }

    pub(super) fn note(&mut self, step: &str, words: &str) {
        self.detail.insert(step.to_owned(), words.into());
    }

    /// Whether bodies were sent, all came back, and every step did what it had to.
    pub fn is_success(&self) -> bool {
        self.transfers > 0 && self.different == 0 && self.failed.is_empty()
    }

    /// The report as one line of JSON.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("the report has string keys")
    }
}
