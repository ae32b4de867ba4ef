//! Datagrams in fragments: the first one is decided as the whole would be, the others share its fate (RFC 791 section 3.2,
//! RFC 8200 section 4.5). Nothing is put together, overlaps end the packet (RFC 5722).

use std::net::{IpAddr, SocketAddr};

use flowgate_dataplane::Verdict;
use flowgate_wire::Protocol;
use flowgate_wire::reject::IcmpError;

use super::checksums::sum;
use super::packet::{Kind, Segment, Tuple, read};
use super::places::{Way, hops, way};
use super::verdicts::held_for;
use super::{Decided, Difference, Fate, Model};

/// How long, in milliseconds, a first fragment is awaited, and a decision about one holds.
const AWAITED: u64 = 1_000;
const REMEMBERED: u64 = 15_000;

/// A fragment of a UDP datagram; hosts here cut up nothing else.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) id: u32,
    src: IpAddr,
    dst: IpAddr,
    ttl: u8,
    ip_len: u16,
    /// The bytes of the datagram that it holds.
    start: u16,
    end: u16,
    more: bool,
    /// Where the identification stands, and how long it is.
    id_at: (usize, usize),
    /// What the first one says of all.
    pub(crate) first: Option<Segment>,
}

/// What one worker knows of a datagram that it has seen fragments of.
#[derive(Clone, Debug)]
pub(crate) struct Train {
    key: (IpAddr, IpAddr, u32),
    since: u64,
    /// By it frames wait.
    name: u64,
    fate: TrainFate,
    /// Which bytes have left.
    sent: Vec<(u16, u16)>,
    total: Option<u16>,
    is_awaited: bool,
}

#[derive(Clone, Debug)]
enum TrainFate {
    /// The first fragment has not come.
    Unknown,
    Translated {
        tuple: Tuple,
        src: IpAddr,
        dst: IpAddr,
        /// As the first one left, if its source was replaced.
        id: Option<u32>,
        whole_len: u16,
    },
    /// All others end like this: `pass` or `drop`, and why.
    Ended(&'static str, &'static str),
}

impl Train {
    fn is_over(&self, now: u64) -> bool {
        let lasts = if matches!(self.fate, TrainFate::Unknown) { AWAITED } else { REMEMBERED };
        now - self.since > lasts
    }
}

/// Reads a fragment of a UDP datagram.
pub(crate) fn piece(frame: &[u8]) -> Option<Piece> {
    let half = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
    let (src, dst, ttl, ip_len, body_at): (IpAddr, IpAddr, u8, u16, usize);
    let (id, start, more, id_at);
    if half(12)? == 0x0800 {
        let octets = |at: usize| <[u8; 4]>::try_from(&frame[at..at + 4]).ok();
        let field = half(20)?;
        (src, dst) = (octets(26)?.into(), octets(30)?.into());
        (ttl, ip_len, body_at) = (frame[22], half(16)?, 14 + usize::from(frame[14] & 15) * 4);
        (id, start, more, id_at) = (half(18)?.into(), (field & 0x1fff) * 8, field & 0x2000 != 0, (18, 2));
        if frame[23] != 17 || (!more && start == 0) {
            return None;
        }
    } else {
        let octets = |at: usize| <[u8; 16]>::try_from(frame.get(at..at + 16)?).ok();
        (src, dst) = (octets(22)?.into(), octets(38)?.into());
        (ttl, ip_len, body_at) = (frame[21], half(18)? + 40, 62);
        if frame[20] != 44 || *frame.get(54)? != 17 {
            return None;
        }
        let field = half(56)?;
        (id, start, more) = (u32::from(half(58)?) << 16 | u32::from(half(60)?), field & !7, field & 1 != 0);
        id_at = (58, 4);
    }
    let end = start + u16::try_from(14 + usize::from(ip_len) - body_at).ok()?;
    let first = (start == 0).then_some(()).and_then(|()| {
        let tuple = Tuple {
            protocol: Protocol::Udp,
            src: SocketAddr::new(src, half(body_at)?),
            dst: SocketAddr::new(dst, half(body_at + 2)?),
        };
        Some(Segment::datagram(tuple, ttl, ip_len, body_at))
    });
    Some(Piece { id, src, dst, ttl, ip_len, start, end, more, id_at, first })
}

/// The transport header of a frame: of a whole packet, or of a first fragment.
pub(crate) fn segment_of(frame: &[u8]) -> Option<Segment> {
    match read(frame) {
        Kind::Segment(segment) => Some(segment),
        Kind::Fragment => piece(frame)?.first,
        _ => None,
    }
}

