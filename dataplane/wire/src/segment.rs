//! What connection tracking reads of a packet besides addresses, ports and flags: the numbers of a TCP segment, the tags of
//! an SCTP packet, and whether the checksum is right. Whether they fit a connection is decided elsewhere.

use crate::addr::Protocol;
use crate::checksum::{Checksum, Sum};
use crate::family::Address;
use crate::header::tcp::{self, OPTION_END, OPTION_NOP, OPTION_WINDOW_SCALE, OPTION_WINDOW_SCALE_LEN};
use crate::header::udp;
use crate::parse::{Packet, TcpFlags};
use crate::sctp;

pub use crate::sctp::SctpPacket;

/// The numbers of a TCP segment (RFC 9293 section 3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpSegment {
    /// The flags.
    pub flags: TcpFlags,
    /// Number of the first octet.
    pub sequence: u32,
    /// The number after the last octet: SYN and FIN occupy one each (RFC 9293 section 3.4).
    pub end: u32,
    /// The acknowledgement number; without the flag ACK it means nothing.
    pub acknowledgement: u32,
    /// The window as it stands in the header, not scaled.
    pub window: u16,
    /// The shift that a SYN offers for the windows of its sender (RFC 7323 section 2.2), at most
    /// [`WINDOW_SCALE_MAX`](tcp::WINDOW_SCALE_MAX); `None` in other segments too.
    pub window_scale: Option<u8>,
}

/// The state of a transport checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChecksumState {
    /// It is that of the packet.
    Right,
    /// Only the sum of the pseudo header, for a device to complete; for SCTP zero, which RFC 9653 also allows.
    Partial,
    /// UDP without a checksum (RFC 768).
    Absent,
    /// The packet was damaged, or forged by somebody who does not care.
    Wrong,
}

impl<A: Address> Packet<A> {
    /// The numbers of a TCP segment; all zero if `frame` is shorter than the frame that was parsed.
    #[inline(always)]
    pub fn tcp_segment(&self, frame: &[u8]) -> TcpSegment {
        let Some(header) =
            frame.get(usize::from(self.l4_offset)..).and_then(|l4| l4.first_chunk::<{ tcp::LEN }>())
        else {
            return TcpSegment::default();
        };
        let flags = self.tcp_flags;
        let number =
            |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let sequence = number(tcp::SEQUENCE);
        let header_len = u32::from(header[tcp::DATA_OFFSET] >> 4) * 4;
        let payload_len = u32::from(self.l4_len).wrapping_sub(header_len);
        let occupied =
            u32::from(flags.intersects(TcpFlags::SYN)) + u32::from(flags.intersects(TcpFlags::FIN));
        TcpSegment {
            flags,
            sequence,
            end: sequence.wrapping_add(payload_len).wrapping_add(occupied),
            acknowledgement: number(tcp::ACKNOWLEDGEMENT),
            window: u16::from_be_bytes([header[tcp::WINDOW], header[tcp::WINDOW + 1]]),
            window_scale: if flags.intersects(TcpFlags::SYN) { window_scale(self.l4(frame)) } else { None },
        }
    }

    /// The tags of an SCTP packet; `None` if it is none, or has no chunk.
    #[cold]
    pub fn sctp_packet(&self, frame: &[u8]) -> Option<SctpPacket> {
        if self.tuple.protocol == Protocol::Sctp { sctp::read(self.l4(frame)?) } else { None }
    }

    /// Compares the transport checksum with the bytes of the packet, which are all read. To be called before the packet is
    /// translated.
    #[cold]
    pub fn checksum_state(&self, frame: &[u8]) -> ChecksumState {
        let Some(l4) = self.l4(frame) else { return ChecksumState::Wrong };
        let protocol = self.tuple.protocol;
        let covered = match protocol {
            Protocol::Sctp => return sctp::checksum_state(l4),
            Protocol::Udp if self.l4_checksum == Checksum::NONE => return ChecksumState::Absent,
            // What follows the datagram within its IP packet is not covered (RFC 9868).
            Protocol::Udp => udp_len(l4).unwrap_or(l4.len()),
            Protocol::Tcp => l4.len(),
        };
        let Ok(covered_len) = u16::try_from(covered) else { return ChecksumState::Wrong };
        let pseudo_header =
            Sum::pseudo_header(self.tuple.src, self.tuple.dst, protocol.number(), covered_len);
        let all = l4.get(..covered).map(|bytes| pseudo_header.bytes(bytes).fold());
        // The sum over bytes and checksum is "minus zero" (RFC 1071 section 1).
        if all == Some(u16::MAX) {
            ChecksumState::Right
        } else if self.l4_checksum.is_partial(pseudo_header) {
            ChecksumState::Partial
        } else {
            ChecksumState::Wrong
        }
    }
}

fn udp_len(l4: &[u8]) -> Option<usize> {
    let field = l4.get(udp::DATAGRAM_LEN..)?.first_chunk::<2>()?;
    let len = usize::from(u16::from_be_bytes(*field));
    (udp::LEN..=l4.len()).contains(&len).then_some(len)
}

/// The window scale option of a segment.
#[cold]
fn window_scale(segment: Option<&[u8]>) -> Option<u8> {
    let segment = segment?;
    let header_len = usize::from(segment.get(tcp::DATA_OFFSET)? >> 4) * 4;
    let options = segment.get(tcp::LEN..header_len)?;
    let at = option_position(options, [OPTION_WINDOW_SCALE, OPTION_WINDOW_SCALE_LEN])?;
    Some((*options.get(at)?).min(tcp::WINDOW_SCALE_MAX))
}

/// Offset of the value of the first option of a kind that has the length which belongs to it. One of another length is
/// malformed, and receivers ignore it.
pub(crate) fn option_position(options: &[u8], [kind, kind_len]: [u8; 2]) -> Option<usize> {
    let mut at = 0;
    loop {
        match *options.get(at..)? {
            [OPTION_NOP, ..] => at += 1,
            [OPTION_END, ..] => return None,
            [found, len, ..] if found == kind => {
                return (len == kind_len && options.len() - at >= usize::from(len)).then_some(at + 2);
            }
            // The length counts kind and length bytes, so it is at least 2; a smaller one would loop for ever.
            [_, len, ..] if len >= 2 => at += usize::from(len),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests;
