//! Whether the memory that the configuration asks for is there. Found out before anything is taken: the kernel's OOM killer would
//! end this process, or another one of the host, in the middle of a start.

use std::fmt;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use flowgate_flow::{AffinityTable, FlowTable, Flows};
use flowgate_xsk::steering::Device;
use flowgate_xsk::{UmemConfig, XskSocketConfig};

use crate::config::Config;

/// The memory that a configuration needs beside what the process takes anyhow, by key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MemoryNeed {
    parts: Vec<(&'static str, u64)>,
    /// What the flow tables of a predecessor occupy already; they are taken over, or removed first.
    stored: u64,
}

/// Too little memory, as one sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{need}, but only {} available ({limit}): lower {}", Size(*available), need.largest())]
pub(crate) struct TooMuch {
    need: MemoryNeed,
    available: u64,
    /// What limits it.
    limit: Limit,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Limit {
    Machine,
    Cgroup(PathBuf),
}

impl MemoryNeed {
    /// What this configuration needs on this machine.
    pub(crate) fn of(config: &Config) -> Self {
        let flows = &config.flows;
        let devices: Vec<Device> =
            config.gateway.interfaces.iter().filter_map(|name| Device::named(name)).collect();
        let parts = vec![
            ("flows.capacity", FlowTable::<Ipv4Addr>::bytes_for(flows.capacity)),
            ("flows.capacity_v6", FlowTable::<Ipv6Addr>::bytes_for(flows.capacity_v6)),
            ("flows.affinity_capacity", AffinityTable::bytes_for(flows.affinity_capacity)),
            ("rings", packet_memory(config, &devices)),
        ];
        Self { parts, stored: Flows::stored_bytes(&config.flow_folder()) }
    }

    /// Compares with what the machine has, and with what the control groups of this process permit.
    ///
    /// # Errors
    /// [`TooMuch`]. If the kernel does not say how much there is, nothing is refused.
    pub(crate) fn check(&self) -> Result<(), TooMuch> {
        let cgroups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let groups = cgroup_folders(&cgroups, Path::new("/sys/fs/cgroup")).into_iter();
        let in_group = |group: PathBuf| Some((left_in(&group)?, Limit::Cgroup(group)));
        let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| available(&text));
        let limits =
            machine.map(|bytes| (bytes, Limit::Machine)).into_iter().chain(groups.filter_map(in_group));
        match limits.min_by_key(|(bytes, _)| *bytes) {
            Some((bytes, limit)) => self.fits(bytes, limit),
            None => Ok(()),
        }
    }

    fn fits(&self, available: u64, limit: Limit) -> Result<(), TooMuch> {
        if self.total().saturating_sub(self.stored) <= available {
            return Ok(());
        }
        Err(TooMuch { need: self.clone(), available: available.saturating_add(self.stored), limit })
    }

    fn total(&self) -> u64 {
        self.parts.iter().map(|(_, bytes)| bytes).sum()
    }

    /// The key that needs most.
    fn largest(&self) -> &'static str {
        self.parts.iter().max_by_key(|(_, bytes)| *bytes).map_or("flows.capacity", |(key, _)| key)
    }
}

impl fmt::Display for MemoryNeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration needs {} of memory (", Size(self.total()))?;
        for (position, (key, bytes)) in self.parts.iter().enumerate() {
            let comma = if position == 0 { "" } else { ", " };
            write!(f, "{comma}{key} {}", Size(*bytes))?;
        }
        f.write_str(")")
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine => f.write_str("MemAvailable of this machine"),
            Self::Cgroup(folder) => write!(f, "the limit of the control group {}", folder.display()),
        }
    }
}

/// A number of bytes for people.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mebibytes = self.0.div_ceil(1 << 20);
        if mebibytes < 10_240 {
            write!(f, "{mebibytes} MiB")
        } else {
            write!(f, "{} GiB", mebibytes.div_ceil(1 << 10))
        }
    }
}

