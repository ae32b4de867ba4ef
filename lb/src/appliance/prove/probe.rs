//! The probe of one interface: which requests are due, and what the replies prove. A state machine that neither sends nor
//! waits; time is a parameter.

use std::net::IpAddr;
use std::time::Duration;

use flowgate_wire::EtherAddrs;
use flowgate_wire::echo::{REQUEST_LEN_MIN, Reply, Request};

/// A neighbour to send echo requests to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) ether: EtherAddrs,
    pub(super) vlan: Option<u16>,
    /// Source of the requests: an address of the interface.
    pub(super) own: IpAddr,
    pub(super) addr: IpAddr,
    /// The largest packet on the way to it.
    pub(super) mtu: u16,
}

/// What a probe has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::appliance) enum Finding {
    /// A packet of `bytes` came back whole from this neighbour.
    Proven { target: IpAddr, bytes: usize },
    /// Nobody replies even to a small one.
    Silent { asked: usize },
    /// This neighbour replies to small packets, but one of `bytes` never came back whole, at most `arrived` bytes of it.
    Lost { target: IpAddr, bytes: usize, arrived: Option<usize> },
    /// This neighbour replies to what the kernel sends, but not to what the socket sends.
    Mute { target: IpAddr },
}

impl Finding {
    /// The neighbour that has replied, if any.
    pub(super) fn target(&self) -> Option<IpAddr> {
        match self {
            Self::Proven { target, .. } | Self::Lost { target, .. } | Self::Mute { target } => Some(*target),
            Self::Silent { .. } => None,
        }
    }
}

/// The probe of one interface.
#[derive(Clone, Debug)]
pub(super) struct Probe {
    pub(super) ifindex: u32,
    /// The ICMP identifier of its requests.
    id: u16,
    targets: Vec<Target>,
    /// Which of them have replied to a small packet.
    has_answered: Vec<bool>,
    small_sent: usize,
    large_since: Option<Duration>,
    large_sent: usize,
    most_arrived: Option<usize>,
    finding: Option<Finding>,
}

/// A request and the length of its IP packet.
pub(super) type Due = (Request, usize);

impl Probe {
    pub(super) fn new(ifindex: u32, id: u16, mut targets: Vec<Target>) -> Self {
        targets.truncate(TARGETS_MAX);
        Self {
            ifindex,
            id,
            has_answered: vec![false; targets.len()],
            targets,
            small_sent: 0,
            large_since: None,
            large_sent: 0,
            most_arrived: None,
            finding: None,
        }
    }

    /// `None` until the probe has ended.
    pub(super) fn finding(&self) -> Option<Finding> {
        self.finding
    }

    /// The requests that are due at `now`, the time since the probes began. A timeout ends the probe here.
    pub(super) fn due(&mut self, now: Duration) -> Vec<Due> {
        if self.finding.is_some() {
            return Vec::new();
        }
        let Some(since) = self.large_since else {
            if now >= GIVE_UP_SMALL || self.targets.is_empty() {
                self.finding = Some(Finding::Silent { asked: self.targets.len() });
                return Vec::new();
            }
            let mut due = Vec::new();
            if SMALL_AT.get(self.small_sent).is_some_and(|at| now >= *at) {
                due.extend((0..self.targets.len()).map(|at| self.request(at, false)));
                self.small_sent += 1;
            }
            return due;
        };
        let now = now.saturating_sub(since);
        if now >= GIVE_UP_LARGE {
            self.finding = self.first_answering().map(|target| Finding::Lost {
                target: target.addr,
                bytes: target.mtu.into(),
                arrived: self.most_arrived,
            });
            return Vec::new();
        }
        let mut due = Vec::new();
        if LARGE_AT.get(self.large_sent).is_some_and(|at| now >= *at) {
            let answering = (0..self.targets.len()).filter(|at| self.has_answered[*at]);
            due.extend(answering.map(|at| self.request(at, true)));
            self.large_sent += 1;
        }
        due
    }

    /// Handles a reply that the device `ifindex` received. Replies to others are ignored.
    pub(super) fn receive(&mut self, ifindex: u32, reply: &Reply, now: Duration) {
        let position = usize::from(reply.sequence & TARGET_MASK);
        let Some(target) = self.targets.get(position).copied() else { return };
        let is_ours = ifindex == self.ifindex && reply.id == self.id && reply.src == target.addr;
        if self.finding.is_some() || !is_ours {
            return;
        }
        if reply.sequence & LARGE == 0 {
            if reply.is_whole {
                self.has_answered[position] = true;
                self.large_since.get_or_insert(now);
            }
        } else if reply.is_whole && reply.ip_len >= usize::from(target.mtu) {
            self.finding = Some(Finding::Proven { target: target.addr, bytes: reply.ip_len });
        } else if reply.arrived_len < reply.ip_len {
            self.most_arrived = self.most_arrived.max(Some(reply.arrived_len));
        }
    }

    fn request(&self, position: usize, is_large: bool) -> Due {
        let target = self.targets[position];
        let sent = if is_large { self.large_sent } else { self.small_sent };
        let kind = if is_large { LARGE } else { 0 };
        let number = u16::try_from(sent << ATTEMPT_SHIFT | position).unwrap_or_default();
        let request = Request {
            ether: target.ether,
            vlan: target.vlan,
            src: target.own,
            dst: target.addr,
            id: self.id,
            sequence: kind | number,
        };
        (request, if is_large { target.mtu.into() } else { REQUEST_LEN_MIN })
    }

    fn first_answering(&self) -> Option<Target> {
        let answering = self.targets.iter().zip(&self.has_answered).find(|(_, has_answered)| **has_answered);
        answering.map(|(target, _)| *target)
    }
}

