//! Frames through real AF_XDP sockets on veth pairs: intact, forwarded without a copy, and never lost.

use std::collections::HashSet;
use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use flowgate_xsk::steering::{Steering, SteeringSet, VipKey};
use flowgate_xsk::{
    BURST, BindMode, BusyPoll, Frame, FramePool, LinkState, MissingFeature, Poller, RefusedReason,
    UmemConfig, XskError, XskSocket, XskSocketConfig, ZeroCopy,
};

use crate::common::{Namespace, filled, receive, small_port, small_umem, udp};

const VIP: [u8; 4] = [10, 96, 0, 10];

/// A gateway with interfaces lb0, lb1 ... each to a namespace of its own, all traffic to the VIP steered to sockets.
struct Rig {
    gateway: Namespace,
    peers: Vec<Namespace>,
    steering: Steering,
    pool: FramePool,
    ports: Vec<XskSocket>,
}

fn rig(interfaces: usize) -> Rig {
    let gateway = Namespace::new();
    let names: Vec<_> = (0..interfaces).map(|i| format!("lb{i}")).collect();
    let peers: Vec<_> = names
        .iter()
        .map(|name| {
            let peer = Namespace::new();
            gateway.veth_to(name, "peer", &peer);
            peer
        })
        .collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let mut steering = gateway.attach(&names).expect("attach");
    let vip = VipKey { addr: IpAddr::from(VIP), port: 53, protocol: 17 };
    steering.add_new(&SteeringSet { vips: [vip].into(), ..SteeringSet::default() }).expect("add");
    let (mut pool, mut ports) = gateway.pool(&names);
    for (port, report) in ports.iter_mut().zip(steering.report()) {
        port.refill(&mut pool);
        steering.set_socket(report.ifindex, 0, port.fd()).expect("a slot");
    }
    Rig { gateway, peers, steering, pool, ports }
}

impl Rig {
    fn check(&self, held: usize) {
        self.pool.audit(&self.ports).check(held).expect("every frame is accounted for");
    }