/// Frames and rings of all sockets. An interface that does not exist yet counts as one queue.
fn packet_memory(config: &Config, devices: &[Device]) -> u64 {
    let rings = &config.rings;
    let socket = XskSocketConfig {
        rx_ring_len: rings.rx,
        tx_ring_len: rings.tx,
        fill_ring_len: rings.fill,
        completion_ring_len: rings.tx,
        ..XskSocketConfig::new(String::new(), 0)
    };
    let missing = config.gateway.interfaces.len().saturating_sub(devices.len()) as u64;
    let sockets = devices.iter().map(|device| u64::from(device.queues.max(1))).sum::<u64>() + missing;
    let largest_mtu = devices.iter().map(|device| device.mtu).max().unwrap_or(ETHERNET_MTU);
    let chunk = match rings.frame_bytes {
        0 if largest_mtu <= ETHERNET_MTU => 2048,
        0 => 4096,
        bytes => u64::from(bytes),
    };
    let frames = u64::from(UmemConfig::frames_for(std::slice::from_ref(&socket)));
    // Descriptors of 16 bytes in rx and tx rings, addresses of 8 in the others (if_xdp.h).
    let ring_bytes = u64::from(rings.rx + rings.tx) * 16 + u64::from(rings.fill + rings.tx) * 8;
    sockets * (frames * chunk + ring_bytes)
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The folders of the control groups that limit the memory of this process, the innermost first: by `/proc/self/cgroup`, of
/// version 1 or 2. In a container the path may be one of the host, which cannot be seen: then only those above it count.
fn cgroup_folders(cgroups: &str, root: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for line in cgroups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let root = match controllers {
            "" => root.to_owned(),
            list if list.split(',').any(|controller| controller == "memory") => root.join("memory"),
            _ => continue,
        };
        let relative = Path::new(path.trim_start_matches('/'));
        folders.extend(relative.ancestors().map(|part| root.join(part)));
    }
    folders
}

/// What may still be taken in a control group, in bytes; `None` if it has no limit. Pages of files can be reclaimed, so they count
/// as free.
fn left_in(group: &Path) -> Option<u64> {
    let number = |name: &str| fs::read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok();
    let limit = number("memory.max").or_else(|| number("memory.limit_in_bytes"))?;
    let used = number("memory.current").or_else(|| number("memory.usage_in_bytes"))?;
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let of_files = |line: &str| {
        let (name, bytes) = line.split_once(' ')?;
        ["active_file", "inactive_file"].contains(&name).then(|| bytes.trim().parse::<u64>().ok())?
    };
    let reclaimable: u64 = stat.lines().filter_map(of_files).sum();
    Some(limit.saturating_sub(used.saturating_sub(reclaimable)))
}

const ETHERNET_MTU: u32 = 1500;

#[cfg(test)]
mod tests {
    use super::*;

    fn need(stored: u64) -> MemoryNeed {
        MemoryNeed { parts: vec![("flows.capacity", 30 << 30), ("rings", 100 << 20)], stored }
    }

    #[test]
    fn too_large_a_table_is_one_sentence_with_key_need_and_limit() {
        let refused = need(0).fits(8 << 30, Limit::Cgroup("/sys/fs/cgroup/pod".into())).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the configuration needs 31 GiB of memory (flows.capacity 30 GiB, rings 100 MiB), but only 8192 MiB \
             available (the limit of the control group /sys/fs/cgroup/pod): lower flows.capacity"
        );
        assert_eq!(need(0).fits(31 << 30, Limit::Machine), Ok(()));
        // The tables of a predecessor are taken over: their memory is not needed once more.
        assert_eq!(need(30 << 30).fits(200 << 20, Limit::Machine), Ok(()));
    }

    #[test]
    fn the_limit_of_a_control_group_is_what_its_processes_have_not_taken() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("pod/memory.max", "1000000\n");
        write("pod/memory.current", "700000\n");
        write("pod/memory.stat", "anon 300000\nfile 400000\nactive_file 100000\ninactive_file 200000\n");
        write("pod/app/memory.max", "max\n");
        let folders = cgroup_folders("1:cpu:/x\n0::/pod/app\n", root.path());
        assert_eq!(folders, ["pod/app", "pod", ""].map(|path| root.path().join(path)));
        assert_eq!(
            folders.iter().map(|folder| left_in(folder)).collect::<Vec<_>>(),
            [None, Some(600_000), None]
        );

        write("memory/pod/memory.limit_in_bytes", "500\n");
        write("memory/pod/memory.usage_in_bytes", "100\n");
        let version_1 = cgroup_folders("4:memory:/pod\n", root.path());
        assert_eq!(left_in(&version_1[0]), Some(400));
    }

    #[test]
    fn available_memory_is_the_kernels_own_estimate() {
        let text = "MemTotal:       16384 kB\nMemFree:          100 kB\nMemAvailable:    8192 kB\n";
        assert_eq!(available(text), Some(8192 * 1024));
        assert_eq!(available("MemTotal: 5 kB\n"), None);
    }
}