impl Model {
    /// Judges what became of a fragment.
    pub(super) fn piece(&mut self, decided: &Decided<'_>, piece: &Piece) -> Result<Fate, Difference> {
        let at = self.train(decided, piece);
        let fate = match piece.first {
            Some(first) => self.first_piece(decided, piece, &first, at)?,
            None => self.later_piece(decided, piece, at)?,
        };
        if matches!(fate, Fate::Sent(_)) {
            self.count(decided.worker, "fragments_forwarded");
        }
        Ok(fate)
    }

    /// The place of its datagram among those of the worker.
    fn train(&mut self, decided: &Decided<'_>, piece: &Piece) -> usize {
        let Decided { worker, now, .. } = *decided;
        let key = (piece.src, piece.dst, piece.id);
        let trains = &mut self.trains[worker];
        trains.retain(|train| !train.is_over(now));
        let known = trains.iter().position(|train| train.key == key);
        let is_another = |train: &Train| {
            piece.first.is_some() && !matches!(train.fate, TrainFate::Unknown) && now - train.since > AWAITED
        };
        if let Some(at) = known {
            if !is_another(&trains[at]) {
                return at;
            }
            trains.remove(at);
        }
        self.train_count += 1;
        trains.push(Train {
            key,
            since: now,
            name: self.train_count,
            fate: TrainFate::Unknown,
            sent: Vec::new(),
            total: None,
            is_awaited: false,
        });
        trains.len() - 1
    }

    /// Frames that wait for this datagram are decided again.
    fn wake(&mut self, worker: usize, at: usize) {
        let train = &mut self.trains[worker][at];
        if std::mem::take(&mut train.is_awaited) {
            self.woken[worker].push(train.name);
        }
    }

    fn end_train(&mut self, worker: usize, at: usize, what: &'static str, reason: &'static str) {
        self.trains[worker][at].fate = TrainFate::Ended(what, reason);
        self.wake(worker, at);
    }

