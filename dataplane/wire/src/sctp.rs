//! SCTP (RFC 9260): translation of ports, and the CRC32c over the whole packet.

use crate::addr::L4Port;
use crate::header::ports;
use crate::header::sctp::{
    ABORT, CHECKSUM, CHUNK_LEN, COOKIE_ECHO, INIT, INIT_ACK, LEN, REFLECTED_TAG, SHUTDOWN, SHUTDOWN_ACK,
    SHUTDOWN_COMPLETE, TAG,
};
use crate::parse::TcpFlags;
use crate::segment::ChecksumState;

/// What connection tracking reads of an SCTP packet (RFC 9260 sections 3.1 and 8.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SctpPacket {
    /// The TCP flags that its chunks correspond to, so that the flow table has one state machine for both.
    pub flags: TcpFlags,
    /// The verification tag.
    pub tag: u32,
    /// The tag that an INIT or INIT ACK announces: what packets of the other direction must carry. Zero in others.
    pub initiate_tag: u32,
    /// Whether it ends the association for a sender that knows none: the tag is that of the packet it answers.
    pub is_tag_reflected: bool,
    /// Whether it echoes the cookie of an INIT ACK.
    pub echoes_cookie: bool,
    /// Whether it is the SHUTDOWN COMPLETE that answers a SHUTDOWN ACK.
    pub completes_shutdown: bool,
}

/// Reads all chunks of a packet; `None` if it is too short for one.
#[cold]
pub(crate) fn read(packet: &[u8]) -> Option<SctpPacket> {
    let (header, mut chunks) = packet.split_first_chunk::<LEN>()?;
    let mut read =
        SctpPacket { tag: u32::from_be_bytes(*header.get(TAG..)?.first_chunk()?), ..SctpPacket::default() };
    let mut flags = TcpFlags::default();
    let mut is_first = true;
    while let Some(&[kind, chunk_flags, high, low]) = chunks.first_chunk::<CHUNK_LEN>() {
        let reflects = chunk_flags & REFLECTED_TAG != 0;
        flags = flags.union(match kind {
            // RFC 9260 section 4.3: these two stand alone.
            INIT | INIT_ACK if is_first => {
                let tag = chunks.get(CHUNK_LEN..).and_then(|value| value.first_chunk::<4>());
                read.initiate_tag = tag.map_or(0, |tag| u32::from_be_bytes(*tag));
                match kind {
                    INIT_ACK => TcpFlags::SYN.union(TcpFlags::ACK),
                    // Section 8.5.1 (A): an INIT carries no tag, and announces one (section 3.3.2). Others open nothing.
                    _ if read.tag == 0 && read.initiate_tag != 0 => TcpFlags::SYN,
                    _ => TcpFlags::ACK,
                }
            }
            ABORT => {
                read.is_tag_reflected |= reflects;
                TcpFlags::RST.union(TcpFlags::ACK)
            }
            SHUTDOWN_COMPLETE => {
                read.is_tag_reflected |= reflects;
                read.completes_shutdown = true;
                TcpFlags::FIN.union(TcpFlags::ACK)
            }
            SHUTDOWN | SHUTDOWN_ACK => TcpFlags::FIN.union(TcpFlags::ACK),
            COOKIE_ECHO => {
                read.echoes_cookie = true;
                TcpFlags::ACK
            }
            _ => TcpFlags::ACK,
        });
        // What follows one of those two cannot change what the packet is.
        if matches!(kind, INIT | INIT_ACK) && is_first {
            break;
        }
        is_first = false;
        // Chunks are padded to whole words, and the length counts the header: a smaller one ends the list.
        let len = usize::from(u16::from_be_bytes([high, low])).next_multiple_of(CHUNK_LEN);
        if len < CHUNK_LEN {
            break;
        }
        chunks = chunks.get(len..).unwrap_or_default();
    }
    read.flags = flags;
    (flags != TcpFlags::default()).then_some(read)
}

/// The state of the CRC32c of a packet.
#[cold]
pub(crate) fn checksum_state(packet: &[u8]) -> ChecksumState {
    let field = packet.get(CHECKSUM..CHECKSUM + 4).and_then(|field| field.first_chunk::<4>());
    match field {
        None => ChecksumState::Wrong,
        Some([0, 0, 0, 0]) => ChecksumState::Partial,
        Some(field) if u32::from_le_bytes(*field) == checksum(packet) => ChecksumState::Right,
        Some(_) => ChecksumState::Wrong,
    }
}

