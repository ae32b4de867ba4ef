//! What Flowgate needs from the host: devices, locked memory, the boot id.

use std::fs;
use std::path::Path;

use anyhow::Context;
use nix::net::if_::if_nametoindex;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

/// The devices behind the named interfaces: a bond has no queues, so its ports stand for it. `class` is `/sys/class/net`.
///
/// # Errors
/// A bond has no port, or one of its ports is named as well.
pub(crate) fn devices(names: &[String], class: &Path) -> anyhow::Result<Vec<String>> {
    let mut devices = Vec::with_capacity(names.len());
    for name in names {
        match fs::read_to_string(class.join(name).join("bonding/slaves")) {
            Ok(ports) => {
                anyhow::ensure!(!ports.trim().is_empty(), "bond {name} has no port to send and receive by");
                devices.extend(ports.split_ascii_whitespace().map(str::to_owned));
            }
            // Not a bond. If it does not exist at all, attaching reports it.
            Err(_) => devices.push(name.clone()),
        }
    }
    for (at, device) in devices.iter().enumerate() {
        anyhow::ensure!(!devices[..at].contains(device), "{device} is named beside the bond it is a port of");
    }
    Ok(devices)
}

/// Those of the named interfaces that do not exist in this network namespace.
pub(crate) fn missing(names: &[String]) -> impl Iterator<Item = &String> {
    names.iter().filter(|name| if_nametoindex(name.as_str()).is_err())
}

/// Raises the limit of locked memory as far as permitted. Packet memory counts against it without CAP_IPC_LOCK; if it is too
/// low, opening a socket reports that.
pub(crate) fn raise_locked_memory() {
    if setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY).is_ok() {
        return;
    }
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_MEMLOCK)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard)
    {
        tracing::warn!(%error, "the limit of locked memory stays at {soft} bytes");
    }
}

/// Raises the limit of open files as far as permitted, and returns it.
pub(crate) fn raise_open_files() -> usize {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((OPEN_FILES_DEFAULT, OPEN_FILES_DEFAULT));
    let limit = match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(error) => {
            tracing::warn!(%error, "the limit of open files stays at {soft}");
            soft
        }
    };
    usize::try_from(limit).unwrap_or(usize::MAX)
}

/// How many files this process has open; 0 if it cannot see that.
pub(crate) fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// The soft limit with which the kernel and systemd start processes.
const OPEN_FILES_DEFAULT: u64 = 1024;

/// The id of the present boot.
///
/// # Errors
/// The kernel's file cannot be read.
pub(crate) fn boot_id() -> anyhow::Result<[u8; 16]> {
    let text = fs::read_to_string(BOOT_ID).with_context(|| format!("reading {BOOT_ID}"))?;
    parse_boot_id(&text).with_context(|| format!("{BOOT_ID} holds {text:?}"))
}

fn parse_boot_id(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
    (digits.len() == 32).then(|| u128::from_str_radix(&digits, 16).ok()).flatten().map(u128::to_be_bytes)
}

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_id_is_a_uuid() {
        let bytes = parse_boot_id("00112233-4455-6677-8899-aabbccddeeff\n").unwrap();
        assert_eq!(bytes[..3], [0x00, 0x11, 0x22]);
        assert_eq!(bytes[15], 0xff);
        assert_eq!(parse_boot_id("00112233-4455-6677-8899-aabbccddee"), None);
        assert_eq!(parse_boot_id("zz112233-4455-6677-8899-aabbccddeeff"), None);
    }

    #[test]
    fn a_bond_stands_for_its_ports() {
        let class = tempfile::tempdir().unwrap();
        let bond = |name: &str, ports: &str| {
            let dir = class.path().join(name).join("bonding");
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("slaves"), ports).unwrap();
        };
        bond("bond0", "eth1 eth2\n");
        bond("bond1", "\n");
        let of = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
            devices(&names, class.path()).map_err(|error| error.to_string())
        };
        assert_eq!(of(&["eth0", "bond0"]).unwrap(), ["eth0", "eth1", "eth2"]);
        assert_eq!(of(&["bond1"]).unwrap_err(), "bond bond1 has no port to send and receive by");
        assert_eq!(of(&["eth1", "bond0"]).unwrap_err(), "eth1 is named beside the bond it is a port of");
    }
}
