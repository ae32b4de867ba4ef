//! The source ports of translated flows, which the kernel must leave to Flowgate: it would give them to connections of the host
//! otherwise, and two connections on one five-tuple would mix.
//!
//! What was reserved is recorded beside the admin socket, so that another start with other ports, and `flowgate detach`, give
//! back all of it, and nothing that somebody else has reserved.

use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use anyhow::Context;
use flowgate_flow::{FlowView, Flows};
use flowgate_tables::PortSet;

use crate::config::Config;

/// The ports that are reserved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SourcePorts {
    /// Those for new flows: `snat.ports` without the ports on which the node has sockets.
    pub(crate) new: PortSet,
    /// Others, on which flows of an earlier process with another `snat.ports` get their replies.
    pub(crate) older: PortSet,
}

impl SourcePorts {
    /// Reserves `snat.ports` and the ports of adopted flows, and gives back what an earlier process had reserved besides.
    /// `has_predecessor`: whether the XDP program was taken over from one.
    ///
    /// # Errors
    /// The kernel's list cannot be read or written.
    pub(crate) fn reserve(config: &Config, flows: &Flows, has_predecessor: bool) -> anyhow::Result<Self> {
        let mut ports: PortSet = config.snat.ports.clone().collect();
        let before = read_reserved()?;
        let record = record(config);
        let recorded = fs::read_to_string(&record).ok().map(|text| parse_ranges(&text));
        let owned = recorded.unwrap_or_else(|| unrecorded(&before, has_predecessor));
        // Only ports that were ours: the flows were not examined yet, and damaged memory must not take a server's port.
        let is_older = |port: &u16| !ports.contains(*port) && owned.contains(*port);
        let mut older: PortSet =
            flows.views().filter_map(|flow| source_port(&flow)).filter(is_older).collect();
        let plan = Plan::new(&before, &owned, ports.iter().chain(older.iter()));
        if plan.reserved != before {
            write_reserved(&plan.reserved)?;
        }
        if let Err(error) = fs::write(&record, format_ranges(&plan.owned)) {
            let place = record.display();
            tracing::warn!(%error, "{place} is not written: `flowgate detach` will release only snat.ports");
        }
        for table in ["tcp", "tcp6", "udp", "udp6"] {
            // A kernel without IPv6 has no such file.
            let sockets = fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default();
            local_ports(&sockets).for_each(|port| {
                ports.remove(port);
                older.remove(port);
            });
        }
        Ok(Self { new: ports, older })
    }
}

/// Gives back all ports that were reserved.
///
/// # Errors
/// The kernel's list cannot be read or written.
pub(crate) fn release(config: &Config) -> anyhow::Result<()> {
    let mut reserved = read_reserved()?;
    let record = record(config);
    let recorded = fs::read_to_string(&record).ok().map(|text| parse_ranges(&text));
    let owned = recorded.unwrap_or_else(|| config.snat.ports.clone().collect());
    owned.iter().for_each(|port| reserved.remove(port));
    write_reserved(&reserved)?;
    // There is none after a start that failed early, or of a build that wrote none.
    let _ = fs::remove_file(record);
    Ok(())
}

/// What to reserve, and what of it is ours to give back.
struct Plan {
    reserved: PortSet,
    owned: PortSet,
}

impl Plan {
    fn new(before: &PortSet, owned: &PortSet, wanted: impl Iterator<Item = u16>) -> Self {
        let mut reserved = before.clone();
        owned.iter().for_each(|port| reserved.remove(port));
        let owned: PortSet = wanted.filter(|port| !reserved.contains(*port)).collect();
        owned.iter().for_each(|port| reserved.insert(port));
        Self { reserved, owned }
    }
}

/// What a predecessor that kept no record had reserved, if it had its default.
fn unrecorded(reserved: &PortSet, has_predecessor: bool) -> PortSet {
    let is_whole = EARLIER_DEFAULT.clone().all(|port| reserved.contains(port));
    if has_predecessor && is_whole { EARLIER_DEFAULT.clone().collect() } else { PortSet::default() }
}

/// The source port that the backend of a translated flow sees; `None` if it sees the client's own.
fn source_port(FlowView { original, reply, .. }: &FlowView) -> Option<u16> {
    let is_translated = (reply.dst, reply.dst_port) != (original.src, original.src_port);
    is_translated.then(|| reply.dst_port.number())
}

/// The kernel's ephemeral ports, which connections of the host itself get, and how many of them `snat.ports` leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EphemeralPorts {
    snat: RangeInclusive<u16>,
    range: RangeInclusive<u16>,
}

impl EphemeralPorts {
    /// As they are on this machine; `None` if the kernel does not say.
    pub(crate) fn beside(snat: &RangeInclusive<u16>) -> Option<Self> {
        let text = fs::read_to_string(EPHEMERAL_PORTS).ok()?;
        Some(Self { snat: snat.clone(), range: parse_ephemeral(&text)? })
    }

    /// Whether fewer than half of them are left.
    pub(crate) fn are_scarce(&self) -> bool {
        self.left() * 2 < self.range.len()
    }

    fn left(&self) -> usize {
        self.range.clone().filter(|port| !self.snat.contains(port)).count()
    }
}

impl fmt::Display for EphemeralPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (snat, range) = (&self.snat, &self.range);
        write!(
            f,
            "snat.ports = \"{}-{}\" leaves this host {} of its {} ephemeral ports (net.ipv4.ip_local_port_range: {}-{})",
            snat.start(),
            snat.end(),
            self.left(),
            range.len(),
            range.start(),
            range.end()
        )?;
        if self.are_scarce() {
            f.write_str(": its own connections may run out of them, choose fewer or others")?;
        }
        Ok(())
    }
}

