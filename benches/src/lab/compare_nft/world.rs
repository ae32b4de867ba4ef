//! Two gateways in the same place of the same network: Flowgate, and Linux with nft. Client and backend have no IP of their
//! own: the comparison speaks for them with raw frames.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::RcvBufForce;
use nix::sys::socket::{MsgFlags, bind, recv, send, setsockopt};
use socket2::{Domain, Protocol, Socket, Type};

use super::packet::{Content, Mac, Sending, Shape, UdpLength, frames};
use super::reading::{End, Reading, read, reassemble};
use super::services;
use crate::clock;
use crate::error::{Error, Result};
use crate::lab::gateway::{Gateway, GatewayOptions, last_lines};
use crate::lab::topology::{
    FABRIC, GATEWAY_FABRIC, GATEWAY_UPLINK, HOST_INTERFACE, Link, UPLINK, add_ipv6_address, ipv6_of,
};
use crate::netns::{Namespace, guarded};

const ETH_P_ALL: u16 = 3;
pub(super) const CLIENT_MAC: Mac = [2, 0xf0, 0xc0, 0, 2, 10];
pub(super) const BACKEND_MAC: Mac = [2, 0xf0, 10, 0xf4, 0, 11];
pub(super) const UPLINK_MAC: Mac = [2, 0xaa, 0, 0, 0, 1];
pub(super) const FABRIC_MAC: Mac = [2, 0xaa, 0, 0, 0, 2];
/// The router behind which the clients of [`FAR_CLIENTS`] are.
const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);
const FAR_CLIENTS: &str = "198.51.100.0/24";
const FAR_CLIENTS_V6: &str = "2001:db8:198:51::/64";
/// The client port of the datagrams that end a round.
const LAST_PORT: u16 = 9;
const LAST_LIMIT: Duration = Duration::from_secs(5);
/// After the last datagram of a round: what left by the other interface may still be under way.
const SETTLE: Duration = Duration::from_millis(3);

/// One of the two networks.
pub(super) struct World {
    pub(super) name: &'static str,
    /// Only Flowgate's.
    pub(super) flowgate: Option<Gateway>,
    client: Tap,
    backend: Tap,
    gateway: Namespace,
    _hosts: [Namespace; 2],
}

impl World {
    /// The network with Flowgate.
    pub(super) fn with_flowgate(binary: &Path) -> Result<Self> {
        let mut world = Self::build("flowgate")?;
        let mut options = GatewayOptions::new(binary);
        // No echo requests of its own between the packets.
        options.xdp_config = "prove = false".into();
        options.extra_config = services::FLOWGATE_CONFIG.into();
        let gateway = Gateway::start(&world.gateway, options)?;
        gateway.manifests().write("all.yaml", &services::manifests())?;
        services::NAMES.iter().try_for_each(|name| gateway.wait_for_service(name))?;
        world.flowgate = Some(gateway);
        Ok(world)
    }

    /// The network with nft.
    pub(super) fn with_nft() -> Result<Self> {
        let world = Self::build("linux nft")?;
        for (key, value) in services::LINUX_SYSCTLS {
            world.gateway.sysctl(key, value)?;
        }
        let folder = crate::lab::scratch::folder("nft")?;
        let file = folder.path().join("rules.nft");
        std::fs::write(&file, services::ruleset()).map_err(Error::io("write the rules of nft"))?;
        let mut nft = guarded("nft");
        nft.arg("-f").arg(&file);
        world.gateway.check(nft)?;
        Ok(world)
    }

