//! Writes a TCP reset or an ICMP error over the packet that caused it, within a rate limit.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flowgate_flow::Tick;
use flowgate_wire::reject::{IcmpError, REJECT_LEN_MAX, reject, write_icmp_error};
use flowgate_wire::{Address, EtherType, Parsed, Protocol};

use crate::burst::FrameBuffer;
use crate::token_bucket::TokenBucket;

/// One worker's rejects and ICMP errors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rejects {
    errors: TokenBucket,
    /// A bucket of its own, so that a flood of packets that cause other errors cannot keep path MTU discovery from working.
    too_big: TokenBucket,
    /// A bucket of its own too: a flood of segments of no connection is answered no faster than other floods (RFC 5927 section
    /// 2.1 has attackers use the answers), and takes nothing from errors.
    resets: TokenBucket,
}

impl Default for Rejects {
    fn default() -> Self {
        // RFC 1812 section 4.3.2.8 and RFC 4443 section 2.4 (f) require a rate limit for errors.
        let bucket = TokenBucket::new(ICMP_PER_MS, ICMP_BURST);
        Self { errors: bucket, too_big: bucket, resets: bucket }
    }
}

impl Rejects {
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
            // A reset must acknowledge the whole segment, whose length only all fragments tell: it gets an ICMP error.
            Ok(Parsed::Fragment) => return self.report(frame, IcmpError::PortUnreachable, &[], now),
            _ => return false,
        };
        let is_tcp = packet.tuple.protocol == Protocol::Tcp;
        let bucket = if is_tcp { &mut self.resets } else { &mut self.errors };
        if !bucket.take(now) {
            return false;
        }
        let mut out = [0; REJECT_LEN_MAX];
        let len = reject(bytes, &packet, &mut out);
        replace(frame, len, &out)
    }

    /// Writes the ICMP error about the packet over it, as from the first of `own` that is of its family, or
    /// from its destination; false if it gets none.
    #[cold]
    pub(crate) fn report<F: FrameBuffer>(
        &mut self,
        frame: &mut F,
        error: IcmpError,
        own: &[IpAddr],
        now: Tick,
    ) -> bool {
        let bucket = if matches!(error, IcmpError::TooBig(_)) { &mut self.too_big } else { &mut self.errors };
        if !bucket.take(now) {
            return false;
        }
        match EtherType::of(frame.as_mut()) {
            Some(EtherType::Ipv4) => report_family::<Ipv4Addr, F>(frame, error, own),
            Some(EtherType::Ipv6) => report_family::<Ipv6Addr, F>(frame, error, own),
            _ => false,
        }
    }
}

fn report_family<A: Address, F: FrameBuffer>(frame: &mut F, error: IcmpError, own: &[IpAddr]) -> bool {
    let bytes = frame.as_mut();
    let Ok(datagram) = A::datagram(bytes) else { return false };
    // RFC 4291 section 2.5.6: routers do not forward packets from a link-local address, and the error may cross some.
    let beyond_link = own.iter().filter(|addr| !matches!(addr, IpAddr::V6(v6) if v6.is_unicast_link_local()));
    let from = beyond_link.copied().find_map(A::from_ip).unwrap_or(datagram.dst);
    let mut out = [0; REJECT_LEN_MAX];
    let len = write_icmp_error(bytes, &datagram, error, from, &mut out);
    replace(frame, len, &out)
}

fn replace<F: FrameBuffer>(frame: &mut F, len: Option<usize>, with: &[u8; REJECT_LEN_MAX]) -> bool {
    let Some(len) = len.filter(|len| frame.resize(*len)) else { return false };
    frame.as_mut().copy_from_slice(&with[..len]);
    true
}

/// Average number of ICMP errors per millisecond that a bucket of a worker allows.
const ICMP_PER_MS: u32 = 1;

/// Maximum number of ICMP errors in a burst, per bucket.
const ICMP_BURST: u32 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_come_in_bursts_and_at_a_rate() {
        let mut bucket = Rejects::default().errors;
        let taken = |bucket: &mut TokenBucket, ms| (0..500).filter(|_| bucket.take(Tick(ms))).count();
        assert_eq!(taken(&mut bucket, 0), 100);
        assert_eq!(taken(&mut bucket, 30), 30);
        assert_eq!(taken(&mut bucket, 30_000), 100);
    }

    #[test]
    fn resets_are_limited_as_errors_are_and_apart_from_them() {
        let mut rejects = Rejects::default();
        let frame = |tcp: bool| {
            let mut frame = Vec::new();
            let ip =
                etherparse::PacketBuilder::ethernet2([2; 6], [2; 6]).ipv4([192, 0, 2, 9], [10, 96, 0, 1], 9);
            if tcp {
                ip.tcp(4000, 80, 1, 1).ack(2).write(&mut frame, b"").unwrap();
            } else {
                ip.udp(4000, 53).write(&mut frame, b"x").unwrap();
            }
            crate::device::MemoryFrame(frame)
        };
        let mut refused = |tcp, ms| (0..500).filter(|_| rejects.refuse(&mut frame(tcp), Tick(ms))).count();
        assert_eq!(
            [refused(true, 0), refused(false, 0), refused(true, 20), refused(true, 20)],
            [100, 100, 20, 0]
        );
    }

    #[test]
    fn a_flood_of_other_errors_does_not_keep_packets_from_being_found_too_big() {
        let mut rejects = Rejects::default();
        let mut report = |error| {
            let mut frame = Vec::new();
            etherparse::PacketBuilder::ethernet2([2; 6], [2; 6])
                .ipv4([192, 0, 2, 9], [10, 96, 0, 1], 1)
                .udp(4000, 53)
                .write(&mut frame, b"x")
                .unwrap();
            rejects.report(&mut crate::device::MemoryFrame(frame), error, &[], Tick(0))
        };
        assert_eq!((0..500).filter(|_| report(IcmpError::TimeExceeded)).count(), 100);
        assert_eq!((0..500).filter(|_| report(IcmpError::TooBig(1400))).count(), 100);
    }
}
