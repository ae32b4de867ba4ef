//! A query in, a response out: header, flags, size and code. The records come from the zone or from upstreams.

use std::sync::Arc;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use hickory_proto::op::{Edns, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecoder, BinEncodable, BinEncoder};
use hickory_server::net::runtime::Time;
use hickory_server::net::xfer::Protocol;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::{MessageResponseBuilder, Queries};

use super::Counters;
use super::forward::{Forwarder, UpstreamResponse};
use super::zone::{Answer, Status, Zone};

/// The zone, and whether it has the cluster's objects.
#[derive(Debug)]
pub(super) struct ZoneState {
    pub(super) zone: Zone,
    /// Whether objects were received. Until then a name that is not found may exist: SERVFAIL, not NXDOMAIN, which
    /// clients would cache.
    pub(super) is_synced: bool,
}

/// Answers queries. A query takes no lock and waits for upstreams only.
#[derive(Clone)]
pub(super) struct Responder {
    pub(super) state: Arc<ArcSwap<ZoneState>>,
    pub(super) forwarder: Option<Arc<Forwarder>>,
    pub(super) counters: Arc<Counters>,
}

/// A response without the parts that are copied from the query.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Reply {
    code: ResponseCode,
    is_authoritative: bool,
    is_truncated: bool,
    answers: Vec<Record>,
    authorities: Vec<Record>,
    additionals: Vec<Record>,
}

/// What to do with a query.
enum Decision {
    Reply(Reply),
    /// Resolve `name` upstream and append the records to those of `known`.
    Forward {
        name: Name,
        record_type: RecordType,
        known: Reply,
    },
}

#[async_trait]
impl RequestHandler for Responder {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut handle: R,
    ) -> ResponseInfo {
        if request.protocol() != Protocol::Udp {
            Counters::add(&self.counters.over_tcp);
        }
        let mut reply = self.reply(request).await;
        let question = question(request);
        reply.rotate(request.metadata.id);
        reply.fit(request, &question);
        self.counters.answered(reply.code);
        if reply.is_truncated {
            Counters::add(&self.counters.truncated);
        }
        let edns = request.edns.as_ref().map(our_edns);
        let builder = MessageResponseBuilder::new(&question, edns.as_ref());
        let metadata = self.metadata(request, &reply);
        let response = builder.build(metadata, &reply.answers, &reply.authorities, [], &reply.additionals);
        match handle.send_response(response).await {
            Ok(info) => info,
            Err(error) => {
                tracing::debug!(client = %request.src(), %error, "a DNS response was not sent");
                hickory_proto::op::Header { metadata, counts: hickory_proto::op::HeaderCounts::default() }
                    .into()
            }
        }
    }
}

impl Responder {
    async fn reply(&self, request: &Request) -> Reply {
        match self.decide(request) {
            Decision::Reply(reply) => reply,
            Decision::Forward { name, record_type, mut known } => {
                let Some(forwarder) = &self.forwarder else {
                    // The target of an alias cannot be resolved, but the alias itself is an answer. Without one the
                    // whole name is not ours to resolve.
                    if known.answers.is_empty() {
                        known.code = ResponseCode::Refused;
                    }
                    return known;
                };
                // RFC 6604 section 3: the code is that of the last name in the CNAME chain.
                let UpstreamResponse { code, answers, authorities } =
                    forwarder.resolve(name, record_type).await;
                known.answers.extend(answers);
                Reply { code, authorities, ..known }
            }
        }
    }

    fn decide(&self, request: &Request) -> Decision {
        let refuse = |code| Decision::Reply(Reply::error(code));
        if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            return refuse(ResponseCode::BADVERS);
        }
        if request.metadata.op_code != OpCode::Query {
            return refuse(ResponseCode::NotImp);
        }
        let Ok(info) = request.request_info() else { return refuse(ResponseCode::FormErr) };
        let question = info.query.original();
        let (name, record_type) = (question.name(), question.query_type());
        match record_type {
            // No zone transfers (RFC 5936, RFC 1995): nobody needs one, and one query would fetch every name.
            RecordType::AXFR | RecordType::IXFR => return refuse(ResponseCode::Refused),
            RecordType::OPT | RecordType::TSIG | RecordType::SIG | RecordType::ZERO => {
                return refuse(ResponseCode::FormErr);
            }
            _ => {}
        }
        if question.query_class() != DNSClass::IN {
            return refuse(ResponseCode::Refused);
        }
        let state = self.state.load();
        let Answer { status, answers, additionals } = state.zone.lookup(name, record_type);
        let mut reply =
            Reply { is_authoritative: true, answers, additionals, ..Reply::error(ResponseCode::NoError) };
        match status {
            Status::Found => {}
            Status::NoData(_) | Status::NxDomain(_) if !state.is_synced => {
                return refuse(ResponseCode::ServFail);
            }
            Status::NoData(soa) => reply.authorities.push(*soa),
            Status::NxDomain(soa) => {
                reply.code = ResponseCode::NXDomain;
                reply.authorities.push(*soa);
            }
            Status::OutOfZone(next) => {
                if record_type == RecordType::ANY {
                    // RFC 8482: forwarding ANY would only serve amplification.
                    return refuse(ResponseCode::NotImp);
                }
                reply.is_authoritative = !reply.answers.is_empty();
                return Decision::Forward { name: next, record_type, known: reply };
            }
        }
        Decision::Reply(reply)
    }

    fn metadata(&self, request: &Request, reply: &Reply) -> Metadata {
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.message_type = MessageType::Response;
        metadata.authoritative = reply.is_authoritative;
        metadata.truncation = reply.is_truncated;
        metadata.recursion_available = self.forwarder.is_some();
        metadata.response_code = reply.code;
        metadata
    }
}

