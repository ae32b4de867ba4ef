//! The DNS server over real sockets on loopback: messages, transports, changes and hostile clients.
#![allow(clippy::unwrap_used, reason = "test support: a panic is the report")]

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use flowgate_control::descriptors::{DescriptorBudget, DescriptorLimits};
use flowgate_control::dns::{Config, RateLimit, Server, Upstream};
use flowgate_control::model::{ClusterAddress, Desired};
use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, RData, RecordType};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::dns::{
    TestServer, addresses, config, many, one_web, put, query, service, tcp_receive, tcp_send, with_edns,
};

const WEB: &str = "web.shop.svc.cluster.local.";
const MANY: &str = "many.shop.svc.cluster.local.";

#[tokio::test]
async fn both_transports_answer_alike_and_with_authority() {
    let server = TestServer::with(one_web(), &[]).await;
    let question = query("WEB.shop.SVC.cluster.local.", RecordType::A);
    for answer in [server.udp(&question).await, server.tcp(&question).await] {
        assert_eq!(addresses(&answer), ["10.96.0.10".parse::<std::net::IpAddr>().unwrap()]);
        let metadata = answer.metadata;
        assert_eq!((metadata.id, metadata.message_type), (question.metadata.id, MessageType::Response));
        assert!(metadata.authoritative && metadata.recursion_desired && !metadata.recursion_available);
        assert!(!metadata.truncation && answer.edns.is_none());
        assert!(answer.queries[0].name().eq_case(question.queries[0].name()), "{answer}");
    }
    assert_eq!(server.count("over_tcp"), 1);
}