    /// Waits until everything sent is back.
    fn settle(&mut self) {
        for _ in 0..1000 {
            for port in &mut self.ports {
                port.flush();
                port.reap(&mut self.pool);
            }
            if self.ports.iter().all(|port| port.in_tx() == 0) {
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
        panic!("sent frames did not come back: {:?}", self.ports);
    }
}

fn push(port: &mut XskSocket, frame: Frame) {
    if let Err(refused) = port.tx_push(frame) {
        panic!("refused: {:?}", refused.reason);
    }
}

#[test]
fn frames_arrive_intact_at_every_length() {
    let mut rig = rig(1);
    let sender = rig.peers[0].packet_socket("peer");
    assert_eq!(rig.ports[0].bind_mode(), BindMode::Copy, "a veth has no zero copy");
    assert!(rig.pool.zero_copy_refusal().is_some());
    for len in [0, 1, 17, 18, 19, 100, 511, 1024, 1471, 1472] {
        let payload: Vec<u8> = (0..=250).cycle().take(len).collect();
        let sent = udp((VIP, 53), &payload);
        sender.send(&sent);
        let frames = receive(&mut rig.ports[0], &mut rig.pool, 1);
        assert_eq!(frames.len(), 1, "{len} bytes of payload");
        assert_eq!(frames[0].as_ref(), sent, "{len} bytes of payload");
        rig.check(1);
        frames.into_iter().for_each(|frame| rig.pool.recycle(frame));
        rig.check(0);
    }
}

#[test]
fn a_frame_goes_from_one_interface_to_another_without_a_copy() {
    let mut rig = rig(2);
    let (left, right) = (rig.peers[0].packet_socket("peer"), rig.peers[1].packet_socket("peer"));
    for round in 0..200_u8 {
        left.send(&udp((VIP, 53), &[round; 40]));
        let mut frames = receive(&mut rig.ports[0], &mut rig.pool, 1);
        let mut frame = frames.pop().expect("received");
        let at = frame.as_ref().as_ptr();
        frame.as_mut()[..6].copy_from_slice(&[6; 6]);
        let expected = frame.as_ref().to_vec();
        assert_eq!(frame.as_ref().as_ptr(), at);
        push(&mut rig.ports[1], frame);
        rig.ports[1].flush();
        assert_eq!(right.receive().as_deref(), Some(&expected[..]), "round {round}");
        rig.check(0);
        // Otherwise the completion ring fills up, and the kernel sends nothing without an entry reserved there.
        rig.ports[1].reap(&mut rig.pool);
    }
    rig.settle();
    assert_eq!((rig.ports[0].in_tx(), rig.ports[1].in_tx()), (0, 0));
    rig.check(0);
}

#[test]
fn a_refill_right_behind_the_kernel_takes_the_room_that_there_is() {
    // The kernel publishes a packet a moment before it frees the packet's entry in the fill ring.
    let mut rig = rig(1);
    let sender = rig.peers[0].packet_socket("peer");
    let sent = udp((VIP, 53), &[7; 18]);
    let mut received = 0;
    thread::scope(|scope| {
        let sending = scope.spawn(|| (0..50_000).for_each(|_| sender.send(&sent)));
        let mut frames = Vec::with_capacity(BURST);
        while !sending.is_finished() {
            received += rig.ports[0].rx_burst(&mut frames, BURST);
            frames.drain(..).for_each(|frame| rig.pool.recycle(frame));
            rig.ports[0].refill(&mut rig.pool);
        }
    });
    assert!(received > 1_000, "{received} received");
    rig.check(0);
}

#[test]
fn more_than_one_kernel_batch_leaves_with_one_flush() {
    let mut rig = rig(1);
    let peer = rig.peers[0].packet_socket("peer");
    for index in 0..100_u8 {
        let frame = filled(&mut rig.pool, &udp((VIP, 53), &[index; 20]));
        push(&mut rig.ports[0], frame);
    }
    rig.ports[0].flush();
    for index in 0..100_u8 {
        assert_eq!(peer.receive(), Some(udp((VIP, 53), &[index; 20])), "packet {index}");
    }
    rig.settle();
    rig.check(0);
}

#[test]
fn a_full_tx_ring_refuses_and_gives_the_frame_back() {
    let mut rig = rig(1);
    // With the device down nothing leaves the ring.
    rig.gateway.ip("link set lb0 down");
    let bytes = udp((VIP, 53), b"stuck");
    let mut pushed = 0;
    let refused = loop {
        let frame = filled(&mut rig.pool, &bytes);
        match rig.ports[0].tx_push(frame) {
            Ok(()) => pushed += 1,
            Err(refused) => break refused,
        }
        if pushed % 50 == 0 {
            rig.ports[0].flush();
        }
    };
    assert_eq!((pushed, refused.reason), (128, RefusedReason::RingFull));
    assert_eq!(refused.frame.as_ref(), bytes);
    rig.check(1);
    rig.pool.recycle(refused.frame);
    rig.ports[0].flush();
    assert!(rig.ports[0].wake_counters().link_down > 0, "{:?}", rig.ports[0].wake_counters());
    assert_eq!(rig.ports[0].in_tx(), 128);

    rig.gateway.ip("link set lb0 up");
    let peer = rig.peers[0].packet_socket("peer");
    rig.settle();
    assert_eq!(peer.receive().as_deref(), Some(&bytes[..]), "what waited is sent once the link is up");
    rig.check(0);
}

#[test]
fn frames_are_conserved_under_random_drops_and_bursts() {
    let mut rig = rig(2);
    let (left, right) = (rig.peers[0].packet_socket("peer"), rig.peers[1].packet_socket("peer"));
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random).expect("a 64-bit machine") % below
    };
    let mut held: Vec<Frame> = Vec::new();
    let mut burst = Vec::with_capacity(BURST);
    let mut moved = 0;
    for round in (0..=u8::MAX).cycle().take(3000) {
        for _ in 0..next(8) {
            let socket = if next(2) == 0 { &left } else { &right };
            socket.send(&udp((VIP, 53), &vec![round; next(1400)]));
        }
        for side in 0..2 {
            rig.ports[side].rx_burst(&mut burst, 1 + next(80));
            for mut frame in burst.drain(..) {
                moved += 1;
                match next(10) {
                    0 => drop(frame), // as an error path would
                    1 => rig.pool.recycle(frame),
                    2 => held.push(frame),
                    3 => {
                        let len = next(frame.capacity() + 200);
                        if frame.set_len(len).is_err() {
                            assert!(len > frame.capacity());
                        }
                        // An empty one is refused, and returns to the pool when it is dropped.
                        let _ = rig.ports[1 - side].tx_push(frame);
                    }
                    _ => {
                        let _ = rig.ports[1 - side].tx_push(frame);
                    }
                }
            }
            if next(4) > 0 {
                rig.ports[side].flush();
            }
            if next(4) > 0 {
                rig.ports[side].reap(&mut rig.pool);
            }
            if next(4) > 0 {
                rig.ports[side].refill(&mut rig.pool);
            }
        }
        if next(20) == 0 {
            held.clear();
        }
        rig.check(held.len());
        while left.try_receive().is_some() {}
        while right.try_receive().is_some() {}
    }
    assert!(moved > 3000, "only {moved} frames moved");
    held.clear();
    rig.settle();
    for port in &rig.ports {
        let statistics = port.statistics().expect("statistics");
        assert_eq!((statistics.tx_invalid_descs, statistics.rx_invalid_descs), (0, 0), "{statistics:?}");
    }
    rig.check(0);
}

