//! Translates a packet in place: addresses, ports, TTL, checksums. Where it goes is decided elsewhere.

use core::net::{Ipv4Addr, Ipv6Addr};

use crate::addr::{FiveTuple, L4Port, MacAddr, Protocol};
use crate::checksum::{Checksum, Delta, Sum};
use crate::family::{Address, L3Sum};
use crate::header::{ethernet, ports, tcp, udp};
use crate::parse::Packet;
use crate::sctp;

/// The first twelve bytes of an Ethernet frame: destination, then source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct EtherAddrs(
    /// The bytes in wire order.
    pub [u8; ethernet::ADDRS_LEN],
);

impl EtherAddrs {
    /// The addresses of a frame to `dst` from `src`.
    pub fn new(dst: MacAddr, src: MacAddr) -> Self {
        let mut bytes = [0; ethernet::ADDRS_LEN];
        bytes[..ethernet::ADDR_LEN].copy_from_slice(&dst.0);
        bytes[ethernet::ADDR_LEN..].copy_from_slice(&src.0);
        Self(bytes)
    }
}

/// New addresses and ports for every packet of one direction of a flow, and the checksum changes that follow: computed
/// once per flow, applied to each packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation<A: Address> {
    /// New source address.
    pub src: A,
    /// New destination address.
    pub dst: A,
    /// New source port.
    pub src_port: L4Port,
    /// New destination port.
    pub dst_port: L4Port,
    /// IPv4: change of the header checksum. IPv6: sum of the addresses before translation.
    pub l3_sum: A::L3Sum,
    /// Change of the transport checksum by ports and, since the pseudo header covers them, addresses.
    pub l4_delta: Delta,
}

/// The translation of an IPv4 packet.
pub type Translation4 = Translation<Ipv4Addr>;

/// The translation of an IPv6 packet.
pub type Translation6 = Translation<Ipv6Addr>;

impl<A: Address> Translation<A> {
    /// The translation that turns packets of `from` into packets of `to`. Both have the same protocol.
    pub fn between(from: &FiveTuple<A>, to: &FiveTuple<A>) -> Self {
        let addrs = |t: &FiveTuple<A>| Sum::ZERO.addr(t.src).addr(t.dst);
        let ports = |t: &FiveTuple<A>| {
            let ([a, b], [c, d]) = (t.src_port.wire(), t.dst_port.wire());
            u32::from_ne_bytes([a, b, c, d])
        };
        let sums = [addrs(from), addrs(to)];
        let l3_sum = A::L3Sum::precompute(sums[0], sums[1]);
        Self {
            src: to.src,
            dst: to.dst,
            src_port: to.src_port,
            dst_port: to.dst_port,
            l3_sum,
            l4_delta: l3_sum.l4_delta_of([ports(from), ports(to)], sums),
        }
    }

    /// Whether the transport checksum of an arriving packet of this direction was left to a device to complete. The
    /// result is that of [`Packet::has_partial_checksum`]; here the addresses are summed already.
    #[inline(always)]
    pub fn finds_partial_checksum(&self, packet: &Packet<A>) -> bool {
        let FiveTuple { protocol, src, dst, .. } = packet.tuple;
        let pseudo_header = A::pseudo_addresses([src, dst], self.l3_sum);
        packet.l4_checksum.is_partial(pseudo_header.protocol(protocol.number(), packet.l4_len))
    }

    /// The five-tuple of packets of this direction after translation.
    #[inline]
    pub fn tuple(&self, protocol: Protocol) -> FiveTuple<A> {
        let Self { src, dst, src_port, dst_port, .. } = *self;
        FiveTuple { protocol, src, dst, src_port, dst_port }
    }

    /// Rewrites `packet` in `frame`: Ethernet addresses, TTL less one, addresses, ports, checksums.
    ///
    /// `frame` must be the one that `packet` was parsed from, and its TTL above 1: the caller handles expired ones.
    #[inline(always)]
    pub fn apply(&self, frame: &mut [u8], packet: &Packet<A>, ether: &EtherAddrs) {
        let l4_offset = usize::from(packet.l4_offset);
        let (head, l4) = frame.split_at_mut(l4_offset);
        let Some(()) = A::rewrite(head, packet, self, ether) else { return };
        // The frame was long enough when it was parsed; the checks below only tell the compiler.
        match packet.tuple.protocol {
            Protocol::Udp => {
                let Some(udp) = l4.first_chunk_mut::<{ udp::LEN }>() else { return };
                udp[ports::SRC..ports::DST].copy_from_slice(&self.src_port.wire());
                udp[ports::DST..ports::LEN].copy_from_slice(&self.dst_port.wire());
                // RFC 768: zero means that the sender computed none. There is nothing to update then, and an update
                // that comes to zero is sent as all ones.
                if packet.l4_checksum != Checksum::NONE {
                    udp[udp::CHECKSUM..]
                        .copy_from_slice(&packet.l4_checksum.update(self.l4_delta).or_all_ones().0);
                }
            }
            Protocol::Tcp => {
                let Some(tcp) = l4.first_chunk_mut::<{ tcp::CHECKSUM + 2 }>() else { return };
                tcp[ports::SRC..ports::DST].copy_from_slice(&self.src_port.wire());
                tcp[ports::DST..ports::LEN].copy_from_slice(&self.dst_port.wire());
                // The field is written from the value that was parsed, so it is not loaded a second time.
                tcp[tcp::CHECKSUM..].copy_from_slice(&packet.l4_checksum.update(self.l4_delta).0);
            }
            Protocol::Sctp => {
                if let Some(sctp) = l4.get_mut(..usize::from(packet.l4_len)) {
                    sctp::translate(sctp, self.src_port, self.dst_port);
                }
            }
        }
    }
}

