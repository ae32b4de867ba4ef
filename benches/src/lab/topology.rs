//! The lab's network: namespaces, links and addresses.
//!
//! ```text
//! client 192.0.2.10 --- up0 192.0.2.1 gateway 10.244.0.1 fab0 --- bridge --- backend-1 10.244.0.11
//!                                                                        \-- backend-2 10.244.0.12 ...
//! ```
//! Each interface also has an IPv6 address, by [`ipv6_of`]: 10.244.0.11 has 2001:db8:10:244::11. Duplicate address
//! detection (RFC 4862 section 5.4) and router solicitation are off, so that addresses are usable at once.
//!
//! Offloads stay as the kernel sets them: frames of local stacks arrive at the gateway with partial checksums, as they do
//! on a real node, and the gateway has to complete them.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::thread;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::loadgen::packets::{Sink, SinkOptions};
use crate::netns::Namespace;

/// The gateway's address towards the clients; NodePorts answer here.
pub const GATEWAY_UPLINK: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The gateway's address towards the backends.
pub const GATEWAY_FABRIC: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
/// The gateway's interface towards the clients.
pub const UPLINK: &str = "up0";
/// The gateway's interface towards the backends.
pub const FABRIC: &str = "fab0";
/// The range of ClusterIPs, which clients reach through the gateway.
pub const SERVICE_RANGE: &str = "10.96.0.0/12";
/// The range of IPv6 ClusterIPs, by [`ipv6_of`].
pub const SERVICE_RANGE_V6: &str = "2001:db8:10:96::/64";

/// The IPv6 address that goes with an IPv4 address of the lab. It reads alike: each octet, as it is written in decimal,
/// is a group. The first two octets are the network, a /64.
pub const fn ipv6_of(address: Ipv4Addr) -> Ipv6Addr {
    const fn group(octet: u8) -> u16 {
        let octet = octet as u16;
        octet / 100 * 0x100 + octet / 10 % 10 * 0x10 + octet % 10
    }
    let [a, b, c, d] = address.octets();
    Ipv6Addr::new(0x2001, 0xdb8, group(a), group(b), 0, 0, group(c), group(d))
}

const FIRST_CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const FIRST_BACKEND: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 11);
pub(crate) const BRIDGE: &str = "br0";
/// The bridge port towards the gateway.
const GATEWAY_PORT: &str = "gateway";
/// The one interface of a client or backend.
pub const HOST_INTERFACE: &str = "eth0";

/// The size of the network.
#[derive(Debug, Clone)]
pub struct TopologyOptions {
    /// Client namespaces, at least one. Several clients share a bridge in front of the gateway.
    pub clients: u8,
    /// Backend namespaces at the start.
    pub backends: u8,
    /// Receive and transmit queues of each end of the gateway's links.
    pub queues: u32,
    /// The MTU of all links; 1500 if not given.
    pub mtu: Option<u32>,
}

impl Default for TopologyOptions {
    fn default() -> Self {
        Self { clients: 1, backends: 3, queues: 1, mtu: None }
    }
}

/// A client or a backend: a namespace with one interface, [`HOST_INTERFACE`].
#[derive(Clone)]
pub struct Host {
    /// Its name, such as `backend-1`.
    pub name: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its IPv6 address, by [`ipv6_of`].
    pub address_v6: Ipv6Addr,
    /// The namespace of its processes and sockets.
    pub namespace: Namespace,
}

/// The namespaces of the lab and the links between them; removed when dropped.
pub struct Topology {
    clients: Vec<Host>,
    gateway: Namespace,
    fabric: Namespace,
    /// The bridge of the clients, if there are several.
    uplink: Option<Namespace>,
    backends: Vec<Host>,
    options: TopologyOptions,
}