    fn build(name: &'static str) -> Result<Self> {
        let [client, gateway, backend] =
            [Namespace::new("client")?, Namespace::new("gateway")?, Namespace::new("backend")?];
        let link = Link { queues: 1, mtu: None };
        link.connect(&client, HOST_INTERFACE, &gateway, UPLINK)?;
        link.connect(&backend, HOST_INTERFACE, &gateway, FABRIC)?;
        for (host, mac) in [(&client, CLIENT_MAC), (&backend, BACKEND_MAC)] {
            host.ip(&format!("link set {HOST_INTERFACE} address {}", text(mac)))?;
        }
        let sides = [(UPLINK, UPLINK_MAC, GATEWAY_UPLINK), (FABRIC, FABRIC_MAC, GATEWAY_FABRIC)];
        for (interface, mac, address) in sides {
            gateway.ip(&format!("link set {interface} address {}", text(mac)))?;
            gateway.ip(&format!("addr add {address}/24 dev {interface}"))?;
            add_ipv6_address(&gateway, interface, address)?;
        }
        gateway.sysctl("net/ipv4/ip_forward", "1")?;
        gateway.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        for address in services::CLIENTS.into_iter().chain([ROUTER]) {
            neighbour(&gateway, address, UPLINK, CLIENT_MAC)?;
        }
        neighbour(&gateway, services::BACKEND, FABRIC, BACKEND_MAC)?;
        // Link-local sources are answered too.
        for (interface, mac) in [(UPLINK, CLIENT_MAC), (FABRIC, BACKEND_MAC)] {
            gateway
                .ip(&format!("neigh replace fe80::1 lladdr {} dev {interface} nud permanent", text(mac)))?;
        }
        for network in [FAR_CLIENTS, "default"] {
            gateway.ip(&format!("route add {network} via {ROUTER}"))?;
        }
        for network in [FAR_CLIENTS_V6, "default"] {
            gateway.ip(&format!("-6 route add {network} via {}", ipv6_of(ROUTER)))?;
        }
        for (key, value) in services::SYSCTLS {
            gateway.sysctl(key, value)?;
        }
        let (tap, other) = (Tap::open(&client)?, Tap::open(&backend)?);
        Ok(Self { name, flowgate: None, client: tap, backend: other, gateway, _hosts: [client, backend] })
    }

    /// Puts frames on the links of their senders and returns what arrives at both ends.
    pub(super) fn exchange(&self, sent: &[(End, Vec<u8>)], number: u16) -> Result<Vec<(End, Reading)>> {
        for (end, frame) in sent {
            self.tap(*end).send(frame)?;
        }
        let mut arrived = [Vec::new(), Vec::new()];
        // What the gateway does with the frames before is done when these two have passed, one in each direction.
        let client = (IpAddr::V4(services::CLIENTS[0]), LAST_PORT).into();
        let request = last(client, services::LAST.into(), (CLIENT_MAC, UPLINK_MAC), number);
        self.client.send(&request)?;
        let seen = self.await_last(End::Backend, number, &mut arrived)?;
        let reply = last(seen.destination, seen.source, (BACKEND_MAC, FABRIC_MAC), number);
        self.backend.send(&reply)?;
        self.await_last(End::Client, number, &mut arrived)?;
        let until = clock::now() + SETTLE;
        while let Some(end) = self.wait(until.saturating_duration_since(clock::now()))? {
            self.take(end, &mut arrived)?;
        }
        let mut readings = Vec::new();
        for (end, frames) in [End::Client, End::Backend].into_iter().zip(&arrived) {
            let packets = reassemble(frames);
            readings.extend(packets.iter().filter_map(|(packet, cut)| Some((end, read(packet, end, *cut)?))));
        }
        readings.retain(|(_, reading)| !is_last(reading));
        Ok(readings)
    }

    /// What the gateway says of itself, for the report of a difference.
    pub(super) fn state(&self) -> String {
        match &self.flowgate {
            Some(gateway) => format!(
                "{}\nthe log ends with:\n{}",
                gateway.show(&["drops"]).unwrap_or_default(),
                last_lines(&gateway.log(), 10)
            ),
            None => String::new(),
        }
    }

    fn tap(&self, end: End) -> &Tap {
        match end {
            End::Client => &self.client,
            End::Backend => &self.backend,
        }
    }

    /// Collects frames until the datagram with this number arrives at `end`.
    fn await_last(&self, end: End, number: u16, arrived: &mut [Vec<Vec<u8>>; 2]) -> Result<Reading> {
        let until = clock::now() + LAST_LIMIT;
        loop {
            let found = arrived[index(end)].iter().rev().find_map(|frame| {
                let reading = read(frame.get(14..)?, end, false)?;
                (is_last(&reading) && reading.number == number).then_some(reading)
            });
            if let Some(reading) = found {
                return Ok(reading);
            }
            let Some(ready) = self.wait(until.saturating_duration_since(clock::now()))? else {
                return Err(Error::Timeout {
                    what: format!("the arrival of a datagram through {} at the {end:?}", self.name),
                    after: LAST_LIMIT,
                    hint: self.state(),
                });
            };
            self.take(ready, arrived)?;
        }
    }

