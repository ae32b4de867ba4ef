//! UDP probes at a fixed rate: latency, loss and reordering.
//!
//! The loop is open: datagrams are sent by schedule, and latency counts from the scheduled time, so that a stall is not
//! hidden (no coordinated omission).

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use serde::Serialize;

use super::latency::{LatencyRecorder, LatencySummary};
use super::progress::{Progress, ProgressOutput};
use super::raise_open_files;
use super::report::{Report, grouped, human_rate, per_second};
use super::stop::Stop;
use crate::clock;
use crate::error::{Error, Result};
use crate::pattern::Pattern;

const MAGIC: [u8; 8] = *b"fgprobe1";
const HEADER_LEN: usize = 24;
/// More than a minute at a million per second. Bounds the memory of the bitmap of received probes.
const MAX_PROBES: u64 = 100_000_000;

/// What to send.
#[derive(Debug, Clone)]
pub struct UdpOptions {
    /// A server that echoes datagrams.
    pub target: SocketAddr,
    /// Datagrams per second over all flows.
    pub rate: u32,
    /// Duration of the run.
    pub duration: Duration,
    /// Sockets, each with its own source port, used in turn.
    pub flows: u16,
    /// Bytes of each datagram, at least 24.
    pub payload_len: usize,
    /// Time to wait for answers after the last datagram.
    pub grace: Duration,
}

impl UdpOptions {
    /// Ten flows of small datagrams.
    pub fn new(target: SocketAddr, rate: u32, duration: Duration) -> Self {
        Self { target, rate, duration, flows: 10, payload_len: 32, grace: Duration::from_millis(500) }
    }
}

/// Runs in the calling thread's namespace until the duration is over.
pub fn run(options: &UdpOptions, show: ProgressOutput, stop: &Stop) -> Result<UdpReport> {
    let total = check(options)?;
    raise_open_files()?;
    let sockets = open_sockets(options)?;
    let epoll = watch(&sockets)?;
    let sent = Arc::new(AtomicU64::new(0));
    let received = Arc::new(Mutex::new(Received::new(total, options.flows)));
    let progress = Progress::start(show, &format!("udp {}", options.target), options.duration, {
        let (sent, received) = (Arc::clone(&sent), Arc::clone(&received));
        move || {
            let received = received.lock().unwrap_or_else(PoisonError::into_inner).count;
            format!("{} sent, {} back", grouped(sent.load(Ordering::Relaxed)), grouped(received))
        }
    });
    let probe = Probe { sockets, options, begin: clock::now() };
    let done = AtomicBool::new(false);
    let (send_failures, seconds) = thread::scope(|scope| {
        let receiver = scope.spawn(|| probe.receive(&epoll, &received, &done));
        let outcome = probe.send(total, &sent, stop);
        let seconds = probe.begin.elapsed().as_secs_f64();
        await_stragglers(options.grace, &sent, &received);
        done.store(true, Ordering::Relaxed);
        receiver.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok::<_, Error>((outcome, seconds))
    })?;
    drop(progress);
    let sent = sent.load(Ordering::Relaxed);
    let received = received.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(UdpReport {
        target: options.target.to_string(),
        flows: options.flows,
        seconds,
        sent,
        sent_per_second: per_second(sent, seconds),
        send_failures,
        received: received.count,
        lost: sent.saturating_sub(received.count),
        duplicates: received.duplicates,
        reordered: received.reordered,
        mismatches: received.mismatches,
        foreign: received.foreign,
        latency: received.latency.summary(),
    })
}

fn check(options: &UdpOptions) -> Result<u64> {
    if options.rate == 0 || options.flows == 0 || options.payload_len < HEADER_LEN {
        let text = format!("a UDP probe needs a rate, a flow and at least {HEADER_LEN} bytes of payload");
        return Err(Error::Option(text));
    }
    let total = u128::from(options.rate) * options.duration.as_micros() / 1_000_000;
    u64::try_from(total).ok().filter(|total| (1..=MAX_PROBES).contains(total)).ok_or_else(|| {
        Error::Option(format!("rate times duration must be 1 to {MAX_PROBES} datagrams, not {total}"))
    })
}

