//! MSS clamping: lowers the maximum segment size that the ends of a TCP connection announce (RFC 9293 section 3.7.1).

use crate::addr::Protocol;
use crate::checksum::{Checksum, Delta, Sum};
use crate::family::Address;
use crate::header::tcp::{self, OPTION_MSS, OPTION_MSS_LEN};
use crate::parse::{Packet, TcpFlags};
use crate::segment::option_position;

/// Lowers the maximum segment size in a SYN or SYN-ACK to `largest` bytes; a smaller one stays, and none is added.
/// The checksum is updated in `frame`, where `packet` may have been translated already. Returns whether the size was
/// lowered.
#[cold]
pub fn clamp<A: Address>(frame: &mut [u8], packet: &Packet<A>, largest: u16) -> bool {
    if packet.tuple.protocol != Protocol::Tcp || !packet.tcp_flags.intersects(TcpFlags::SYN) {
        return false;
    }
    let from = usize::from(packet.l4_offset);
    let Some(segment) = frame.get_mut(from..from + usize::from(packet.l4_len)) else { return false };
    let Some(header_len) = segment.get(tcp::DATA_OFFSET).map(|byte| usize::from(byte >> 4) * 4) else {
        return false;
    };
    // Parsing has checked the length, but `packet` may be older than the last change of the frame.
    let Some(header) = segment.get_mut(..header_len) else { return false };
    let Some((fixed, options)) = header.split_first_chunk_mut::<{ tcp::LEN }>() else { return false };
    let Some(at) = option_position(options, [OPTION_MSS, OPTION_MSS_LEN]) else { return false };
    let Some(size) = options.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<2>()) else { return false };
    if u16::from_be_bytes(*size) <= largest {
        return false;
    }
    // Options are not aligned, so the value may lie across two words of the checksum.
    let before = size_sum(*size, at);
    *size = largest.to_be_bytes();
    let delta = Delta::between(before, size_sum(*size, at));
    let checksum = Checksum([fixed[tcp::CHECKSUM], fixed[tcp::CHECKSUM + 1]]).update(delta);
    fixed[tcp::CHECKSUM..tcp::CHECKSUM + 2].copy_from_slice(&checksum.0);
    true
}

/// The sum of two bytes at an offset: the upper halves of two words if it is odd.
const fn size_sum([high, low]: [u8; 2], at: usize) -> Sum {
    if at.is_multiple_of(2) { Sum::ZERO.word([high, low]) } else { Sum::ZERO.word([0, high]).word([low, 0]) }
}

#[cfg(test)]
mod tests {
    use core::net::Ipv4Addr;

    use super::*;
    use crate::parse::Parsed;
    use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    /// A SYN with these options, which are padded to whole words.
    fn syn(options: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut tcp = etherparse::TcpHeader::new(4000, 80, 1000, 512);
        tcp.syn = true;
        tcp.set_options_raw(options).unwrap();
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([1; 6], [2; 6])
            .ipv4([192, 0, 2, 1], [10, 0, 0, 1], 64)
            .tcp_header(tcp)
            .write(&mut frame, payload)
            .unwrap();
        frame
    }

    fn clamped(frame: &mut [u8], largest: u16) -> bool {
        let Ok(Parsed::L4(packet)) = Ipv4Addr::parse(frame) else { panic!("not a packet") };
        clamp(frame, &packet, largest)
    }

    fn checksum_is_right(frame: &[u8]) -> bool {
        let sliced = SlicedPacket::from_ethernet(frame).unwrap();
        let Some(etherparse::NetSlice::Ipv4(ip)) = sliced.net else { panic!("not IPv4") };
        let Some(TransportSlice::Tcp(tcp)) = sliced.transport else { panic!("not TCP") };
        let header = ip.header().to_header();
        tcp.checksum() == tcp.to_header().calc_checksum_ipv4(&header, tcp.payload()).unwrap()
    }

    #[test]
    fn a_larger_size_is_lowered_wherever_it_stands_and_a_smaller_one_stays() {
        for before in [&[][..], &[1], &[1, 1], &[4, 2], &[3, 3, 7], &[3, 3, 7, 4, 2]] {
            let options = [before, &[2, 4, 0x05, 0xb4]].concat();
            let mut frame = syn(&options, b"early data");
            assert!(!clamped(&mut frame, 1460), "{options:?}");
            assert_eq!(frame, syn(&options, b"early data"));
            assert!(clamped(&mut frame, 1340), "{options:?}");
            assert_eq!(frame, syn(&[before, &[2, 4, 0x05, 0x3c]].concat(), b"early data"));
            assert!(checksum_is_right(&frame));
        }
    }

    #[test]
    fn segments_that_say_no_size_stay() {
        for options in
            [&[][..], &[1, 1, 1, 1], &[0, 2, 4, 5], &[2, 3, 5, 0], &[3, 0, 2, 4, 5, 5], &[3, 1, 0, 0]]
        {
            let mut frame = syn(options, b"");
            assert!(!clamped(&mut frame, 100), "{options:?}");
            assert_eq!(frame, syn(options, b""));
        }
        let mut later = syn(&[2, 4, 5, 0xb4], b"");
        later[47] = 0x10;
        assert!(!clamped(&mut later, 100));
    }

    proptest! {
        #[test]
        fn any_options_leave_the_checksum_right(options in proptest::collection::vec(prop_oneof![any::<u8>(), 0..6_u8], 0..40), largest: u16) {
            let mut frame = syn(&options, b"x");
            let before = frame.clone();
            let lowered = clamped(&mut frame, largest);
            prop_assert_eq!(lowered, frame != before);
            prop_assert!(checksum_is_right(&frame));
        }
    }
}
