//! No backend address may appear outside: all packets at the client are inspected while the gateway restarts and backends
//! are added and removed.

use std::io::Read as _;
use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket};

use crate::error::{Error, Result};
use crate::lab::faults::case_result::CaseResult;
use crate::lab::faults::test_bed::{TestBed, services};
use crate::lab::faults::{Case, CaseContext};
use crate::loadgen::stop::Stop;
use crate::netns::Namespace;

pub(super) const CASES: [Case; 1] = [Case { name: "no_leak", run: no_leak }];

const PAUSE: Duration = Duration::from_millis(700);

fn no_leak(context: &CaseContext<'_>, result: &mut CaseResult) -> Result<()> {
    let mut bed = TestBed::with_defaults(context)?;
    let backends = bed.backends();
    let secret =
        bed.topology.backends().iter().flat_map(|host| [host.address.into(), host.address_v6.into()]);
    let watch = LeakDetector::start(bed.client(), secret.collect())?;
    let load = bed.web_load(context.connections.min(400))?;
    for round in 0..2 {
        for service in services() {
            bed.gateway.manifests().set_endpoints(&service, &backends[..1 + round])?;
        }
        thread::sleep(PAUSE);
        if round == 0 {
            bed.gateway.kill()?;
        }
        bed.gateway.restart()?;
        thread::sleep(PAUSE);
        bed.set_backends(&backends)?;
    }
    load.await_answers()?;
    load.finish("service", result)?;
    let (seen, leaked) = watch.end()?;
    result.record("packets_seen", seen);
    result.record("packets_leaked", leaked.len());
    result.expect(seen > 0, || "the client received nothing".into());
    result.expect(leaked.is_empty(), || {
        format!("the client received packets from backend addresses: {}", leaked.join("; "))
    });
    bed.check_end(result, 0);
    Ok(())
}

/// Inspects every packet that a namespace receives.
pub(in crate::lab) struct LeakDetector {
    stop: Stop,
    thread: thread::JoinHandle<Result<(u64, Vec<String>)>>,
}

impl LeakDetector {
    /// Reports packets from the addresses `secret`.
    pub(in crate::lab) fn start(at: &Namespace, secret: Vec<IpAddr>) -> Result<Self> {
        let stop = Stop::default();
        let until = stop.clone();
        let label = at.label().to_owned();
        let thread = at.spawn_thread("watch", move || {
            let open = || {
                let socket = socket(
                    AddressFamily::Packet,
                    SockType::Raw,
                    SockFlag::SOCK_CLOEXEC,
                    SockProtocol::EthAll,
                )?;
                let limit = nix::sys::time::TimeVal::new(0, 50_000);
                setsockopt(&socket, ReceiveTimeout, &limit)?;
                setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(16 << 20))?;
                Ok(socket)
            };
            let socket = open().map_err(Error::errno(format!("watch the packets of namespace {label}")))?;
            let (mut file, mut frame) = (std::fs::File::from(socket), vec![0; 65_536]);
            let (mut seen, mut leaked) = (0, Vec::new());
            while !until.is_stopped() {
                // A timeout is not an error: check for the stop.
                let Ok(len) = file.read(&mut frame) else { continue };
                let Some((source, destination)) = ends(&frame[..len]) else { continue };
                seen += 1;
                if secret.contains(&source) {
                    leaked.push(format!("{source} to {destination}, {len} bytes"));
                }
            }
            leaked.dedup();
            Ok((seen, leaked))
        })?;
        Ok(Self { stop, thread })
    }

    /// Ends it; returns the number of packets, and a line for each that leaked an address.
    pub(in crate::lab) fn end(self) -> Result<(u64, Vec<String>)> {
        self.stop.stop();
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Source and destination of an IP packet in an Ethernet frame.
fn ends(frame: &[u8]) -> Option<(IpAddr, IpAddr)> {
    match *frame.get(12..14)? {
        [0x08, 0x00] => {
            let at = |place| Some(IpAddr::from(<[u8; 4]>::try_from(frame.get(place..place + 4)?).ok()?));
            Some((at(26)?, at(30)?))
        }
        [0x86, 0xdd] => {
            let at = |place| Some(IpAddr::from(<[u8; 16]>::try_from(frame.get(place..place + 16)?).ok()?));
            Some((at(22)?, at(38)?))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn addresses_are_read_from_frames_of_both_families() {
        let mut frame = vec![0; 54];
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[26..34].copy_from_slice(&[10, 244, 0, 11, 192, 0, 2, 10]);
        let expected = (Ipv4Addr::new(10, 244, 0, 11).into(), Ipv4Addr::new(192, 0, 2, 10).into());
        assert_eq!(ends(&frame), Some(expected));
        frame[12..14].copy_from_slice(&[0x86, 0xdd]);
        frame[22..54].fill(0);
        frame[53] = 1;
        assert_eq!(ends(&frame), Some((Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::LOCALHOST.into())));
        assert_eq!(ends(&frame[..13]), None);
    }
}
