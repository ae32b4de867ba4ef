//! The XDP packet generator and the sink: valid frames and checksums, and matching counts.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands, its helpers too")]

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use flowgate_benches::lab::topology::HOST_INTERFACE;
use flowgate_benches::loadgen::packets::{
    FlowRange, Generator, MacAddr, PacketKind, PacketOptions, Sink, SinkAction, SinkOptions, resolve,
};
use flowgate_benches::loadgen::progress::ProgressOutput;
use flowgate_benches::loadgen::stop::Stop;
use flowgate_benches::netns::Namespace;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;
use nix::unistd::Pid;

use crate::common::require_root;

const SENDER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const RECEIVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const PORT: u16 = 9000;

/// Two namespaces with one link.
fn pair() -> (Namespace, Namespace) {
    require_root();
    let (sender, receiver) = (Namespace::new("sender").unwrap(), Namespace::new("receiver").unwrap());
    let far_end = receiver.path();
    let far_end = far_end.display();
    sender
        .ip(&format!("link add name {HOST_INTERFACE} type veth peer name {HOST_INTERFACE} netns {far_end}"))
        .unwrap();
    for (namespace, address) in [(&sender, SENDER), (&receiver, RECEIVER)] {
        namespace.sysctl("net/ipv6/conf/all/disable_ipv6", "1").unwrap();
        namespace.ip(&format!("addr add {address}/24 dev {HOST_INTERFACE}")).unwrap();
        namespace.ip(&format!("link set {HOST_INTERFACE} up")).unwrap();
    }
    (sender, receiver)
}

fn options(next_hop: MacAddr, flows: u32, duration: Duration) -> PacketOptions {
    PacketOptions::new(HOST_INTERFACE, next_hop, SocketAddrV4::new(RECEIVER, PORT), flows, duration)
}

/// Parses a frame, checks lengths and checksums, and returns its source.
fn checked_source(frame: &[u8], kind: PacketKind) -> (Ipv4Addr, u16) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(NetSlice::Ipv4(ip)) = &packet.net else { panic!("no IPv4 in {frame:02x?}") };
    let ip = ip.header().to_header();
    assert_eq!(ip.header_checksum, ip.calc_header_checksum());
    assert_eq!(Ipv4Addr::from(ip.destination), RECEIVER);
    let port = match packet.transport.unwrap() {
        TransportSlice::Udp(udp) => {
            assert_eq!(kind, PacketKind::Udp);
            let header = udp.to_header();
            assert_eq!(header.checksum, header.calc_checksum_ipv4(&ip, udp.payload()).unwrap());
            assert_ne!(header.checksum, 0);
            assert_eq!(header.destination_port, PORT);
            header.source_port
        }
        TransportSlice::Tcp(tcp) => {
            let header = tcp.to_header();
            assert_eq!(header.checksum, header.calc_checksum_ipv4(&ip, tcp.payload()).unwrap());
            assert_eq!((header.syn, header.ack), (kind == PacketKind::TcpSyn, kind == PacketKind::TcpAck));
            assert_eq!(header.destination_port, PORT);
            header.source_port
        }
        other => panic!("neither UDP nor TCP: {other:?}"),
    };
    (Ipv4Addr::from(ip.source), port)
}

#[test]
fn every_frame_is_valid_and_every_flow_is_another() {
    let (sender, _receiver) = pair();
    let next_hop = MacAddr([2, 0, 0, 0, 0, 1]);
    for kind in [PacketKind::Udp, PacketKind::TcpAck, PacketKind::TcpSyn] {
        for frame_len in [60, 61, 128, 1514] {
            let mut options = options(next_hop, 1500, Duration::ZERO);
            (options.kind, options.frame_len) = (kind, frame_len);
            let sources = sender
                .enter(move || {
                    // Each core sends all flows.
                    let mut core = CpuSet::new();
                    core.set(0).unwrap();
                    sched_setaffinity(Pid::from_raw(0), &core).unwrap();
                    let generator = Generator::load(options).unwrap();
                    let frames: Vec<_> = (0..3000).map(|_| generator.make_one().unwrap()).collect();
                    assert!(frames.iter().all(|frame| frame.len() == usize::from(frame_len)));
                    assert!(frames.iter().all(|frame| frame[..6] == next_hop.0));
                    frames.iter().map(|frame| checked_source(frame, kind)).collect::<Vec<_>>()
                })
                .unwrap();
            assert_eq!(sources[..1500].iter().collect::<HashSet<_>>().len(), 1500);
            assert_eq!(sources[..1500], sources[1500..], "flows take turns");
            let last = FlowRange::benchmark(1500).last();
            assert!(
                sources.iter().all(|(address, _)| (Ipv4Addr::new(198, 18, 0, 1)..=last).contains(address))
            );
        }
    }
}

