//! A DNS server for a cluster, its clients and upstreams, on loopback. Every wait is bounded; all ends with the test.
#![allow(clippy::unwrap_used, reason = "test support: a panic is the report")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flowgate_control::descriptors::{DescriptorBudget, DescriptorLimits};
use flowgate_control::dns::{Config, Counters, RateLimit, Server, Upstream};
use flowgate_control::model::{
    Affinity, ClusterAddress, Desired, Endpoint, EndpointPort, EndpointSlice, Key, Object, Service,
    ServiceType, SliceFamily, TrafficPolicy,
};
use flowgate_wire::Protocol;
use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

/// Listens there and forwards nothing.
pub(crate) fn config(listen: SocketAddr) -> Config {
    Config {
        listen: vec![listen],
        domain: "cluster.local".into(),
        ttl_s: 5,
        upstreams: Vec::new(),
        rate_limit: None,
    }
}

/// A server that ends with the test.
pub(crate) struct TestServer {
    pub(crate) addr: SocketAddr,
    pub(crate) desired: watch::Sender<Arc<Desired>>,
    pub(crate) counters: Arc<Counters>,
    task: JoinHandle<()>,
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl TestServer {
    /// Serves, and knows no objects yet.
    pub(crate) fn start(upstreams: &[SocketAddr]) -> Self {
        Self::start_with(upstreams, None, DescriptorLimits { forwarded: 512, ..DescriptorLimits::default() })
    }

    /// The same with limits.
    pub(crate) fn start_with(
        upstreams: &[SocketAddr],
        rate_limit: Option<RateLimit>,
        limits: DescriptorLimits,
    ) -> Self {
        let config = Config {
            upstreams: upstreams.iter().map(|&addr| Upstream::Server(addr)).collect(),
            rate_limit,
            ..config("127.0.0.1:0".parse().unwrap())
        };
        let server = Server::bind(&config).unwrap();
        let (addr, counters) = (server.addresses()[0], server.counters());
        let (desired, seen) = watch::channel(Arc::default());
        let budget = DescriptorBudget::new(limits);
        let task = tokio::spawn(async move { server.serve(seen, budget).await.unwrap() });
        Self { addr, desired, counters, task }
    }

    /// Serves these objects.
    pub(crate) async fn with(desired: Desired, upstreams: &[SocketAddr]) -> Self {
        Self::start(upstreams).serving(desired).await
    }

    /// Waits until these objects are served.
    pub(crate) async fn serving(self, desired: Desired) -> Self {
        let served = self;
        served.desired.send_replace(Arc::new(desired));
        let probe = query("nothing.cluster.local.", RecordType::A);
        served.until(&probe, |answer| answer.metadata.response_code == ResponseCode::NXDomain).await;
        served
    }

    /// Asks until the answer is as wanted.
    pub(crate) async fn until(&self, question: &Message, wanted: impl Fn(&Message) -> bool) -> Message {
        let asking = async {
            loop {
                let answer = self.udp(question).await;
                if wanted(&answer) {
                    return answer;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(LONG, asking).await.expect("the answer changes in time")
    }

    pub(crate) async fn udp(&self, question: &Message) -> Message {
        let (answer, _) = self.udp_bytes(&question.to_vec().unwrap()).await.expect("an answer");
        answer
    }

    /// The answer with its length; none if none comes for a while.
    pub(crate) async fn udp_bytes(&self, question: &[u8]) -> Option<(Message, usize)> {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(question, self.addr).await.unwrap();
        let mut bytes = vec![0; 65_536];
        let wait = if question.is_empty() { SHORT } else { LONG };
        let (len, from) = timeout(wait, socket.recv_from(&mut bytes)).await.ok()?.unwrap();
        assert_eq!(from, self.addr);
        Some((Message::from_vec(&bytes[..len]).unwrap(), len))
    }

    pub(crate) async fn tcp(&self, question: &Message) -> Message {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        tcp_send(&mut stream, &question.to_vec().unwrap()).await;
        tcp_receive(&mut stream).await.expect("an answer")
    }

    pub(crate) fn count(&self, name: &str) -> u64 {
        {
            let mut all = self.counters.answers().into_iter().chain(self.counters.events());
            all.find(|(known, _)| *known == name).unwrap().1
        }
    }
}

pub(crate) async fn tcp_send(stream: &mut TcpStream, message: &[u8]) {
    let mut bytes = u16::try_from(message.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend_from_slice(message);
    stream.write_all(&bytes).await.unwrap();
}

/// The next message; none when the stream ends.
pub(crate) async fn tcp_receive(stream: &mut TcpStream) -> Option<Message> {
    let reading = async {
        let mut len = [0; 2];
        stream.read_exact(&mut len).await.ok()?;
        let mut bytes = vec![0; usize::from(u16::from_be_bytes(len))];
        stream.read_exact(&mut bytes).await.ok()?;
        Some(Message::from_vec(&bytes).unwrap())
    };
    timeout(LONG, reading).await.expect("the stream says something in time")
}

pub(crate) fn query(name: &str, record_type: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), record_type));
    message
}

pub(crate) fn with_edns(mut message: Message, payload: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    message.set_edns(edns);
    message
}

pub(crate) fn addresses(message: &Message) -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = message.answers.iter().filter_map(|record| record.data.ip_addr()).collect();
    all.sort_unstable();
    all
}

/// An upstream that answers over UDP and TCP as it is told: nothing means silence.
pub(crate) struct FakeUpstream {
    pub(crate) addr: SocketAddr,
    pub(crate) asked: Arc<AtomicU64>,
    _tasks: JoinSet<()>,
}

/// Over which transport an upstream was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    Udp,
    Tcp,
}