#[tokio::test]
async fn what_does_not_exist_is_told_with_the_domain_s_soa() {
    let server = TestServer::with(one_web(), &[]).await;
    let gone = server.udp(&query("gone.shop.svc.cluster.local.", RecordType::A)).await;
    let empty = server.udp(&query(WEB, RecordType::AAAA)).await;
    assert_eq!(gone.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(empty.metadata.response_code, ResponseCode::NoError);
    for answer in [&gone, &empty] {
        assert!(answer.metadata.authoritative && answer.answers.is_empty(), "{answer}");
        assert_eq!(answer.authorities.len(), 1);
        assert_eq!(answer.authorities[0].name.to_string(), "cluster.local.");
        assert_eq!(answer.authorities[0].record_type(), RecordType::SOA);
    }
    // One of them was asked to find out whether the cluster was read.
    assert_eq!(server.count("no_such_name"), 2);
}

#[tokio::test]
async fn a_client_without_edns_gets_512_bytes_and_the_rest_over_tcp() {
    let server = TestServer::with(many(1000), &[]).await;
    let question = query(MANY, RecordType::A);
    let (answer, len) = server.udp_bytes(&question.to_vec().unwrap()).await.unwrap();
    assert!(answer.metadata.truncation && len <= 512, "{len} bytes");
    assert!(answer.answers.len() > 20, "what fits is sent: {}", answer.answers.len());
    assert_eq!(server.count("truncated"), 1);
    let whole = server.tcp(&question).await;
    assert!(!whole.metadata.truncation);
    assert_eq!(addresses(&whole).len(), 1000);
}

#[tokio::test]
async fn a_client_with_edns_gets_what_it_takes_but_no_fragments() {
    let server = TestServer::with(many(1000), &[]).await;
    for (offered, largest) in [(100, 512), (512, 512), (900, 900), (1232, 1232), (65_535, 1232)] {
        let question = with_edns(query(MANY, RecordType::A), offered);
        let (answer, len) = server.udp_bytes(&question.to_vec().unwrap()).await.unwrap();
        assert!(answer.metadata.truncation && len <= largest && len > largest - 20, "{offered}: {len}");
        assert_eq!(answer.edns.as_ref().unwrap().max_payload(), 1232, "{offered}");
    }
    let answer = server.udp(&with_edns(query(MANY, RecordType::AAAA), 4096)).await;
    assert!(!answer.metadata.truncation && answer.edns.is_some());
}

#[tokio::test]
async fn thousands_of_records_arrive_whole_over_tcp() {
    let server = TestServer::with(many(4000), &[]).await;
    for question in [query(MANY, RecordType::A), with_edns(query(MANY, RecordType::A), 1232)] {
        let answer = server.tcp(&question).await;
        assert!(!answer.metadata.truncation);
        assert_eq!(addresses(&answer).len(), 4000);
    }
}

#[tokio::test]
async fn an_answer_larger_than_a_tcp_message_is_cut_and_says_so_as_coredns_does() {
    let server = TestServer::with(many(5000), &[]).await;
    let answer = server.tcp(&query(MANY, RecordType::A)).await;
    assert!(answer.metadata.truncation);
    assert!(addresses(&answer).len() > 4000, "{}", addresses(&answer).len());
}

#[tokio::test]
async fn additional_records_are_left_out_silently_where_they_do_not_fit() {
    let server = TestServer::with(many(7), &[]).await;
    let answer = server.udp(&query(&format!("_http._tcp.{MANY}"), RecordType::SRV)).await;
    assert_eq!(answer.answers.len(), 7);
    assert!(!answer.metadata.truncation && answer.additionals.len() < 7, "{}", answer.additionals.len());
}

#[tokio::test]
async fn clients_are_spread_over_the_records() {
    let server = TestServer::with(many(4), &[]).await;
    let mut firsts = std::collections::BTreeSet::new();
    for id in 0..4 {
        let mut question = query(MANY, RecordType::A);
        question.metadata.id = id;
        firsts.insert(server.udp(&question).await.answers[0].data.ip_addr());
    }
    assert_eq!(firsts.len(), 4);
}

#[tokio::test]
async fn edns_of_another_version_is_refused_with_ours() {
    let server = TestServer::with(one_web(), &[]).await;
    let mut question = with_edns(query(WEB, RecordType::A), 1232);
    question.edns.as_mut().unwrap().set_version(1).set_dnssec_ok(true);
    let answer = server.udp(&question).await;
    // The number is also that of a bad signature.
    assert_eq!(u16::from(answer.metadata.response_code), u16::from(ResponseCode::BADVERS));
    let edns = answer.edns.unwrap();
    assert_eq!((edns.version(), edns.flags().dnssec_ok), (0, true));
}

#[tokio::test]
async fn what_is_no_plain_question_is_refused() {
    let server = TestServer::with(one_web(), &[]).await;
    let mut notify = query(WEB, RecordType::SOA);
    notify.metadata.op_code = OpCode::Notify;
    let mut chaos = query("version.bind.", RecordType::TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    let mut two = query(WEB, RecordType::A);
    two.add_queries(query(WEB, RecordType::AAAA).queries);
    let mut none = query(WEB, RecordType::A);
    none.queries.clear();
    let cases = [
        (notify, ResponseCode::NotImp),
        (chaos, ResponseCode::Refused),
        (two, ResponseCode::FormErr),
        (none, ResponseCode::FormErr),
        (query("cluster.local.", RecordType::AXFR), ResponseCode::Refused),
        (query("cluster.local.", RecordType::IXFR), ResponseCode::Refused),
        (query("www.example.com.", RecordType::A), ResponseCode::Refused),
        (query("www.example.com.", RecordType::ANY), ResponseCode::NotImp),
    ];
    for (question, code) in cases {
        for answer in [server.udp(&question).await, server.tcp(&question).await] {
            assert_eq!(answer.metadata.response_code, code, "{question}");
            assert!(answer.answers.is_empty() && !answer.metadata.authoritative, "{answer}");
        }
    }
}

#[tokio::test]
async fn any_is_answered_with_one_small_record() {
    let server = TestServer::with(many(1000), &[]).await;
    let (answer, len) = server.udp_bytes(&query(MANY, RecordType::ANY).to_vec().unwrap()).await.unwrap();
    assert!(matches!(answer.answers[..], [ref record] if matches!(record.data, RData::HINFO(_))), "{answer}");
    assert!(len < 120, "{len}");
}

#[tokio::test]
async fn nothing_is_denied_before_the_cluster_was_read() {
    let server = TestServer::start(&[]);
    let question = query(WEB, RecordType::A);
    assert_eq!(server.udp(&question).await.metadata.response_code, ResponseCode::ServFail);
    // An empty cluster is an answer too.
    server.desired.send_replace(Arc::default());
    let code = |code| move |answer: &Message| answer.metadata.response_code == code;
    server.until(&question, code(ResponseCode::NXDomain)).await;
    server.desired.send_replace(Arc::new(one_web()));
    server.until(&question, |answer| !addresses(answer).is_empty()).await;
}

#[tokio::test]
async fn changes_are_seen_without_a_restart() {
    let server = TestServer::with(one_web(), &[]).await;
    let question = query(WEB, RecordType::A);
    let mut desired = one_web();
    for last in 11..31_u8 {
        put(&mut desired, "web", service(ClusterAddress::Assigned(vec![[10, 96, 0, last].into()])));
        server.desired.send_replace(Arc::new(desired.clone()));
        server
            .until(&question, |answer| addresses(answer) == [std::net::IpAddr::from([10, 96, 0, last])])
            .await;
    }
    let soa = |answer: &Message| answer.answers[0].data.clone();
    let before = soa(&server.udp(&query("cluster.local.", RecordType::SOA)).await);
    server.desired.send_replace(Arc::new(Desired::default()));
    server.until(&question, |answer| answer.metadata.response_code == ResponseCode::NXDomain).await;
    let after = soa(&server.udp(&query("cluster.local.", RecordType::SOA)).await);
    let (RData::SOA(before), RData::SOA(after)) = (before, after) else { panic!("not SOA") };
    assert_eq!(after.serial, before.serial.wrapping_add(1));
}

#[tokio::test]
async fn the_server_ends_when_nobody_sends_changes_any_more() {
    let server = Server::bind(&config("127.0.0.1:0".parse().unwrap())).unwrap();
    let addr = server.addresses()[0];
    let (desired, seen) = tokio::sync::watch::channel(Arc::default());
    let budget = DescriptorBudget::new(DescriptorLimits::default());
    let thread = server.spawn(|| {}, seen, budget).unwrap();
    drop(desired);
    tokio::task::spawn_blocking(move || thread.join().unwrap()).await.unwrap();
    UdpSocket::bind(addr).expect("the address is free again");
}

#[tokio::test]
async fn an_address_that_cannot_be_had_is_named_with_the_remedy() {
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let bind = |addr: SocketAddr| Server::bind(&config(addr)).unwrap_err().to_string();
    let addr = taken.local_addr().unwrap();
    let error = bind(addr);
    assert!(error.starts_with(&format!("DNS cannot listen on {addr} over UDP: ")), "{error}");
    assert!(error.ends_with("stop that one or change dns.listen"), "{error}");
    let error = bind("192.0.2.1:5353".parse().unwrap());
    assert!(error.ends_with("no interface has this address, change dns.listen"), "{error}");
}

#[tokio::test]
async fn a_server_is_never_its_own_upstream() {
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "nameserver 127.0.0.1\nnameserver ::1\n").unwrap();
    let with = |listen: SocketAddr, upstream| Config { upstreams: vec![upstream], ..config(listen) };
    let any = SocketAddr::from(([0, 0, 0, 0], taken.port()));
    for listen in [taken, any] {
        let error = Server::bind(&with(listen, Upstream::Server(taken))).unwrap_err().to_string();
        assert!(error.contains(&format!("{taken} is this server itself")), "{error}");
    }
    // A file that is of no use does not stop the cluster's own names.
    Server::bind(&with(taken, Upstream::File("/nonexistent/resolv.conf".into()))).unwrap();
    Server::bind(&with(taken, Upstream::File(file.path().to_owned()))).unwrap();
}

#[tokio::test]
async fn the_oldest_idle_connection_makes_room_and_others_are_not_kept_waiting() {
    let limits = DescriptorLimits { connections: 32, ..DescriptorLimits::default() };
    let server = TestServer::start_with(&[], None, limits).serving(one_web()).await;
    let mut idle = Vec::new();
    for n in 0..100 {
        idle.push(TcpStream::connect(server.addr).await.unwrap());
        if n % 10 == 0 {
            assert_eq!(addresses(&server.tcp(&query(WEB, RecordType::A)).await).len(), 1);
        }
    }
    let mut byte = [0];
    let read = timeout(Duration::from_secs(10), idle[0].read(&mut byte)).await.unwrap();
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    assert_eq!(addresses(&server.udp(&query(WEB, RecordType::A)).await).len(), 1);
    assert!(server.count("connections_shed") > 0);
}

#[tokio::test]
async fn half_a_query_ends_its_connection_soon_and_an_idle_one_lasts() {
    let server = TestServer::with(one_web(), &[]).await;
    let question = query(WEB, RecordType::A).to_vec().unwrap();
    let mut half = TcpStream::connect(server.addr).await.unwrap();
    half.write_all(&u16::try_from(question.len()).unwrap().to_be_bytes()).await.unwrap();
    half.write_all(&question[..5]).await.unwrap();
    let mut idle = TcpStream::connect(server.addr).await.unwrap();
    tcp_send(&mut idle, &question).await;
    tcp_receive(&mut idle).await.unwrap();
    let mut byte = [0];
    let read = timeout(Duration::from_secs(10), half.read(&mut byte)).await.unwrap();
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    // The other one has been silent for as long.
    tcp_send(&mut idle, &question).await;
    tcp_receive(&mut idle).await.unwrap();
    assert_eq!(server.count("connections_shed"), 0);
}

#[tokio::test]
async fn a_client_that_closes_its_side_still_gets_its_answers() {
    let server = TestServer::with(one_web(), &[]).await;
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    for id in 0..3 {
        let mut question = query(WEB, RecordType::A);
        question.metadata.id = id;
        tcp_send(&mut stream, &question.to_vec().unwrap()).await;
    }
    stream.shutdown().await.unwrap();
    for id in 0..3 {
        assert_eq!(tcp_receive(&mut stream).await.unwrap().metadata.id, id);
    }
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "and then the end");
}