#[test]
fn live_frames_reach_the_sink_and_all_are_accounted_for() {
    let (sender, receiver) = pair();
    let sink_options = SinkOptions { port: Some(PORT), ip_proto: Some(17), action: SinkAction::Drop };
    let sink = receiver.enter(|| Sink::attach(HOST_INTERFACE, sink_options)).unwrap().unwrap();
    let report = sender
        .enter(|| {
            let hop = resolve(RECEIVER).unwrap();
            assert_eq!(hop.interface, HOST_INTERFACE);
            let options = options(hop.mac, 1000, Duration::from_secs(1));
            Generator::load(options).unwrap().run(ProgressOutput::Nothing, &Stop::default()).unwrap()
        })
        .unwrap();
    let counted = sink.counters().unwrap();
    eprintln!("generator into sink: {:.2} Mpps offered", report.offered_per_second / 1e6);
    assert!(report.offered > 100_000, "{report:?}");
    assert_eq!(counted.bytes, counted.packets * 60);
    assert_eq!(counted.packets + report.refused_by_link, report.offered, "{report:?} {counted:?}");
}

#[test]
fn the_receiving_kernel_accepts_the_packets() {
    let (sender, receiver) = pair();
    // Live frames need an XDP program at the receiver; it passes them so that the kernel verifies the checksums.
    let sink_options = SinkOptions { port: Some(PORT), ip_proto: None, action: SinkAction::Pass };
    let sink = receiver.enter(|| Sink::attach(HOST_INTERFACE, sink_options)).unwrap().unwrap();
    receiver.ip(&format!("route add 198.18.0.0/15 via {SENDER}")).unwrap();
    let socket = receiver.run(|| UdpSocket::bind((RECEIVER, PORT))).unwrap();
    // Each of these packets holds a whole page.
    setsockopt(&socket, RcvBufForce, &(64 << 20)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    sender
        .enter(|| {
            let mut options = options(resolve(RECEIVER).unwrap().mac, 100, Duration::from_millis(300));
            options.rate = Some(20_000);
            Generator::load(options).unwrap().run(ProgressOutput::Nothing, &Stop::default()).unwrap()
        })
        .unwrap();
    let mut sources = HashSet::new();
    let mut datagram = [0; 100];
    for _ in 0..100 {
        let (len, source) = socket.recv_from(&mut datagram).unwrap();
        assert_eq!(&datagram[..len], b"flowgateflowgatefl");
        sources.insert(source);
    }
    assert_eq!(sources.len(), 100, "the first packets are one of each flow");
    let errors = receiver.enter(|| std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap()).unwrap();
    let udp: Vec<_> = errors.lines().filter(|line| line.starts_with("Udp:")).collect();
    let column = udp[0].split_whitespace().position(|name| name == "InCsumErrors").unwrap();
    assert_eq!(udp[1].split_whitespace().nth(column), Some("0"));
    assert!(sink.counters().unwrap().packets >= 100);
}

#[test]
fn a_rate_cap_is_never_exceeded_and_the_run_can_be_stopped() {
    let (sender, receiver) = pair();
    let any = SinkOptions { port: None, ip_proto: None, action: SinkAction::Drop };
    let _sink = receiver.enter(|| Sink::attach(HOST_INTERFACE, any)).unwrap().unwrap();
    let report = sender
        .enter(|| {
            let hop = resolve(RECEIVER).unwrap();
            let mut options = options(hop.mac, 10, Duration::from_secs(600));
            (options.rate, options.call) = (Some(50_000), Duration::from_millis(100));
            let stop = Stop::default();
            // Before the time runs, since loading may take a while on a busy machine.
            let generator = Generator::load(options).unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(Duration::from_millis(500));
                    stop.stop();
                });
                generator.run(ProgressOutput::Nothing, &stop).unwrap()
            })
        })
        .unwrap();
    assert!(report.seconds < 60.0);
    // A batch may be in flight when the time is over.
    let most = report.seconds * 50_000.0 + 200.0;
    #[expect(clippy::cast_precision_loss, reason = "a count of some thousands")]
    let offered = report.offered as f64;
    assert!(offered > 0.0 && offered <= most, "{report:?}");
}

#[test]
fn wrong_options_name_the_option() {
    let (sender, _receiver) = pair();
    let fails = |change: fn(&mut PacketOptions)| {
        let mut options = options(MacAddr([0; 6]), 1, Duration::ZERO);
        change(&mut options);
        sender.enter(|| Generator::load(options).err().unwrap().to_string()).unwrap()
    };
    assert!(fails(|options| options.frame_len = 59).contains("not 59"));
    assert!(fails(|options| options.interface = "nope".into()).contains("interface nope"));
    assert!(fails(|options| options.flows.count = 0).contains("at least one flow"));
    let unreachable =
        sender.enter(|| resolve(Ipv4Addr::new(203, 0, 113, 1)).unwrap_err().to_string()).unwrap();
    assert!(unreachable.contains("203.0.113.1"), "{unreachable}");
}