fn open_sockets(options: &UdpOptions) -> Result<Vec<UdpSocket>> {
    let any =
        SocketAddr::new(if options.target.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() }, 0);
    let open = || {
        let socket = UdpSocket::bind(any)?;
        socket.connect(options.target)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    let sockets: std::io::Result<Vec<_>> = (0..options.flows).map(|_| open()).collect();
    sockets.map_err(Error::io(format!("open {} UDP sockets towards {}", options.flows, options.target)))
}

fn watch(sockets: &[UdpSocket]) -> Result<Epoll> {
    let watch = || {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        for (socket, flow) in sockets.iter().zip(0..) {
            epoll.add(socket, EpollEvent::new(EpollFlags::EPOLLIN, flow))?;
        }
        Ok(epoll)
    };
    watch().map_err(Error::errno("watch the UDP sockets"))
}

/// What the sending and the receiving thread of a run share.
struct Probe<'a> {
    /// One per flow, used in turn.
    sockets: Vec<UdpSocket>,
    options: &'a UdpOptions,
    /// The schedule counts from here.
    begin: Instant,
}

impl Probe<'_> {
    /// Sends by schedule; returns how many datagrams the kernel refused.
    fn send(&self, total: u64, sent: &AtomicU64, stop: &Stop) -> u64 {
        let mut failures = 0;
        let mut datagram = vec![0; self.options.payload_len];
        datagram[..8].copy_from_slice(&MAGIC);
        for (sequence, socket) in (0..total).zip(self.sockets.iter().cycle()) {
            let due_ns = due_ns(sequence, self.options.rate);
            if wait_until(self.begin + Duration::from_nanos(due_ns)) && stop.is_stopped() {
                break;
            }
            datagram[8..16].copy_from_slice(&sequence.to_be_bytes());
            datagram[16..24].copy_from_slice(&due_ns.to_be_bytes());
            Pattern::new(sequence).fill(0, &mut datagram[HEADER_LEN..]);
            // An error is that of an earlier ICMP message, or a full queue: an open loop does not retry.
            failures += u64::from(socket.send(&datagram).is_err());
            sent.store(sequence + 1, Ordering::Relaxed);
        }
        failures
    }

    /// Takes answers until `done` is set.
    fn receive(&self, epoll: &Epoll, received: &Mutex<Received>, done: &AtomicBool) -> Result<()> {
        let mut events = vec![EpollEvent::empty(); 64];
        let mut datagram = vec![0; self.options.payload_len.max(2048)];
        while !done.load(Ordering::Relaxed) {
            let ready = match epoll.wait(&mut events, EpollTimeout::from(20u8)) {
                Err(nix::errno::Errno::EINTR) => 0,
                ready => ready.map_err(Error::errno("wait for UDP answers"))?,
            };
            for event in &events[..ready] {
                let flow = usize::try_from(event.data()).expect("the data is an index");
                // Ends at WouldBlock. An ICMP error ends it too, and counts as the loss that it reports.
                while let Ok(len) = self.sockets[flow].recv(&mut datagram) {
                    let elapsed = self.begin.elapsed();
                    let mut received = received.lock().unwrap_or_else(PoisonError::into_inner);
                    received.take(flow, &datagram[..len], elapsed, self.options.payload_len);
                }
            }
        }
        Ok(())
    }
}

/// Sleeps until shortly before `due`, then spins: sleeping alone is too coarse. Returns whether it slept.
fn wait_until(due: Instant) -> bool {
    const SLEEP_SLACK: Duration = Duration::from_micros(150);
    let early = due.saturating_duration_since(clock::now());
    let sleeps = early > SLEEP_SLACK;
    if sleeps {
        thread::sleep(early.saturating_sub(SLEEP_SLACK));
    }
    while clock::now() < due {
        std::hint::spin_loop();
    }
    sleeps
}

fn due_ns(sequence: u64, rate: u32) -> u64 {
    u64::try_from(u128::from(sequence) * 1_000_000_000 / u128::from(rate))
        .expect("a run is shorter than 500 years")
}

