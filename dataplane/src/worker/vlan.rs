//! VLAN tags (IEEE 802.1Q): removed from a frame when it comes in and inserted when it leaves, so that the pipeline sees
//! untagged frames only.

use flowgate_wire::EtherType;
use flowgate_wire::header::ethernet::{ADDRS_LEN, TAG_LEN, VLAN_ID_MASK};
use flowgate_wire::header::ethertype;

use crate::burst::FrameBuffer;

/// Removes the tag of a frame that has exactly one and returns its VLAN identifier; 0 for a priority tag. `None` for a frame
/// without a tag or with several.
pub(crate) fn pop<F: FrameBuffer>(frame: &mut F) -> Option<u16> {
    let bytes = frame.as_mut();
    let (&[_, .., kind_high, kind_low], &[tag_high, tag_low, inner_high, inner_low, ..]) =
        (bytes.first_chunk::<14>()?, bytes.get(14..)?)
    else {
        return None;
    };
    if [kind_high, kind_low] != ethertype::VLAN
        || EtherType::from_wire([inner_high, inner_low]) == EtherType::Tag
    {
        return None;
    }
    let len = bytes.len();
    bytes.copy_within(ADDRS_LEN + TAG_LEN.., ADDRS_LEN);
    frame.resize(len - TAG_LEN).then_some(u16::from_be_bytes([tag_high, tag_low]) & VLAN_ID_MASK)
}

/// Inserts a tag with this VLAN identifier; false if the frame has no room for it.
pub(crate) fn push<F: FrameBuffer>(frame: &mut F, identifier: u16) -> bool {
    let len = frame.as_mut().len();
    if len < ADDRS_LEN || !frame.resize(len + TAG_LEN) {
        return false;
    }
    let bytes = frame.as_mut();
    bytes.copy_within(ADDRS_LEN..len, ADDRS_LEN + TAG_LEN);
    bytes[ADDRS_LEN..ADDRS_LEN + 2].copy_from_slice(&ethertype::VLAN);
    bytes[ADDRS_LEN + 2..ADDRS_LEN + TAG_LEN].copy_from_slice(&(identifier & VLAN_ID_MASK).to_be_bytes());
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::MemoryFrame;

    fn untagged() -> MemoryFrame {
        MemoryFrame([&[1; 6][..], &[2; 6], &[0x08, 0x00], b"payload"].concat())
    }

    #[test]
    fn a_tag_that_is_put_on_comes_off_again() {
        let mut frame = untagged();
        assert!(push(&mut frame, 100));
        assert_eq!(&frame.0[12..18], &[0x81, 0, 0, 100, 0x08, 0]);
        assert_eq!(pop(&mut frame), Some(100));
        assert_eq!(frame, untagged());
    }

    #[test]
    fn priorities_are_no_part_of_the_identifier() {
        let mut frame = untagged();
        assert!(push(&mut frame, 5));
        frame.0[14] |= 0xf0;
        assert_eq!(pop(&mut frame), Some(5));
    }

    #[test]
    fn no_tag_two_tags_and_half_a_tag_stay() {
        let mut twice = untagged();
        assert!(push(&mut twice, 1) && push(&mut twice, 2));
        let half = MemoryFrame(twice.0[..17].to_vec());
        for frame in [untagged(), twice, half, MemoryFrame(vec![])] {
            let mut after = frame.clone();
            assert_eq!(pop(&mut after), None);
            assert_eq!(after, frame);
        }
    }
}
