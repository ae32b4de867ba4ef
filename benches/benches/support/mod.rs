//! What the benches share: a gateway's tables, a full flow table, and frames of its flows.
#![allow(dead_code, reason = "each bench uses its part")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use flowgate_dataplane::{
    Context, Counters, Pipeline, PipelineConfig, Process, RxChecksums, Verdict, WorkerNumber,
};
use flowgate_flow::{AffinityTable, Flows, HashKey, Tick, Timeouts};
use flowgate_tables::spec::{
    EndpointSpec, FrontendSpec, InterfaceSpec, NeighbourSpec, RouteHopSpec, RouteSpec, ServiceName,
    ServiceSpec, TrafficPolicySpec,
};
use flowgate_tables::{
    EmptyAction, FrontendKind, PerSourceClass, Routing, ServiceTable, SnatPool, SourceClassifier, SourceNat,
    Tables,
};
use flowgate_wire::{FiveTuple, FiveTuple4, FiveTuple6, L4Port, MacAddr, Protocol, TcpFlags};

/// Frames per burst.
pub(crate) const BURST: usize = 64;

/// The VIP of all flows.
pub(crate) const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 80);

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

/// The state of a gateway without devices.
pub(crate) struct Gateway {
    pub(crate) tables: Tables,
    pub(crate) flows: Flows,
    pub(crate) affinity: AffinityTable,
    pub(crate) timeouts: Timeouts,
    pub(crate) config: PipelineConfig,
    pub(crate) pipeline: Pipeline,
    pub(crate) counters: Counters,
}

impl Gateway {
    /// A gateway with one Service of 64 backends and room for `flows` flows.
    pub(crate) fn new(family: Family, flows: u32) -> Self {
        Self::with(family, Protocol::Udp, flows)
    }

    /// The same of TCP, over IPv4.
    pub(crate) fn new_tcp(flows: u32) -> Self {
        Self::with(Family::V4, Protocol::Tcp, flows)
    }

    fn with(family: Family, protocol: Protocol, flows: u32) -> Self {
        let (v4, v6) = if family == Family::V4 { (flows, 64) } else { (64, flows) };
        Self {
            tables: tables(family, protocol),
            flows: Flows::new(v4, v6, HashKey::random()).expect("memory for the flow table"),
            affinity: AffinityTable::new(1024),
            timeouts: Timeouts::default(),
            config: PipelineConfig::default(),
            pipeline: Pipeline::new(WorkerNumber { index: 0, count: 1 }),
            counters: Counters::default(),
        }
    }

    /// Processes a burst.
    #[inline]
    pub(crate) fn process<const N: usize>(
        &mut self,
        frames: &mut [Frame<N>],
        now: Tick,
        verdicts: &mut [Verdict],
    ) {
        let context = Context {
            now,
            tables: &self.tables,
            flows: &self.flows,
            affinity: &self.affinity,
            timeouts: &self.timeouts,
            config: &self.config,
            ingress: &[],
        };
        let checksums = RxChecksums::MayBePartial;
        self.pipeline.process(frames, checksums, &context, &mut self.counters, verdicts);
    }
}

/// A frame of `N` bytes, aligned to a cache line as UMEM chunks are.
#[repr(align(64))]
#[derive(Clone)]
pub(crate) struct Frame<const N: usize>(pub(crate) [u8; N]);

impl<const N: usize> AsMut<[u8]> for Frame<N> {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// The client's packet of flow number `flow`.
pub(crate) fn client_tuple(flow: u32) -> FiveTuple4 {
    FiveTuple {
        protocol: Protocol::Udp,
        src: Ipv4Addr::from_bits(0xc612_0000 + flow / 50_000),
        dst: VIP,
        src_port: L4Port::new(u16::try_from(1024 + flow % 50_000).expect("below 65536")),
        dst_port: L4Port::new(80),
    }
}

/// The same flow over IPv6, with the addresses of [`ipv6_of`].
pub(crate) fn tuple_v6(tuple: &FiveTuple4) -> FiveTuple6 {
    let FiveTuple { protocol, src, dst, src_port, dst_port } = *tuple;
    FiveTuple { protocol, src: ipv6_of(src), dst: ipv6_of(dst), src_port, dst_port }
}

/// 2001:db8::/96 with the IPv4 address in the low 32 bits.
fn ipv6_of(addr: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(addr.to_bits()))
}

/// A TCP segment with six bytes of payload and valid checksums: 60 bytes. Both ends begin with number 1000.
pub(crate) fn tcp_frame(tuple: &FiveTuple4, flags: TcpFlags) -> Frame<60> {
    let is_syn = flags.contains(TcpFlags::SYN);
    let mut tcp = etherparse::TcpHeader::new(
        tuple.src_port.number(),
        tuple.dst_port.number(),
        if is_syn { 1000 } else { 1001 },
        8192,
    );
    (tcp.syn, tcp.ack) = (is_syn, flags.contains(TcpFlags::ACK));
    tcp.acknowledgment_number = if tcp.ack { 1001 } else { 0 };
    let builder = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4(tuple.src.octets(), tuple.dst.octets(), 64)
        .tcp_header(tcp);
    let mut bytes = Vec::with_capacity(60);
    builder.write(&mut bytes, if is_syn { &[] } else { &[0x5a; 6] }).expect("writing to a vector");
    // A SYN without payload is padded.
    bytes.resize(60, 0);
    Frame(bytes.try_into().expect("14 + 20 + 20 + 6 bytes"))
}

