//! Connections: which segments and packets count, and when their flows expire.

use flowgate_wire::SctpPacket;

use super::*;

const SYN: TcpFlags = TcpFlags::SYN;
const ACK: TcpFlags = TcpFlags::ACK;
const FIN: TcpFlags = TcpFlags::FIN;
const RST: TcpFlags = TcpFlags::RST;
const SYN_ACK: TcpFlags = TcpFlags(SYN.0 | ACK.0);
const FIN_ACK: TcpFlags = TcpFlags(FIN.0 | ACK.0);

#[test]
fn a_tcp_flow_expires_by_its_phase() {
    use Side::{Original, Reply};
    let timeouts = Timeouts::default();
    let run = |segments: &[(Side, TcpFlags)]| {
        let table = FlowTable::new(100, KEY).unwrap();
        let flow = tcp(1, 1, 40_000);
        table.insert(&flow, Tick(0));
        let mut talk = Talk::new(&table, &flow);
        for (side, flags) in segments {
            assert_eq!(talk.say(*side, *flags), Tracked::Recorded);
        }
        let mut sweep = Sweep::new(&table, 0, 1);
        [9, 11, 31, 61, 3_601, 432_001].into_iter().find(|&seconds| {
            sweep.step(&table, u32::MAX, at(seconds * 1000, &timeouts, 0), |_, _| false) == 1
        })
    };
    let open = [(Original, SYN), (Reply, SYN_ACK), (Original, ACK)];
    let then = |more: &[(Side, TcpFlags)]| run(&[&open, more].concat());
    assert_eq!(run(&open[..1]), Some(61));
    assert_eq!(run(&open[..2]), Some(61));
    assert_eq!(then(&[]), Some(432_001));
    assert_eq!(then(&[(Original, FIN_ACK)]), Some(3_601));
    assert_eq!(then(&[(Original, FIN_ACK), (Reply, FIN_ACK)]), Some(31));
    assert_eq!(then(&[(Original, RST)]), Some(11));
    assert_eq!(then(&[(Reply, RST)]), Some(11));
    assert_eq!(run(&[(Original, SYN), (Reply, TcpFlags(RST.0 | ACK.0))]), Some(11), "refused");
    assert_eq!(run(&[(Original, SYN), (Original, RST)]), Some(11), "given up");
}

