//! The report of a device, as one line of JSON.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The outcome for a device.
#[derive(Debug, Serialize)]
pub struct DeviceReport {
    device: &'static str,
    kernel: String,
    /// `native` or `generic`, as read from the kernel; `mixed` if the NICs differ.
    pub(super) mode: String,
    /// Whether every socket is in zero-copy mode, as read from the kernel.
    pub(super) zero_copy: bool,
    /// The expected mode and zero copy; `None` if options override them.
    #[serde(skip)]
    expected: Option<(&'static str, bool)>,
    queues: u32,
    /// Workers that received packets.
    pub(super) workers_used: usize,
    pub(super) workers: usize,
    /// Transferred bodies.
    transfers: u64,
    /// Bodies that came back changed or not at all.
    different: u64,
    /// The largest tested MTU.
    pub(super) largest_mtu: u32,
    failed: Vec<&'static str>,
    detail: Map<String, Value>,
}

impl DeviceReport {
    pub(super) fn new(
        device: &'static str,
        kernel: String,
        queues: u32,
        expected: Option<(&'static str, bool)>,
    ) -> Self {
        Self {
            device,
            kernel,
            mode: "none".into(),
            zero_copy: false,
            expected,
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

    /// Checks mode and zero copy.
    ///
    /// # Errors
    /// If they are not as expected.
    pub(super) fn check_modes(&self, mode: &str, zero_copy: bool) -> Result<()> {
        match self.expected {
            Some((wanted, wants_zero_copy)) if (mode, zero_copy) != (wanted, wants_zero_copy) => {
                let word = |zero_copy| if zero_copy { "zero copy" } else { "copy" };
                Err(Error::State(format!(
                    "{} works in {mode} XDP with {}, and should in {wanted} with {}",
                    self.device,
                    word(zero_copy),
                    word(wants_zero_copy)
                )))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn note(&mut self, step: &str, words: &str) {
        self.detail.insert(step.to_owned(), words.into());
    }

    /// Whether bodies were sent, all came back intact, and no step failed.
    pub fn is_success(&self) -> bool {
        self.transfers > 0 && self.different == 0 && self.failed.is_empty()
    }

    /// The report as one line of JSON.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("the report has string keys")
    }
}
