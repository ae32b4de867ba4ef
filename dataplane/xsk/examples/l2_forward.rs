//! How fast this crate moves frames without any processing: forwards from one veth to another.
//!
//! Makes three anonymous namespaces, sends 60-byte UDP from the first with XDP live frames on core 0, forwards in the
//! second on core 1, drops in the third. Needs root; `cargo run --release -p flowgate-xsk --example l2_forward [s]`.
#![allow(clippy::print_stdout, reason = "it prints its result")]
#![allow(clippy::disallowed_methods, reason = "measuring code reads the clock")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{env, thread};

use flowgate_xsk::steering::{SteeringSet, VipKey};
use flowgate_xsk::{BURST, FramePool, UmemConfig, XskSocket, XskSocketConfig};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use common::{Namespace, attach, bpf, program, udp};

const VIP: [u8; 4] = [10, 96, 0, 10];
const XDP_DROP: u32 = 1;
const XDP_TX: u32 = 3;

fn main() {
    let seconds = env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(3);
    let (source, gateway, sink) = (Namespace::new(), Namespace::new(), Namespace::new());
    gateway.veth_to("lb0", "peer", &source);
    gateway.veth_to("lb1", "peer", &sink);
    let mut steering = gateway.attach(&["lb0", "lb1"]).expect("attach");
    let vip = VipKey { addr: IpAddr::from(VIP), port: 53, protocol: 17 };
    steering.add_new(&SteeringSet { vips: [vip].into(), ..SteeringSet::default() }).expect("add");

    let ports = ["lb0", "lb1"].map(|name| XskSocketConfig::new(name, 0));
    let umem = UmemConfig { frame_count: UmemConfig::frames_for(&ports), ..UmemConfig::default() };
    let (mut pool, mut ports) = gateway.run(|| FramePool::new(&umem, &ports)).expect("a pool");
    for (port, report) in ports.iter_mut().zip(steering.report()) {
        port.refill(&mut pool);
        steering.set_socket(report.ifindex, 0, port.fd()).expect("a slot");
    }

    let _sink = env::var_os("SINK").map(|_| sink.run(|| attach(&program(XDP_DROP), sink.ifindex("peer"))));
    let generator = program(XDP_TX);
    let source_index = source.ifindex("peer");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            source.run(|| {
                pin_to(0);
                let packet = udp((VIP, 53), &[0; 18]);
                while !stop.load(Ordering::Relaxed) {
                    send_live(&generator, source_index, &packet);
                }
            });
        });
        let worker = scope.spawn(|| {
            pin_to(1);
            forward(&mut pool, &mut ports, Duration::from_secs(1));
            forward(&mut pool, &mut ports, Duration::from_secs(seconds))
        });
        let measured = worker.join().expect("the worker ran");
        stop.store(true, Ordering::Relaxed);
        measured.print();
    });
    println!("{:?}\n{:?}\n{:?}", ports[0].statistics(), ports[1].wake_counters(), common::counted(&steering));
    pool.audit(&ports).check(0).expect("no frame is lost");
}

/// What a run measured.
struct Measured {
    packets: f64,
    seconds: f64,
    /// Nanoseconds of each full burst: in the send call, and in all else.
    bursts: Vec<(u128, u128)>,
}

impl Measured {
    fn print(mut self) {
        let rate = self.packets / self.seconds / 1e6;
        // Medians, since bursts during which another process had the core would distort a mean.
        let mut median = |part: fn(&(u128, u128)) -> u128| {
            self.bursts.sort_unstable_by_key(part);
            self.bursts.get(self.bursts.len() / 2).map_or(0, part) / BURST as u128
        };
        let (send, rest) = (median(|burst| burst.0), median(|burst| burst.1));
        println!(
            "{rate:.3} Mpps; per packet of the median burst: {send} ns in the send call, {rest} ns in this crate"
        );
    }
}

/// Forwards from the first port to the second.
fn forward(pool: &mut FramePool, ports: &mut [XskSocket], time: Duration) -> Measured {
    let mut frames = Vec::with_capacity(BURST);
    let mut packets = 0_u32;
    let mut bursts = Vec::with_capacity(1 << 20);
    let start = Instant::now();
    let mut now = start;
    while now.duration_since(start) < time {
        let received = ports[0].rx_burst(&mut frames, BURST);
        for frame in frames.drain(..) {
            match ports[1].tx_push(frame) {
                Ok(()) => packets += 1,
                Err(refused) => pool.recycle(refused.frame),
            }
        }
        let before_send = Instant::now();
        ports[1].flush();
        let after_send = Instant::now();
        ports[1].reap(pool);
        ports[0].refill(pool);
        let end = Instant::now();
        if received == BURST && bursts.len() < bursts.capacity() {
            let send = after_send.duration_since(before_send).as_nanos();
            bursts.push((send, end.duration_since(now).as_nanos() - send));
        }
        now = end;
    }
    Measured { packets: f64::from(packets), seconds: now.duration_since(start).as_secs_f64(), bursts }
}

fn pin_to(core: usize) {
    let mut cores = CpuSet::new();
    cores.set(core).expect("a core");
    sched_setaffinity(Pid::from_raw(0), &cores).expect("two cores");
}

/// A million packets out of an interface, without an sk_buff.
fn send_live(program: &OwnedFd, ifindex: u32, packet: &[u8]) {
    #[repr(C)]
    struct TestRun {
        prog_fd: u32,
        retval: u32,
        data_size_in: u32,
        data_size_out: u32,
        data_in: *const u8,
        data_out: u64,
        repeat: u32,
        duration: u32,
        ctx_size_in: u32,
        ctx_size_out: u32,
        ctx_in: *const u32,
        ctx_out: u64,
        flags: u32,
        cpu: u32,
        batch_size: u32,
    }
    let len = u32::try_from(packet.len()).expect("a packet");
    // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
    let context = [0, len, 0, ifindex, 0, 0];
    let run = TestRun {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        retval: 0,
        data_size_in: len,
        data_size_out: 0,
        data_in: packet.as_ptr(),
        data_out: 0,
        repeat: 1 << 20,
        duration: 0,
        ctx_size_in: 24,
        ctx_size_out: 0,
        ctx_in: context.as_ptr(),
        ctx_out: 0,
        flags: 1 << 1, // BPF_F_TEST_XDP_LIVE_FRAMES
        cpu: 0,
        batch_size: 64,
    };
    bpf(10, &run);
}
