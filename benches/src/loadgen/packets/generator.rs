//! Runs the generator program on selected cores for a given time.

use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{fs, thread};

use aya::maps::{MapData, PerCpuArray};
use aya::programs::{ProgramError, Xdp};
use aya::{Ebpf, EbpfLoader, TestRun as _, TestRunAttrs, TestRunOptions};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde::Serialize;

use super::frame::{FlowRange, MacAddr, PacketKind, Route, Template};
use super::interface_index;
use crate::clock;
use crate::error::{Error, Result};
use crate::loadgen::progress::{Progress, ProgressOutput};
use crate::loadgen::report::{Report, grouped, human_rate, per_second};
use crate::loadgen::stop::Stop;

/// Live frames per batch (`batch_size` of BPF_PROG_TEST_RUN).
const BATCH_LEN: u32 = 64;
/// Packets of the first call, which measures the rate.
const CALIBRATION_REPEATS: u32 = 1 << 15;

/// What to send, to where, and for how long.
#[derive(Debug, Clone)]
pub struct PacketOptions {
    /// The interface to send from.
    pub interface: String,
    /// The Ethernet address of the next hop.
    pub next_hop: MacAddr,
    /// The destination of every packet.
    pub destination: SocketAddrV4,
    /// The kind of packets.
    pub kind: PacketKind,
    /// The flows, used in turn.
    pub flows: FlowRange,
    /// Bytes of each frame, at least 60.
    pub frame_len: u16,
    /// Duration of the run.
    pub duration: Duration,
    /// Maximum packets per second; `None` for full rate.
    pub rate: Option<u32>,
    /// The cores that send; each sends all flows.
    pub cpus: Vec<usize>,
    /// Duration of one call into the kernel. A run can stop only between calls, and each costs some 16 ms without packets.
    pub call: Duration,
}

impl PacketOptions {
    /// 60-byte UDP packets at full rate from core 0.
    pub fn new(
        interface: &str,
        next_hop: MacAddr,
        destination: SocketAddrV4,
        flows: u32,
        duration: Duration,
    ) -> Self {
        Self {
            interface: interface.to_owned(),
            next_hop,
            destination,
            kind: PacketKind::Udp,
            flows: FlowRange::benchmark(flows),
            frame_len: 60,
            duration,
            rate: None,
            cpus: vec![0],
            call: Duration::from_secs(1),
        }
    }
}

/// The loaded program of one run.
pub struct Generator {
    ebpf: Ebpf,
    template: Template,
    options: PacketOptions,
    /// Recent time per packet in nanoseconds; 0 if unknown.
    packet_ns: AtomicU64,
}

/// Runs in the calling thread's namespace until the duration is over.
pub fn run(options: PacketOptions, show: ProgressOutput, stop: &Stop) -> Result<PacketReport> {
    Generator::load(options)?.run(show, stop)
}

