//! The links around the gateway and everybody on them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use fastrand::Rng;
use flowgate_tables::InterfaceId;
use flowgate_wire::Protocol;

use super::frames::{Packet, control, cut, frame};
use super::peers::Peer;
use crate::model::packet::{Flags, Kind, Tuple, read};
use crate::model::pieces::segment_of;
use crate::model::world::World;

/// All hosts, and the frames that are on their way to the gateway.
pub(crate) struct Network {
    /// By what they receive.
    peers: BTreeMap<Tuple, Peer>,
    clients: Vec<Tuple>,
    /// By time of arrival.
    coming: BTreeMap<(u64, u64), (InterfaceId, Vec<u8>)>,
    sent: u64,
    /// Out of a hundred frames, how many are lost.
    loss: u8,
}

impl Network {
    pub(crate) fn new(random: &mut Rng) -> Self {
        let loss = if random.bool() { 0 } else { random.u8(..20) };
        Self { peers: BTreeMap::new(), clients: Vec::new(), coming: BTreeMap::new(), sent: 0, loss }
    }

    /// Somebody does something: mostly a client that speaks, sometimes a new one, sometimes noise.
    pub(crate) fn stir(&mut self, world: &World, now: u64, random: &mut Rng) {
        match random.u8(..20) {
            0..6 => self.call(world, now, random),
            6..8 => self.make_noise(world, now, random),
            8..10 => self.somebody_speaks(now, random),
            _ => self.a_client_speaks(now, random),
        }
    }

    /// A new conversation begins.
    fn call(&mut self, world: &World, now: u64, random: &mut Rng) {
        let Some((protocol, remote)) = some_frontend(world, random) else { return };
        let port = random.u16(1025..1040) * if random.bool() { 1 } else { 40 };
        let local = SocketAddr::new(some_client(remote.is_ipv4(), random), port);
        let mut peer = Peer::client(protocol, local, remote, random);
        let packets = peer.speak(random);
        let key = Tuple { protocol, src: remote, dst: local };
        self.clients.push(key);
        self.peers.insert(key, peer);
        self.send(&packets, now, random);
    }

    fn a_client_speaks(&mut self, now: u64, random: &mut Rng) {
        let Some(key) = random.choice(self.clients.iter().copied()) else { return };
        self.speaks(key, now, random);
    }

    fn somebody_speaks(&mut self, now: u64, random: &mut Rng) {
        let Some(key) = random.choice(self.peers.keys().copied().collect::<Vec<_>>()) else { return };
        self.speaks(key, now, random);
    }