fn opened(check: impl Fn(Talk<'_>)) {
    let table = FlowTable::new(100, KEY).unwrap();
    let flow = tcp(1, 1, 40_000);
    table.insert(&flow, Tick(0));
    let talk = Talk::open(&table, &flow);
    assert_eq!(talk.phase(), TcpPhase::Established);
    check(talk);
}

/// A flood makes a backend repeat its answers, and forged acknowledgements below them prove nothing.
#[test]
fn a_repeated_answer_to_a_syn_is_nothing_behind_it() {
    let table = FlowTable::new(100, KEY).unwrap();
    let flow = tcp(1, 1, 40_000);
    table.insert(&flow, Tick(0));
    let mut talk = Talk::new(&table, &flow);
    talk.say(Side::Original, SYN);
    talk.say(Side::Reply, SYN_ACK);
    let [client, server] = talk.next;
    let answer = TcpSegment { end: server, ..segment(SYN_ACK, server.wrapping_sub(1), client) };
    assert_eq!(talk.hear(Side::Reply, &answer), Tracked::Recorded);
    for below in [1, 1000, 60_000] {
        let forged = segment(ACK, client, server.wrapping_sub(below));
        assert_eq!(talk.hear(Side::Original, &forged), Tracked::Ignored, "{below}");
    }
    assert_eq!(talk.hear(Side::Original, &segment(ACK, client, server)), Tracked::Recorded);
}

/// RFC 5961 section 3.2: only the next number that its receiver expects resets a connection at once.
#[test]
fn a_reset_counts_with_the_one_number_that_its_receiver_expects() {
    for side in [Side::Original, Side::Reply] {
        opened(|talk| {
            let expected = talk.next[side as usize];
            for off in [1, 2, 1000, 65_536, 1 << 20, 1 << 31] {
                for sequence in [expected.wrapping_add(off), expected.wrapping_sub(off)] {
                    assert_eq!(talk.hear(side, &segment(RST, sequence, 0)), Tracked::Ignored);
                }
            }
            assert_eq!(talk.phase(), TcpPhase::Established);
            assert_eq!(talk.hear(side, &segment(RST, expected, 0)), Tracked::Recorded);
            assert_eq!(talk.phase(), TcpPhase::Reset);
        });
    }
}

#[test]
fn a_reset_that_answers_data_in_flight_counts_and_so_does_one_behind_it() {
    for behind in [0, 3000] {
        opened(|talk| {
            let begin = talk.next[0];
            let data = TcpSegment { end: begin.wrapping_add(3000), ..segment(ACK, begin, talk.next[1]) };
            talk.hear(Side::Original, &data);
            let reset = segment(RST, begin.wrapping_add(behind), 0);
            assert_eq!(talk.hear(Side::Original, &reset), Tracked::Recorded);
            assert_eq!(talk.phase(), TcpPhase::Reset);
        });
    }
}

/// RFC 5961 section 3.2: a receiver that did not accept a reset sends a challenge, so it goes on.
#[test]
fn a_reset_is_taken_back_when_its_receiver_goes_on() {
    opened(|mut talk| {
        assert_eq!(talk.say(Side::Original, RST), Tracked::Recorded);
        assert_eq!(talk.phase(), TcpPhase::Reset);
        let blind = segment(ACK, talk.next[1].wrapping_add(1 << 30), talk.next[0]);
        assert_eq!(talk.hear(Side::Reply, &blind), Tracked::Ignored);
        assert_eq!(talk.phase(), TcpPhase::Reset);
        assert_eq!(talk.say(Side::Reply, ACK), Tracked::ResetRefuted);
        assert_eq!(talk.phase(), TcpPhase::Established);
    });
}

#[test]
fn a_forged_acknowledgement_does_not_keep_a_genuine_reset_from_counting() {
    for forged_by in [1_u32, 1000, 60_000, 1 << 20, 1 << 31] {
        opened(|mut talk| {
            let forged = segment(ACK, talk.next[0], talk.next[1].wrapping_add(forged_by));
            talk.hear(Side::Original, &forged);
            assert_eq!(talk.say(Side::Reply, RST), Tracked::Recorded, "{forged_by}");
            assert_eq!(talk.phase(), TcpPhase::Reset);
        });
    }
}

#[test]
fn segments_out_of_the_window_or_without_ack_end_nothing() {
    opened(|talk| {
        let [client, server] = talk.next;
        let flags = [FIN_ACK, FIN, TcpFlags(SYN.0 | FIN.0), SYN, SYN_ACK, TcpFlags(0), TcpFlags(!RST.0)];
        for flags in flags {
            for off in [70_000, 1 << 20, 3_000_000_000] {
                talk.hear(Side::Original, &segment(flags, client.wrapping_add(off), server));
                talk.hear(Side::Original, &segment(flags, client, server.wrapping_add(off)));
                talk.hear(Side::Reply, &segment(flags, server.wrapping_add(off), client));
                talk.hear(Side::Reply, &segment(flags, server, client.wrapping_add(off)));
            }
        }
        for side in [Side::Original, Side::Reply] {
            let next = talk.next[side as usize];
            assert_eq!(talk.hear(side, &segment(FIN, next, 0)), Tracked::Ignored, "without ACK");
            talk.hear(side, &segment(FIN_ACK, next.wrapping_sub(2), talk.next[1 - side as usize]));
        }
        assert_eq!(talk.phase(), TcpPhase::Established, "nor does a FIN below what was acknowledged");
    });
}

#[test]
fn a_fin_beyond_lost_data_counts_while_it_is_in_the_scaled_window() {
    // (shifts offered, how far beyond, whether it counts); the window is 8192 before scaling.
    let cases = [
        ([None, None], 8_000, true),
        ([None, None], 12_000, false),
        ([Some(7), None], 12_000, false),
        ([Some(7), Some(0)], 1_000_000, true),
        ([Some(7), Some(0)], 1_400_000, false),
        ([Some(0), Some(7)], 12_000, false),
    ];
    for ([client, server], beyond, counts) in cases {
        let table = FlowTable::new(100, KEY).unwrap();
        let flow = tcp(1, 1, 40_000);
        table.insert(&flow, Tick(0));
        let mut talk = Talk::new(&table, &flow);
        talk.hear(Side::Original, &TcpSegment { window_scale: client, ..segment(SYN, 10, 0) });
        talk.hear(Side::Reply, &TcpSegment { window_scale: server, ..segment(SYN_ACK, 20, 11) });
        talk.next = [11, 21];
        talk.say(Side::Original, ACK);
        talk.hear(Side::Reply, &segment(FIN_ACK, 21 + beyond, 11));
        let wanted = if counts { TcpPhase::HalfClosed } else { TcpPhase::Established };
        assert_eq!(talk.phase(), wanted, "{client:?} {server:?} {beyond}");
    }
}

#[test]
fn a_handshake_is_completed_only_by_what_acknowledges_the_other_syn() {
    let table = FlowTable::new(100, KEY).unwrap();
    let flow = tcp(1, 1, 40_000);
    table.insert(&flow, Tick(0));
    let mut talk = Talk::new(&table, &flow);
    talk.say(Side::Original, SYN);
    for acknowledgement in [0, talk.next[0].wrapping_sub(1), talk.next[0].wrapping_add(1)] {
        assert_eq!(talk.hear(Side::Reply, &segment(SYN_ACK, 5000, acknowledgement)), Tracked::Ignored);
        let refusal = segment(TcpFlags(RST.0 | ACK.0), 0, acknowledgement);
        assert_eq!(talk.hear(Side::Reply, &refusal), Tracked::Ignored);
    }
    assert_eq!((talk.phase(), table.half_open()), (TcpPhase::SynSent, 1));
    talk.say(Side::Reply, SYN_ACK);
    for (sequence, acknowledgement) in
        [(talk.next[0], 5000), (talk.next[0], 5002), (talk.next[0].wrapping_sub(1), 5001)]
    {
        assert_eq!(talk.hear(Side::Original, &segment(ACK, sequence, acknowledgement)), Tracked::Ignored);
    }
    assert_eq!(talk.phase(), TcpPhase::SynReceived);
    talk.say(Side::Original, ACK);
    assert_eq!(talk.phase(), TcpPhase::Established);
}

#[test]
fn a_client_that_begins_anew_before_it_is_answered_is_followed() {
    let table = FlowTable::new(100, KEY).unwrap();
    let flow = tcp(1, 1, 40_000);
    table.insert(&flow, Tick(0));
    let mut talk = Talk::new(&table, &flow);
    talk.say(Side::Original, SYN);
    talk.next[0] = 777;
    assert_eq!(talk.say(Side::Original, SYN), Tracked::Recorded);
    assert_eq!(talk.say(Side::Reply, SYN_ACK), Tracked::Recorded);
    assert_eq!(talk.say(Side::Original, ACK), Tracked::Recorded);
    assert_eq!(talk.phase(), TcpPhase::Established);
}

#[test]
fn a_damaged_segment_changes_no_phase() {
    opened(|talk| {
        for (side, flags) in
            [(Side::Original, RST), (Side::Reply, RST), (Side::Original, FIN_ACK), (Side::Reply, FIN_ACK)]
        {
            let acknowledgement = talk.next[1 - side as usize];
            let damaged = segment(flags, talk.next[side as usize], acknowledgement);
            let tracked = talk.table.track_segment(&talk.found(side), &damaged, || false);
            assert_eq!((tracked, talk.phase()), (Tracked::Ignored, TcpPhase::Established));
        }
    });
}

#[test]
fn the_octets_of_later_fragments_may_be_acknowledged() {
    opened(|talk| {
        let first = segment(ACK, talk.next[0], talk.next[1]);
        talk.hear(Side::Original, &TcpSegment { end: first.sequence.wrapping_add(600), ..first });
        talk.found(Side::Original).extend_segment(50_000);
        let end = first.sequence.wrapping_add(600 + 50_000);
        let last = segment(FIN_ACK, talk.next[1], end);
        assert_eq!(talk.hear(Side::Reply, &last), Tracked::Recorded);
        assert_eq!(talk.phase(), TcpPhase::HalfClosed);
    });
}

/// An association with tags 0x1111 of the client and 0x2222 of the server.
struct Association<'a> {
    table: &'a FlowTable<Ipv4Addr>,
    flow: NewFlow<Ipv4Addr>,
}

