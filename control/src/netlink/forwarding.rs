//! Which links the kernel forwards packets from, by its own settings. They are read each second: only those of IPv4 have
//! events.

use std::fs;
use std::path::Path;

use super::message::Link;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    V4,
    V6,
}

/// The links whose packets are not forwarded, with the family. One whose setting cannot be read counts as forwarding.
pub(super) fn off(settings: &Path, links: &[Link], networks: &[u32]) -> Vec<(u32, Family)> {
    let is_off =
        |setting: &str| fs::read_to_string(settings.join(setting)).is_ok_and(|value| value.trim() == "0");
    // IPv4 has a setting for each interface (`IN_DEV_FORWARD` in net/ipv4/route.c), IPv6 one for all (`ip6_forward` in
    // net/ipv6/ip6_output.c).
    let v6_is_off = is_off("ipv6/conf/all/forwarding");
    let mut off = Vec::new();
    for link in links.iter().filter(|link| networks.contains(&link.ifindex)) {
        // A name with a dot is a path of its own there, in which the dot stays; one with a slash does not exist.
        if is_off(&format!("ipv4/conf/{}/forwarding", link.name)) {
            off.push((link.ifindex, Family::V4));
        }
        if v6_is_off {
            off.push((link.ifindex, Family::V6));
        }
    }
    off
}

#[cfg(test)]
mod tests {
    use super::super::message::Kind;
    use super::*;
    use flowgate_wire::MacAddr;

    #[test]
    fn a_link_forwards_unless_its_setting_is_zero() {
        let folder = tempfile::tempdir().unwrap();
        let write = |setting: &str, value: &str| {
            let path = folder.path().join(setting);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, value).unwrap();
        };
        write("ipv4/conf/up0/forwarding", "0\n");
        write("ipv4/conf/fab0.7/forwarding", "1\n");
        write("ipv6/conf/all/forwarding", "0\n");
        let link = |ifindex, name: &str| Link {
            ifindex,
            name: name.into(),
            mac: MacAddr::default(),
            mtu: 1500,
            up: true,
            kind: Kind::Other,
            master: None,
        };
        let links = [link(2, "up0"), link(3, "fab0.7"), link(4, "gone"), link(5, "mgmt0")];
        let found = off(folder.path(), &links, &[2, 3, 4, 0]);
        assert_eq!(found, [(2, Family::V4), (2, Family::V6), (3, Family::V6), (4, Family::V6)]);
        write("ipv6/conf/all/forwarding", "1\n");
        assert_eq!(off(folder.path(), &links, &[2, 3]), [(2, Family::V4)]);
    }
}