#[tokio::test]
async fn a_client_that_reads_nothing_loses_its_connection() {
    let server = TestServer::with(many(4000), &[]).await;
    let mut slow = TcpStream::connect(server.addr).await.unwrap();
    let question = query(MANY, RecordType::A).to_vec().unwrap();
    let ask_on = async {
        loop {
            let len = u16::try_from(question.len()).unwrap().to_be_bytes();
            if slow.write_all(&len).await.is_err() || slow.write_all(&question).await.is_err() {
                return;
            }
        }
    };
    timeout(Duration::from_secs(30), ask_on).await.expect("the server gives up");
    assert!(addresses(&server.udp(&query(MANY, RecordType::A)).await).len() > 20);
}

#[tokio::test]
async fn a_rate_limit_leaves_out_equal_responses_and_lets_real_clients_come_by_tcp() {
    let rate = RateLimit { responses_per_s: 5.try_into().unwrap(), slip: 2 };
    let server =
        TestServer::start_with(&[], Some(rate), DescriptorLimits::default()).serving(one_web()).await;
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    let socket = tokio::net::UdpSocket::from_std(socket).unwrap();
    let question = query(WEB, RecordType::A).to_vec().unwrap();
    for _ in 0..105 {
        socket.send_to(&question, server.addr).await.unwrap();
    }
    // All of them are seen once this one is answered, whose response is another one.
    server.tcp(&query(WEB, RecordType::AAAA)).await;
    let seen = || server.count("rate_limited") + server.count("rate_slipped");
    let all = async {
        while seen() < 90 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(10), all).await.expect("most are limited");
    assert!(server.count("rate_slipped") >= 40, "{}", server.count("rate_slipped"));
    let (mut whole, mut slipped, mut bytes) = (0, 0, [0; 512]);
    while let Ok(Ok((len, _))) = timeout(Duration::from_millis(200), socket.recv_from(&mut bytes)).await {
        let answer = Message::from_vec(&bytes[..len]).unwrap();
        assert_eq!(answer.answers.is_empty(), answer.metadata.truncation);
        if answer.metadata.truncation { slipped += 1 } else { whole += 1 }
    }
    assert!(whole >= 5 && slipped >= 40 && whole + slipped < 70, "{whole} whole, {slipped} truncated");
    assert_eq!(addresses(&server.tcp(&query(WEB, RecordType::A)).await).len(), 1, "TCP has no limit");
}