impl Reply {
    fn error(code: ResponseCode) -> Self {
        Self {
            code,
            is_authoritative: false,
            is_truncated: false,
            answers: Vec::new(),
            authorities: Vec::new(),
            additionals: Vec::new(),
        }
    }

    /// Rotates the final records by the query's ID, which is random: most clients take the first. The aliases before
    /// them stay in the order of the chain.
    fn rotate(&mut self, by: u16) {
        let Some(last) = self.answers.last() else { return };
        let same = |record: &&Record| record.record_type() == last.record_type() && record.name == last.name;
        let count = self.answers.iter().rev().take_while(same).count();
        let first = self.answers.len() - count;
        self.answers[first..].rotate_left(usize::from(by) % count);
    }

    /// Removes the records that the client cannot receive, and sets the truncation flag (RFC 2181 section 9). The
    /// server library would send up to 4096 bytes over UDP to clients without EDNS, which take 512 (RFC 1035 section
    /// 4.2.1).
    fn fit(&mut self, request: &Request, question: &Queries) {
        let over_udp = request.protocol() == Protocol::Udp;
        let largest = if over_udp {
            let offered = request.edns.as_ref().map_or(UDP_LEN, Edns::max_payload);
            offered.clamp(UDP_LEN, UDP_LEN_MAX)
        } else {
            u16::MAX
        };
        let mut bytes = Vec::new();
        let mut encoder = BinEncoder::new(&mut bytes);
        encoder.set_max_size(largest - EDNS_LEN);
        let metadata = Metadata::response_from_request(&request.metadata);
        let response = MessageResponseBuilder::new(question, None).build(
            metadata,
            &self.answers,
            &self.authorities,
            [],
            &self.additionals,
        );
        // Encoded once to learn how many records fit; the server encodes it again to send it.
        let Ok(info) = response.destructive_emit(&mut encoder) else {
            *self = Self::error(ResponseCode::ServFail);
            return;
        };
        let counts = info.counts();
        let [answers, authorities, additionals] =
            [counts.answers, counts.authorities, counts.additionals].map(usize::from);
        // Over TCP the flag would only make the client repeat the query, with the same result. Records that are left
        // out of the additional section are no truncation (RFC 2181 section 9).
        let lost = answers < self.answers.len() || authorities < self.authorities.len();
        self.is_truncated = over_udp && lost;
        self.answers.truncate(answers);
        self.authorities.truncate(authorities);
        self.additionals.truncate(additionals);
    }
}

/// The question section of the response: the client's question in its own spelling, encoded anew. The library would
/// copy the bytes, and a compressed name in them (RFC 1035 section 4.1.4) may point at bytes that differ in the
/// response. A query with several questions gets none back.
fn question(request: &Request) -> Queries {
    let mut bytes = Vec::new();
    let mut count = 0;
    if let [query] = request.queries.queries()
        && query.original().emit(&mut BinEncoder::new(&mut bytes)).is_ok()
    {
        count = 1;
    }
    Queries::read(&mut BinDecoder::new(&bytes), count).expect("what was just written is a question")
}

fn our_edns(theirs: &Edns) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_LEN_MAX);
    // RFC 3225 section 3: the DO bit is copied; there are no signatures to send.
    edns.set_dnssec_ok(theirs.flags().dnssec_ok);
    edns
}

/// The message size over UDP without EDNS (RFC 1035 section 4.2.1).
const UDP_LEN: u16 = 512;
/// The largest message over UDP: it fits into the smallest IPv6 MTU of 1280 bytes, so it is never fragmented.
const UDP_LEN_MAX: u16 = 1232;
/// An OPT record without options.
const EDNS_LEN: u16 = 11;
