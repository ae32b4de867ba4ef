//! A query in, a response out: header, flags, size and code. The records come from the zone or from upstreams.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arc_swap::ArcSwap;
use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};

use super::Counters;
use super::forward::{Forwarder, Slot, UpstreamResponse};
use super::message::{self, Parts, Written};
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

/// What a query came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// What becomes of a message.
pub(super) enum Outcome {
    /// No response: it is one itself, or too short for anything.
    Ignore,
    /// This response.
    Respond(Response),
    /// The response of upstreams: [`Responder::forward`].
    Forward(Box<Forwarding>),
}

/// A response to be sent.
pub(super) struct Response {
    pub(super) message: Written,
    /// Equal for equal responses, as rate limits count them.
    pub(super) kind: u64,
}

/// A query that upstreams have to answer.
pub(super) struct Forwarding {
    query: Query,
    /// The name to resolve, whose records follow those of `known`.
    name: Name,
    record_type: RecordType,
    known: Reply,
    _slot: Slot,
    forwarder: Arc<Forwarder>,
}

/// A query and what it came by.
struct Query {
    message: Message,
    transport: Transport,
}

/// A response without the parts that are copied from the query.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Reply {
    code: ResponseCode,
    is_authoritative: bool,
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

impl Responder {
    /// Answers a message from a client as far as that needs no upstream. A defect that it uncovers ends nothing else.
    pub(super) fn begin(&self, bytes: &[u8], client: IpAddr, transport: Transport) -> Outcome {
        let begun = catch_unwind(AssertUnwindSafe(|| self.answer(bytes, client, transport)));
        begun.unwrap_or(Outcome::Ignore)
    }

    fn answer(&self, bytes: &[u8], client: IpAddr, transport: Transport) -> Outcome {
        let read = message::has_plausible_counts(bytes).then(|| Message::from_vec(bytes).ok()).flatten();
        let Some(message) = read else {
            let Some(message) = message::malformed(bytes) else { return Outcome::Ignore };
            self.counters.answered(ResponseCode::FormErr);
            return Outcome::Respond(Response { message, kind: kind(ResponseCode::FormErr, None) });
        };
        if message.metadata.message_type != MessageType::Query {
            return Outcome::Ignore;
        }
        if transport == Transport::Tcp {
            Counters::add(&self.counters.over_tcp);
        }
        let query = Query { message, transport };
        let (name, record_type, mut known) = match self.decide(&query.message) {
            Decision::Reply(reply) => return Outcome::Respond(self.respond(&query, reply)),
            Decision::Forward { name, record_type, known } => (name, record_type, known),
        };
        let Some(forwarder) = self.forwarder.as_ref().filter(|_| query.message.metadata.recursion_desired)
        else {
            // The target of an alias is not resolved, but the alias itself is an answer. Without one the whole name is
            // not ours to resolve.
            if known.answers.is_empty() {
                known.code = ResponseCode::Refused;
            }
            return Outcome::Respond(self.respond(&query, known));
        };
        let Some(slot) = forwarder.slot(client) else {
            known.code = ResponseCode::ServFail;
            return Outcome::Respond(self.respond(&query, known));
        };
        let forwarder = Arc::clone(forwarder);
        Outcome::Forward(Box::new(Forwarding { query, name, record_type, known, _slot: slot, forwarder }))
    }

    /// Waits for the upstreams.
    pub(super) async fn forward(self, forwarding: Box<Forwarding>) -> Response {
        let Forwarding { query, name, record_type, mut known, _slot, forwarder } = *forwarding;
        let UpstreamResponse { code, answers, authorities } = forwarder.resolve(name, record_type).await;
        known.answers.extend(answers);
        // RFC 6604 section 3: the code is that of the last name in the CNAME chain.
        self.respond(&query, Reply { code, authorities, ..known })
    }

    fn decide(&self, query: &Message) -> Decision {
        let refuse = |code| Decision::Reply(Reply::error(code));
        if query.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            return refuse(ResponseCode::BADVERS);
        }
        if query.metadata.op_code != OpCode::Query {
            return refuse(ResponseCode::NotImp);
        }
        let [question] = &query.queries[..] else { return refuse(ResponseCode::FormErr) };
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

    /// The reply as a message that the client can receive.
    fn respond(&self, query: &Query, mut reply: Reply) -> Response {
        let Query { message, transport } = query;
        reply.rotate(message.metadata.id);
        let mut metadata = Metadata::response_from_request(&message.metadata);
        metadata.message_type = MessageType::Response;
        metadata.authoritative = reply.is_authoritative;
        metadata.recursion_available = self.forwarder.is_some();
        metadata.response_code = reply.code;
        let question = if let [question] = &message.queries[..] { Some(question) } else { None };
        let parts = Parts {
            metadata,
            question,
            answers: &reply.answers,
            authorities: &reply.authorities,
            additionals: &reply.additionals,
            edns: message.edns.as_ref().map(our_edns),
        };
        let written = parts.write(match transport {
            Transport::Udp => {
                let offered = message.edns.as_ref().map_or(UDP_LEN, Edns::max_payload);
                offered.clamp(UDP_LEN, UDP_LEN_MAX)
            }
            Transport::Tcp => u16::MAX,
        });
        self.counters.answered(reply.code);
        if written.is_truncated() {
            Counters::add(&self.counters.truncated);
        }
        let asked = question.filter(|_| !reply.answers.is_empty());
        let kind = kind(reply.code, asked.map(|question| (question.name(), question.query_type())));
        Response { message: written, kind }
    }
}

impl Reply {
    fn error(code: ResponseCode) -> Self {
        Self {
            code,
            is_authoritative: false,
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
}

/// The number that equal responses have: their code and, with records, name and type. Names compare without case.
fn kind(code: ResponseCode, asked: Option<(&Name, RecordType)>) -> u64 {
    let mut hasher = DefaultHasher::new();
    u16::from(code).hash(&mut hasher);
    asked.hash(&mut hasher);
    hasher.finish()
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
