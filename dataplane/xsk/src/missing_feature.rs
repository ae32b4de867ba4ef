//! Kernel features that sockets use if they exist. Every queue finds the same ones missing: one log line per process is
//! enough.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

/// A feature that this kernel does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MissingFeature {
    /// `XDP_MAX_TX_SKB_BUDGET`: in copy mode, one send call for a whole ring.
    TxBudget,
    /// Preferred busy polling.
    BusyPoll,
}

impl MissingFeature {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::TxBudget, Self::BusyPoll];

    /// True for the first call per feature in this process.
    #[must_use]
    pub fn is_first_report(self) -> bool {
        static REPORTED: [AtomicBool; MissingFeature::ALL.len()] =
            [const { AtomicBool::new(false) }; MissingFeature::ALL.len()];
        !REPORTED[self as usize].swap(true, Ordering::Relaxed)
    }
}

impl fmt::Display for MissingFeature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TxBudget => {
                "this kernel does not take XDP_MAX_TX_SKB_BUDGET (Linux 6.17 does): where memory is not shared with the NIC, a \
                 send call takes 32 packets and larger bursts need several"
            }
            Self::BusyPoll => {
                "this kernel has no preferred busy polling (Linux 5.11 with CONFIG_NET_RX_BUSY_POLL has): packets are \
                 received by interrupts"
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_reported_once_per_process() {
        for missing in MissingFeature::ALL {
            assert!(missing.is_first_report(), "{missing}");
            assert!(!missing.is_first_report(), "{missing}");
        }
    }
}
