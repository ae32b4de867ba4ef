//! Rate limit for requests to resolve neighbours: one per second and neighbour, and a bound over all neighbours.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

/// A neighbour: the kernel's index of its interface, and its address.
pub(super) type Target = (u32, IpAddr);

/// When each neighbour was last requested, for the last second.
#[derive(Debug, Default)]
pub(super) struct ResolveLimiter {
    last_request: HashMap<Target, Instant>,
}

impl ResolveLimiter {
    /// Whether a request may be sent now; if so, it counts as sent.
    pub(super) fn admit(&mut self, target: Target, now: Instant) -> bool {
        let recent = |at: &Instant| now.saturating_duration_since(*at) < INTERVAL;
        if self.last_request.get(&target).is_some_and(recent) {
            return false;
        }
        if self.last_request.len() >= REMEMBERED_MAX {
            self.last_request.retain(|_, at| recent(at));
        }
        // Still full: these are all of this second. A scan of many addresses must neither grow the map without
        // bound nor fill the kernel's neighbour table.
        if self.last_request.len() >= REMEMBERED_MAX {
            return false;
        }
        self.last_request.insert(target, now);
        true
    }
}

const INTERVAL: Duration = Duration::from_secs(1);
/// The most neighbours that are requested within one interval.
const REMEMBERED_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_requested_once_a_second() {
        let mut limiter = ResolveLimiter::default();
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
        let mut limiter = ResolveLimiter::default();
        let start = Instant::now();
        let flood = (0u32..5000).map(|n| (1, IpAddr::from(n.to_be_bytes())));
        assert_eq!(flood.filter(|&target| limiter.admit(target, start)).count(), REMEMBERED_MAX);
        assert!(limiter.admit((1, IpAddr::from([10, 0, 0, 1])), start + INTERVAL));
    }
}
