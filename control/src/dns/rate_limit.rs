//! Response rate limiting (RRL) over UDP, as BIND and Knot have it: a network whose address is forged as the source of queries
//! is not flooded with our responses. Clients in it that are real get some truncated responses among those that are left
//! out, and repeat the query over TCP, which cannot be forged.
//!
//! Equal responses count together: those with records by name and type, all others by code, so that random names make one
//! account.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;

use tokio::time::Instant;

/// The operator's decisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Equal responses that a client network (an IPv4 network of 24 bits, an IPv6 network of 56) gets each second.
    pub responses_per_s: NonZeroU32,
    /// Of those beyond, every so manyth is sent truncated, and all others are left out; 0: all are left out.
    pub slip: u8,
}

/// What becomes of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is sent.
    Send,
    /// It is sent without records and with the truncation flag.
    Slip,
    /// It is left out.
    Drop,
}

/// The accounts of client networks; a fixed number, of which the one unused for longest makes room.
#[derive(Debug)]
pub(super) struct RateLimiter {
    limit: RateLimit,
    hasher: RandomState,
    accounts: Vec<Account>,
    started: Instant,
}

#[derive(Clone, Copy, Debug, Default)]
struct Account {
    /// The hash of network and response; 0 if unused.
    key: u64,
    /// Thousandths of a response that may still be sent.
    credit: u64,
    /// When it was used last, in milliseconds since the start.
    used_at_ms: u64,
    limited: u32,
}

impl RateLimiter {
    pub(super) fn new(limit: RateLimit, now: Instant) -> Self {
        let accounts = vec![Account::default(); SETS * WAYS];
        Self { limit, hasher: RandomState::new(), accounts, started: now }
    }

    /// Decides about a response to a client and charges its account. `kind` is equal for equal responses.
    pub(super) fn decide(&mut self, client: IpAddr, kind: u64, now: Instant) -> Verdict {
        let RateLimit { responses_per_s, slip } = self.limit;
        let rate = u64::from(responses_per_s.get());
        let full = rate * CREDIT_PER_RESPONSE;
        let key = self.hasher.hash_one((network(client), kind)) | 1;
        let now_ms = u64::try_from(now.duration_since(self.started).as_millis()).unwrap_or(u64::MAX);
        let account = self.account(key);
        if account.key != key {
            *account = Account { key, credit: full, used_at_ms: now_ms, limited: 0 };
        }
        // `rate` responses per second are as many thousandths of one per millisecond.
        let earned = now_ms.saturating_sub(account.used_at_ms).saturating_mul(rate);
        account.credit = account.credit.saturating_add(earned).min(full);
        account.used_at_ms = now_ms;
        if let Some(rest) = account.credit.checked_sub(CREDIT_PER_RESPONSE) {
            account.credit = rest;
            account.limited = 0;
            return Verdict::Send;
        }
        account.limited = account.limited.wrapping_add(1);
        match u32::from(slip) {
            0 => Verdict::Drop,
            slip if account.limited.is_multiple_of(slip) => Verdict::Slip,
            _ => Verdict::Drop,
        }
    }

    /// The account with this key, or the one of its set that has been unused for longest.
    fn account(&mut self, key: u64) -> &mut Account {
        let set = usize::try_from(key >> 32).unwrap_or_default() % SETS;
        let set = &mut self.accounts[set * WAYS..][..WAYS];
        let mut at = 0;
        for (index, account) in set.iter().enumerate() {
            if account.key == key {
                at = index;
                break;
            }
            if account.used_at_ms < set[at].used_at_ms {
                at = index;
            }
        }
        &mut set[at]
    }
}

/// The network of a client: BIND's default lengths.
fn network(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(addr) => Ipv4Addr::from_bits(addr.to_bits() & (u32::MAX << 8)).into(),
        IpAddr::V6(addr) => Ipv6Addr::from_bits(addr.to_bits() & (u128::MAX << 72)).into(),
    }
}

const CREDIT_PER_RESPONSE: u64 = 1000;
/// 32,768 accounts in one megabyte.
const SETS: usize = 8192;
const WAYS: usize = 4;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn limiter(responses_per_s: u32, slip: u8, now: Instant) -> RateLimiter {
        let responses_per_s = NonZeroU32::new(responses_per_s).unwrap();
        RateLimiter::new(RateLimit { responses_per_s, slip }, now)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_network_gets_its_rate_and_then_every_second_response_truncated() {
        let start = Instant::now();
        let mut limiter = limiter(3, 2, start);
        let mut ask =
            |at_ms, client: &str| limiter.decide(ip(client), 7, start + Duration::from_millis(at_ms));
        for last in 1..=3 {
            assert_eq!(ask(0, &format!("192.0.2.{last}")), Verdict::Send);
        }
        let beyond: Vec<_> = (0..4).map(|_| ask(0, "192.0.2.9")).collect();
        assert_eq!(beyond, [Verdict::Drop, Verdict::Slip, Verdict::Drop, Verdict::Slip]);
        assert_eq!(ask(0, "192.0.3.1"), Verdict::Send, "another network");
        assert_eq!(ask(400, "192.0.2.1"), Verdict::Send, "a third of a second earns one");
        assert_eq!(ask(400, "192.0.2.1"), Verdict::Drop);
        let later: Vec<_> = (0..4).map(|_| ask(60_000, "192.0.2.1")).collect();
        assert_eq!(later[2..], [Verdict::Send, Verdict::Drop], "no more than a second's worth is saved");
    }

    #[test]
    fn other_responses_and_ipv6_networks_have_accounts_of_their_own() {
        let now = Instant::now();
        let mut limiter = limiter(1, 0, now);
        let mut ask = |client: &str, kind| limiter.decide(ip(client), kind, now);
        assert_eq!(ask("2001:db8:0:1::1", 1), Verdict::Send);
        assert_eq!(ask("2001:db8:0:2::1", 1), Verdict::Drop, "the same 56 bits");
        assert_eq!(ask("2001:db8:0:1::1", 2), Verdict::Send);
        assert_eq!(ask("2001:db8:1::1", 1), Verdict::Send);
    }

    #[test]
    fn memory_does_not_grow_with_forged_networks() {
        let now = Instant::now();
        let mut limiter = limiter(1, 1, now);
        for n in 0..200_000 {
            limiter.decide(Ipv4Addr::from_bits(n << 8).into(), 1, now);
        }
        assert_eq!(limiter.accounts.len(), SETS * WAYS);
    }
}
