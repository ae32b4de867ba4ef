//! Turning a packet that is to be refused into its refusal, not more often than is decent. Never decides
//! what is refused.

use flowgate_flow::Tick;
use flowgate_wire::refusal::{REFUSAL_LEN_MAX, refuse};
use flowgate_wire::{Parsed, Protocol, parse};

use crate::device::FrameBuffer;

/// One worker's refusals.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refusals {
    tokens: u32,
    filled: Tick,
}

impl Default for Refusals {
    fn default() -> Self {
        Self { tokens: ICMP_BURST, filled: Tick::default() }
    }
}

impl Refusals {
    /// Writes the refusal over the packet; false if it gets none.
    #[cold]
    pub(crate) fn write<F: FrameBuffer>(&mut self, frame: &mut F, now: Tick) -> bool {
        let bytes = frame.as_mut();
        let Ok(Parsed::L4(packet)) = parse(bytes) else { return false };
        // RFC 1812 section 4.3.2.8 has ICMP errors limited; a reset is never larger than its segment.
        if packet.tuple.protocol != Protocol::Tcp && !self.take_token(now) {
            return false;
        }
        let mut out = [0; REFUSAL_LEN_MAX];
        let Some(len) = refuse(bytes, &packet, &mut out) else { return false };
        if !frame.resize(len) {
            return false;
        }
        frame.as_mut().copy_from_slice(&out[..len]);
        true
    }

    fn take_token(&mut self, now: Tick) -> bool {
        let earned = now.since(self.filled).saturating_mul(ICMP_PER_MS);
        if earned > 0 {
            self.filled = now;
            self.tokens = self.tokens.saturating_add(earned).min(ICMP_BURST);
        }
        let has_one = self.tokens > 0;
        self.tokens -= u32::from(has_one);
        has_one
    }
}

/// ICMP errors that a worker sends in a millisecond at most, on average.
const ICMP_PER_MS: u32 = 1;

/// ICMP errors at once.
const ICMP_BURST: u32 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_come_in_bursts_and_at_a_rate() {
        let mut refusals = Refusals::default();
        let taken = |refusals: &mut Refusals, ms| (0..500).filter(|_| refusals.take_token(Tick(ms))).count();
        assert_eq!(taken(&mut refusals, 0), 100);
        assert_eq!(taken(&mut refusals, 30), 30);
        assert_eq!(taken(&mut refusals, 30_000), 100);
    }
}
