//! Which bytes of a fragmented packet were forwarded.

use flowgate_wire::fragment::FragmentRange;

/// The forwarded bytes of one packet, as disjoint ranges.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ranges {
    /// Start and end in bytes, in any order; the first `len` are valid.
    ranges: [(u16, u16); RANGES_MAX],
    len: u8,
    /// Length of the packet in bytes, once a last fragment was seen.
    total: Option<u16>,
}

/// The relation of a fragment to those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// None of its bytes was forwarded.
    New,
    /// All its bytes were forwarded. It is dropped alone: networks duplicate packets, and it does no harm.
    Duplicate,
    /// Some of its bytes were forwarded, or it contradicts the known length.
    Overlap,
    /// It would need one range more than fits.
    Excess,
}

impl Ranges {
    pub(super) const EMPTY: Self = Self { ranges: [(0, 0); RANGES_MAX], len: 0, total: None };

    /// Length of the packet in bytes, if known.
    pub(super) fn total(&self) -> Option<u16> {
        self.total
    }

    /// Learns the length from a last fragment, possibly before it is forwarded. The first one counts.
    pub(super) fn learn_total(&mut self, part: &FragmentRange) {
        if !part.more && self.total.is_none() {
            self.total = Some(part.end);
        }
    }

    /// The relation of `part` to those before it.
    pub(super) fn fit(&self, part: &FragmentRange) -> Fit {
        let seen = &self.ranges[..usize::from(self.len)];
        if seen.iter().any(|&(start, end)| start <= part.start && part.end <= end) {
            return Fit::Duplicate;
        }
        let overlaps = seen.iter().any(|&(start, end)| part.start < end && start < part.end);
        let contradicts = match self.total {
            Some(total) => part.end > total || (part.more == (part.end == total)),
            None => !part.more && seen.iter().any(|&(_, end)| end > part.end),
        };
        let touches = |&&(start, end): &&(u16, u16)| end == part.start || start == part.end;
        match seen.iter().filter(touches).count() {
            _ if overlaps || contradicts => Fit::Overlap,
            0 if usize::from(self.len) == RANGES_MAX => Fit::Excess,
            _ => Fit::New,
        }
    }

    /// Adds a part that is [`Fit::New`], merged with the ranges that it touches.
    pub(super) fn add(&mut self, part: &FragmentRange) {
        self.learn_total(part);
        let (mut start, mut end) = (part.start, part.end);
        let mut i = 0;
        while i < usize::from(self.len) {
            let (other_start, other_end) = self.ranges[i];
            if other_end == start || other_start == end {
                (start, end) = (start.min(other_start), end.max(other_end));
                self.len -= 1;
                self.ranges[i] = self.ranges[usize::from(self.len)];
                // Start over: the merged range may touch one that was compared before.
                i = 0;
            } else {
                i += 1;
            }
        }
        if let Some(free) = self.ranges.get_mut(usize::from(self.len)) {
            *free = (start, end);
            self.len += 1;
        }
    }

    /// Whether every byte of the packet was forwarded.
    pub(super) fn is_complete(&self) -> bool {
        self.len == 1 && self.total.is_some_and(|total| self.ranges[0] == (0, total))
    }
}

/// Maximum number of ranges. The largest packet at an MTU of 1,500 has 45 fragments, of which at most 23 are apart from one
/// another: enough for any order of arrival.
const RANGES_MAX: usize = 24;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn part(start: u16, end: u16, more: bool) -> FragmentRange {
        FragmentRange { start, end, more }
    }

    #[test]
    fn parts_are_told_apart() {
        let mut ranges = Ranges::EMPTY;
        ranges.add(&part(8, 24, true));
        assert_eq!(ranges.fit(&part(8, 24, true)), Fit::Duplicate);
        assert_eq!(ranges.fit(&part(16, 24, true)), Fit::Duplicate);
        assert_eq!(ranges.fit(&part(0, 16, true)), Fit::Overlap);
        assert_eq!(ranges.fit(&part(16, 40, true)), Fit::Overlap);
        assert_eq!(ranges.fit(&part(0, 40, true)), Fit::Overlap);
        assert_eq!(ranges.fit(&part(0, 8, true)), Fit::New);
        // A packet cannot end before bytes that it has, nor twice.
        assert_eq!(ranges.fit(&part(0, 8, false)), Fit::Overlap);
        ranges.add(&part(24, 30, false));
        assert_eq!(ranges.fit(&part(32, 40, false)), Fit::Overlap);
        assert_eq!(ranges.fit(&part(32, 40, true)), Fit::Overlap);
        assert!(!ranges.is_complete());
        ranges.add(&part(0, 8, true));
        assert!(ranges.is_complete());
    }

    #[test]
    fn ranges_are_bounded_but_a_gap_can_always_be_filled() {
        let mut ranges = Ranges::EMPTY;
        for n in 0..24 {
            assert_eq!(ranges.fit(&part(n * 16, n * 16 + 8, true)), Fit::New);
            ranges.add(&part(n * 16, n * 16 + 8, true));
        }
        assert_eq!(ranges.fit(&part(1000, 1008, true)), Fit::Excess);
        assert_eq!(ranges.fit(&part(8, 16, true)), Fit::New);
    }

    proptest! {
        #[test]
        fn ranges_agree_with_a_map_of_bytes(parts in proptest::collection::vec((0_u16..40, 1_u16..6), 1..40)) {
            let (mut ranges, mut bytes) = (Ranges::EMPTY, [false; 400]);
            for (start, len) in parts {
                let part = part(start * 8, (start + len) * 8, true);
                let there = &mut bytes[usize::from(part.start)..usize::from(part.end)];
                let seen = there.iter().filter(|seen| **seen).count();
                let expected = match seen {
                    0 => Fit::New,
                    all if all == there.len() => Fit::Duplicate,
                    _ => Fit::Overlap,
                };
                prop_assert_eq!(ranges.fit(&part), expected);
                if expected == Fit::New {
                    there.fill(true);
                    ranges.add(&part);
                }
            }
        }
    }
}
