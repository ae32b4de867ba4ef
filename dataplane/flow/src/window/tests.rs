#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "sequence numbers wrap")]

use proptest::prelude::*;

use super::*;
use crate::state::TcpPhase;

/// A number of either end, counted from its SYN and not wrapped: what RFC 9293 compares, without its arithmetic.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// The initial sequence number of each side.
    initial: [u32; 2],
    /// Octets that each side has sent, its SYN included.
    sent: [i64; 2],
    /// Octets that each side has acknowledged of the other.
    acked: [i64; 2],
    /// The window of each side, scaled.
    window: [i64; 2],
}

const SHIFT: u8 = 4;

impl Known {
    fn record(&self, side: usize) -> Sent {
        let other = 1 - side;
        let connection = Connection::default()
            .with_flags(TcpFlags::SYN.union(TcpFlags::ACK))
            .past_syn()
            .with_scale(Some(SHIFT))
            .with_window((self.window[side] >> SHIFT) as u16);
        Sent {
            connection,
            end: self.number(side, self.sent[side]),
            acked: self.number(other, self.acked[side]),
        }
    }

    fn number(&self, side: usize, octets: i64) -> u32 {
        self.initial[side].wrapping_add(octets as u32)
    }
}

/// What both directions have sent at the end of a handshake with the largest windows.
fn handshake(initial: [u32; 2], scale: u8) -> [Sent; 2] {
    let syn = TcpSegment {
        flags: TcpFlags::SYN,
        sequence: initial[0],
        end: initial[0].wrapping_add(1),
        acknowledgement: 0,
        window: u16::MAX,
        window_scale: Some(scale),
    };
    let nothing = Sent::default();
    let client = judge(Side::Original, &nothing, &nothing, &syn).unwrap().own;
    let answer = TcpSegment {
        flags: TcpFlags::SYN.union(TcpFlags::ACK),
        sequence: initial[1],
        end: initial[1].wrapping_add(1),
        acknowledgement: client.end,
        ..syn
    };
    let server = judge(Side::Reply, &nothing, &client, &answer).unwrap().own;
    let last = TcpSegment {
        flags: TcpFlags::ACK,
        sequence: client.end,
        end: client.end,
        acknowledgement: server.end,
        window: u16::MAX >> scale,
        window_scale: None,
    };
    let client = judge(Side::Original, &client, &server, &last).unwrap().own;
    [client, server]
}

#[test]
fn a_segment_that_was_overtaken_takes_no_acknowledgement_and_no_window_back() {
    let segment = |acknowledgement, window| TcpSegment {
        flags: TcpFlags::ACK,
        sequence: 0,
        end: 0,
        acknowledgement,
        window,
        window_scale: None,
    };
    let before = Connection::default().with_flags(TcpFlags::ACK).with_window(7);
    for (acknowledgement, window, is_newer) in
        [(1001, 0, true), (1000, 8, true), (1000, 7, false), (1000, 0, false), (999, 60_000, false)]
    {
        let after = acknowledged(&segment(acknowledgement, window), 1000, before);
        let expected = if is_newer { (acknowledgement, before.with_window(window)) } else { (1000, before) };
        assert_eq!(after, expected, "{acknowledgement} {window}");
    }
}

prop_compose! {
    fn known()(
        initial in any::<[u32; 2]>(),
        acked in [1..5_000_000_i64, 1..5_000_000_i64],
        in_flight in [0..60_000_i64, 0..60_000_i64],
        // Exact in six bits, so that the window is what the test takes it for.
        window in [0..8_u32, 0..8_u32],
    ) -> Known {
        let window = window.map(|code| i64::from((code * 8192).saturating_sub(1)) << SHIFT);
        Known { initial, sent: [acked[1] + in_flight[0], acked[0] + in_flight[1]], acked, window }
    }
}

