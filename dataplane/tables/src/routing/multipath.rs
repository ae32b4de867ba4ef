//! ECMP: which of the paths of a route a flow takes.

use std::net::IpAddr;

use flowgate_wire::hash::{SPLITMIX_STEP, splitmix};

use crate::id::InterfaceId;

/// One path of a route.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Hop {
    pub(super) egress: InterfaceId,
    pub(super) via: Option<IpAddr>,
    weight: f64,
    /// Follows from egress and router alone, so that a path has the same flows whatever the other paths are.
    seed: u64,
}

impl Hop {
    pub(super) fn new(egress: InterfaceId, via: Option<IpAddr>, weight: u16) -> Self {
        let router = match via {
            None => 0,
            // The bit above the address tells it from an IPv6 router with the same number, and 0.0.0.0 from none.
            Some(IpAddr::V4(v4)) => u128::from(v4.to_bits()) | 1 << 32,
            Some(IpAddr::V6(v6)) => v6.to_bits(),
        };
        let bytes = router.to_be_bytes();
        let seed = bytes.iter().fold(mix(u64::from(egress.0)), |seed, &byte| mix(seed ^ u64::from(byte)));
        Self { egress, via, weight: f64::from(weight.max(1)), seed }
    }

    /// The lowest score wins.
    fn score(&self, flow_hash: u32) -> f64 {
        // -ln(u) / w is exponentially distributed with rate w, and the smallest of several such numbers is the i-th with
        // probability w_i / sum(w): each path gets its share. The upper 52 bits fill a mantissa; 0.5 keeps u from zero.
        let uniform = ((mix(self.seed ^ u64::from(flow_hash)) >> 12) as f64 + 0.5) / (1_u64 << 52) as f64;
        -uniform.ln() / self.weight
    }
}

/// The usable paths of a route; empty for an unreachable destination.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Paths(Box<[Hop]>);

impl Paths {
    pub(super) fn new(hops: Vec<Hop>) -> Self {
        Self(hops.into_boxed_slice())
    }

    /// Weighted rendezvous hashing (highest random weight, RFC 2991 section 3): when the set changes, only flows of a
    /// removed path, or to an added one, move.
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
    fn only_flows_of_a_removed_path_move() {
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
    fn a_route_without_a_path_leads_nowhere() {
        assert_eq!(Paths::default().pick(7), None);
    }
}
