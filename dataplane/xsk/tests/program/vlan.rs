//! VLAN tags: frames are parsed only if their VLAN is served.

use flowgate_xsk::steering::{ETHERTYPE_8021Q, Reason, VlanKey, XdpModePolicy};

use super::*;
use common::{counter, eventually};
use frames::{TCP, ethernet, l4, tagged, v6};

const ETHERTYPE_8021AD: u16 = 0x88a8;

#[test]
fn a_tagged_frame_is_steered_like_an_untagged_one_where_its_vlan_is_served() {
    let mut rig = rig();
    let six = ethernet(0x86dd, &v6(OTHER6, VIP6, TCP, &l4(TCP, 4000, 80)));
    let tag = |id, frame: &[u8]| tagged(ETHERTYPE_8021Q, id, frame);
    rig.passes("no VLAN served", &tag(100, &tcp((VIP, 80))), "pass_vlan");

    let ifindex = rig.ifindex;
    rig.serve(|set| set.serve_vlans([(ifindex, 100), (ifindex + 1000, 200)]));
    let served = VlanKey { ifindex, ethertype: ETHERTYPE_8021Q, id: 100 };
    assert_eq!(rig.steering.applied().vlans, [served].into(), "the other device is not attached");
    rig.redirects("IPv4", &tag(100, &tcp((VIP, 80))), "redirect_vip");
    rig.redirects("IPv6", &tag(100, &six), "redirect_vip");
    rig.redirects("priority and DEI", &tag(0xf000 | 100, &tcp((VIP, 80))), "redirect_vip");
    rig.passes("not ours", &tag(100, &tcp((OTHER, 80))), "pass_not_ours");
    rig.passes("ARP", &tag(100, &ethernet(0x0806, &[0; 46])), "pass_not_ip");
    rig.passes("another VLAN", &tag(101, &tcp((VIP, 80))), "pass_vlan");
    rig.passes("another device's VLAN", &tag(200, &tcp((VIP, 80))), "pass_vlan");
    rig.redirects("a priority tag", &tag(0x2000, &tcp((VIP, 80))), "redirect_vip");
    rig.redirects("a priority tag of 802.1ad", &tagged(ETHERTYPE_8021AD, 0xe000, &six), "redirect_vip");
    rig.redirects("a priority tag and a VLAN", &tag(0x2000, &tag(100, &six)), "redirect_vip");
    rig.passes("a priority tag and another VLAN", &tag(0x2000, &tag(101, &six)), "pass_vlan");
    rig.passes("a VLAN and a priority tag", &tag(100, &tag(0x2000, &six)), "pass_vlan");
    rig.passes("three tags", &tag(0, &tag(0, &tag(0, &six))), "pass_vlan");
    rig.passes("802.1ad", &tagged(ETHERTYPE_8021AD, 100, &tcp((VIP, 80))), "pass_vlan");
    rig.passes("two tags", &tag(100, &tag(100, &tcp((VIP, 80)))), "pass_vlan");
    rig.passes("two tags", &tag(100, &tagged(ETHERTYPE_8021AD, 100, &six)), "pass_vlan");
    for len in 14..18 {
        rig.passes("a tag cut off", &tag(100, &six)[..len], "pass_malformed");
    }

    rig.serve(|set| {
        set.vlans = [VlanKey { ifindex, ethertype: ETHERTYPE_8021AD, id: 100 }].into();
    });
    rig.redirects("802.1ad", &tagged(ETHERTYPE_8021AD, 100, &six), "redirect_vip");
    rig.passes("802.1Q", &tag(100, &six), "pass_vlan");
    rig.redirects("without a tag", &six, "redirect_vip");
}

/// The kernel leaves a tag in the frame if no device has an offload for it.
#[test]
fn a_tag_in_the_frame_reaches_the_program_in_both_modes() {
    for mode in [XdpModePolicy::Native, XdpModePolicy::Generic] {
        let (namespace, far) = (Namespace::new(), Namespace::new());
        namespace.veth_to("lb0", "peer0", &far);
        let mut steering = namespace.attach_as(&["lb0"], mode).expect("attach");
        let mut set = served();
        set.serve_vlans([(namespace.ifindex("lb0"), 100)]);
        steering.add_new(&set).expect("add");
        let sender = far.packet_socket("peer0");
        for id in [100, 101] {
            sender.send(&tagged(ETHERTYPE_8021Q, id, &tcp((VIP, 80))));
        }
        let came = |reason| eventually(|| counter(&steering, reason) == 1);
        assert!(came(Reason::PassNoWorker), "{mode:?}: the VLAN that is served");
        assert!(came(Reason::PassVlan), "{mode:?}: the other one");
    }
}