proptest! {
    /// The rules of RFC 9293 section 3.10.7.4 and RFC 5961, over numbers that do not wrap.
    #[test]
    fn what_counts_is_what_the_rfcs_accept(
        known in known(),
        side in 0..2_usize,
        sequence in -200_000..1_200_000_i64,
        acknowledged in -1_200_000..200_000_i64,
        len in 0..1460_i64,
        fin in any::<bool>(),
    ) {
        let other = 1 - side;
        let (sequence, acknowledged) = (known.acked[other] + sequence, known.sent[other] + acknowledged);
        let end = sequence + len + i64::from(fin);
        let flags = if fin { TcpFlags::FIN.union(TcpFlags::ACK) } else { TcpFlags::ACK };
        let segment = TcpSegment {
            flags,
            sequence: known.number(side, sequence),
            end: known.number(side, end),
            acknowledgement: known.number(other, acknowledged),
            window: 0,
            window_scale: None,
        };
        let sides = [Side::Original, Side::Reply];
        let judged = judge(sides[side], &known.record(side), &known.record(other), &segment);
        let [own_window, window] = [known.window[side], known.window[other]];
        let in_window = sequence <= known.acked[other] + window
            && end >= known.sent[side] - window.max(66_000);
        let acknowledges = acknowledged <= known.sent[other]
            && acknowledged >= known.sent[other] - own_window.max(66_000);
        prop_assert_eq!(judged.is_some(), in_window && acknowledges);
        if let Some(accepted) = judged {
            let has_ended = TcpPhase::of(accepted.own.connection, known.record(other).connection) == TcpPhase::HalfClosed;
            prop_assert_eq!(has_ended, fin && end > known.acked[other]);
            prop_assert_eq!(accepted.own.end, known.number(side, known.sent[side].max(end)));
        }
        let reset = TcpSegment { flags: TcpFlags::RST, ..segment };
        let resets = judge(sides[side], &known.record(side), &known.record(other), &reset).is_some();
        prop_assert_eq!(resets, sequence >= known.acked[other] && sequence <= known.sent[side]);
    }

    /// What goes without a judgement is what the judgement would record.
    #[test]
    fn the_short_way_records_what_the_long_way_would(known in known(), side in 0..2_usize, len in 0..1460_u32, new in 0..60_000_i64) {
        let other = 1 - side;
        let acknowledged = (known.acked[side] + new).min(known.sent[other]);
        let own = known.record(side);
        let segment = TcpSegment {
            flags: TcpFlags::ACK,
            sequence: own.end,
            end: own.end.wrapping_add(len),
            acknowledgement: known.number(other, acknowledged),
            window: 7,
            window_scale: None,
        };
        prop_assert!(is_next(&segment, own.end, own.acked));
        let peer = Sent { connection: known.record(other).connection.with_window(u16::MAX), ..known.record(other) };
        let accepted = judge(Side::Original, &own, &peer, &segment).unwrap();
        prop_assert_eq!((accepted.own.end, accepted.own.acked), (segment.end, segment.acknowledgement));
        // Windows below 8 are stored as they are.
        let is_newer = acknowledged > known.acked[side] || own.connection.window() < 7;
        let connection = if is_newer { own.connection.with_window(7) } else { own.connection };
        prop_assert_eq!(accepted.own.connection, connection);
    }

    /// Two ends that have said nothing since the handshake: the windows of their SYNs are not scaled (RFC 7323 section 2.2).
    #[test]
    fn blind_ends_miss_an_idle_connection_whatever_its_scale(
        initial in any::<[u32; 2]>(), scale in 0..15_u8, guess in any::<[u32; 2]>(), side in 0..2_usize
    ) {
        let sent = handshake(initial, scale);
        let own = sent[side];
        let near = |number: u32, known: u32| number.wrapping_sub(known).wrapping_add(1 << 19) < 1 << 20;
        prop_assume!(!near(guess[0], own.end) || !near(guess[1], own.acked));
        for flags in [TcpFlags::ACK, TcpFlags::FIN.union(TcpFlags::ACK)] {
            let segment = TcpSegment {
                flags,
                sequence: guess[0],
                end: guess[0].wrapping_add(1),
                acknowledgement: guess[1],
                window: u16::MAX,
                window_scale: None,
            };
            prop_assert_eq!(judge([Side::Original, Side::Reply][side], &own, &sent[1 - side], &segment), None);
        }
    }

    /// 256 guesses, spread over all numbers as an attacker spreads them.
    #[test]
    fn blind_storms_change_nothing(known in known(), flags in any::<u8>(), offset in any::<u32>(), acknowledgement in any::<u32>()) {
        // The acknowledgement of a blind segment without RST must miss too: it is one of 2^32.
        let far = |number: u32| number.wrapping_sub(known.record(1).end).wrapping_add(1 << 22) > 1 << 23;
        prop_assume!(far(acknowledgement));
        for guess in 0..256_u32 {
            let sequence = offset.wrapping_add(guess << 24);
            let segment = TcpSegment { flags: TcpFlags(flags), sequence, end: sequence, acknowledgement, window: 1, window_scale: None };
            let own = known.record(0);
            let is_exact = sequence.wrapping_sub(known.record(1).acked) <= 60_000;
            let judged = judge(Side::Original, &own, &known.record(1), &segment);
            prop_assert!(is_exact || judged.is_none() && !is_next(&segment, own.end, own.acked));
        }
    }
}