#[tokio::test]
async fn counts_that_no_query_has_are_refused_unread() {
    let server = TestServer::with(one_web(), &[]).await;
    let mut question = query(WEB, RecordType::A).to_vec().unwrap();
    question[4..6].copy_from_slice(&[0xff, 0xff]);
    let (answer, len) = server.udp_bytes(&question).await.unwrap();
    assert_eq!((answer.metadata.response_code, len), (ResponseCode::FormErr, 12));
}

#[tokio::test]
async fn several_questions_on_one_connection_are_answered_in_order() {
    let server = TestServer::with(one_web(), &[]).await;
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    for id in 0..20 {
        let mut question = query(WEB, RecordType::A);
        question.metadata.id = id;
        tcp_send(&mut stream, &question.to_vec().unwrap()).await;
    }
    for id in 0..20 {
        assert_eq!(tcp_receive(&mut stream).await.unwrap().metadata.id, id);
    }
}

#[tokio::test]
async fn answers_are_not_answered() {
    let server = TestServer::with(one_web(), &[]).await;
    let mut response = query(WEB, RecordType::A);
    response.metadata.message_type = MessageType::Response;
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&response.to_vec().unwrap(), server.addr).await.unwrap();
    // The next question is answered first, so there was no answer before it.
    let question = query(WEB, RecordType::A);
    socket.send_to(&question.to_vec().unwrap(), server.addr).await.unwrap();
    let mut bytes = [0; 512];
    let (len, _) = timeout(Duration::from_secs(10), socket.recv_from(&mut bytes)).await.unwrap().unwrap();
    assert_eq!(Message::from_vec(&bytes[..len]).unwrap().metadata.id, question.metadata.id);
    let quiet = timeout(Duration::from_millis(100), socket.recv_from(&mut bytes)).await;
    assert!(quiet.is_err(), "{quiet:?}");
}