impl<'a> Association<'a> {
    fn open(table: &'a FlowTable<Ipv4Addr>) -> Self {
        let flow = flow(tuple(Protocol::Sctp, 1, 1), reply_tuple(Protocol::Sctp, 40_000), 1);
        table.insert(&flow, Tick(0));
        let association = Self { table, flow };
        association.handshake(0x1111, 0x2222);
        association
    }

    fn handshake(&self, client: u32, server: u32) {
        self.hear(Side::Original, SYN, 0, |init| init.initiate_tag = client);
        self.hear(Side::Reply, SYN_ACK, client, |ack| ack.initiate_tag = server);
        self.hear(Side::Original, ACK, server, |echo| echo.echoes_cookie = true);
        self.hear(Side::Reply, ACK, client, |_| {});
    }

    fn hear(&self, side: Side, flags: TcpFlags, tag: u32, change: impl Fn(&mut SctpPacket)) -> Tracked {
        let mut packet = SctpPacket { flags, tag, ..SctpPacket::default() };
        change(&mut packet);
        self.table.track_sctp(&self.found(side), &packet, || true)
    }

    fn found(&self, side: Side) -> Found<'a, Ipv4Addr> {
        let direction = if side == Side::Original { &self.flow.original } else { &self.flow.reply };
        self.table.lookup(&direction.tuple).unwrap()
    }

    fn phase(&self) -> TcpPhase {
        self.table.tcp_phase(&self.found(Side::Original))
    }
}