impl Topology {
    /// Builds namespaces and links.
    pub fn build(options: TopologyOptions) -> Result<Self> {
        if options.clients == 0 || options.queues == 0 {
            return Err(Error::Option("a lab needs at least one client and one queue".into()));
        }
        let gateway = Namespace::new("gateway")?;
        let fabric = switch("fabric")?;
        let link = Link { queues: options.queues, mtu: options.mtu };
        link.connect(&fabric, GATEWAY_PORT, &gateway, FABRIC)?;
        join_bridge(&fabric, GATEWAY_PORT)?;

        let mut topology =
            Self { clients: Vec::new(), gateway, fabric, uplink: None, backends: Vec::new(), options };
        topology.add_clients(link)?;
        topology.configure_gateway()?;
        for _ in 0..topology.options.backends {
            topology.add_backend()?;
        }
        Ok(topology)
    }

    /// The first client.
    pub fn client(&self) -> &Host {
        &self.clients[0]
    }

    /// All clients.
    pub fn clients(&self) -> &[Host] {
        &self.clients
    }

    /// The gateway's namespace, with [`UPLINK`] and [`FABRIC`].
    pub fn gateway(&self) -> &Namespace {
        &self.gateway
    }

    /// The current backends.
    pub fn backends(&self) -> &[Host] {
        &self.backends
    }

    /// Counts and drops packets where they leave the gateway, at the fabric's end of the link: the network stack behind
    /// it would cost more than the gateway itself.
    pub fn sink_at_gateway(&self, options: SinkOptions) -> Result<Sink> {
        self.fabric.enter(|| Sink::attach(GATEWAY_PORT, options))?
    }

    /// Adds a backend with the next free number and address.
    pub fn add_backend(&mut self) -> Result<Host> {
        let taken = |address| self.backends.iter().any(|backend| backend.address == address);
        let number = (0..200u8).find(|number| !taken(nth(FIRST_BACKEND, *number)));
        let number =
            number.ok_or_else(|| Error::Option("the lab is full: no free backend address".to_owned()))?;
        self.add_host(&format!("backend-{}", number + 1), nth(FIRST_BACKEND, number))
    }

    /// Adds a host with this name and address to the fabric.
    pub fn add_host(&mut self, name: &str, address: Ipv4Addr) -> Result<Host> {
        let namespace = Namespace::new(name)?;
        let port = format!("h{}", u32::from(address));
        let link = Link { queues: 1, mtu: self.options.mtu };
        link.connect(&self.fabric, &port, &namespace, HOST_INTERFACE)?;
        join_bridge(&self.fabric, &port)?;
        configure_host(&namespace, address)?;
        let address_v6 = add_ipv6_address(&namespace, HOST_INTERFACE, address)?;
        namespace.ip(&format!("route add default via {GATEWAY_FABRIC}"))?;
        namespace.ip(&format!("route add default via {}", ipv6_of(GATEWAY_FABRIC)))?;
        let host = Host { name: name.to_owned(), address, address_v6, namespace };
        self.backends.push(host.clone());
        Ok(host)
    }

    /// Unplugs a backend: its link is deleted at once, even if its namespace lives on.
    pub fn remove_backend(&mut self, name: &str) -> Result<()> {
        let place = self.backends.iter().position(|backend| backend.name == name);
        let place = place.ok_or_else(|| Error::Option(format!("the lab has no backend named {name}")))?;
        let host = self.backends.swap_remove(place);
        self.fabric.ip(&format!("link del h{}", u32::from(host.address)))?;
        Ok(())
    }

    /// Sets the MTU of both ends of the gateway's link to the fabric.
    pub fn set_fabric_mtu(&self, mtu: u32) -> Result<()> {
        self.fabric.ip(&format!("link set {GATEWAY_PORT} mtu {mtu}"))?;
        self.gateway.ip(&format!("link set {FABRIC} mtu {mtu}")).map(drop)
    }

