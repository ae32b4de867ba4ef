//! Detects an interface that cuts packets by the lengths that the XDP program records while it serves. A driver that cuts
//! does so always at the same length, and delivers nothing longer. A sender of malformed packets looks the same only while
//! nobody else sends a large one. A false positive costs speed (copy mode), and loses nothing.

use flowgate_xsk::steering::Delivery;

/// Cut frames of one length that count as evidence.
const PIECES: u64 = 8;
/// Shorter ones are ignored: the program records whole frames only from `LARGE_FRAME` on, so longer frames may well arrive.
const LARGE: u32 = 1000;

/// The cut frames of one length that an interface has delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TruncationDetector {
    len: u32,
    /// The counter when that length was seen first.
    from: u64,
}

impl TruncationDetector {
    /// Takes the present record; the length at which the interface cuts packets, if it does.
    pub(super) fn look(&mut self, now: Delivery) -> Option<u32> {
        if now.truncated == 0 || now.truncated < self.from {
            *self = Self::default(); // The record was reset.
            return None;
        }
        if now.truncated_len != self.len {
            *self = Self { len: now.truncated_len, from: now.truncated - 1 };
        }
        let is_large = self.len >= LARGE;
        let is_cut = is_large && now.truncated - self.from >= PIECES && now.longest_whole < self.len;
        is_cut.then_some(self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(truncated: u64, truncated_len: u32, longest_whole: u32) -> Delivery {
        Delivery { truncated, truncated_len, longest_whole }
    }

    #[test]
    fn pieces_of_one_length_and_nothing_longer_mean_that_packets_are_cut() {
        let mut detector = TruncationDetector::default();
        assert_eq!(detector.look(delivery(0, 0, 0)), None);
        assert_eq!(detector.look(delivery(3, 1024, 1000)), None);
        assert_eq!(
            detector.look(delivery(9, 1024, 1000)),
            None,
            "two of the first three may have been others"
        );
        assert_eq!(detector.look(delivery(10, 1024, 1000)), Some(1024));
    }

    #[test]
    fn an_interface_that_delivers_longer_packets_whole_is_not_to_blame() {
        let mut detector = TruncationDetector::default();
        assert_eq!(detector.look(delivery(1, 1024, 1514)), None);
        assert_eq!(detector.look(delivery(1000, 1024, 1514)), None);
    }

    #[test]
    fn pieces_of_many_lengths_are_the_senders() {
        let mut detector = TruncationDetector::default();
        for (count, len) in (1..200).zip((900..).step_by(3)) {
            assert_eq!(detector.look(delivery(count * 5, len, 0)), None);
        }
    }

    #[test]
    fn short_pieces_are_the_senders() {
        let mut detector = TruncationDetector::default();
        for count in 1..100 {
            assert_eq!(detector.look(delivery(count, 60, 0)), None);
        }
    }

    #[test]
    fn counting_begins_anew_with_the_program() {
        let mut detector = TruncationDetector::default();
        assert_eq!(detector.look(delivery(100, 1024, 0)), None);
        assert_eq!(detector.look(delivery(0, 0, 0)), None);
        assert_eq!(detector.look(delivery(5, 1024, 0)), None);
        assert_eq!(detector.look(delivery(12, 1024, 0)), Some(1024));
    }
}
