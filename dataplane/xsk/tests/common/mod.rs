//! Network namespaces that belong to one test and vanish with it, and packets to send through them.
//!
//! The namespaces are anonymous: only this process refers to them, so a crash leaves nothing behind.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(unsafe_code, reason = "packet sockets, to see frames as the kernel sees them")]
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "constants of the C library")]

use std::fs::{self, File};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::time::Duration;
use std::{io, thread};

use etherparse::PacketBuilder;
use flowgate_xsk::steering::{
    InterfaceConfig, Reason, SetLimits, Steering, SteeringConfig, SteeringError, XdpModePolicy,
};
use flowgate_xsk::{Frame, FramePool, UmemConfig, XskSocket, XskSocketConfig, ZeroCopy};
use nix::mount::{MsFlags, mount};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::geteuid;

/// Pin directory of tests, in a private mount namespace and on a bpffs that the code under test mounts itself.
pub const PIN_DIR: &str = "/mnt/bpf/flowgate";

/// A network namespace with a mount namespace.
pub struct Namespace {
    net: File,
    mounts: File,
}

impl Namespace {
    pub fn new() -> Self {
        assert!(
            geteuid().is_root(),
            "this test makes network namespaces and loads XDP programs: run it as root"
        );
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("new namespaces");
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
            mount(Some("tmpfs"), "/mnt", Some("tmpfs"), MsFlags::empty(), none).expect("a private /mnt");
            let open = |kind| File::open(format!("/proc/thread-self/ns/{kind}")).expect("own namespace");
            Self { net: open("net"), mounts: open("mnt") }
        });
        let namespace = made.join().unwrap_or_else(|panic| resume_unwind(panic));
        namespace.ip("link set lo up");
        namespace
    }

    /// The same network, and other mounts: a container that has the network of this one.
    pub fn with_other_mounts(&self) -> Self {
        let net = self.net.try_clone().expect("a descriptor");
        Self { net, mounts: Self::new().mounts }
    }

    /// Runs something inside.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.net, CloneFlags::CLONE_NEWNET).expect("enter the network namespace");
                unshare(CloneFlags::CLONE_FS).expect("own working directory");
                setns(&self.mounts, CloneFlags::CLONE_NEWNS).expect("enter the mount namespace");
                work()
            });
            inside.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Runs `ip` inside.
    pub fn ip(&self, arguments: &str) {
        self.run(|| {
            let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("iproute2");
            assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        });
    }

    /// A veth pair, both ends here.
    pub fn veth(&self, left: &str, right: &str) {
        self.ip(&format!("link add {left} type veth peer name {right}"));
        self.quiet(left);
        self.quiet(right);
    }

    /// A veth pair with its far end in another namespace.
    pub fn veth_to(&self, near: &str, far: &str, other: &Self) {
        let far_net = format!("/proc/{}/fd/{}", process::id(), other.net.as_raw_fd());
        self.ip(&format!("link add {near} type veth peer name {far} netns {far_net}"));
        self.quiet(near);
        other.quiet(far);
    }

    /// Brings an interface up, without neighbour discovery or ARP of the kernel on it.
    fn quiet(&self, interface: &str) {
        let name = interface.to_owned();
        self.run(move || {
            let sysctl = |path: String, value: &str| {
                // Without IPv6 in the kernel there is nothing to turn off.
                let _ = fs::write(path, value);
            };
            sysctl(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
        });
        self.ip(&format!("link set {interface} up arp off"));
    }

    pub fn ifindex(&self, interface: &str) -> u32 {
        self.run(|| if_nametoindex(interface).expect("the interface exists"))
    }

    pub fn attach(&self, interfaces: &[&str]) -> Result<Steering, SteeringError> {
        self.attach_as(interfaces, XdpModePolicy::Auto)
    }

    pub fn attach_as(&self, interfaces: &[&str], mode: XdpModePolicy) -> Result<Steering, SteeringError> {
        let interfaces =
            interfaces.iter().map(|name| InterfaceConfig { name: (*name).to_owned(), mode }).collect();
        let config = SteeringConfig { interfaces, ..config() };
        self.run(|| Steering::attach(&config))
    }

    /// A pool of 1024 small frames with a socket on queue 0 of each interface.
    pub fn pool(&self, interfaces: &[&str]) -> (FramePool, Vec<XskSocket>) {
        let ports: Vec<_> = interfaces.iter().map(|name| small_port(name)).collect();
        self.run(|| FramePool::new(&small_umem(), &ports)).expect("a pool")
    }

    pub fn packet_socket(&self, interface: &str) -> PacketSocket {
        self.run(|| PacketSocket::open(interface).expect("a packet socket"))
    }

    /// The paths in the pin directory; `None` if there is none.
    pub fn pins(&self) -> Option<Vec<PathBuf>> {
        self.run(|| {
            let entries = fs::read_dir(Path::new(PIN_DIR)).ok()?;
            Some(entries.map(|entry| entry.expect("readable").path()).collect())
        })
    }
}

/// The configuration of tests, without interfaces.
pub fn config() -> SteeringConfig {
    SteeringConfig {
        pin_dir: PIN_DIR.into(),
        log_dir: "/mnt/run".into(),
        interfaces: Vec::new(),
        limits: SetLimits::default(),
    }
}

pub fn small_umem() -> UmemConfig {
    UmemConfig { frame_count: 1024, chunk_len: 2048, headroom: 0, huge_pages: false }
}