    /// Deletes the gateway's interface towards the fabric and creates it again after `away`: a new interface index with the
    /// same name, addresses and Ethernet address, as of a NIC that is plugged in again.
    pub fn replug_fabric(&self, away: Duration) -> Result<()> {
        let ethernet =
            self.gateway.run(|| std::fs::read_to_string(format!("/sys/class/net/{FABRIC}/address")));
        let ethernet = ethernet.map_err(Error::io(format!("read the Ethernet address of {FABRIC}")))?;
        self.gateway.ip(&format!("link del {FABRIC}"))?;
        thread::sleep(away);
        let link = Link { queues: self.options.queues, mtu: self.options.mtu };
        link.connect(&self.fabric, GATEWAY_PORT, &self.gateway, FABRIC)?;
        self.gateway.ip(&format!("link set {FABRIC} address {}", ethernet.trim()))?;
        join_bridge(&self.fabric, GATEWAY_PORT)?;
        self.gateway.ip(&format!("addr add {GATEWAY_FABRIC}/24 dev {FABRIC}"))?;
        add_ipv6_address(&self.gateway, FABRIC, GATEWAY_FABRIC).map(drop)
    }

    /// Gives each namespace a name under `/run/netns`: `prefix` plus `client`, `gateway` or the name of the backend.
    pub fn publish(&self, prefix: &str) -> Result<()> {
        self.named().try_for_each(|(name, namespace)| namespace.publish(&format!("{prefix}{name}")))
    }

    /// The names that [`Self::publish`] gives.
    pub fn names(&self, prefix: &str) -> Vec<String> {
        self.named().map(|(name, _)| format!("{prefix}{name}")).collect()
    }

    fn named(&self) -> impl Iterator<Item = (&str, &Namespace)> {
        let hosts =
            self.clients.iter().chain(&self.backends).map(|host| (host.name.as_str(), &host.namespace));
        hosts.chain([("gateway", &self.gateway)])
    }

    fn add_clients(&mut self, link: Link) -> Result<()> {
        if self.options.clients > 1 {
            let uplink = switch("uplink")?;
            link.connect(&uplink, GATEWAY_PORT, &self.gateway, UPLINK)?;
            join_bridge(&uplink, GATEWAY_PORT)?;
            self.uplink = Some(uplink);
        }
        for number in 0..self.options.clients {
            let name = if number == 0 { "client".to_owned() } else { format!("client-{}", number + 1) };
            let namespace = Namespace::new(&name)?;
            match &self.uplink {
                Some(uplink) => {
                    let port = format!("c{number}");
                    link.connect(uplink, &port, &namespace, HOST_INTERFACE)?;
                    join_bridge(uplink, &port)?;
                }
                None => link.connect(&namespace, HOST_INTERFACE, &self.gateway, UPLINK)?,
            }
            let address = nth(FIRST_CLIENT, number);
            configure_host(&namespace, address)?;
            let address_v6 = add_ipv6_address(&namespace, HOST_INTERFACE, address)?;
            let host = Host { name, address, address_v6, namespace };
            host.route(SERVICE_RANGE, GATEWAY_UPLINK)?;
            // Backends of Services that preserve the client's address, and the gateway's address on the fabric.
            host.route("10.244.0.0/16", GATEWAY_UPLINK)?;
            self.clients.push(host);
        }
        Ok(())
    }

    fn configure_gateway(&self) -> Result<()> {
        for (interface, address) in [(UPLINK, GATEWAY_UPLINK), (FABRIC, GATEWAY_FABRIC)] {
            self.gateway.ip(&format!("addr add {address}/24 dev {interface}"))?;
            add_ipv6_address(&self.gateway, interface, address)?;
        }
        self.gateway.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        self.gateway.sysctl("net/ipv4/ip_forward", "1")
    }
}

