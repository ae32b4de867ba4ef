//! Turns off the receive VLAN offload of devices with VLANs: it takes the tag out of a frame, where an XDP program cannot see
//! it.

use std::collections::BTreeSet;

use flowgate_tables::Routing;
use flowgate_xsk::RxVlanOffload;

/// Indexes of the devices that were configured. One that is created anew has another index, and is configured again.
#[derive(Debug, Default)]
pub(crate) struct VlanOffload {
    configured: BTreeSet<u32>,
}

impl VlanOffload {
    /// Turns the offload off on the devices of these interfaces that have VLANs and were not configured yet.
    pub(crate) fn configure(&mut self, routing: &Routing) {
        for interface in self.unconfigured(routing) {
            match RxVlanOffload::turn_off(&interface) {
                RxVlanOffload::Off => {}
                RxVlanOffload::TurnedOff => tracing::info!(
                    interface,
                    "rxvlan is turned off, so that the XDP program sees the tags of its VLANs"
                ),
                RxVlanOffload::PeerDecides => tracing::info!(
                    interface,
                    "its VLANs are served if the far end of the veth pair leaves tags in frames: run there  ethtool -K \
                     NAME txvlan off"
                ),
                RxVlanOffload::Fixed(error) => tracing::warn!(
                    interface,
                    "its VLANs are not served right: it takes tags off frames, where the XDP program does not see them, \
                     and rxvlan cannot be turned off ({error}); use another device, or name its VLAN interfaces in \
                     gateway.interfaces instead"
                ),
            }
        }
    }

    fn unconfigured(&mut self, routing: &Routing) -> Vec<String> {
        let interfaces = routing.interfaces();
        let parents = interfaces.iter().filter_map(|interface| interface.spec.vlan.as_ref());
        let devices = parents.filter_map(|vlan| interfaces.get(vlan.parent)).map(|device| &device.spec);
        let unconfigured =
            devices.filter(|device| device.ifindex != 0 && self.configured.insert(device.ifindex));
        unconfigured.map(|device| device.name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flowgate_tables::spec::{InterfaceSpec, VlanSpec};

    fn interface(name: &str, ifindex: u32, vlan: Option<VlanSpec>) -> InterfaceSpec {
        InterfaceSpec {
            name: name.into(),
            ifindex,
            mac: flowgate_wire::MacAddr::default(),
            mtu: 1500,
            up: true,
            addresses: Vec::new(),
            vlan,
        }
    }

    fn routing(fabric: u32) -> Routing {
        let vlan = |parent, id| Some(VlanSpec { parent, id });
        let interfaces = vec![
            interface("up0", 3, None),
            interface("fab0", fabric, None),
            interface("gone0", 0, None),
            interface("fab0.5", 11, vlan(1, 5)),
            interface("fab0.6", 12, vlan(1, 6)),
            interface("gone0.7", 13, vlan(2, 7)),
        ];
        Routing::build(&Routing::default(), interfaces, &[], &[]).unwrap()
    }

    #[test]
    fn a_device_with_vlans_is_told_once_and_again_when_it_was_made_anew() {
        let mut offload = VlanOffload::default();
        assert_eq!(offload.unconfigured(&routing(4)), ["fab0"]);
        assert_eq!(offload.unconfigured(&routing(4)), [""; 0]);
        assert_eq!(offload.unconfigured(&routing(5)), ["fab0"]);
    }
}