/// Computes the transport checksum of `packet` in full and writes it, for a packet whose checksum was left to a device
/// (`CHECKSUM_PARTIAL`). Works before or after translation: the addresses are those that `frame` has now.
#[cold]
pub fn complete_checksum<A: Address>(frame: &mut [u8], packet: &Packet<A>) {
    let (head, l4) = frame.split_at_mut(usize::from(packet.l4_offset));
    let addrs = head.get(usize::from(packet.l3_offset)..).and_then(A::read_pair);
    let protocol = packet.tuple.protocol;
    // RFC 9868 section 7: the checksum covers a datagram, and not the options that may follow it in the packet.
    let datagram_len = l4.get(udp::DATAGRAM_LEN..).and_then(|field| field.first_chunk::<2>());
    let len = match (protocol, datagram_len) {
        (Protocol::Udp, Some(len)) => u16::from_be_bytes(*len).min(packet.l4_len),
        _ => packet.l4_len,
    };
    let (Some([src, dst]), Some(l4)) = (addrs, l4.get_mut(..usize::from(len))) else { return };
    let at = match protocol {
        Protocol::Udp => udp::CHECKSUM,
        Protocol::Tcp => tcp::CHECKSUM,
        // Its translation computes the CRC anyway.
        Protocol::Sctp => return,
    };
    let Some(field) = l4.get_mut(at..at + 2) else { return };
    // The field counts as zero in its own sum (RFC 1071 section 1).
    field.copy_from_slice(&[0, 0]);
    let checksum = Sum::pseudo_header(src, dst, protocol.number(), len).bytes(l4).checksum();
    let checksum = if protocol == Protocol::Udp { checksum.or_all_ones() } else { checksum };
    l4[at..at + 2].copy_from_slice(&checksum.0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::FiveTuple4;
    use crate::parse::{Packet4, Parsed};
    use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    fn build(tuple: &FiveTuple4, payload: &[u8]) -> Vec<u8> {
        let builder =
            PacketBuilder::ethernet2([1; 6], [2; 6]).ipv4(tuple.src.octets(), tuple.dst.octets(), 64);
        let (src, dst) = (tuple.src_port.number(), tuple.dst_port.number());
        let mut frame = Vec::new();
        match tuple.protocol {
            Protocol::Tcp => builder.tcp(src, dst, 1, 1024).ack(9).write(&mut frame, payload).unwrap(),
            _ => builder.udp(src, dst).write(&mut frame, payload).unwrap(),
        }
        frame
    }

    fn packet(frame: &[u8]) -> Packet4 {
        match Ipv4Addr::parse(frame) {
            Ok(Parsed::L4(packet)) => packet,
            other => panic!("{other:?}"),
        }
    }

    /// Compares with etherparse, which computes both checksums in full.
    fn checksums_are_right(frame: &[u8]) -> bool {
        let sliced = SlicedPacket::from_ethernet(frame).unwrap();
        let Some(etherparse::NetSlice::Ipv4(ip)) = sliced.net else { return false };
        let header = ip.header().to_header();
        let l4_right = match sliced.transport.unwrap() {
            TransportSlice::Udp(udp) => {
                udp.checksum() == udp.to_header().calc_checksum_ipv4(&header, udp.payload()).unwrap()
            }
            TransportSlice::Tcp(tcp) => {
                tcp.checksum() == tcp.to_header().calc_checksum_ipv4(&header, tcp.payload()).unwrap()
            }
            other => panic!("{other:?}"),
        };
        header.header_checksum == header.calc_header_checksum() && l4_right
    }

    fn tuples() -> impl Strategy<Value = (FiveTuple4, FiveTuple4)> {
        let one = || (any::<u32>(), any::<u32>(), 1_u16.., 1_u16..);
        (any::<bool>(), one(), one()).prop_map(|(tcp, a, b)| {
            let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
            let tuple = |(src, dst, sp, dp): (u32, u32, u16, u16)| FiveTuple {
                protocol,
                src: Ipv4Addr::from_bits(src),
                dst: Ipv4Addr::from_bits(dst),
                src_port: L4Port::new(sp),
                dst_port: L4Port::new(dp),
            };
            (tuple(a), tuple(b))
        })
    }

    const ETHER: EtherAddrs = EtherAddrs([7; 12]);

    proptest! {
        #[test]
        fn a_translated_packet_has_the_new_tuple_and_right_checksums(
            (from, to) in tuples(), payload in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut frame = build(&from, &payload);
            let before = packet(&frame);
            Translation4::between(&from, &to).apply(&mut frame, &before, &ETHER);
            let after = packet(&frame);
            prop_assert_eq!(after.tuple, to);
            prop_assert_eq!(after.ttl, 63);
            prop_assert_eq!(&frame[..12], &ETHER.0);
            prop_assert!(frame.ends_with(&payload));
            prop_assert!(checksums_are_right(&frame));
        }

        #[test]
        fn there_and_back_is_identity((from, to) in tuples(), payload in proptest::collection::vec(any::<u8>(), 0..64)) {
            let original = build(&from, &payload);
            let mut frame = original.clone();
            Translation4::between(&from, &to).apply(&mut frame, &packet(&original), &ETHER);
            frame[22] += 2; // the way back is one hop as well; start it one higher to compare
            let lift = Delta::between(Sum::ZERO.word([63, frame[23]]), Sum::ZERO.word([65, frame[23]]));
            let lifted = Checksum([frame[24], frame[25]]).update(lift);
            frame[24..26].copy_from_slice(&lifted.0);
            let there = packet(&frame);
            Translation4::between(&to, &from).apply(&mut frame, &there, &EtherAddrs(original[..12].try_into().unwrap()));
            prop_assert_eq!(frame, original);
        }

        #[test]
        fn a_flow_tells_a_checksum_that_was_left_open_as_the_packet_does(
            [a, b, c, d] in any::<[u128; 4]>(),
            [src_port, dst_port] in any::<[u16; 2]>(),
            l4_len in any::<u16>(),
            other in any::<u16>(),
        ) {
            let tuple = |src: u128, dst: u128| FiveTuple {
                protocol: Protocol::Tcp,
                src: Ipv6Addr::from_bits(src),
                dst: Ipv6Addr::from_bits(dst),
                src_port: L4Port::new(src_port),
                dst_port: L4Port::new(dst_port),
            };
            let (from, to) = (tuple(a, b), tuple(c, d));
            let translation = Translation6::between(&from, &to);
            let open = Sum::pseudo_header(from.src, from.dst, from.protocol.number(), l4_len).fold();
            for field in [open, open ^ 1, !open, other, 0, u16::MAX] {
                let l4_checksum = Checksum(field.to_ne_bytes());
                let packet = Packet { tuple: from, l4_len, l4_checksum, ..Packet::EMPTY };
                prop_assert_eq!(translation.finds_partial_checksum(&packet), packet.has_partial_checksum());
            }
        }

        #[test]
        fn a_checksum_left_to_the_device_is_completed((from, to) in tuples(), payload in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut frame = build(&from, &payload);
            let before = packet(&frame);
            let at = usize::from(before.l4_offset) + if from.protocol == Protocol::Udp { 6 } else { 16 };
            let partial = Sum::pseudo_header(from.src, from.dst, from.protocol.number(), before.l4_len).fold();
            frame[at..at + 2].copy_from_slice(&partial.to_ne_bytes());
            let before = packet(&frame);
            prop_assert!(before.has_partial_checksum());
            prop_assert!(Translation4::between(&from, &to).finds_partial_checksum(&before));
            Translation4::between(&from, &to).apply(&mut frame, &before, &ETHER);
            complete_checksum(&mut frame, &before);
            prop_assert!(checksums_are_right(&frame));
        }
    }

    #[test]
    fn a_udp_datagram_without_checksum_stays_without() {
        let from = FiveTuple {
            protocol: Protocol::Udp,
            src: Ipv4Addr::new(192, 0, 2, 1),
            dst: Ipv4Addr::new(192, 0, 2, 2),
            src_port: L4Port::new(1000),
            dst_port: L4Port::new(53),
        };
        let mut frame = build(&from, b"x");
        frame[40..42].copy_from_slice(&[0, 0]);
        let before = packet(&frame);
        Translation4::between(&from, &from.reversed()).apply(&mut frame, &before, &ETHER);
        assert_eq!(frame[40..42], [0, 0]);
    }
}
