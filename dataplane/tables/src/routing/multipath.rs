//! Which of the ways of a route a flow takes. Never looks at interfaces or neighbours.

use std::net::IpAddr;

use flowgate_wire::hash::{SPLITMIX_STEP, splitmix};

use crate::id::InterfaceId;

/// One way of a route.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Hop {
    pub(super) egress: InterfaceId,
    pub(super) via: Option<IpAddr>,
    weight: f64,
    /// Follows from egress and router alone, so that a way keeps its flows whatever the others are.
    seed: u64,
}

impl Hop {
    pub(super) fn new(egress: InterfaceId, via: Option<IpAddr>, weight: u16) -> Self {
        let router = match via {
            None => 0,
            Some(IpAddr::V4(v4)) => u128::from(v4.to_bits()) | 1 << 32,
            Some(IpAddr::V6(v6)) => v6.to_bits(),
        };
        let bytes = router.to_be_bytes();
        let seed = bytes.iter().fold(mix(u64::from(egress.0)), |seed, &byte| mix(seed ^ u64::from(byte)));
        Self { egress, via, weight: f64::from(weight.max(1)), seed }
    }

    /// Lower is better. Over all values of `flow_hash` exponentially distributed with the weight as its rate, so
    /// that a way has the lowest score with the probability that is its share.
    fn score(&self, flow_hash: u32) -> f64 {
        let uniform = ((mix(self.seed ^ u64::from(flow_hash)) >> 12) as f64 + 0.5) / (1_u64 << 52) as f64;
        -uniform.ln() / self.weight
    }
}

/// The ways of a route that can be taken; none for a destination that cannot be reached.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Paths(Box<[Hop]>);

impl Paths {
    pub(super) fn new(hops: Vec<Hop>) -> Self {
        Self(hops.into_boxed_slice())
    }

    /// Weighted rendezvous hashing (Thaler and Ravishankar, RFC 2991 section 3): the same way for the same
    /// `flow_hash`, and when the set changes only flows of a way that went, or to a way that came, move.
    pub(super) fn pick(&self, flow_hash: u32) -> Option<&Hop> {
        match &*self.0 {
            [only] => Some(only),
            several => {
                let better = |a: &&Hop, b: &&Hop| a.score(flow_hash).total_cmp(&b.score(flow_hash));
                several.iter().min_by(better)
            }
        }
    }
}

/// One output of SplitMix64: the finisher alone would map zero to zero.
const fn mix(value: u64) -> u64 {
    splitmix(value.wrapping_add(SPLITMIX_STEP))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hop(n: u8, weight: u16) -> Hop {
        Hop::new(InterfaceId(0), Some(IpAddr::from([10, 0, 0, n])), weight)
    }

    #[test]
    fn flows_are_shared_by_weight() {
        let paths = Paths::new(vec![hop(1, 1), hop(2, 3), hop(3, 6)]);
        let mut taken = [0_u32; 3];
        for flow in 0..100_000_u32 {
            let via = paths.pick(flow.wrapping_mul(0x85eb_ca6b)).unwrap().via;
            taken[(1..=3).position(|n| via == Some(IpAddr::from([10, 0, 0, n]))).unwrap()] += 1;
        }
        for (taken, share) in taken.into_iter().zip([10_000, 30_000, 60_000]) {
            assert!(taken.abs_diff(share) < 1_000, "{taken} of {share}");
        }
    }

    #[test]
    fn only_flows_of_a_way_that_goes_move() {
        let all = Paths::new(vec![hop(1, 2), hop(2, 2), hop(3, 1)]);
        let left = Paths::new(vec![hop(3, 1), hop(1, 2)]);
        for flow in 0..10_000 {
            let before = all.pick(flow).unwrap();
            if before.via != hop(2, 2).via {
                assert_eq!(left.pick(flow), Some(before));
            }
        }
    }

    #[test]
    fn a_route_without_a_way_leads_nowhere() {
        assert_eq!(Paths::default().pick(7), None);
    }
}