pub fn small_port(interface: &str) -> XskSocketConfig {
    XskSocketConfig {
        rx_ring_len: 128,
        tx_ring_len: 128,
        fill_ring_len: 256,
        completion_ring_len: 128,
        zero_copy: ZeroCopy::Auto,
        ..XskSocketConfig::new(interface, 0)
    }
}

/// Every counter that is not zero.
pub fn counted(steering: &Steering) -> Vec<(&'static str, u64)> {
    let counters: Vec<(Reason, u64)> = steering.counters().expect("counters");
    counters.into_iter().filter(|(_, n)| *n > 0).map(|(reason, n)| (reason.name(), n)).collect()
}

pub fn counter(steering: &Steering, reason: Reason) -> u64 {
    let counters = steering.counters().expect("counters");
    counters.into_iter().find(|(known, _)| *known == reason).map_or(0, |(_, n)| n)
}

/// An IPv4 UDP frame.
pub fn udp(to: ([u8; 4], u16), payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv4([192, 0, 2, 9], to.0, 64)
        .udp(4000, to.1)
        .write(&mut frame, payload)
        .expect("a frame");
    frame
}

/// An IPv4 TCP SYN.
pub fn tcp(to: ([u8; 4], u16)) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv4([192, 0, 2, 9], to.0, 64)
        .tcp(4000, to.1, 7, 1024)
        .syn()
        .write(&mut frame, &[])
        .expect("a frame");
    frame
}

/// A frame of the pool with these bytes.
pub fn filled(pool: &mut FramePool, bytes: &[u8]) -> Frame {
    let mut frame = pool.take().expect("a free frame");
    frame.set_len(bytes.len()).expect("it fits");
    frame.as_mut().copy_from_slice(bytes);
    frame
}

/// Receives until `want` frames are there or a second has passed, refilling as it goes.
pub fn receive(port: &mut XskSocket, pool: &mut FramePool, want: usize) -> Vec<Frame> {
    let mut frames = Vec::new();
    for _ in 0..1000 {
        let room = want - frames.len();
        port.rx_burst(&mut frames, room);
        if frames.len() >= want {
            break;
        }
        port.refill(pool);
        thread::sleep(Duration::from_millis(1));
    }
    frames
}

/// Waits up to two seconds for a condition.
pub fn eventually(mut is_true: impl FnMut() -> bool) -> bool {
    (0..1000).any(|_| {
        let now = is_true();
        if !now {
            thread::sleep(Duration::from_millis(2));
        }
        now
    })
}

/// An XDP program that answers every packet with one action.
pub fn program(action: u32) -> OwnedFd {
    #[repr(C)]
    struct Load {
        prog_type: u32,
        insn_cnt: u32,
        insns: *const u64,
        license: *const u8,
        log: [u64; 2],
    }
    // r0 = action; exit
    let code = [0xb7 | u64::from(action) << 32, 0x95_u64];
    let load = Load {
        prog_type: 6,
        insn_cnt: 2,
        insns: code.as_ptr(),
        license: c"MIT".as_ptr().cast(),
        log: [0; 2],
    };
    let fd = bpf(5, &load);
    // SAFETY: the kernel has just created it for us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Attaches a program to a device of this network namespace, for as long as the link is open.
pub fn attach(program: &OwnedFd, ifindex: u32) -> OwnedFd {
    let fd = bpf(28, &[program.as_raw_fd().cast_unsigned(), ifindex, 37, 1 << 2]);
    // SAFETY: the kernel has just created it for us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A command of bpf(2) that returns a number.
pub fn bpf<T>(command: libc::c_long, attr: &T) -> i32 {
    // SAFETY: `attr` is what the command reads; every pointer in it is to something alive in the caller.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    assert!(result >= 0, "bpf command {command}: {}", io::Error::last_os_error());
    i32::try_from(result).expect("a descriptor")
}

/// An AF_PACKET socket on one interface: sends and receives whole frames through the kernel.
pub struct PacketSocket {
    fd: OwnedFd,
}

impl PacketSocket {
    fn open(interface: &str) -> io::Result<Self> {
        let all = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: plain integers in, a descriptor or -1 out.
        let raw =
            unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(all)) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just created and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: all,
            sll_ifindex: if_nametoindex(interface)?.cast_signed(),
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: a complete sockaddr_ll with its length.
        let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) };
        if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(Self { fd }) }
    }

    pub fn send(&self, frame: &[u8]) {
        // SAFETY: reads `frame.len()` bytes of `frame`.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(usize::try_from(sent), Ok(frame.len()), "{}", io::Error::last_os_error());
    }

    /// The next frame received from outside; `None` if there is none within half a second.
    pub fn receive(&self) -> Option<Vec<u8>> {
        for _ in 0..250 {
            if let Some(frame) = self.try_receive() {
                return Some(frame);
            }
            thread::sleep(Duration::from_millis(2));
        }
        None
    }

    pub fn try_receive(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 1 << 16];
        // SAFETY: a sockaddr_ll is plain integers: all zero is one.
        let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        let mut from_len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        loop {
            // SAFETY: writes at most `frame.len()` bytes into `frame` and one address into `from`.
            let len = unsafe {
                libc::recvfrom(
                    self.fd.as_raw_fd(),
                    frame.as_mut_ptr().cast(),
                    frame.len(),
                    libc::MSG_DONTWAIT,
                    (&raw mut from).cast(),
                    &raw mut from_len,
                )
            };
            let len = usize::try_from(len).ok()?;
            if from.sll_pkttype != libc::PACKET_OUTGOING {
                frame.truncate(len);
                return Some(frame);
            }
        }
    }
}