    fn speaks(&mut self, key: Tuple, now: u64, random: &mut Rng) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let packets = peer.speak(random);
        self.send(&packets, now, random);
    }

    /// A packet that belongs to nothing.
    fn make_noise(&mut self, world: &World, now: u64, random: &mut Rng) {
        let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp][random.usize(..3)];
        let v4 = random.bool();
        let dst = match random.u8(..6) {
            0 => SocketAddr::new(addr(v4, Net::Cluster, random.u8(..)), random.u16(1..)),
            1 => SocketAddr::new(addr(v4, Net::Servers, 1), random.u16(39_990..40_100)),
            2 => SocketAddr::new(addr(v4, Net::Clients, 1), random.u16(39_990..40_100)),
            3 => SocketAddr::new(some_client(v4, random), random.u16(1025..1040)),
            4 => SocketAddr::new(some_server(v4, random), 8080),
            _ => match some_frontend(world, random) {
                Some((_, addr)) => addr,
                None => return,
            },
        };
        let v4 = dst.is_ipv4();
        let src = match random.u8(..6) {
            0 => SocketAddr::new(some_server(v4, random), 8080),
            1 if v4 => SocketAddr::new(IpAddr::from([random.u8(..), 0, 2, 1]), random.u16(..)),
            1 => SocketAddr::new(IpAddr::from([random.u16(..), 0, 0, 0, 0, 0, 0, 1]), random.u16(..)),
            2 => SocketAddr::new(addr(v4, Net::Servers, 1), random.u16(1..)),
            _ => SocketAddr::new(some_client(v4, random), random.u16(1025..1040)),
        };
        let [syn, ack, fin, rst] = [random.bool(), random.bool(), random.u8(..4) == 0, random.u8(..4) == 0];
        let flags = Flags { syn, ack, fin, rst };
        let (sequence, acknowledgement) = (random.u32(..), random.u32(..));
        let packet =
            Packet { protocol, src, dst, flags, sequence, acknowledgement, payload_len: random.usize(..40) };
        self.send(&[packet], now, random);
    }

    /// Packets set out for the gateway; some do not arrive, some arrive twice, none in order.
    fn send(&mut self, packets: &[Packet], now: u64, random: &mut Rng) {
        for packet in packets {
            let whole = frame(packet, random);
            let pieces = if random.u8(..8) == 0 { cut(&whole, random) } else { None };
            self.set_out(pieces.unwrap_or_else(|| vec![whole]), packet.src.ip(), now, random);
        }
    }

    fn set_out(&mut self, frames: Vec<Vec<u8>>, from: IpAddr, now: u64, random: &mut Rng) {
        for bytes in frames {
            let copies = if random.u8(..30) == 0 { 2 } else { 1 };
            for _ in 0..copies {
                if random.u8(..100) < self.loss {
                    continue;
                }
                let delay = if random.u8(..10) == 0 { random.u64(..200) } else { random.u64(..4) };
                self.sent += 1;
                let by = InterfaceId(u8::from(is_server(from)));
                self.coming.insert((now + delay, self.sent), (by, bytes.clone()));
            }
        }
    }

    /// A host, or a router on the way to it, reports an error about a packet.
    fn complain(&mut self, about: &[u8], now: u64, random: &mut Rng) {
        let Kind::Segment(segment) = read(about) else { return };
        let (src, mut dst) = (segment.tuple.dst.ip(), segment.tuple.src.ip());
        let router = addr(src.is_ipv4(), if is_server(src) { Net::Servers } else { Net::Clients }, 254);
        let src = if random.bool() { src } else { router };
        match random.u8(..10) {
            // One that nobody was to get.
            0 => dst = addr(src.is_ipv4(), Net::Clients, 1),
            1 => dst = addr(src.is_ipv4(), Net::Cluster, 50 + random.u8(..4)),
            _ => {}
        }
        let bytes = control(about, src, dst, random);
        let by = InterfaceId(u8::from(is_server(segment.tuple.dst.ip())));
        self.sent += 1;
        self.coming.insert((now + random.u64(..4), self.sent), (by, bytes));
    }

    /// The frames that have arrived at the gateway by now.
    pub(crate) fn arrived(&mut self, now: u64) -> Vec<(InterfaceId, Vec<u8>)> {
        let later = self.coming.split_off(&(now + 1, 0));
        std::mem::replace(&mut self.coming, later).into_values().collect()
    }

    /// Hosts receive what the gateway sent, and answer.
    pub(crate) fn receive(&mut self, frames: &[(InterfaceId, Vec<u8>)], now: u64, random: &mut Rng) {
        for (_, frame) in frames {
            // The first fragment stands for its datagram.
            let Some(segment) = segment_of(frame) else { continue };
            if random.u8(..100) < self.loss {
                continue;
            }
            if random.u8(..25) == 0 {
                self.complain(frame, now, random);
            }
            let key = segment.tuple;
            if !self.peers.contains_key(&key) && is_server(key.dst.ip()) {
                self.peers.insert(key, Peer::server(key.protocol, key.dst, key.src, random));
            }
            let Some(peer) = self.peers.get_mut(&key) else { continue };
            let answers = peer.hear(&segment, random);
            self.send(&answers, now, random);
        }
    }
}

/// Parts of the address plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Net {
    Clients,
    /// Clients behind a router.
    Far,
    Servers,
    /// Cluster IPs.
    Cluster,
    /// Addresses of load balancers.
    Public,
}

/// The address of a host in a part of the plan.
pub(crate) fn addr(v4: bool, net: Net, host: u8) -> IpAddr {
    match (v4, net) {
        (true, Net::Clients) => IpAddr::from([192, 0, 2, host]),
        (true, Net::Far) => IpAddr::from([198, 51, 100, host]),
        (true, Net::Servers) => IpAddr::from([10, 244, 0, host]),
        (true, Net::Cluster) => IpAddr::from([10, 96, 0, host]),
        (true, Net::Public) => IpAddr::from([203, 0, 113, host]),
        (false, net) => {
            let subnet = match net {
                Net::Clients => 1,
                Net::Far => 2,
                Net::Servers => 3,
                Net::Cluster => 4,
                Net::Public => 5,
            };
            IpAddr::from([0x2001, 0xdb8, subnet, 0, 0, 0, 0, u16::from(host)])
        }
    }
}

fn is_server(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(v4) => v4.octets()[..3] == [10, 244, 0],
        IpAddr::V6(v6) => v6.segments()[..3] == [0x2001, 0xdb8, 3],
    }
}

fn some_client(v4: bool, random: &mut Rng) -> IpAddr {
    match random.u8(..4) {
        0 => addr(v4, Net::Far, random.u8(1..4)),
        _ => addr(v4, Net::Clients, random.u8(10..14)),
    }
}

fn some_server(v4: bool, random: &mut Rng) -> IpAddr {
    addr(v4, Net::Servers, random.u8(11..17))
}

fn some_frontend(world: &World, random: &mut Rng) -> Option<(Protocol, SocketAddr)> {
    let all = world.services.iter().flat_map(|s| s.frontends.iter().map(move |f| (s.protocol, f)));
    let (protocol, frontend) = random.choice(all.collect::<Vec<_>>())?;
    Some((protocol, SocketAddr::new(frontend.addr, frontend.port.number())))
}