#[test]
fn no_chunk_is_ever_in_two_hands() {
    let mut rig = rig(1);
    let peer = rig.peers[0].packet_socket("peer");
    for _ in 0..50 {
        peer.send(&udp((VIP, 53), b"x"));
    }
    let mut frames = receive(&mut rig.ports[0], &mut rig.pool, 50);
    while let Some(mut frame) = rig.pool.take() {
        frame.set_len(1).expect("room");
        frames.push(frame);
    }
    let distinct: HashSet<_> = frames.iter().map(|frame| frame.as_ref().as_ptr()).collect();
    assert_eq!(distinct.len(), frames.len());
    assert_eq!(rig.pool.free_count(), 0);
    rig.check(frames.len());
    drop(frames);
    assert!(rig.pool.take().is_some(), "dropped frames are found again");
    rig.check(0);
}

#[test]
fn a_frame_longer_than_its_chunk_cannot_be_made_and_an_empty_one_not_sent() {
    let mut rig = rig(1);
    let mut frame = rig.pool.take().expect("free");
    assert_eq!((frame.len(), frame.capacity()), (0, 2048 - 256));
    let error = frame.set_len(1793).expect_err("too long");
    assert_eq!((error.wanted, error.capacity, frame.len()), (1793, 1792, 0));
    let refused = rig.ports[0].tx_push(frame).expect_err("nothing to send");
    assert_eq!(refused.reason, RefusedReason::Empty);
    rig.pool.recycle(refused.frame);

    // A packet that does not fit into a chunk is dropped by the kernel and counted; the socket goes on.
    let peer = rig.peers[0].packet_socket("peer");
    rig.peers[0].ip("link set peer mtu 2500");
    rig.gateway.ip("link set lb0 mtu 2500");
    peer.send(&udp((VIP, 53), &[7; 2000]));
    peer.send(&udp((VIP, 53), b"small"));
    let frames = receive(&mut rig.ports[0], &mut rig.pool, 1);
    assert_eq!(frames[0].as_ref(), udp((VIP, 53), b"small"));
    assert_eq!(rig.ports[0].statistics().expect("statistics").rx_dropped, 1);
    rig.check(1);
}

#[test]
fn a_frame_of_another_pool_is_refused() {
    let mut rig = rig(1);
    let other = Namespace::new();
    other.veth("lb0", "peer0");
    let (mut their_pool, _their_ports) = other.pool(&["lb0"]);
    let theirs = filled(&mut their_pool, b"not yours");
    let refused = rig.ports[0].tx_push(theirs).expect_err("another pool's");
    assert_eq!(refused.reason, RefusedReason::OtherPool);

    rig.pool.recycle(refused.frame);
    rig.check(0);
    assert_eq!(their_pool.free_count(), their_pool.total(), "it went home");
}

#[test]
#[should_panic(expected = "a port's frames come from its own pool")]
fn a_pool_cannot_refill_another_pools_port() {
    let namespace = Namespace::new();
    namespace.veth("lb0", "peer0");
    let (_, mut ports) = namespace.pool(&["lb0"]);
    let (mut other, _) = namespace.pool(&["peer0"]);
    ports[0].refill(&mut other);
}

#[test]
fn frames_outlive_their_pool_and_ports() {
    let mut rig = rig(1);
    let mut frame = filled(&mut rig.pool, b"still here");
    rig.gateway.run(|| {
        drop(rig.ports);
        drop(rig.pool);
    });
    frame.as_mut()[0] = b'S';
    thread::spawn(move || assert_eq!(frame.as_ref(), b"Still here")).join().expect("readable anywhere");
}

