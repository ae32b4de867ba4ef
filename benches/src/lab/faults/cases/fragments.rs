//! Fragmented datagrams of 8 KB, in order as kernels send them and out of order as networks may deliver them.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::lab::faults::case_result::CaseResult;
use crate::lab::faults::random::Random;
use crate::lab::faults::raw::{self, RawSender};
use crate::lab::faults::test_bed::{TestBed, datagram_targets};
use crate::lab::faults::{Case, CaseContext};
use crate::lab::topology::Host;
use crate::loadgen::progress::ProgressOutput;
use crate::loadgen::udp::{self, UdpOptions};

pub(super) const CASES: [Case; 1] = [Case { name: "fragments", run: fragments }];

const PAYLOAD_LEN: usize = 8000;
/// Payload bytes per fragment, six fragments per datagram.
const PIECE_LEN: usize = 1440;
const ROUNDS: u32 = 20;

fn fragments(context: &CaseContext<'_>, result: &mut CaseResult) -> Result<()> {
    let mut bed = TestBed::with_defaults(context)?;
    for (label, target) in datagram_targets() {
        let probe = |payload_len, flows, duration| {
            let options = UdpOptions {
                payload_len,
                flows,
                grace: Duration::from_secs(2),
                ..UdpOptions::new(target, 200, duration)
            };
            bed.client().enter(|| udp::run(&options, ProgressOutput::Nothing, context.stop))?
        };
        // The queue for unresolved neighbours is short: resolve each backend first.
        probe(32, 30, Duration::from_millis(500))?;
        let report = probe(PAYLOAD_LEN, 10, Duration::from_secs(1))?;
        result.record(&format!("{label} in order, sent"), report.sent);
        result.record(&format!("{label} in order, lost"), report.lost);
        result.expect(report.lost == 0 && report.mismatches == 0, || {
            format!(
                "{label}: {} of {} datagrams in fragments were lost, {} were damaged",
                report.lost, report.sent, report.mismatches
            )
        });
        let back = shuffled(bed.topology.client(), target, context.seed)?;
        result.record(&format!("{label} out of order, sent"), ROUNDS);
        result.record(&format!("{label} out of order, lost"), ROUNDS - back);
        result.expect(back == ROUNDS, || {
            format!(
                "{label}: {} of {ROUNDS} datagrams whose fragments came out of order were lost",
                ROUNDS - back
            )
        });
    }
    bed.check_end(result, 0);
    Ok(())
}

/// Sends datagrams with shuffled fragments, the first one last; returns how many came back intact.
fn shuffled(client: &Host, target: SocketAddr, seed: u64) -> Result<u32> {
    let own: IpAddr = match target {
        SocketAddr::V4(_) => client.address.into(),
        SocketAddr::V6(_) => client.address_v6.into(),
    };
    let sender = RawSender::open(&client.namespace)?;
    let socket = client.namespace.run(move || {
        let socket = UdpSocket::bind((own, 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        Ok(socket)
    });
    let socket = socket.map_err(Error::io("open a UDP socket in the client's namespace"))?;
    let source = socket.local_addr().map_err(Error::io("ask for the port of a UDP socket"))?;
    let mut random = Random(seed);
    let mut back = 0;
    for round in 0..ROUNDS {
        let payload: Vec<u8> = (0..PAYLOAD_LEN).map(|_| random.next().to_be_bytes()[0]).collect();
        let mut pieces = raw::fragments(source, target, 0x1000 + round, &payload, PIECE_LEN);
        // The first comes last, the others in any order.
        for place in (1..pieces.len()).rev() {
            pieces.swap(place, usize::try_from(random.next()).unwrap_or_default() % place);
        }
        let first = pieces.iter().position(|piece| raw::is_first_fragment(piece));
        let last = pieces.len() - 1;
        pieces.swap(first.unwrap_or(last), last);
        for piece in &pieces {
            sender.send(piece, target.ip())?;
        }
        let mut answer = vec![0; PAYLOAD_LEN + 1];
        // No answer in time is a loss.
        if socket.recv_from(&mut answer).is_ok_and(|(len, _)| answer[..len] == payload) {
            back += 1;
        }
    }
    Ok(back)
}
