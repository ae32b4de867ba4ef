//! VLAN tags (IEEE 802.1Q): removed from a frame when it comes in and inserted when it leaves, so that the pipeline sees
//! untagged frames only.

use flowgate_tables::{InterfaceId, Routing};
use flowgate_wire::EtherType;
use flowgate_wire::header::ethernet::{ADDRS_LEN, LEN, TAG_LEN, VLAN_ID_MASK};
use flowgate_wire::header::ethertype;

use crate::burst::FrameBuffer;

/// Removes the tags of a frame and returns the interface that it belongs to. A priority tag (VLAN identifier 0) names no VLAN
/// (IEEE 802.1Q section 9.6), so the frame belongs to the device, or to the VLAN of the tag that follows. The tag of a VLAN
/// that is not served stays, by which the pipeline sees that the frame is not ours.
#[cold]
pub(crate) fn untag<F: FrameBuffer>(frame: &mut F, device: InterfaceId, routing: &Routing) -> InterfaceId {
    while let Some(tag) = outer_tag(frame.as_mut()) {
        if tag.identifier == 0 {
            if !remove_tag(frame) {
                break;
            }
            continue;
        }
        let interface = routing.ingress(device, tag.identifier);
        return match interface.filter(|_| tag.is_customer && !tag.is_outer && remove_tag(frame)) {
            Some(interface) => interface,
            None => device,
        };
    }
    device
}

/// Whether the frame has a tag, served or not.
pub(crate) fn is_tagged<F: FrameBuffer>(frame: &mut F) -> bool {
    EtherType::of(frame.as_mut()) == Some(EtherType::Tag)
}

/// The first tag of a frame.
#[derive(Clone, Copy, Debug)]
struct Tag {
    identifier: u16,
    /// An 802.1Q tag, and not one of 802.1ad.
    is_customer: bool,
    /// Another tag follows.
    is_outer: bool,
}

fn outer_tag(bytes: &[u8]) -> Option<Tag> {
    let [.., kind_high, kind_low, tag_high, tag_low, inner_high, inner_low] =
        *bytes.first_chunk::<{ LEN + TAG_LEN }>()?;
    let kind = [kind_high, kind_low];
    (EtherType::from_wire(kind) == EtherType::Tag).then(|| Tag {
        identifier: u16::from_be_bytes([tag_high, tag_low]) & VLAN_ID_MASK,
        is_customer: kind == ethertype::VLAN,
        is_outer: EtherType::from_wire([inner_high, inner_low]) == EtherType::Tag,
    })
}

/// Removes the first tag; false if the frame is shorter.
fn remove_tag<F: FrameBuffer>(frame: &mut F) -> bool {
    let bytes = frame.as_mut();
    let len = bytes.len();
    if len < LEN + TAG_LEN {
        return false;
    }
    bytes.copy_within(ADDRS_LEN + TAG_LEN.., ADDRS_LEN);
    frame.resize(len - TAG_LEN)
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
    use flowgate_tables::spec::{InterfaceSpec, VlanSpec};
    use flowgate_wire::MacAddr;

    fn untagged() -> MemoryFrame {
        MemoryFrame([&[1; 6][..], &[2; 6], &[0x08, 0x00], b"payload"].concat())
    }

    const DEVICE: InterfaceId = InterfaceId(0);
    const VLAN: InterfaceId = InterfaceId(1);

    /// A device with VLAN 100.
    fn routing() -> Routing {
        let device = InterfaceSpec {
            name: "eth0".into(),
            ifindex: 2,
            mac: MacAddr([2; 6]),
            mtu: 1500,
            up: true,
            addresses: vec![],
            vlan: None,
        };
        let vlan = InterfaceSpec { vlan: Some(VlanSpec { parent: 0, id: 100 }), ..device.clone() };
        Routing::build(&Routing::default(), vec![device, vlan], &[], &[]).unwrap()
    }

    /// The frame with these tags, the outer one first.
    fn tagged(tags: &[([u8; 2], u16)]) -> MemoryFrame {
        let mut frame = untagged();
        for (kind, control) in tags.iter().rev() {
            assert!(push(&mut frame, 0));
            frame.0[12..14].copy_from_slice(kind);
            frame.0[14..16].copy_from_slice(&control.to_be_bytes());
        }
        frame
    }

    #[test]
    fn a_tag_that_is_put_on_comes_off_again() {
        let mut frame = untagged();
        assert!(push(&mut frame, 100));
        assert_eq!(&frame.0[12..18], &[0x81, 0, 0, 100, 0x08, 0]);
        assert_eq!(untag(&mut frame, DEVICE, &routing()), VLAN);
        assert_eq!(frame, untagged());
    }

    #[test]
    fn priority_tags_come_off_whatever_follows() {
        let (q, ad) = (ethertype::VLAN, ethertype::QINQ);
        for (tags, interface) in [
            (&[(q, 0x6000)][..], DEVICE),
            (&[(ad, 0xe000)], DEVICE),
            (&[(q, 0), (q, 0x2000)], DEVICE),
            (&[(q, 0xf064)], VLAN),
            (&[(ad, 0x2000), (q, 100)], VLAN),
        ] {
            let mut frame = tagged(tags);
            assert_eq!(untag(&mut frame, DEVICE, &routing()), interface, "{tags:?}");
            assert_eq!(frame, untagged(), "{tags:?}");
        }
    }

    #[test]
    fn tags_of_vlans_that_are_not_served_stay() {
        let (q, ad) = (ethertype::VLAN, ethertype::QINQ);
        for tags in [&[(q, 101)][..], &[(ad, 100)], &[(q, 100), (q, 100)], &[(q, 100), (q, 0)]] {
            let mut frame = tagged(tags);
            assert_eq!(untag(&mut frame, DEVICE, &routing()), DEVICE);
            assert_eq!(frame, tagged(tags));
            assert!(is_tagged(&mut frame));
        }
        for mut frame in [MemoryFrame(tagged(&[(q, 0)]).0[..17].to_vec()), MemoryFrame(vec![])] {
            let before = frame.clone();
            assert_eq!(untag(&mut frame, DEVICE, &routing()), DEVICE);
            assert_eq!(frame, before);
        }
    }
}
