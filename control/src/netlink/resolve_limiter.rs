//! Rate limit for requests to resolve neighbours: one per second and neighbour, and a bound over all neighbours. Those that
//! nothing but a packet asks for, which anybody on the link can forge, have a lower one, and leave room in the kernel's table.

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

/// Limits requests for neighbours that are neither backends nor routers: hosts on the link that packets came from.
#[derive(Debug)]
pub(super) struct UnsolicitedLimiter {
    tokens: u32,
    filled: Instant,
}

impl UnsolicitedLimiter {
    pub(super) fn new(now: Instant) -> Self {
        Self { tokens: UNSOLICITED_BURST, filled: now }
    }

    /// Whether a request may be sent now, while the kernel's table has `used` entries and refuses more than `table_max`
    /// (`gc_thresh3`): half of them are left to neighbours that traffic depends on.
    pub(super) fn admit(&mut self, used: usize, table_max: usize, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.filled);
        let earned = elapsed.as_millis() * u128::from(UNSOLICITED_PER_SECOND) / 1000;
        if earned > 0 {
            self.filled = now;
            self.tokens =
                UNSOLICITED_BURST.min(self.tokens.saturating_add(u32::try_from(earned).unwrap_or(u32::MAX)));
        }
        let is_admitted = self.tokens > 0 && used < table_max / 2;
        self.tokens -= u32::from(is_admitted);
        is_admitted
    }
}

/// A tenth of what backends and routers may have.
const UNSOLICITED_PER_SECOND: u32 = 100;
const UNSOLICITED_BURST: u32 = 200;

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
    fn unsolicited_requests_have_a_lower_rate_and_leave_half_of_the_table() {
        let start = Instant::now();
        let mut limiter = UnsolicitedLimiter::new(start);
        let mut admitted = |used, millis| {
            let now = start + Duration::from_millis(millis);
            (0..1000).filter(|_| limiter.admit(used, 1024, now)).count()
        };
        assert_eq!(admitted(512, 0), 0, "the other half is for backends and routers");
        assert_eq!(admitted(511, 0), 200);
        assert_eq!(admitted(0, 9), 0);
        assert_eq!(admitted(0, 500), 50);
        assert_eq!(admitted(0, 60_000), 200);
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
