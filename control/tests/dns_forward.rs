//! Forwarded names: responses of upstreams on loopback reach the client, and missing ones end in time.
#![allow(clippy::unwrap_used, reason = "test support: a panic is the report")]

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use flowgate_control::model::Desired;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{CNAME, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::dns::{
    FakeUpstream, Over, TestServer, a, addresses, alias, one_web, put, query, response_to, tcp_receive,
    tcp_send,
};

const WWW: &str = "www.example.com.";

#[tokio::test]
async fn names_elsewhere_are_answered_by_the_upstream() {
    let upstream = FakeUpstream::start(|question, _| Some(example_com(&question))).await;
    let server = TestServer::with(one_web(), &[upstream.addr]).await;
    let question = query("WWW.Example.com.", RecordType::A);
    for answer in [server.udp(&question).await, server.tcp(&question).await] {
        assert_eq!(addresses(&answer), [std::net::IpAddr::from([192, 0, 2, 53])]);
        assert!(!answer.metadata.authoritative && answer.metadata.recursion_available, "{answer}");
        assert!(answer.queries[0].name().eq_case(question.queries[0].name()));
    }
    // Aliases come along.
    let answer = server.udp(&query("alias.example.com.", RecordType::A)).await;
    assert_eq!(answer.answers.len(), 2, "{answer}");
    // The cluster's own names are not forwarded.
    server.udp(&query("gone.shop.svc.cluster.local.", RecordType::A)).await;
    assert_eq!(server.count("forwarded"), 3);
    assert_eq!(upstream.asked.load(Ordering::Relaxed), 2, "what was said before is remembered");
}

#[tokio::test]
async fn what_the_upstream_denies_is_denied_with_its_soa() {
    let upstream = FakeUpstream::start(|question, _| Some(example_com(&question))).await;
    let server = TestServer::with(one_web(), &[upstream.addr]).await;
    let gone = server.udp(&query("gone.example.com.", RecordType::A)).await;
    assert_eq!(gone.metadata.response_code, ResponseCode::NXDomain);
    let empty = server.udp(&query(WWW, RecordType::TXT)).await;
    assert_eq!(empty.metadata.response_code, ResponseCode::NoError);
    for answer in [gone, empty] {
        assert!(answer.answers.is_empty() && !answer.metadata.authoritative);
        assert_eq!(answer.authorities[0].name.to_string(), "example.com.", "{answer}");
    }
}

#[tokio::test]
async fn p106_an_external_name_is_resolved_to_its_end() {
    let upstream = FakeUpstream::start(|question, _| Some(example_com(&question))).await;
    let server = TestServer::with(aliases(), &[upstream.addr]).await;
    let answer = server.udp(&query("search.shop.svc.cluster.local.", RecordType::A)).await;
    assert!(answer.metadata.authoritative && answer.metadata.response_code == ResponseCode::NoError);
    let RData::CNAME(target) = &answer.answers[0].data else { panic!("{answer}") };
    assert_eq!(target.to_string(), WWW);
    assert_eq!(addresses(&answer), [std::net::IpAddr::from([192, 0, 2, 53])]);
    // RFC 6604: the code tells of the end of the chain.
    let gone = server.udp(&query("lost.shop.svc.cluster.local.", RecordType::A)).await;
    assert_eq!((gone.metadata.response_code, gone.answers.len()), (ResponseCode::NXDomain, 1));
}

#[tokio::test]
async fn without_upstreams_an_external_name_is_still_an_alias() {
    let server = TestServer::with(aliases(), &[]).await;
    let answer = server.udp(&query("search.shop.svc.cluster.local.", RecordType::A)).await;
    assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::NoError, 1));
    let refused = server.udp(&query(WWW, RecordType::A)).await;
    assert_eq!(refused.metadata.response_code, ResponseCode::Refused);
    assert_eq!(server.count("refused"), 1);
}

