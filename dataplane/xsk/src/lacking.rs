//! What a kernel lacks and a port works without. Every queue finds the same: it is worth one sentence a process.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

/// Something that this kernel does not have and that ports go without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lacking {
    /// A send call of copy mode for a whole ring.
    TxBudget,
    /// Preferred busy polling.
    BusyPoll,
}

impl Lacking {
    /// Everything there is.
    pub const ALL: [Self; 2] = [Self::TxBudget, Self::BusyPoll];

    /// True for whoever asks first in this process, so that it is said once.
    #[must_use]
    pub fn is_news(self) -> bool {
        static TOLD: [AtomicBool; Lacking::ALL.len()] =
            [const { AtomicBool::new(false) }; Lacking::ALL.len()];
        !TOLD[self as usize].swap(true, Ordering::Relaxed)
    }
}

impl fmt::Display for Lacking {
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
        for lacking in Lacking::ALL {
            assert!(lacking.is_news(), "{lacking}");
            assert!(!lacking.is_news(), "{lacking}");
        }
    }
}