/// Neighbours per interface and probe.
pub(super) const TARGETS_MAX: usize = 3;
/// When small packets are sent.
const SMALL_AT: [Duration; 3] = [Duration::ZERO, Duration::from_millis(100), Duration::from_millis(250)];
/// When large ones are, counted from the first small reply. Over a longer time, since their loss changes the mode, and routers
/// limit the rate of their replies.
const LARGE_AT: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(100), Duration::from_millis(250), Duration::from_millis(600)];
/// How long replies are waited for after the first packet of a size.
const GIVE_UP_SMALL: Duration = Duration::from_millis(400);
const GIVE_UP_LARGE: Duration = Duration::from_millis(1000);

// The sequence number: bit 15 large or small, bits 8 to 14 the attempt, bits 0 to 7 the position of the target.
const TARGET_MASK: u16 = 0xff;
const ATTEMPT_SHIFT: u32 = 8;
const LARGE: u16 = 0x8000;

#[cfg(test)]
mod tests {
    use super::*;

    const ID: u16 = 77;
    const IFINDEX: u32 = 5;

    fn probe(hosts: u8) -> Probe {
        let target = |host| Target {
            ether: EtherAddrs([2; 12]),
            vlan: None,
            own: [10, 0, 0, 1].into(),
            addr: [10, 0, 0, host].into(),
            mtu: 1500,
        };
        Probe::new(IFINDEX, ID, (10..10 + hosts).map(target).collect())
    }

    fn echo(request: &Request, len: usize) -> Reply {
        Reply {
            src: request.dst,
            id: request.id,
            sequence: request.sequence,
            ip_len: len,
            arrived_len: len,
            is_whole: true,
        }
    }

    /// Runs a probe against hosts that answer as `answer` says; what it found, when, and how much it sent.
    fn run(mut probe: Probe, answer: impl Fn(&Request, usize) -> Option<Reply>) -> (Finding, u128, usize) {
        let mut sent = 0;
        for elapsed in (0..2000).map(Duration::from_millis) {
            for (request, len) in probe.due(elapsed) {
                sent += 1;
                if let Some(reply) = answer(&request, len) {
                    probe.receive(IFINDEX, &reply, elapsed);
                }
            }
            if let Some(finding) = probe.finding() {
                return (finding, elapsed.as_millis(), sent);
            }
        }
        panic!("{probe:?} has no end");
    }

    fn host(host: u8) -> IpAddr {
        [10, 0, 0, host].into()
    }

    #[test]
    fn whoever_answers_proves_it_in_two_packets() {
        let (finding, at, sent) = run(probe(1), |request, len| Some(echo(request, len)));
        assert_eq!(finding, Finding::Proven { target: host(10), bytes: 1500 });
        assert_eq!((at, sent), (1, 2));
    }

    #[test]
    fn one_of_several_is_enough() {
        let only_last = |request: &Request, len| (request.dst == host(12)).then(|| echo(request, len));
        let (finding, ..) = run(probe(9), only_last);
        assert_eq!(finding, Finding::Proven { target: host(12), bytes: 1500 });
        // The first drops large packets, the second does not.
        let (finding, ..) =
            run(probe(2), |request, len| (request.dst == host(11) || len < 100).then(|| echo(request, len)));
        assert_eq!(finding, Finding::Proven { target: host(11), bytes: 1500 });
    }

    #[test]
    fn silence_proves_nothing_and_is_short() {
        let (finding, at, sent) = run(probe(9), |_, _| None);
        assert_eq!(finding, Finding::Silent { asked: TARGETS_MAX });
        assert_eq!((at, sent), (400, 3 * TARGETS_MAX));
        assert_eq!(run(probe(0), |_, _| None), (Finding::Silent { asked: 0 }, 0, 0));
    }

    #[test]
    fn large_packets_that_never_come_back_are_lost_after_four() {
        let (finding, at, sent) = run(probe(1), |request, len| (len < 100).then(|| echo(request, len)));
        assert_eq!(finding, Finding::Lost { target: host(10), bytes: 1500, arrived: None });
        assert_eq!((at, sent), (1000, 1 + 4));
    }

    #[test]
    fn a_large_packet_that_comes_in_pieces_is_lost_and_its_length_is_known() {
        let (finding, ..) = run(probe(1), |request, len| {
            let arrived_len = len.min(1010);
            Some(Reply { arrived_len, is_whole: arrived_len == len, ..echo(request, len) })
        });
        assert_eq!(finding, Finding::Lost { target: host(10), bytes: 1500, arrived: Some(1010) });
    }

    #[test]
    fn a_lost_packet_is_sent_again() {
        let late = |request: &Request, len| (request.sequence & 0x0200 != 0).then(|| echo(request, len));
        let (finding, at, _) = run(probe(1), late);
        assert_eq!(finding, Finding::Proven { target: host(10), bytes: 1500 });
        assert_eq!(at, 250 + 250);
    }

    #[test]
    fn what_others_were_told_does_not_count() {
        for other in 0..4 {
            let (finding, ..) = run(probe(1), |request, len| {
                let mut reply = echo(request, len);
                match other {
                    0 => reply.id += 1,
                    1 => reply.src = host(99),
                    2 => reply.sequence |= 0x00ff,
                    // A small one by way of a large one's number would not be what was asked.
                    _ => reply.is_whole = false,
                }
                Some(reply)
            });
            assert_eq!(finding, Finding::Silent { asked: 1 }, "{other}");
        }
        let mut elsewhere = probe(1);
        let (request, len) = elsewhere.due(Duration::ZERO)[0];
        elsewhere.receive(IFINDEX + 1, &echo(&request, len), Duration::ZERO);
        assert_eq!(elsewhere.due(Duration::from_millis(1)), [], "no large packet is due");
    }
}