#[tokio::test]
async fn an_answer_too_long_for_udp_is_fetched_over_tcp() {
    let upstream = FakeUpstream::start(|question, over| {
        let mut response = response_to(&question);
        if over == Over::Udp {
            response.metadata.truncation = true;
        } else {
            let name = question.queries[0].name().clone();
            let record = |n: u8| Record::from_rdata(name.clone(), 60, a(&format!("192.0.2.{n}")));
            response.add_answers((0..100).map(record));
        }
        Some(response)
    })
    .await;
    let server = TestServer::with(one_web(), &[upstream.addr]).await;
    let answer = server.tcp(&query(WWW, RecordType::A)).await;
    assert_eq!(addresses(&answer).len(), 100);
    let answer = server.udp(&query(WWW, RecordType::A)).await;
    assert!(answer.metadata.truncation && addresses(&answer).len() < 100);
}

#[tokio::test]
async fn another_upstream_answers_for_one_that_is_silent_or_gone() {
    let silent = FakeUpstream::start(|_, _| None).await;
    let upstream = FakeUpstream::start(|question, _| Some(example_com(&question))).await;
    for first in [silent.addr, closed_port().await] {
        let server = TestServer::with(one_web(), &[first, upstream.addr]).await;
        let answer = server.udp(&query(WWW, RecordType::A)).await;
        assert_eq!(addresses(&answer), [std::net::IpAddr::from([192, 0, 2, 53])]);
    }
}

#[tokio::test]
async fn silent_upstreams_end_in_a_failure_before_the_client_gives_up() {
    let silent = FakeUpstream::start(|_, _| None).await;
    let server = TestServer::with(aliases(), &[silent.addr]).await;
    let question = query(WWW, RecordType::A);
    let answer = timeout(Duration::from_secs(5), server.udp(&question)).await.expect("within five seconds");
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(server.count("forward_failed"), 1);
    // Meanwhile the cluster's own names are answered.
    let search = query("search.shop.svc.cluster.local.", RecordType::A);
    let web = query("web.shop.svc.cluster.local.", RecordType::A);
    let (slow, quick) = tokio::join!(server.udp(&search), timeout(Duration::from_secs(1), server.udp(&web)));
    assert_eq!(addresses(&quick.expect("at once")).len(), 1);
    assert_eq!((slow.metadata.response_code, slow.answers.len()), (ResponseCode::ServFail, 1));
}

