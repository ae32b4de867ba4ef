//! What a kernel lacks and a port works without. Every queue finds the same: it is worth one sentence a process.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

/// Something that this kernel does not have and that ports go without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MissingFeature {
    /// A send call of copy mode for a whole ring.
    TxBudget,
    /// Preferred busy polling.
    BusyPoll,
}

impl MissingFeature {
    /// Everything there is.
    pub const ALL: [Self; 2] = [Self::TxBudget, Self::BusyPoll];

    /// True for whoever asks first in this process, so that it is said once.
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
    fn each_is_news_once_a_process() {
        for missing in MissingFeature::ALL {
            assert!(missing.is_first_report(), "{missing}");
            assert!(!missing.is_first_report(), "{missing}");
        }
    }
}