fn await_stragglers(grace: Duration, sent: &AtomicU64, received: &Mutex<Received>) {
    let deadline = clock::now() + grace;
    let is_complete =
        || received.lock().unwrap_or_else(PoisonError::into_inner).count >= sent.load(Ordering::Relaxed);
    while clock::now() < deadline && !is_complete() {
        thread::sleep(Duration::from_millis(5));
    }
}

/// The answers so far.
struct Received {
    count: u64,
    duplicates: u64,
    reordered: u64,
    mismatches: u64,
    foreign: u64,
    latency: LatencyRecorder,
    /// One bit per probe.
    seen: Vec<u64>,
    newest: Vec<Option<u64>>,
}

impl Received {
    fn new(total: u64, flows: u16) -> Self {
        let words = usize::try_from(total.div_ceil(64)).expect("the total is bounded");
        Self {
            count: 0,
            duplicates: 0,
            reordered: 0,
            mismatches: 0,
            foreign: 0,
            latency: LatencyRecorder::default(),
            seen: vec![0; words],
            newest: vec![None; usize::from(flows)],
        }
    }

    fn take(&mut self, flow: usize, datagram: &[u8], elapsed: Duration, payload_len: usize) {
        let word = |at: usize| {
            datagram.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes)
        };
        let (Some(sequence), Some(due_ns), true) = (word(8), word(16), datagram.starts_with(&MAGIC)) else {
            self.foreign += 1;
            return;
        };
        let mark = usize::try_from(sequence / 64).ok().and_then(|index| self.seen.get_mut(index));
        let Some(mark) = mark else {
            self.mismatches += 1;
            return;
        };
        if *mark & (1 << (sequence % 64)) != 0 {
            self.duplicates += 1;
            return;
        }
        *mark |= 1 << (sequence % 64);
        self.count += 1;
        let intact =
            datagram.len() == payload_len && Pattern::new(sequence).check(0, &datagram[HEADER_LEN..]).is_ok();
        self.mismatches += u64::from(!intact);
        self.latency.record(elapsed.saturating_sub(Duration::from_nanos(due_ns)));
        let newest = &mut self.newest[flow];
        self.reordered += u64::from(newest.is_some_and(|newest| sequence < newest));
        *newest = (*newest).max(Some(sequence));
    }
}

/// The outcome of a probe run.
#[derive(Debug, Clone, Serialize)]
pub struct UdpReport {
    /// Where the datagrams went.
    pub target: String,
    /// Source ports used.
    pub flows: u16,
    /// Duration of sending, in seconds.
    pub seconds: f64,
    /// Datagrams sent.
    pub sent: u64,
    /// Datagrams sent per second.
    pub sent_per_second: f64,
    /// Sent datagrams that the local kernel refused.
    pub send_failures: u64,
    /// Answers, each probe counted once.
    pub received: u64,
    /// Probes without an answer.
    pub lost: u64,
    /// Repeated answers to a probe.
    pub duplicates: u64,
    /// Answers that arrived after the answer to a later probe of the same flow.
    pub reordered: u64,
    /// Answers with other bytes than sent.
    pub mismatches: u64,
    /// Datagrams that are not answers to a probe.
    pub foreign: u64,
    /// Latency from the scheduled sending time to the answer.
    pub latency: LatencySummary,
}

impl Report for UdpReport {
    fn rows(&self) -> Vec<(String, String)> {
        let rate = human_rate(self.sent_per_second);
        vec![
            ("target".into(), format!("{} ({} flows)", self.target, self.flows)),
            ("sent".into(), format!("{} ({rate}), {} refused", grouped(self.sent), self.send_failures)),
            ("answered".into(), format!("{}, {} lost", grouped(self.received), grouped(self.lost))),
            ("latency".into(), self.latency.line()),
            (
                "irregular".into(),
                format!(
                    "{} reordered, {} duplicate, {} wrong bytes, {} foreign",
                    self.reordered, self.duplicates, self.mismatches, self.foreign
                ),
            ),
        ]
    }

    fn is_clean(&self) -> bool {
        self.lost + self.mismatches + self.duplicates + self.foreign == 0 && self.sent > 0
    }
}