#[tokio::test]
async fn an_upstream_that_is_down_or_refuses_is_a_failure() {
    let server = TestServer::with(one_web(), &[closed_port().await]).await;
    let answer = server.udp(&query(WWW, RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    let refusing = FakeUpstream::start(|question, _| {
        let mut response = response_to(&question);
        response.metadata.response_code = ResponseCode::Refused;
        Some(response)
    })
    .await;
    let server = TestServer::with(one_web(), &[refusing.addr]).await;
    let answer = server.udp(&query(WWW, RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
}

#[tokio::test]
async fn a_client_that_floods_slow_names_leaves_the_upstreams_to_others() {
    let upstream = FakeUpstream::start(|question, _| {
        let is_slow = question.queries[0].name().to_string().starts_with("slow-");
        (!is_slow).then(|| example_com(&question))
    })
    .await;
    let server = TestServer::with(one_web(), &[upstream.addr]).await;
    let flood = UdpSocket::bind("127.0.0.2:0").await.unwrap();
    for n in 0..600_u16 {
        let mut question = query(&format!("slow-{n}.example.com."), RecordType::A);
        question.metadata.id = n;
        flood.send_to(&question.to_vec().unwrap(), server.addr).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut bytes = [0; 512];
    let (len, _) = timeout(Duration::from_secs(4), flood.recv_from(&mut bytes)).await.unwrap().unwrap();
    let answer = Message::from_vec(&bytes[..len]).unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail, "at once, beyond its share");
    assert!(answer.metadata.id >= 57, "its share waits: {}", answer.metadata.id);
    assert!(server.count("client_overloaded") > 0);
    assert_eq!(server.count("overloaded"), 0);
    let answer = server.udp(&query(WWW, RecordType::A)).await;
    assert_eq!(addresses(&answer), [std::net::IpAddr::from([192, 0, 2, 53])], "another client");
}

#[tokio::test]
async fn without_the_rd_bit_nothing_is_forwarded() {
    let upstream = FakeUpstream::start(|question, _| Some(example_com(&question))).await;
    let server = TestServer::with(aliases(), &[upstream.addr]).await;
    let ask = async |name: &str, recursion_desired: bool| {
        let mut question = query(name, RecordType::A);
        question.metadata.recursion_desired = recursion_desired;
        let answer = server.udp(&question).await;
        assert_eq!(answer.metadata.recursion_desired, recursion_desired);
        assert!(answer.metadata.recursion_available, "RA tells what the server can do");
        (answer.metadata.response_code, answer.answers.len())
    };
    assert_eq!(ask(WWW, false).await, (ResponseCode::Refused, 0));
    assert_eq!(ask("search.shop.svc.cluster.local.", false).await, (ResponseCode::NoError, 1), "the alias");
    assert_eq!(ask("web.shop.svc.cluster.local.", false).await, (ResponseCode::NoError, 1), "its own name");
    assert_eq!(upstream.asked.load(Ordering::Relaxed), 0);
    // What others resolved before is not told either.
    assert_eq!(ask(WWW, true).await, (ResponseCode::NoError, 1));
    assert_eq!(ask(WWW, false).await, (ResponseCode::Refused, 0));
}

#[tokio::test]
async fn over_tcp_a_slow_name_does_not_hold_up_the_others() {
    let silent = FakeUpstream::start(|_, _| None).await;
    let server = TestServer::with(one_web(), &[silent.addr]).await;
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    for (id, name) in [(1, WWW), (2, "web.shop.svc.cluster.local."), (3, WWW)] {
        let mut question = query(name, RecordType::A);
        question.metadata.id = id;
        tcp_send(&mut stream, &question.to_vec().unwrap()).await;
    }
    // The client closes its side, and still gets all answers.
    stream.shutdown().await.unwrap();
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(
            timeout(Duration::from_secs(8), tcp_receive(&mut stream)).await.unwrap().unwrap().metadata.id,
        );
    }
    assert_eq!(ids[0], 2, "it needs no upstream: {ids:?}");
    ids.sort_unstable();
    assert_eq!(ids, [1, 2, 3]);
}

/// What the zone example.com knows.
fn example_com(question: &Message) -> Message {
    let mut response = response_to(question);
    let asked = &question.queries[0];
    let name = asked.name().clone();
    let www: Name = WWW.parse().unwrap();
    match (name.to_lowercase().to_string().as_str(), asked.query_type()) {
        (WWW, RecordType::A) => {
            response.add_answer(Record::from_rdata(name, 300, a("192.0.2.53")));
        }
        ("alias.example.com.", RecordType::A) => {
            response.add_answer(Record::from_rdata(name, 300, RData::CNAME(CNAME(www.clone()))));
            response.add_answer(Record::from_rdata(www, 300, a("192.0.2.53")));
        }
        (known, _) => {
            let origin: Name = "example.com.".parse().unwrap();
            let soa = SOA::new(www.clone(), www.clone(), 1, 7200, 1800, 86_400, 60);
            response.add_authority(Record::from_rdata(origin, 60, RData::SOA(soa)));
            if known != WWW {
                response.metadata.response_code = ResponseCode::NXDomain;
            }
        }
    }
    response
}

fn aliases() -> Desired {
    let mut desired = one_web();
    put(&mut desired, "search", alias("www.example.com"));
    put(&mut desired, "lost", alias("gone.example.com"));
    desired
}

/// A port without a listener.
async fn closed_port() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}
