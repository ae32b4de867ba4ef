//! Whether an interface that nobody could prove cuts packets, by what the steering program noted while it served. A
//! driver that cuts always does so at one length, and delivers nothing longer. A sender of bad packets looks the same
//! only as long as nobody else sends a large one: what follows, copies, costs speed and loses nothing.

use flowgate_xsk::steering::Delivery;

/// So many pieces of one length are no accident.
const PIECES: u64 = 8;
/// Of shorter ones it is not known whether longer frames arrive (`LARGE_FRAME` of the program): any host on the link
/// could send them.
const LARGE: u32 = 1000;

/// The pieces of one length that an interface has delivered so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TruncationDetector {
    len: u32,
    /// The count when that length was seen first.
    from: u64,
}

impl TruncationDetector {
    /// Takes what is noted now, and says at which length packets are cut, if they are.
    pub(super) fn look(&mut self, now: Delivery) -> Option<u32> {
        if now.truncated == 0 || now.truncated < self.from {
            *self = Self::default(); // the program began to note anew
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