/// Writes new ports into an SCTP packet and computes its checksum. One that was wrong stays wrong.
#[cold]
pub(crate) fn translate(packet: &mut [u8], src_port: L4Port, dst_port: L4Port) {
    let Some(received) = packet.get(CHECKSUM..CHECKSUM + 4).and_then(|field| field.first_chunk::<4>()) else {
        return;
    };
    let received = u32::from_le_bytes(*received);
    // A right checksum over damaged bytes would hide the damage from the receiver, so the difference is carried over.
    // Zero is no checksum: it was left to a device, or not wanted (RFC 9653), and a right one suits both.
    let error = if received == 0 { 0 } else { received ^ checksum(packet) };
    packet[ports::SRC..ports::DST].copy_from_slice(&src_port.wire());
    packet[ports::DST..ports::LEN].copy_from_slice(&dst_port.wire());
    let sent = checksum(packet) ^ error;
    packet[CHECKSUM..CHECKSUM + 4].copy_from_slice(&sent.to_le_bytes());
}

/// The initiate tag of a packet whose first chunk is an INIT: replies must carry it (RFC 9260 section 3.3.2).
#[cold]
pub(crate) fn initiate_tag(packet: &[u8]) -> Option<[u8; 4]> {
    let (_, chunk) = packet.split_first_chunk::<LEN>()?;
    let (chunk, value) = chunk.split_first_chunk::<CHUNK_LEN>()?;
    let tag = value.first_chunk::<4>()?;
    (chunk[0] == INIT).then_some(*tag)
}

/// An ABORT that rejects an INIT with this tag (RFC 9260 section 8.4 (3)).
#[cold]
pub(crate) fn abort([src, dst]: [L4Port; 2], tag: [u8; 4]) -> [u8; ABORT_LEN] {
    let mut packet = [0; ABORT_LEN];
    packet[ports::SRC..ports::DST].copy_from_slice(&src.wire());
    packet[ports::DST..ports::LEN].copy_from_slice(&dst.wire());
    packet[TAG..CHECKSUM].copy_from_slice(&tag);
    // Type, flags, and the length of the chunk, of which no cause follows.
    packet[LEN..].copy_from_slice(&[ABORT, 0, 0, 4]);
    let checksum = checksum(&packet);
    packet[CHECKSUM..CHECKSUM + 4].copy_from_slice(&checksum.to_le_bytes());
    packet
}

/// The checksum of a packet of `len` bytes after its first four, the ports, were changed: see
/// [`crate::fragment::sctp_checksum`].
#[cold]
pub(crate) fn update(received: [u8; 4], [old, new]: [[u8; 4]; 2], len: u16) -> [u8; 4] {
    if received == [0; 4] {
        return received;
    }
    // CRCs are linear: the CRC of two packets that differ in four bytes differs by that of the difference, followed by
    // as many zero bytes as there are behind it.
    let change = crc32c::crc32c(&old) ^ crc32c::crc32c(&new);
    let behind = usize::from(len).saturating_sub(ports::LEN);
    (u32::from_le_bytes(received) ^ crc32c::crc32c_combine(change, 0, behind)).to_le_bytes()
}

/// The CRC32c of a packet, its checksum field taken as zero (RFC 9260 appendix A).
fn checksum(packet: &[u8]) -> u32 {
    let (before, after) = (&packet[..CHECKSUM], &packet[CHECKSUM + 4..]);
    let crc = crc32c::crc32c(before);
    crc32c::crc32c_append(crc32c::crc32c_append(crc, &[0; 4]), after)
}

/// Length of a packet that holds an ABORT without a cause (RFC 9260 section 3.3.7).
pub(crate) const ABORT_LEN: usize = LEN + CHUNK_LEN;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An INIT chunk.
    fn init() -> Vec<u8> {
        let mut packet = vec![0x0f, 0xa0, 0x00, 0x50, 0, 0, 0, 0, 0, 0, 0, 0];
        packet.extend([1, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 10, 0, 10, 0, 0, 0, 1]);
        let right = checksum(&packet);
        packet[8..12].copy_from_slice(&right.to_le_bytes());
        packet
    }

    #[test]
    fn the_check_value_of_the_castagnoli_polynomial() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
    }

    proptest! {
        #[test]
        fn a_right_checksum_stays_right_and_a_wrong_one_wrong(src in 1_u16.., dst in 1_u16.., flipped in 0..32_u32, wrong in any::<bool>()) {
            let mut packet = init();
            if wrong { packet[8 + flipped as usize / 8] ^= 1 << (flipped % 8); }
            let zero = packet[8..12] == [0; 4];
            translate(&mut packet, L4Port::new(src), L4Port::new(dst));
            prop_assert_eq!(&packet[..2], &src.to_be_bytes());
            prop_assert_eq!(&packet[2..4], &dst.to_be_bytes());
            let field = u32::from_le_bytes(packet[8..12].try_into().unwrap());
            prop_assert_eq!(field == checksum(&packet), !wrong || zero);
        }
    }

    #[test]
    fn a_checksum_left_open_is_completed() {
        let mut packet = init();
        packet[8..12].copy_from_slice(&[0; 4]);
        translate(&mut packet, L4Port::new(1), L4Port::new(2));
        assert_eq!(packet[8..12], checksum(&packet).to_le_bytes());
    }
}