/// The two numbers of ip_local_port_range, both included.
fn parse_ephemeral(text: &str) -> Option<RangeInclusive<u16>> {
    let mut numbers = text.split_ascii_whitespace().map(|number| number.parse::<u16>().ok());
    Some(numbers.next()??..=numbers.next()??)
}

fn record(config: &Config) -> PathBuf {
    config.admin.socket.with_file_name(RECORD)
}

fn read_reserved() -> anyhow::Result<PortSet> {
    // In one read: the kernel begins at the start of the list each time and ends with the buffer (proc_do_large_bitmap in
    // kernel/sysctl.c), and the first buffer of `fs::read_to_string` is small.
    let mut text = vec![0; LONGEST_LIST_BYTES];
    let read = File::open(RESERVED_PORTS).and_then(|mut file| file.read(&mut text));
    text.truncate(read.with_context(|| format!("reading {RESERVED_PORTS}"))?);
    Ok(parse_ranges(&String::from_utf8_lossy(&text)))
}

fn write_reserved(ports: &PortSet) -> anyhow::Result<()> {
    fs::write(RESERVED_PORTS, format_ranges(ports)).with_context(|| {
        format!("writing {RESERVED_PORTS}, so that the kernel leaves the SNAT ports to Flowgate: run as root")
    })
}

/// `1,5-7` as the kernel writes it (Documentation/networking/ip-sysctl.rst).
fn parse_ranges(text: &str) -> PortSet {
    let range = |part: &str| {
        let (lower, upper) = part.split_once('-').unwrap_or((part, part));
        Some(lower.trim().parse::<u16>().ok()?..=upper.trim().parse::<u16>().ok()?)
    };
    text.trim().split(',').filter_map(range).flatten().collect()
}

fn format_ranges(ports: &PortSet) -> String {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for port in ports.iter() {
        match ranges.last_mut() {
            Some((_, upper)) if upper.checked_add(1) == Some(port) => *upper = port,
            _ => ranges.push((port, port)),
        }
    }
    let text: Vec<_> = ranges.iter().map(|(lower, upper)| format!("{lower}-{upper}")).collect();
    // The kernel takes an empty line as the empty list.
    text.join(",") + "\n"
}

/// The local ports of a table such as `/proc/net/tcp`: the hexadecimal after the colon of column two.
fn local_ports(table: &str) -> impl Iterator<Item = u16> {
    table.lines().skip(1).filter_map(|line| {
        let (_, port) = line.split_whitespace().nth(1)?.rsplit_once(':')?;
        u16::from_str_radix(port, 16).ok()
    })
}

/// The earlier default of `snat.ports`, of builds that kept no record.
const EARLIER_DEFAULT: RangeInclusive<u16> = 40_000..=59_999;
const RECORD: &str = "reserved-ports";
const EPHEMERAL_PORTS: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// Every other port, with five digits and a comma.
const LONGEST_LIST_BYTES: usize = 6 * 32_768;
const RESERVED_PORTS: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> PortSet {
        parse_ranges(text)
    }

    #[test]
    fn ranges_are_read_and_written_as_the_kernel_does() {
        let ports = parse_ranges("22,8080-8082,65535\n");
        assert_eq!(ports.iter().collect::<Vec<_>>(), [22, 8080, 8081, 8082, 65_535]);
        assert_eq!(format_ranges(&ports), "22-22,8080-8082,65535-65535\n");
        assert_eq!(format_ranges(&parse_ranges("\n")), "\n");
    }

    #[test]
    fn local_ports_are_those_of_the_second_column() {
        let table = "  sl  local_address rem_address   st\n   0: 0100007F:1F90 00000000:0000 0A\n   1: 00000000:9C40 0200000A:0050 01\n";
        assert_eq!(local_ports(table).collect::<Vec<_>>(), [8080, 40_000]);
    }

    #[test]
    fn other_ports_take_the_place_of_those_that_a_predecessor_had_reserved_and_foreign_ones_stay() {
        let plan = Plan::new(&set("22,40000-59999"), &set("40000-59999"), set("22,50000-50009").iter());
        assert_eq!((plan.reserved, plan.owned), (set("22,50000-50009"), set("50000-50009")));
        // A build that kept no record: its default is known, if it is there whole.
        assert_eq!(unrecorded(&set("1,40000-59999"), true), set("40000-59999"));
        assert_eq!(unrecorded(&set("40000-59999"), false), PortSet::default());
        assert_eq!(unrecorded(&set("40001-59999"), true), PortSet::default());
    }

    #[test]
    fn the_default_leaves_the_host_more_than_half_of_its_ephemeral_ports() {
        let beside = |snat| EphemeralPorts { snat, range: parse_ephemeral("32768\t60999\n").unwrap() };
        let default = beside(crate::config::DEFAULT_SNAT_PORTS);
        assert!(!default.are_scarce());
        let sentence = "snat.ports = \"49152-65535\" leaves this host 16384 of its 28232 ephemeral ports \
                        (net.ipv4.ip_local_port_range: 32768-60999)";
        assert_eq!(default.to_string(), sentence);
        let earlier = beside(EARLIER_DEFAULT);
        assert!(earlier.are_scarce());
        assert!(earlier.to_string().contains("leaves this host 8232 of its 28232"), "{earlier}");
        assert!(earlier.to_string().ends_with("may run out of them, choose fewer or others"), "{earlier}");
    }
}