const ABORT: TcpFlags = TcpFlags(RST.0 | ACK.0);

#[test]
fn an_association_ends_only_by_its_verification_tags() {
    let table = FlowTable::new(100, KEY).unwrap();
    let association = Association::open(&table);
    assert_eq!(association.phase(), TcpPhase::Established);
    for (side, own) in [(Side::Original, 0x2222), (Side::Reply, 0x1111)] {
        for tag in [0, 0xdead_beef, 0x3333 - own] {
            assert_eq!(association.hear(side, ABORT, tag, |_| {}), Tracked::Ignored);
            assert_eq!(association.hear(side, FIN_ACK, tag, |_| {}), Tracked::Ignored);
        }
        // With the flag T the tag is that of the packet which is answered.
        assert_eq!(
            association.hear(side, ABORT, own, |abort| abort.is_tag_reflected = true),
            Tracked::Ignored
        );
    }
    assert_eq!(association.phase(), TcpPhase::Established);
    assert_eq!(association.hear(Side::Original, FIN_ACK, 0x2222, |_| {}), Tracked::Recorded);
    assert_eq!(association.phase(), TcpPhase::HalfClosed);
    let reflected = association.hear(Side::Reply, ABORT, 0x2222, |abort| abort.is_tag_reflected = true);
    assert_eq!((reflected, association.phase()), (Tracked::Recorded, TcpPhase::Reset));
}

/// RFC 9260 section 8.5.1 (C).
#[test]
fn a_shutdown_complete_counts_only_behind_a_shutdown_ack() {
    let table = FlowTable::new(100, KEY).unwrap();
    let association = Association::open(&table);
    let complete = || association.hear(Side::Original, FIN_ACK, 0x2222, |it| it.completes_shutdown = true);
    assert_eq!((complete(), association.phase()), (Tracked::Ignored, TcpPhase::Established));
    association.hear(Side::Reply, FIN_ACK, 0x1111, |_| {});
    assert_eq!((complete(), association.phase()), (Tracked::Recorded, TcpPhase::TimeWait));
}

#[test]
fn an_init_into_an_open_association_only_proposes_tags_and_a_cookie_confirms_them() {
    let table = FlowTable::new(100, KEY).unwrap();
    let association = Association::open(&table);
    association.hear(Side::Original, SYN, 0, |init| init.initiate_tag = 0x6666);
    association.hear(Side::Reply, SYN_ACK, 0x6666, |ack| ack.initiate_tag = 0x7777);
    // An attacker does not see the answer, so it cannot echo the cookie.
    assert_eq!(association.hear(Side::Original, ABORT, 0x6666, |_| {}), Tracked::Ignored);
    assert_eq!(association.hear(Side::Reply, ABORT, 0x6666, |_| {}), Tracked::Ignored);
    assert_eq!(association.hear(Side::Original, ACK, 0x2222, |_| {}), Tracked::Recorded);
    // A client that lost its state and begins anew does.
    association.handshake(0x8888, 0x9999);
    assert_eq!(association.hear(Side::Original, ABORT, 0x2222, |_| {}), Tracked::Ignored);
    assert_eq!(association.hear(Side::Reply, ACK, 0x8888, |_| {}), Tracked::Recorded);
    assert_eq!(association.hear(Side::Original, ABORT, 0x9999, |_| {}), Tracked::Recorded);
    assert_eq!(association.phase(), TcpPhase::Reset);
}

#[test]
fn a_refused_init_is_a_reset_and_a_second_answer_to_it_is_none() {
    let table = FlowTable::new(100, KEY).unwrap();
    let association = Association {
        table: &table,
        flow: flow(tuple(Protocol::Sctp, 1, 1), reply_tuple(Protocol::Sctp, 40_000), 1),
    };
    table.insert(&association.flow, Tick(0));
    association.hear(Side::Original, SYN, 0, |init| init.initiate_tag = 0x1111);
    assert_eq!(association.hear(Side::Reply, ABORT, 0x1112, |_| {}), Tracked::Ignored);
    // The cookie of either answer may be echoed: a server keeps nothing of an INIT.
    association.hear(Side::Reply, SYN_ACK, 0x1111, |ack| ack.initiate_tag = 0x2222);
    association.hear(Side::Reply, SYN_ACK, 0x1111, |ack| ack.initiate_tag = 0x3333);
    assert_eq!(
        association.hear(Side::Original, ACK, 0x3333, |echo| echo.echoes_cookie = true),
        Tracked::Recorded
    );
    assert_eq!(association.phase(), TcpPhase::Established);
    assert_eq!(association.hear(Side::Reply, ABORT, 0x1111, |_| {}), Tracked::Recorded);
    assert_eq!(association.phase(), TcpPhase::Reset);
}
