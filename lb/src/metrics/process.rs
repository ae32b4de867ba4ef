//! Metrics of the process, under the names that every exporter uses. From `/proc/self`; absent if that cannot be read.

use std::fs;

use flowgate_control::descriptors::DescriptorBudget;
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{SysconfVar, sysconf};

use super::families::{Families, Kind, Labels};

/// Adds the families of this process (proc(5)).
pub(super) fn add(families: &mut Families) {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    if let Some(stat) = Stat::parse(&stat) {
        let cpu = ticks_to_seconds(stat.cpu_ticks);
        let help = "Time on a CPU, workers that poll included.";
        families.add(Kind::Counter, "process_cpu_seconds", help, [(Labels::new(), cpu.into())]);
        families.gauge("process_resident_memory_bytes", "Memory in RAM.", stat.resident_pages * page_bytes());
        families.gauge("process_virtual_memory_bytes", "Memory in the address space.", stat.virtual_bytes);
        families.gauge("process_threads", "Threads.", stat.threads);
        if let Some(boot) = boot_time() {
            let start = boot + ticks_to_seconds(stat.start_ticks);
            families.gauge("process_start_time_seconds", "When the process started.", start);
        }
    }
    if let Ok(descriptors) = fs::read_dir("/proc/self/fd") {
        families.gauge("process_open_fds", "Open file descriptors.", descriptors.count());
    }
    if let Ok((limit, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
        families.gauge("process_max_fds", "File descriptors that it may open.", limit);
    }
}

/// Adds the families of the budget that all servers share.
pub(super) fn add_servers(families: &mut Families, budget: &DescriptorBudget) {
    let limits = budget.limits();
    let help =
        "Connections to the servers of this process: probes, metrics, DNS, health check ports, admin socket.";
    families.gauge("flowgate_server_connections", help, budget.open_connections());
    let help = "How many of them there may be; more make the oldest idle one close.";
    families.gauge("flowgate_server_connections_max", help, limits.connections);
    let help = "Connections that were closed to make room for newer ones.";
    let shed = [(Labels::new(), budget.shed_total().into())];
    families.add(Kind::Counter, "flowgate_server_connections_shed", help, shed);
    let help = "Listening sockets of health check ports of Services.";
    families.gauge("flowgate_server_listeners", help, budget.open_listeners());
    let help = "How many of them there may be.";
    families.gauge("flowgate_server_listeners_max", help, limits.listeners);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    cpu_ticks: u64,
    threads: u64,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    /// Fields count from 1, and the second, a name in brackets, may hold blanks and brackets itself.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: field(14)? + field(15)?,
            threads: field(20)?,
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

fn boot_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[expect(clippy::cast_precision_loss, reason = "a process of a hundred million years may be off by a tick")]
fn ticks_to_seconds(ticks: u64) -> f64 {
    ticks as f64 / configured(SysconfVar::CLK_TCK, 100) as f64
}

fn page_bytes() -> u64 {
    configured(SysconfVar::PAGE_SIZE, 4096)
}

fn configured(variable: SysconfVar, otherwise: u64) -> u64 {
    sysconf(variable).ok().flatten().and_then(|value| u64::try_from(value).ok()).unwrap_or(otherwise)
}

#[cfg(test)]
mod tests {
    use super::super::families::tests::text;
    use super::*;

    #[test]
    fn a_name_with_blanks_and_brackets_does_not_shift_the_fields() {
        let fields: Vec<String> = (3..=52).map(|number| number.to_string()).collect();
        let line = format!("1 (a) b) {}", fields.join(" "));
        let expected =
            Stat { cpu_ticks: 29, threads: 20, start_ticks: 22, virtual_bytes: 23, resident_pages: 24 };
        assert_eq!(Stat::parse(&line), Some(expected));
        assert_eq!(Stat::parse("1 (x) S 2"), None);
    }

    #[test]
    fn this_process_is_seen() {
        let mut families = Families::default();
        add(&mut families);
        let text = text(families);
        for name in ["process_cpu_seconds_total ", "process_resident_memory_bytes ", "process_open_fds "] {
            assert!(text.lines().any(|line| line.starts_with(name)), "{name} is not in\n{text}");
        }
    }
}