    /// Why it does not go on: its bytes have left already, or some of them.
    fn misfit(&mut self, worker: usize, at: usize, piece: &Piece) -> Option<&'static str> {
        let train = &self.trains[worker][at];
        let mut covered = piece.start;
        while let Some(&(_, end)) = train.sent.iter().find(|(start, end)| *start <= covered && covered < *end)
        {
            covered = end;
        }
        if covered >= piece.end {
            return Some("fragment_duplicate");
        }
        let overlaps = train.sent.iter().any(|&(start, end)| piece.start < end && start < piece.end);
        let contradicts = match train.total {
            Some(total) => piece.end > total || piece.more == (piece.end == total),
            None => !piece.more && train.sent.iter().any(|&(_, end)| end > piece.end),
        };
        if overlaps || contradicts {
            self.end_train(worker, at, "drop", "fragment_overlap");
            return Some("fragment_overlap");
        }
        None
    }

    /// It has left. A datagram of which all has left is forgotten.
    fn has_left(&mut self, worker: usize, at: usize, piece: &Piece) {
        let train = &mut self.trains[worker][at];
        train.sent.push((piece.start, piece.end));
        if !piece.more && train.total.is_none() {
            train.total = Some(piece.end);
        }
        let bytes: u16 = train.sent.iter().map(|(start, end)| end - start).sum();
        if train.total == Some(bytes) {
            self.trains[worker].remove(at);
        }
    }

    fn first_piece(
        &mut self,
        decided: &Decided<'_>,
        piece: &Piece,
        first: &Segment,
        at: usize,
    ) -> Result<Fate, Difference> {
        let worker = decided.worker;
        let half = |at: usize| u16::from_be_bytes([decided.before[at], decided.before[at + 1]]);
        let whole_len = half(first.l4_at + 4);
        if let TrainFate::Ended(what, reason) = self.trains[worker][at].fate {
            return self.ends(decided, what, reason);
        }
        if let Some(reason) = self.misfit(worker, at, piece) {
            return self.ends(decided, "drop", reason);
        }
        if self.trains[worker][at].total.is_some_and(|total| total < whole_len) {
            self.end_train(worker, at, "drop", "malformed");
            return self.ends(decided, "drop", "malformed");
        }
        let sent = self::piece(decided.after);
        let is_replaced = sent.as_ref().is_some_and(|sent| sent.src != piece.src);
        let before =
            if is_replaced { with_identification_of(decided, piece) } else { decided.before.to_vec() };
        let fate = self.segment(&Decided { before: &before, ..decided.clone() }, first)?;
        match (&fate, decided.verdict) {
            (Fate::Sent(_), _) => {
                let sent = sent.ok_or("a fragment became something else")?;
                self.trains[worker][at].fate = TrainFate::Translated {
                    tuple: first.tuple,
                    src: sent.src,
                    dst: sent.dst,
                    id: is_replaced.then_some(sent.id),
                    whole_len,
                };
                self.wake(worker, at);
                self.has_left(worker, at, piece);
            }
            (Fate::Waits(_), _) => {}
            (_, Verdict::Pass(_)) => self.end_train(worker, at, "pass", "fragment"),
            _ => self.end_train(worker, at, "drop", "fragment_no_first"),
        }
        Ok(fate)
    }

    fn later_piece(&mut self, decided: &Decided<'_>, piece: &Piece, at: usize) -> Result<Fate, Difference> {
        let worker = decided.worker;
        if let TrainFate::Ended(what, reason) = self.trains[worker][at].fate {
            return self.ends(decided, what, reason);
        }
        if let Some(reason) = self.misfit(worker, at, piece) {
            return self.ends(decided, "drop", reason);
        }
        let TrainFate::Translated { tuple, src, dst, id, whole_len } = self.trains[worker][at].fate else {
            if !piece.more && self.trains[worker][at].total.is_none() {
                self.trains[worker][at].total = Some(piece.end);
                self.wake(worker, at);
            }
            if !matches!(decided.verdict, Verdict::AwaitFragment(_)) {
                return Err(format!("was to wait for its first fragment, got {:?}", decided.verdict));
            }
            let train = &mut self.trains[worker][at];
            train.is_awaited = true;
            return Ok(Fate::AwaitsFirst(train.name));
        };
        // RFC 9868: options may follow the datagram.
        if !piece.more && piece.end < whole_len {
            self.end_train(worker, at, "drop", "malformed");
            return self.ends(decided, "drop", "malformed");
        }
        let fate = self.follows(decided, piece, (src, dst, id))?;
        if matches!(fate, Fate::Sent(_)) {
            let segment = Segment::datagram(tuple, piece.ttl, piece.ip_len, 0);
            if let Some((flow, side)) = self.flows.find(&tuple) {
                let flow = &mut self.flows.0[flow];
                // A stream is made of datagrams, which count by their first fragments.
                let is_stream = flow.is_stream;
                flow.note(side, &segment, decided.now);
                flow.is_stream = is_stream;
            }
            self.has_left(worker, at, piece);
        }
        Ok(fate)
    }

    /// It leaves as the first one did, by a way there is now.
    fn follows(
        &mut self,
        decided: &Decided<'_>,
        piece: &Piece,
        (src, dst, id): (IpAddr, IpAddr, Option<u32>),
    ) -> Result<Fate, Difference> {
        let all = hops(&self.world, dst);
        if all.is_empty() {
            return self.reported(decided, IcmpError::NoRoute);
        }
        for hop in &all {
            match (way(&self.world, hop, dst), decided.verdict) {
                (Way::NeighbourKey(neighbour), _) if held_for(decided) == Some(neighbour) => {
                    return Ok(Fate::Waits(neighbour));
                }
                (Way::Open { egress, ether, mtu }, Verdict::Transmit(by))
                    if egress == by
                        && piece.ip_len <= mtu
                        && decided.after == translated(decided.before, piece, (src, dst, id), &ether) =>
                {
                    return Ok(Fate::Sent(egress));
                }
                _ => {}
            }
        }
        Err(format!("{:?} of a later fragment, to {dst} from {src}", decided.verdict))
    }
}

/// The frame as it came, but with the identification that the gateway gave it.
fn with_identification_of(decided: &Decided<'_>, piece: &Piece) -> Vec<u8> {
    let mut before = decided.before.to_vec();
    let (at, len) = piece.id_at;
    before[at..at + len].copy_from_slice(&decided.after[at..at + len]);
    right_header(&mut before);
    before
}

/// A later fragment as it must leave.
fn translated(
    before: &[u8],
    piece: &Piece,
    (src, dst, id): (IpAddr, IpAddr, Option<u32>),
    ether: &[u8; 12],
) -> Vec<u8> {
    let mut wanted = before.to_vec();
    wanted[..12].copy_from_slice(ether);
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            wanted[22] -= 1;
            wanted[26..30].copy_from_slice(&src.octets());
            wanted[30..34].copy_from_slice(&dst.octets());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            wanted[21] -= 1;
            wanted[22..38].copy_from_slice(&src.octets());
            wanted[38..54].copy_from_slice(&dst.octets());
        }
        _ => panic!("two families"),
    }
    if let Some(id) = id {
        let (at, len) = piece.id_at;
        wanted[at..at + len].copy_from_slice(&id.to_be_bytes()[4 - len..]);
    }
    right_header(&mut wanted);
    wanted
}

/// Hosts here send fragments with a right header checksum.
fn right_header(frame: &mut [u8]) {
    if frame[12..14] == [0x08, 0x00] {
        frame[24..26].fill(0);
        let sum = !sum(&frame[14..14 + usize::from(frame[14] & 15) * 4]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }
}