impl Host {
    /// Adds a route to an IPv4 network, and one to the IPv6 network that [`ipv6_of`] maps it to.
    pub fn route(&self, network: &str, via: Ipv4Addr) -> Result<()> {
        let first = network.split('/').next().and_then(|first| first.parse().ok());
        let first = first.ok_or_else(|| Error::Option(format!("{network} is not an IPv4 network")))?;
        self.namespace.ip(&format!("route add {network} via {via}"))?;
        self.namespace.ip(&format!("route add {}/64 via {}", ipv6_of(first), ipv6_of(via))).map(drop)
    }
}

/// Options of both ends of a veth pair.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    pub(crate) queues: u32,
    pub(crate) mtu: Option<u32>,
}

impl Link {
    /// Creates a veth pair between two namespaces and brings both ends up.
    pub(crate) fn connect(
        self,
        left: &Namespace,
        left_end: &str,
        right: &Namespace,
        right_end: &str,
    ) -> Result<()> {
        let Self { queues, .. } = self;
        let queues = format!("numtxqueues {queues} numrxqueues {queues}");
        left.ip(&format!(
            "link add name {left_end} {queues} type veth peer name {right_end} {queues} netns {}",
            right.path().display()
        ))?;
        for (namespace, end) in [(left, left_end), (right, right_end)] {
            // Neighbour discovery would add packets that no test sent: IPv6 is enabled with the first address.
            namespace.sysctl(&format!("net/ipv6/conf/{end}/disable_ipv6"), "1")?;
            let mtu = self.mtu.map(|mtu| format!(" mtu {mtu}")).unwrap_or_default();
            namespace.ip(&format!("link set {end}{mtu} up"))?;
        }
        Ok(())
    }
}

/// Creates a namespace with a bridge, [`BRIDGE`].
pub(crate) fn switch(label: &str) -> Result<Namespace> {
    let namespace = Namespace::new(label)?;
    namespace.ip(&format!("link add name {BRIDGE} type bridge"))?;
    namespace.sysctl(&format!("net/ipv6/conf/{BRIDGE}/disable_ipv6"), "1")?;
    namespace.ip(&format!("link set {BRIDGE} up"))?;
    Ok(namespace)
}

/// Adds an interface of the namespace to its bridge.
pub(crate) fn join_bridge(switch: &Namespace, port: &str) -> Result<()> {
    switch.ip(&format!("link set {port} master {BRIDGE}")).map(drop)
}

/// Sets the address of a host and a MAC address derived from it, so that stale neighbour entries stay valid for a new
/// host with the same address.
pub(crate) fn configure_host(namespace: &Namespace, address: Ipv4Addr) -> Result<()> {
    let [a, b, c, d] = address.octets();
    namespace.ip(&format!("link set {HOST_INTERFACE} address 02:f0:{a:02x}:{b:02x}:{c:02x}:{d:02x}"))?;
    namespace.ip(&format!("addr add {address}/24 dev {HOST_INTERFACE}")).map(drop)
}

/// Enables IPv6 on an interface and adds the address that [`ipv6_of`] gives.
pub(crate) fn add_ipv6_address(
    namespace: &Namespace,
    interface: &str,
    address: Ipv4Addr,
) -> Result<Ipv6Addr> {
    for (key, value) in [("accept_dad", "0"), ("router_solicitations", "0"), ("disable_ipv6", "0")] {
        namespace.sysctl(&format!("net/ipv6/conf/{interface}/{key}"), value)?;
    }
    let address = ipv6_of(address);
    namespace.ip(&format!("addr add {address}/64 dev {interface} nodad"))?;
    Ok(address)
}

fn nth(first: Ipv4Addr, number: u8) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(first) + u32::from(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_address_reads_like_its_ipv4_address() {
        for (address, reads) in [
            (FIRST_BACKEND, "2001:db8:10:244::11"),
            (FIRST_CLIENT, "2001:db8:192::2:10"),
            (Ipv4Addr::new(203, 0, 113, 255), "2001:db8:203::113:255"),
        ] {
            assert_eq!(ipv6_of(address).to_string(), reads);
        }
    }
}
