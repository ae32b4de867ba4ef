//! The clock of the XDP program, as user space can read it.
//!
//! `bpf_ktime_get_ns` counts from the boot of the machine, whatever namespace a process is in. CLOCK_MONOTONIC is the same
//! clock only in the first time namespace: in others the kernel adds an offset (time_namespaces(7)), which may be negative.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::OnceLock;
use std::time::Duration;

use nix::errno::Errno;
use nix::time::{ClockId, clock_gettime};

/// The time since the boot of the machine, without the time in which it was suspended: what `bpf_ktime_get_ns` returns.
/// It is the same in all time namespaces, so that times of one process mean the same to the next.
///
/// # Errors
/// That of clock_gettime(2).
pub fn host_monotonic() -> Result<Duration, Errno> {
    static OFFSET_NS: OnceLock<i128> = OnceLock::new();
    // Read once: a process with more than one thread cannot change its time namespace (setns(2)).
    let offset = *OFFSET_NS.get_or_init(own_offset_ns);
    let here = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
    let host = i128::try_from(here.as_nanos()).unwrap_or(i128::MAX) - offset;
    Ok(Duration::from_nanos(u64::try_from(host.max(0)).unwrap_or(u64::MAX)))
}

/// What the kernel adds to CLOCK_MONOTONIC in the time namespace of this process.
fn own_offset_ns() -> i128 {
    // The file has the offsets of the namespace that children get (kernel/time/namespace.c:proc_timens_show_offsets), which
    // is another one between unshare(2) and the next fork, and before Linux 6.3 after exec(2) too.
    let inode = |path| fs::metadata(path).ok().map(|meta| meta.ino());
    let (own, of_children) = (inode("/proc/self/ns/time"), inode("/proc/self/ns/time_for_children"));
    if own != of_children && own == Some(INITIAL_NAMESPACE) {
        return 0;
    }
    // A kernel without time namespaces has no such file.
    fs::read_to_string("/proc/self/timens_offsets").map_or(0, |text| monotonic_offset_ns(&text))
}

/// The offset in the row `monotonic` of `/proc/PID/timens_offsets`: seconds, and nanoseconds that are never negative.
fn monotonic_offset_ns(text: &str) -> i128 {
    let offset = text.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        // Before Linux 5.7 the clock was written as its number.
        if !matches!(words.next()?, "monotonic" | "1") {
            return None;
        }
        let (seconds, nanos) = (words.next()?.parse::<i64>().ok()?, words.next()?.parse::<i64>().ok()?);
        Some(i128::from(seconds) * 1_000_000_000 + i128::from(nanos))
    });
    offset.unwrap_or(0)
}

/// The inode of the first time namespace (include/linux/proc_ns.h: PROC_TIME_INIT_INO).
const INITIAL_NAMESPACE: u64 = 0xEFFF_FFFA;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offset_is_that_of_the_monotonic_clock_also_a_negative_one() {
        let ahead = "monotonic      86400         5\nboottime       604800         0\n";
        assert_eq!(monotonic_offset_ns(ahead), 86_400_000_000_005);
        let behind = "monotonic         -2 500000000\nboottime           0         0\n";
        assert_eq!(monotonic_offset_ns(behind), -1_500_000_000);
        assert_eq!(monotonic_offset_ns("boottime 5 0\n"), 0);
    }

    #[test]
    fn outside_of_time_namespaces_it_is_the_monotonic_clock() {
        let before = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap());
        let host = host_monotonic().unwrap();
        let after = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap());
        if own_offset_ns() == 0 {
            assert!(before <= host && host <= after, "{before:?} {host:?} {after:?}");
        }
    }
}