#[test]
fn a_port_that_is_gone_leaves_its_queue_to_the_next_and_its_traffic_to_the_kernel() {
    let Rig { gateway, peers, steering, pool, ports } = rig(1);
    gateway.ip("addr add 10.96.0.10/32 dev lb0");
    let kernel = gateway.packet_socket("lb0");
    let peer = peers[0].packet_socket("peer");
    peer.send(&udp((VIP, 53), b"to the worker"));
    assert_eq!(kernel.receive(), None, "a steered packet never reaches the stack");
    gateway.run(|| drop(ports));
    assert_eq!(pool.audit(&[]).leaked, 256, "the frames that the port had with the kernel");
    pool.audit(&[]).check(0).expect("and they are accounted for");
    drop(pool);

    let packet = udp((VIP, 53), b"to the kernel");
    peer.send(&packet);
    assert_eq!(kernel.receive(), Some(packet));
    // Binding again works at once, although the kernel may still be cleaning up.
    let (_pool, ports) = gateway.pool(&["lb0"]);
    steering.set_socket(steering.report()[0].ifindex, 0, ports[0].fd()).expect("a slot");
}

/// A frame from one peer leaves by another interface.
fn crosses(rig: &mut Rig, from: usize, to: usize) {
    let (left, right) = (rig.peers[from].packet_socket("peer"), rig.peers[to].packet_socket("peer"));
    let sent = udp((VIP, 53), b"across");
    left.send(&sent);
    let frame = receive(&mut rig.ports[from], &mut rig.pool, 1).pop().expect("received");
    push(&mut rig.ports[to], frame);
    rig.ports[to].flush();
    assert_eq!(right.receive(), Some(sent));
}

#[test]
fn sockets_of_each_interface_close_and_open_while_the_others_work_and_no_frame_is_lost() {
    let mut rig = rig(2);
    let memory = rig.pool.memory();
    // The first one as well, whose socket came first.
    for (closed, other) in [(0, 1), (1, 0)].repeat(3) {
        crosses(&mut rig, closed, other);
        crosses(&mut rig, other, closed);
        let ifindex = rig.steering.report()[closed].ifindex;
        rig.steering.clear_socket(ifindex, 0).expect("cleared");
        rig.steering.sockets().wait_for_readers();
        let mut socket = rig.ports.remove(closed);
        assert_eq!(socket.retire(&mut rig.pool), 0, "frames that the kernel keeps");
        rig.gateway.run(|| drop(socket));
        rig.check(0);
        let left = rig.peers[other].packet_socket("peer");
        left.send(&udp((VIP, 53), b"meanwhile"));
        let frames = receive(&mut rig.ports[0], &mut rig.pool, 1);
        assert_eq!(frames.len(), 1, "the one that is left works");
        frames.into_iter().for_each(|frame| rig.pool.recycle(frame));
        let name = format!("lb{closed}");
        let opened = rig.gateway.run(|| memory.open(&[small_port(&name)])).expect("a socket");
        let socket = opened.sockets.into_iter().next().expect("one");
        rig.steering.set_socket(ifindex, 0, socket.fd()).expect("a slot");
        rig.ports.insert(closed, socket);
        rig.ports[closed].refill(&mut rig.pool);
        rig.settle();
        rig.check(0);
    }
    crosses(&mut rig, 0, 1);
}

#[test]
fn a_device_that_is_gone_takes_no_frames_along_and_leaves_the_others_working() {
    let mut rig = rig(3);
    let memory = rig.pool.memory();
    crosses(&mut rig, 0, 1);
    rig.settle();
    rig.gateway.ip("link del lb0");
    let mut socket = rig.ports.remove(0);
    assert_eq!(socket.retire(&mut rig.pool), 0, "frames that the kernel keeps");
    drop(socket);
    rig.check(0);
    rig.peers.remove(0);
    crosses(&mut rig, 0, 1);
    crosses(&mut rig, 1, 0);
    // Although the socket is gone that was opened first, others can be opened on the same memory.
    let peer = Namespace::new();
    rig.gateway.veth_to("lb9", "peer", &peer);
    let opened = rig.gateway.run(|| memory.open(&[small_port("lb9")])).expect("a socket");
    rig.ports.extend(opened.sockets);
    rig.peers.push(peer);
    let right = rig.peers[2].packet_socket("peer");
    let frame = filled(&mut rig.pool, &udp((VIP, 53), b"to a new one"));
    let sent = frame.as_ref().to_vec();
    push(&mut rig.ports[2], frame);
    rig.ports[2].flush();
    assert_eq!(right.receive(), Some(sent));
    rig.settle();
    rig.check(0);
}

#[test]
fn a_queue_in_use_is_an_error_that_says_so() {
    let rig = rig(1);
    let error = rig
        .gateway
        .run(|| FramePool::new(&small_umem(), &[small_port("lb0")]))
        .map(|_| ())
        .expect_err("busy");
    let text = error.to_string();
    assert!(text.contains("lb0 queue 0 (copy)") && text.contains("another process has a socket"), "{text}");
}