/// A UDP frame with this tuple and valid checksums: 60 bytes.
pub(crate) fn udp_frame(tuple: &FiveTuple4) -> Frame<60> {
    let builder = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4(tuple.src.octets(), tuple.dst.octets(), 64)
        .udp(tuple.src_port.number(), tuple.dst_port.number());
    let mut bytes = Vec::with_capacity(60);
    builder.write(&mut bytes, &[0x5a; 18]).expect("writing to a vector");
    Frame(bytes.try_into().expect("14 + 20 + 8 + 18 bytes"))
}

/// [`udp_frame`] over IPv6: 80 bytes.
pub(crate) fn udp_frame_v6(tuple: &FiveTuple6) -> Frame<80> {
    let builder = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv6(tuple.src.octets(), tuple.dst.octets(), 64)
        .udp(tuple.src_port.number(), tuple.dst_port.number());
    let mut bytes = Vec::with_capacity(80);
    builder.write(&mut bytes, &[0x5a; 18]).expect("writing to a vector");
    Frame(bytes.try_into().expect("14 + 40 + 8 + 18 bytes"))
}

/// A seeded random number generator, so that every run has the same flows.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u32) -> u32 {
        // xorshift64* (Marsaglia 2003, Vigna 2016).
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        u32::try_from((high * u64::from(bound)) >> 32).expect("below the bound")
    }
}

/// Tables of a gateway with two interfaces, routes both ways, and one Service with 64 backends, all in
/// one family.
pub(crate) fn tables(family: Family, protocol: Protocol) -> Tables {
    let ip = |addr: Ipv4Addr| match family {
        Family::V4 => IpAddr::V4(addr),
        Family::V6 => IpAddr::V6(ipv6_of(addr)),
    };
    let backends: Vec<Ipv4Addr> = (1..=64).map(|n| Ipv4Addr::new(10, 244, 0, n + 10)).collect();
    let service = service(protocol, ip(VIP), backends.iter().map(|addr| ip(*addr)));
    let (services, errors) = ServiceTable::build(&ServiceTable::default(), vec![Arc::new(service)], vec![]);
    assert!(errors.is_empty(), "{errors:?}");
    let interface = |name: &str, host: u8, addr: Ipv4Addr| InterfaceSpec {
        name: name.into(),
        ifindex: u32::from(host),
        mac: MacAddr([2, 0, 0, 0, 0, host]),
        mtu: 1500,
        up: true,
        addresses: vec![ip(addr)],
        vlan: None,
    };
    let fabric = Ipv4Addr::new(10, 244, 0, 1);
    let interfaces = vec![interface("up0", 1, Ipv4Addr::new(192, 0, 2, 1)), interface("fab0", 2, fabric)];
    let router = Ipv4Addr::new(192, 0, 2, 254);
    let route = |base: Ipv4Addr, bits: u8, interface, via: Option<Ipv4Addr>| RouteSpec {
        prefix: match family {
            Family::V4 => format!("{base}/{bits}"),
            Family::V6 => format!("{}/{}", ip(base), 96 + bits),
        }
        .parse()
        .expect("a prefix"),
        hops: vec![RouteHopSpec { interface, via: via.map(ip), weight: 1 }],
        metric: 0,
    };
    let neighbour =
        |interface, addr, mac| NeighbourSpec { interface, addr, mac: Some(mac), has_failed: false };
    let routes =
        [route(Ipv4Addr::new(10, 244, 0, 0), 16, 1, None), route(Ipv4Addr::UNSPECIFIED, 0, 0, Some(router))];
    let mut neighbours: Vec<NeighbourSpec> = backends
        .iter()
        .zip(0..)
        .map(|(addr, n)| neighbour(1, ip(*addr), MacAddr([4, 0, 0, 0, 1, n])))
        .collect();
    neighbours.push(neighbour(0, ip(router), MacAddr([4, 0, 0, 0, 0, 1])));
    let routing = Routing::build(&Routing::default(), interfaces, &routes, &neighbours).expect("routes fit");
    let snat = SnatPool::new(&[vec![], vec![ip(fabric)]], &(20_000..=59_999).collect());
    Tables {
        generation: 1,
        services: Arc::new(services),
        routing: Arc::new(routing),
        snat: Arc::new(snat),
        sources: Arc::new(SourceClassifier::default()),
        reverse_paths: Arc::default(),
    }
}

/// A Service with source NAT.
fn service(protocol: Protocol, vip: IpAddr, backends: impl Iterator<Item = IpAddr>) -> ServiceSpec {
    let endpoint = |addr| EndpointSpec { addr, port: L4Port::new(8080), weight: 1 };
    ServiceSpec {
        name: ServiceName { namespace: "default".into(), name: "bench".into(), port: "http".into() },
        protocol,
        frontends: vec![FrontendSpec {
            addr: vip,
            port: L4Port::new(80),
            kind: FrontendKind::ClusterIp,
            policies: PerSourceClass::same(TrafficPolicySpec {
                endpoint_set: 0,
                source_nat: SourceNat::Always,
                when_empty: EmptyAction::Reject,
            }),
            allowed: None,
        }],
        endpoint_sets: vec![backends.map(endpoint).collect()],
        serving: Vec::new(),
        affinity: None,
    }
}