#[tokio::test]
async fn a_name_as_long_as_can_be_does_not_exist() {
    let server = TestServer::with(one_web(), &[]).await;
    let label = "a".repeat(63);
    let name = format!("{label}.{label}.{label}.{}.cluster.local.", "a".repeat(46));
    let answer = server.udp(&query(&name, RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
}

#[test]
fn hostile_messages_do_not_end_the_server() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = runtime.block_on(TestServer::with(one_web(), &[]));
    let good = query(WEB, RecordType::A).to_vec().unwrap();
    let len = good.len();
    let mutated = (
        prop::collection::vec((0..len, any::<u8>()), 1..8),
        0..=len,
        prop::collection::vec(any::<u8>(), 0..40),
    )
        .prop_map(move |(changes, keep, tail)| {
            let mut bytes = good.clone();
            changes.into_iter().for_each(|(at, byte)| bytes[at] = byte);
            bytes.truncate(keep);
            bytes.extend(tail);
            bytes
        });
    let config = ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    runner
        .run(&mutated, |bytes| {
            runtime.block_on(async {
                let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
                socket.send_to(&bytes, server.addr).await.unwrap();
                let mut stream = TcpStream::connect(server.addr).await.unwrap();
                // As a message of its length, and raw, where the first bytes are a length.
                if bytes.len() % 2 == 0 {
                    tcp_send(&mut stream, &bytes).await;
                } else {
                    stream.write_all(&bytes).await.unwrap();
                }
                tokio::task::yield_now().await;
            });
            Ok(())
        })
        .unwrap();
    let answer = runtime.block_on(server.udp(&query(WEB, RecordType::A)));
    assert_eq!(addresses(&answer).len(), 1);
    let answer = runtime.block_on(server.tcp(&query(WEB, RecordType::A)));
    assert_eq!(addresses(&answer).len(), 1);
}