impl FakeUpstream {
    pub(crate) async fn start(
        answer: impl Fn(Message, Over) -> Option<Message> + Send + Sync + 'static,
    ) -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let addr = udp.local_addr().unwrap();
        let (answer, asked) = (Arc::new(answer), Arc::new(AtomicU64::new(0)));
        let mut tasks = JoinSet::new();
        let (udp_answer, udp_asked) = (Arc::clone(&answer), Arc::clone(&asked));
        tasks.spawn(async move {
            let mut bytes = vec![0; 65_536];
            while let Ok((len, client)) = udp.recv_from(&mut bytes).await {
                udp_asked.fetch_add(1, Ordering::Relaxed);
                let question = Message::from_vec(&bytes[..len]).unwrap();
                if let Some(answer) = udp_answer(question, Over::Udp) {
                    udp.send_to(&answer.to_vec().unwrap(), client).await.unwrap();
                }
            }
        });
        let tcp_asked = Arc::clone(&asked);
        tasks.spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                while let Some(question) = tcp_receive(&mut stream).await {
                    tcp_asked.fetch_add(1, Ordering::Relaxed);
                    if let Some(answer) = answer(question, Over::Tcp) {
                        tcp_send(&mut stream, &answer.to_vec().unwrap()).await;
                    }
                }
            }
        });
        Self { addr, asked, _tasks: tasks }
    }
}

/// A response to a question, without an answer yet.
pub(crate) fn response_to(question: &Message) -> Message {
    let mut response = Message::response(question.metadata.id, question.metadata.op_code);
    response.metadata.recursion_desired = true;
    response.metadata.recursion_available = true;
    response.add_queries(question.queries.clone());
    response
}

pub(crate) fn a(text: &str) -> RData {
    RData::A(text.parse::<Ipv4Addr>().unwrap().into())
}

pub(crate) fn service(cluster: ClusterAddress) -> Service {
    Service {
        service_type: ServiceType::ClusterIp,
        cluster,
        external_name: None,
        external_ips: Vec::new(),
        ingress: Vec::new(),
        ports: Vec::new(),
        has_selector: true,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        affinity: Affinity::None,
        source_ranges: Vec::new(),
        health_check_node_port: None,
        excluded_by: None,
        created_s: None,
    }
}

pub(crate) fn alias(name: &str) -> Service {
    Service {
        service_type: ServiceType::ExternalName,
        external_name: Some(name.to_owned()),
        ..service(ClusterAddress::Unassigned)
    }
}

pub(crate) fn slice(service: &str, addresses: impl IntoIterator<Item = IpAddr>) -> EndpointSlice {
    let endpoint = |addr| Endpoint {
        addr,
        ready: true,
        serving: true,
        terminating: false,
        node_name: None,
        hostname: None,
        hints: None,
    };
    EndpointSlice {
        service: Some(service.to_owned()),
        is_mirror: false,
        family: SliceFamily::V4,
        endpoints: addresses.into_iter().map(endpoint).collect(),
        ports: vec![EndpointPort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
            app_protocol: None,
        }],
        excluded_by: None,
        triggered_at: None,
    }
}

pub(crate) fn put(desired: &mut Desired, name: &str, service: Service) {
    desired.apply(Key::new("shop", name), Object::Service(Arc::new(service)), None);
}

pub(crate) fn put_slice(desired: &mut Desired, name: &str, slice: EndpointSlice) {
    desired.apply(Key::new("shop", name), Object::EndpointSlice(Arc::new(slice)), None);
}

/// A headless Service `many` with so many endpoints.
pub(crate) fn many(count: u32) -> Desired {
    let mut desired = Desired::default();
    put(&mut desired, "many", service(ClusterAddress::Headless));
    let addresses = (0..count).map(|n| IpAddr::V4((0x0af4_0000 + n).into()));
    put_slice(&mut desired, "many-1", slice("many", addresses));
    desired
}

pub(crate) fn one_web() -> Desired {
    let mut desired = Desired::default();
    put(&mut desired, "web", service(ClusterAddress::Assigned(vec!["10.96.0.10".parse().unwrap()])));
    desired
}

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(200);
