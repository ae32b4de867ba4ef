//! Turning a packet that goes no further into the answer to its sender, not more often than is decent.
//! Never decides what is answered.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flowgate_flow::Tick;
use flowgate_wire::refusal::{Problem, REFUSAL_LEN_MAX, refuse, report};
use flowgate_wire::{Address, EtherType, Parsed, Protocol};

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
    pub(crate) fn refuse<F: FrameBuffer>(&mut self, frame: &mut F, now: Tick) -> bool {
        match EtherType::of(frame.as_mut()) {
            Some(EtherType::Ipv4) => self.refuse_family::<Ipv4Addr, F>(frame, now),
            Some(EtherType::Ipv6) => self.refuse_family::<Ipv6Addr, F>(frame, now),
            _ => false,
        }
    }

    fn refuse_family<A: Address, F: FrameBuffer>(&mut self, frame: &mut F, now: Tick) -> bool {
        let bytes = frame.as_mut();
        let packet = match A::parse(bytes) {
            Ok(Parsed::L4(packet)) => packet,
            // What a reset must acknowledge is in the other fragments: it gets an error, as datagrams do.
            Ok(Parsed::Fragment) => return self.report(frame, Problem::PortUnreachable, &[], now),
            _ => return false,
        };
        // RFC 1812 section 4.3.2.8 has ICMP errors limited; a reset is never larger than its segment.
        if packet.tuple.protocol != Protocol::Tcp && !self.take_token(now) {
            return false;
        }
        let mut out = [0; REFUSAL_LEN_MAX];
        let len = refuse(bytes, &packet, &mut out);
        replace(frame, len, &out)
    }

    /// Writes the ICMP error about the packet over it, as from the first of `own` that is of its family, or
    /// from its destination; false if it gets none.
    #[cold]
    pub(crate) fn report<F: FrameBuffer>(
        &mut self,
        frame: &mut F,
        problem: Problem,
        own: &[IpAddr],
        now: Tick,
    ) -> bool {
        if !self.take_token(now) {
            return false;
        }
        match EtherType::of(frame.as_mut()) {
            Some(EtherType::Ipv4) => report_family::<Ipv4Addr, F>(frame, problem, own),
            Some(EtherType::Ipv6) => report_family::<Ipv6Addr, F>(frame, problem, own),
            _ => false,
        }
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

fn report_family<A: Address, F: FrameBuffer>(frame: &mut F, problem: Problem, own: &[IpAddr]) -> bool {
    let bytes = frame.as_mut();
    let Ok(datagram) = A::datagram(bytes) else { return false };
    let from = own.iter().find_map(|addr| A::from_ip(*addr)).unwrap_or(datagram.dst);
    let mut out = [0; REFUSAL_LEN_MAX];
    let len = report(bytes, &datagram, problem, from, &mut out);
    replace(frame, len, &out)
}

fn replace<F: FrameBuffer>(frame: &mut F, len: Option<usize>, with: &[u8; REFUSAL_LEN_MAX]) -> bool {
    let Some(len) = len.filter(|len| frame.resize(*len)) else { return false };
    frame.as_mut().copy_from_slice(&with[..len]);
    true
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