    fn take(&self, end: End, arrived: &mut [Vec<Vec<u8>>; 2]) -> Result<()> {
        while let Some(frame) = self.tap(end).receive()? {
            arrived[index(end)].push(frame);
        }
        Ok(())
    }

    /// The end at which a frame waits, if one comes within the time.
    fn wait(&self, limit: Duration) -> Result<Option<End>> {
        let mut both =
            [&self.client, &self.backend].map(|tap| PollFd::new(tap.socket.as_fd(), PollFlags::POLLIN));
        let limit = PollTimeout::try_from(limit.as_millis().min(60_000) + 1).unwrap_or(PollTimeout::MAX);
        poll(&mut both, limit).map_err(Error::errno("wait for frames"))?;
        let is_ready = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
        Ok([End::Client, End::Backend]
            .into_iter()
            .zip(&both)
            .find(|(_, fd)| is_ready(fd))
            .map(|(end, _)| end))
    }
}

/// The packet socket (packet(7)) of a host.
struct Tap {
    socket: Socket,
}

impl Tap {
    fn open(host: &Namespace) -> Result<Self> {
        let open = || -> std::io::Result<Socket> {
            let all = Protocol::from(i32::from(ETH_P_ALL.to_be()));
            let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking(), Some(all))?;
            setsockopt(&socket, RcvBufForce, &(16 << 20))?;
            let device = getifaddrs()?.find(|entry| {
                entry.interface_name == HOST_INTERFACE
                    && entry.address.is_some_and(|address| address.as_link_addr().is_some())
            });
            let address = device.and_then(|entry| entry.address?.as_link_addr().copied());
            bind(socket.as_raw_fd(), &address.ok_or(std::io::ErrorKind::NotFound)?)?;
            Ok(socket)
        };
        let socket =
            host.run(open).map_err(Error::io(format!("open a packet socket in {}", host.label())))?;
        Ok(Self { socket })
    }

    fn send(&self, frame: &[u8]) -> Result<()> {
        send(self.socket.as_raw_fd(), frame, MsgFlags::empty())
            .map(drop)
            .map_err(Error::errno("send a frame"))
    }

    /// The next frame, if one is there.
    fn receive(&self) -> Result<Option<Vec<u8>>> {
        let mut frame = vec![0; 4096];
        match recv(self.socket.as_raw_fd(), &mut frame, MsgFlags::empty()) {
            Ok(len) => {
                frame.truncate(len);
                Ok(Some(frame))
            }
            Err(nix::Error::EAGAIN) => Ok(None),
            Err(errno) => Err(Error::errno("receive a frame")(errno)),
        }
    }
}

fn last(from: std::net::SocketAddr, to: std::net::SocketAddr, macs: (Mac, Mac), number: u16) -> Vec<u8> {
    let content = Content::Udp { payload_len: 2, length: UdpLength::Right };
    let sending = Sending { from, to, macs, number, received: &[] };
    frames(&content, &Shape::default(), &sending).remove(0)
}

/// Whether it is a datagram that ends a round.
fn is_last(reading: &Reading) -> bool {
    reading.about.is_none()
        && (reading.destination.port() == services::LAST_TARGET_PORT
            || reading.destination.port() == LAST_PORT)
}

fn neighbour(gateway: &Namespace, address: Ipv4Addr, interface: &str, mac: Mac) -> Result<()> {
    let v6: Ipv6Addr = ipv6_of(address);
    for address in [IpAddr::V4(address), IpAddr::V6(v6)] {
        gateway.ip(&format!("neigh replace {address} lladdr {} dev {interface} nud permanent", text(mac)))?;
    }
    Ok(())
}

fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn index(end: End) -> usize {
    match end {
        End::Client => 0,
        End::Backend => 1,
    }
}
