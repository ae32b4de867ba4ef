//! Datagrams in both directions.

use super::{Step, below, either, pick};
use crate::lab::compare_nft::packet::{Checksum, Content, Fragments, Shape, Train, UdpLength};
use crate::lab::compare_nft::reading::End;
use crate::lab::faults::random::Random;

pub(super) fn regular(random: &mut Random) -> Step {
    step(either(random), "datagram", 2 + below(random, 600), Shape::default())
}

/// A datagram that is unusual or wrong.
pub(super) fn odd(random: &mut Random) -> Option<Step> {
    let sender = either(random);
    let shape = Shape::default();
    let mut odd = step(sender, "empty datagram", 0, shape.clone());
    match below(random, 12) {
        0 => {}
        1 => {
            odd = step(sender, "wrong transport checksum", 20, Shape { checksum: Checksum::Wrong, ..shape });
        }
        2 => odd = step(sender, "datagram without checksum", 20, Shape { checksum: Checksum::None, ..shape }),
        3 => {
            odd.kind = "datagram with options";
            odd.content = Content::Udp { payload_len: 40, length: UdpLength::Less(4 + 4 * low(random)) };
        }
        4 => {
            odd.kind = "UDP length beyond the packet";
            odd.content = Content::Udp { payload_len: 40, length: UdpLength::More(1 + low(random)) };
        }
        5 => {
            odd.kind = "UDP length below its header";
            odd.content = Content::Udp { payload_len: 40, length: UdpLength::Less(41 + low(random)) };
        }
        6 => odd = step(End::Client, "datagram from port 0", 20, Shape { source_port: Some(0), ..shape }),
        7 => odd = step(End::Client, "datagram to port 0", 20, Shape { destination_port: Some(0), ..shape }),
        _ => {
            let train = pick(
                random,
                &[
                    Train::InOrder,
                    Train::InOrder,
                    Train::Reversed,
                    Train::Unfinished,
                    Train::Headless,
                    Train::Twice,
                    Train::Overlapping,
                ],
            );
            let kind = match train {
                Train::InOrder => "fragments",
                Train::Reversed => "fragments in reverse",
                Train::Unfinished | Train::Headless => "fragments that are not all",
                Train::Twice => "a fragment twice",
                Train::Overlapping => "fragments that overlap",
            };
            let fragments = Some(Fragments { piece_len: pick(random, &[256, 512, 1024]), train });
            odd = step(sender, kind, 1100 + below(random, 1800), Shape { fragments, ..shape });
        }
    }
    Some(odd)
}

fn low(random: &mut Random) -> u16 {
    u16::try_from(below(random, 6)).expect("it is below six")
}

fn step(sender: End, kind: &'static str, payload_len: usize, shape: Shape) -> Step {
    Step { sender, kind, content: Content::Udp { payload_len, length: UdpLength::Right }, shape }
}