#[test]
fn forced_zero_copy_fails_where_there_is_none() {
    let namespace = Namespace::new();
    namespace.veth("lb0", "peer0");
    let port = XskSocketConfig { zero_copy: ZeroCopy::Force, ..small_port("lb0") };
    let error =
        namespace.run(|| FramePool::new(&small_umem(), &[port])).map(|_| ()).expect_err("no zero copy");
    assert!(matches!(error, XskError::Bind { mode: "zero-copy", .. }), "{error}");
}

#[test]
fn mistakes_in_the_configuration_are_named() {
    let error = |umem: UmemConfig, ports: &[XskSocketConfig]| {
        FramePool::new(&umem, ports).map(|_| ()).expect_err("a mistake").to_string()
    };
    let port = || small_port("lo");
    assert!(error(small_umem(), &[port(), port()]).contains("lo queue 0 appears twice"));
    assert!(error(UmemConfig { chunk_len: 3000, ..small_umem() }, &[port()]).contains("chunk_len 3000"));
    assert!(error(UmemConfig { headroom: 1792, ..small_umem() }, &[port()]).contains("headroom 1792"));
    assert!(error(UmemConfig { frame_count: 300, ..small_umem() }, &[port()]).contains("frame_count 300"));
    let odd = XskSocketConfig { tx_ring_len: 100, ..port() };
    assert!(error(small_umem(), &[odd]).contains("tx_ring_len 100"));
    let (force, off) = (
        XskSocketConfig { zero_copy: ZeroCopy::Force, ..port() },
        XskSocketConfig { zero_copy: ZeroCopy::Off, queue: 1, ..port() },
    );
    assert!(error(small_umem(), &[force, off]).contains("one packet memory has one mode"));
}

#[test]
fn waiting_ends_with_a_packet_a_wakeup_or_the_time() {
    let mut rig = rig(1);
    let mut poller = Poller::new();
    let short = Duration::from_millis(20);
    let ready = poller.wait(&rig.ports, None, short).expect("poll");
    assert_eq!((ready.readable, ready.woken), (0, false));

    rig.peers[0].packet_socket("peer").send(&udp((VIP, 53), b"x"));
    let ready = poller.wait(&rig.ports, None, Duration::from_secs(2)).expect("poll");
    assert_eq!(ready.readable, 1);
    assert_eq!(receive(&mut rig.ports[0], &mut rig.pool, 1).len(), 1);

    let (reader, writer) = std::io::pipe().expect("a pipe");
    std::io::Write::write_all(&mut &writer, b"!").expect("written");
    let fd = std::os::fd::AsFd::as_fd(&reader);
    let ready = poller.wait(&rig.ports, Some(fd), Duration::from_secs(2)).expect("poll");
    assert_eq!((ready.readable, ready.woken), (0, true));
}

#[test]
fn a_port_sees_its_link_go_down_and_away() {
    let rig = rig(1);
    assert_eq!(rig.ports[0].link_state(), LinkState::Up);
    rig.gateway.ip("link set lb0 down");
    assert_eq!(rig.ports[0].link_state(), LinkState::Down);
    rig.gateway.ip("link set lb0 up");
    assert_eq!(rig.ports[0].link_state(), LinkState::Up);
    rig.gateway.ip("link del lb0");
    assert_eq!(rig.ports[0].link_state(), LinkState::Gone);
    rig.check(0);
}

#[test]
fn what_a_kernel_lacks_is_told_and_gone_without() {
    let rig = rig(1);
    // The option came with Linux 6.17.
    let release = nix::sys::utsname::uname().expect("uname").release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>().ok());
    let version = (numbers.next().flatten(), numbers.next().flatten());
    let is_missing = rig.pool.missing_features().any(|missing| missing == MissingFeature::TxBudget);
    assert_eq!(is_missing, version < (Some(6), Some(17)), "{release}");

    rig.gateway.veth("lb9", "peer9");
    let busy_poll = Some(BusyPoll { microseconds: 20, budget: 64 });
    let port = XskSocketConfig { busy_poll, ..small_port("lb9") };
    let (pool, _ports) = rig.gateway.run(|| FramePool::new(&small_umem(), &[port])).expect("a port");
    assert!(
        pool.missing_features().all(|missing| missing == MissingFeature::TxBudget),
        "busy polling is older than all of these"
    );
}