impl Generator {
    /// Loads the program for an interface of the calling thread's namespace.
    pub fn load(options: PacketOptions) -> Result<Self> {
        if options.flows.count == 0 || options.cpus.is_empty() || options.rate == Some(0) {
            return Err(Error::Option(
                "a packet run needs at least one flow, one core and a rate above 0".into(),
            ));
        }
        let ifindex = interface_index(&options.interface)?;
        let source_mac = fs::read_to_string(format!("/sys/class/net/{}/address", options.interface))
            .map_err(Error::io(format!("read the MAC address of {}", options.interface)))?
            .parse()?;
        let route = Route { source_mac, next_hop_mac: options.next_hop, destination: options.destination };
        let template = Template::new(route, options.kind, options.frame_len)?;
        let cpus = u64::try_from(options.cpus.len()).expect("a count fits 64 bits");
        let period_1024 = options.rate.map_or(0, |rate| (1_000_000_000u64 << 10) * cpus / u64::from(rate));
        let mut ebpf = EbpfLoader::new()
            .override_global("template", &template.words(), true)
            .override_global("ip_sum", &template.ip_sum, true)
            .override_global("l4_sum", &template.l4_sum, true)
            .override_global("ifindex", &ifindex, true)
            .override_global("flows", &options.flows.count, true)
            .override_global("first_address", &u32::from(options.flows.first), true)
            .override_global("first_port", &u32::from(FlowRange::FIRST_PORT), true)
            .override_global("ports_log2", &FlowRange::PORTS_LOG2, true)
            .override_global("is_tcp", &u32::from(options.kind != PacketKind::Udp), true)
            .override_global("period_1024", &period_1024, true)
            .load(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/generator.o")))
            .map_err(Error::bpf("load the packet generator (needs root and a kernel with BPF)"))?;
        let program: &mut Xdp = ebpf
            .program_mut("generate")
            .expect("the object holds this program")
            .try_into()
            .expect("the program is of type XDP");
        program
            .load()
            .map_err(Error::bpf("load the packet generator (needs root, or CAP_BPF and CAP_NET_ADMIN)"))?;
        Ok(Self { ebpf, template, options, packet_ns: AtomicU64::new(0) })
    }

    /// Generates the next packet and returns it instead of sending it.
    pub fn make_one(&self) -> Result<Vec<u8>> {
        let mut frame = vec![0; self.template.frame.len()];
        let mut options = TestRunOptions::new();
        options.data_in = Some(&self.template.frame);
        options.data_out = Some(&mut frame);
        self.program().test_run(options).map_err(Error::bpf("run the packet generator once"))?;
        Ok(frame)
    }

    /// Packets generated so far.
    pub fn made(&self) -> Result<u64> {
        let map = self.ebpf.map("states").expect("the object holds this map");
        let states: PerCpuArray<&MapData, [u64; 3]> =
            PerCpuArray::try_from(map).map_err(Error::bpf("open the generator's counters"))?;
        let states = states.get(&0, 0).map_err(Error::bpf("read the generator's counters"))?;
        Ok(states.iter().map(|[sent, ..]| sent).sum())
    }

    /// Sends for the set time.
    pub fn run(&self, show: ProgressOutput, stop: &Stop) -> Result<PacketReport> {
        self.run_for(self.options.duration, self.options.call, show, stop)
    }

    /// Sends for `duration`, in calls of duration `call`. The first run calibrates the rate, so that in later runs one call
    /// can last the whole run.
    pub fn run_for(
        &self,
        duration: Duration,
        call: Duration,
        show: ProgressOutput,
        stop: &Stop,
    ) -> Result<PacketReport> {
        let options = &self.options;
        let label = format!("packets to {}", options.destination);
        let rate = Arc::new(Mutex::new(0.0));
        let progress = Progress::start(show, &label, duration, {
            let rate = Arc::clone(&rate);
            move || rate.lock().map(|rate| human_rate(*rate)).unwrap_or_default()
        });
        let (before, refused_before) = (self.made()?, self.refused());
        let begin = clock::now();
        let deadline = begin + duration;
        thread::scope(|scope| {
            let note = || {
                if let (Ok(made), Ok(mut rate)) = (self.made(), rate.lock()) {
                    *rate = per_second(made - before, begin.elapsed().as_secs_f64());
                }
            };
            let senders: Vec<_> = options
                .cpus
                .iter()
                .map(|cpu| scope.spawn(move || self.send_on(*cpu, deadline, call, stop, note)))
                .collect();
            senders
                .into_iter()
                .try_for_each(|sender| sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })?;
        let seconds = begin.elapsed().as_secs_f64();
        drop(progress);
        let made = self.made()? - before;
        let refused = self.refused().saturating_sub(refused_before);
        Ok(PacketReport {
            interface: options.interface.clone(),
            destination: options.destination.to_string(),
            flows: options.flows.count,
            frame_len: options.frame_len,
            cpus: options.cpus.clone(),
            seconds,
            offered: made,
            offered_per_second: per_second(made, seconds),
            refused_by_link: refused,
        })
    }

    fn send_on(
        &self,
        cpu: usize,
        deadline: Instant,
        call: Duration,
        stop: &Stop,
        note: impl Fn(),
    ) -> Result<()> {
        pin_to(cpu)?;
        loop {
            let left = deadline.saturating_duration_since(clock::now());
            if left.is_zero() || stop.is_stopped() {
                return Ok(());
            }
            let repeats = match u128::from(self.packet_ns.load(Ordering::Relaxed)) {
                0 => CALIBRATION_REPEATS,
                packet_ns => repeats_for(left.min(call), packet_ns),
            };
            let begin = clock::now();
            self.send(repeats)?;
            let packet_ns = begin.elapsed().as_nanos() / u128::from(repeats);
            self.packet_ns.store(u64::try_from(packet_ns).unwrap_or(u64::MAX).max(1), Ordering::Relaxed);
            note();
        }
    }

    /// Runs the program on `repeats` live frames.
    fn send(&self, repeats: u32) -> Result<()> {
        let mut options = TestRunOptions::new();
        options.data_in = Some(&self.template.frame);
        options.repeat = repeats;
        options.attrs = TestRunAttrs::new().xdp_live_frames(BATCH_LEN);
        match self.program().test_run(options) {
            Ok(_) => Ok(()),
            // A signal ended the call early; the counters hold how many were sent.
            Err(ProgramError::SyscallError(error))
                if error.io_error.kind() == std::io::ErrorKind::Interrupted =>
            {
                Ok(())
            }
            Err(error) => Err(Error::bpf(format!(
                "send live frames from {} (needs Linux 5.18 or later)",
                self.options.interface
            ))(error)),
        }
    }

    fn program(&self) -> &Xdp {
        let program = self.ebpf.program("generate").expect("the object holds this program");
        program.try_into().expect("the program is of type XDP")
    }

    /// Frames that the link dropped since it was created.
    fn refused(&self) -> u64 {
        let path = format!("/sys/class/net/{}/statistics/tx_dropped", self.options.interface);
        fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or_default()
    }
}

/// The number of packets for a call of duration `wanted`.
fn repeats_for(wanted: Duration, packet_ns: u128) -> u32 {
    let repeats = (wanted.as_nanos() / packet_ns).clamp(u128::from(BATCH_LEN), 1 << 30);
    u32::try_from(repeats).expect("it is clamped to 30 bits")
}

fn pin_to(cpu: usize) -> Result<()> {
    let pin = || {
        let mut set = CpuSet::new();
        set.set(cpu)?;
        sched_setaffinity(Pid::from_raw(0), &set)
    };
    pin().map_err(Error::errno(format!("pin the generator to core {cpu} (does this core exist?)")))
}

/// The outcome of a packet run at its sending end.
#[derive(Debug, Clone, Serialize)]
pub struct PacketReport {
    /// The interface that sent.
    pub interface: String,
    /// The destination of every packet.
    pub destination: String,
    /// The number of flows.
    pub flows: u32,
    /// Bytes of each frame.
    pub frame_len: u16,
    /// The cores that sent.
    pub cpus: Vec<usize>,
    /// Duration in seconds.
    pub seconds: f64,
    /// Packets handed to the link.
    pub offered: u64,
    /// Offered packets per second.
    pub offered_per_second: f64,
    /// Packets that the link dropped because its receiver was too slow.
    pub refused_by_link: u64,
}

impl Report for PacketReport {
    fn rows(&self) -> Vec<(String, String)> {
        vec![
            ("destination".into(), format!("{} from {}", self.destination, self.interface)),
            (
                "packets".into(),
                format!("{} flows, {}-byte frames", grouped(self.flows.into()), self.frame_len),
            ),
            (
                "offered".into(),
                format!("{} ({})", grouped(self.offered), human_rate(self.offered_per_second)),
            ),
            ("not taken by the link".into(), grouped(self.refused_by_link)),
        ]
    }

    fn is_clean(&self) -> bool {
        self.offered > 0
    }
}
