//! Which neighbours to ask the kernel for, and how often. Never asks by itself.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

/// A neighbour by the kernel's index of its interface.
pub(super) type Target = (u32, IpAddr);

/// Limits questions to one per second and address.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    asked: HashMap<Target, Instant>,
}

impl Limiter {
    /// Whether the kernel may be asked now; if so, the question counts as asked.
    pub(super) fn admit(&mut self, target: Target, now: Instant) -> bool {
        let recent = |at: &Instant| now.saturating_duration_since(*at) < INTERVAL;
        if self.asked.get(&target).is_some_and(recent) {
            return false;
        }
        if self.asked.len() >= REMEMBERED_MAX {
            self.asked.retain(|_, at| recent(at));
        }
        // A flood of addresses is no reason to grow without end, nor to ask for all of them.
        if self.asked.len() >= REMEMBERED_MAX {
            return false;
        }
        self.asked.insert(target, now);
        true
    }
}

const INTERVAL: Duration = Duration::from_secs(1);
/// So many different addresses are asked for in one interval at most.
const REMEMBERED_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_asked_for_once_a_second() {
        let mut limiter = Limiter::default();
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let target = (1, IpAddr::from([10, 0, 0, 1]));
        assert!(limiter.admit(target, at(0)));
        assert!(!limiter.admit(target, at(999)));
        assert!(limiter.admit((2, target.1), at(999)), "another interface is another neighbour");
        assert!(limiter.admit(target, at(1000)));
    }

    #[test]
    fn a_flood_of_addresses_is_bounded_and_passes() {
        let mut limiter = Limiter::default();
        let start = Instant::now();
        let flood = (0u32..5000).map(|n| (1, IpAddr::from(n.to_be_bytes())));
        assert_eq!(flood.filter(|&target| limiter.admit(target, start)).count(), REMEMBERED_MAX);
        assert!(limiter.admit((1, IpAddr::from([10, 0, 0, 1])), start + INTERVAL));
    }
}
