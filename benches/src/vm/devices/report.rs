//! What came of a device, as one line.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// What came of a device.
#[derive(Debug, Serialize)]
pub struct DeviceReport {
    device: &'static str,
    kernel: String,
    /// `native` or `generic`, as the kernel says; `mixed` where the NICs differ.
    pub(super) mode: String,
    /// Whether the kernel says that every socket is in zero copy.
    pub(super) zero_copy: bool,
    /// What the two before must be; none if the configuration has a say.
    #[serde(skip)]
    expected: Option<(&'static str, bool)>,
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

    /// An error if the NICs work otherwise than they should.
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

    /// Whether bodies were sent, all came back, and every step did what it had to.
    pub fn is_success(&self) -> bool {
        self.transfers > 0 && self.different == 0 && self.failed.is_empty()
    }

    /// The report as one line of JSON.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("the report has string keys")
    }
}
