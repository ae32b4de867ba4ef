//! Writes responses as bytes. The library's encoder shortens the first 120 names of a message only (RFC 1035 section 4.1.4),
//! so that 2,000 addresses of one name do not fit into a message; this one shortens all.

use std::collections::HashMap;

use hickory_proto::ProtoError;
use hickory_proto::op::{Edns, Metadata, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder, NameEncoding};

/// The parts of a response.
pub(super) struct Parts<'a> {
    /// The header's fields; this sets `truncation`.
    pub(super) metadata: Metadata,
    /// The client's question in its own spelling. A query with several gets none back.
    pub(super) question: Option<&'a Query>,
    pub(super) answers: &'a [Record],
    pub(super) authorities: &'a [Record],
    pub(super) additionals: &'a [Record],
    /// `None` if the client has sent no EDNS.
    pub(super) edns: Option<Edns>,
}

/// A response as bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) bytes: Vec<u8>,
    /// The length of header and question.
    head_len: usize,
}

impl Parts<'_> {
    /// The response in at most `max_len` bytes, 512 or more. Records that do not fit are left out. If those are answers or
    /// authorities, the truncation flag is set, over TCP too, as CoreDNS does; additional records are no loss (RFC 2181
    /// section 9).
    pub(super) fn write(&self, max_len: u16) -> Written {
        let edns_len = if self.edns.is_some() { OPT_LEN } else { 0 };
        let room = usize::from(max_len).saturating_sub(edns_len);
        let mut writer = Writer { bytes: vec![0; HEADER_LEN], names: HashMap::new(), room };
        if let Some(question) = self.question {
            writer.name(&question.name);
            writer.u16(question.query_type.into());
            writer.u16(question.query_class.into());
        }
        let head_len = writer.bytes.len();
        let answers = writer.records(self.answers);
        let mut whole = answers == self.answers.len();
        let authorities = if whole { writer.records(self.authorities) } else { 0 };
        whole &= authorities == self.authorities.len();
        let additionals = if whole { writer.records(self.additionals) } else { 0 };
        let code = self.metadata.response_code;
        if let Some(edns) = &self.edns {
            writer.opt(edns, code);
        }
        let mut bytes = writer.bytes;
        let Metadata { id, op_code, .. } = self.metadata;
        bytes[..2].copy_from_slice(&id.to_be_bytes());
        let flag = |is_set: bool, bit: u8| if is_set { bit } else { 0 };
        bytes[2] = RESPONSE
            | u8::from(op_code) << 3
            | flag(self.metadata.authoritative, AUTHORITATIVE)
            | flag(!whole || self.metadata.truncation, TRUNCATED)
            | flag(self.metadata.recursion_desired, RECURSION_DESIRED);
        bytes[3] = flag(self.metadata.recursion_available, RECURSION_AVAILABLE)
            | flag(self.metadata.checking_disabled, CHECKING_DISABLED)
            | code.low();
        let counts = [
            usize::from(self.question.is_some()),
            answers,
            authorities,
            additionals + usize::from(self.edns.is_some()),
        ];
        for (field, count) in bytes[4..HEADER_LEN].chunks_exact_mut(2).zip(counts) {
            let count = u16::try_from(count).expect("a record has at least 11 bytes, a message 65,535");
            field.copy_from_slice(&count.to_be_bytes());
        }
        Written { bytes, head_len }
    }
}

impl Written {
    /// Whether records were left out.
    pub(super) fn is_truncated(&self) -> bool {
        self.bytes[2] & TRUNCATED != 0
    }

    /// The response without records and with the truncation flag: the client repeats its query over TCP.
    pub(super) fn shortened(&self) -> Vec<u8> {
        let mut bytes = self.bytes[..self.head_len].to_vec();
        bytes[2] |= TRUNCATED;
        bytes[6..HEADER_LEN].fill(0);
        bytes
    }
}

/// The response to a message of which only the header can be read: FORMERR. `None` if it is a response itself, or shorter
/// than a header: nobody waits for an answer.
pub(super) fn malformed(query: &[u8]) -> Option<Written> {
    let header = query.first_chunk::<HEADER_LEN>().filter(|header| header[2] & RESPONSE == 0)?;
    let mut bytes = vec![0; HEADER_LEN];
    bytes[..2].copy_from_slice(&header[..2]);
    bytes[2] = RESPONSE | header[2] & (OP_CODE | RECURSION_DESIRED);
    bytes[3] = ResponseCode::FormErr.low();
    Some(Written { bytes, head_len: HEADER_LEN })
}

/// Whether the header announces as many records as a query may have. More would only cost time to read.
pub(super) fn has_plausible_counts(query: &[u8]) -> bool {
    query.first_chunk::<HEADER_LEN>().is_some_and(|header| {
        let mut counts = header[4..].chunks_exact(2).map(|field| u16::from_be_bytes([field[0], field[1]]));
        counts.next() <= Some(QUESTIONS_MAX) && counts.all(|count| count <= RECORDS_MAX)
    })
}

/// Bytes so far, with the names in them.
struct Writer {
    bytes: Vec<u8>,
    /// Where each name and each end of one stands, in the form that it has in a message but without the root.
    names: HashMap<Box<[u8]>, u16>,
    /// The largest length for records.
    room: usize,
}

impl Writer {
    /// Writes records until one does not fit; returns how many did.
    fn records(&mut self, records: &[Record]) -> usize {
        for (count, record) in records.iter().enumerate() {
            let len = self.bytes.len();
            if self.record(record).is_err() || self.bytes.len() > self.room {
                self.bytes.truncate(len);
                self.names.retain(|_, at| usize::from(*at) < len);
                return count;
            }
        }
        records.len()
    }

    fn record(&mut self, record: &Record) -> Result<(), ProtoError> {
        self.name(&record.name);
        self.u16(record.record_type().into());
        self.u16(record.dns_class.into());
        self.u32(record.ttl);
        let len_at = self.bytes.len();
        self.u16(0);
        match &record.data {
            // Names in the data of these types only may be shortened (RFC 3597 section 4).
            RData::CNAME(name) => self.name(&name.0),
            RData::NS(name) => self.name(&name.0),
            RData::PTR(name) => self.name(&name.0),
            RData::SOA(soa) => {
                self.name(&soa.mname);
                self.name(&soa.rname);
                self.u32(soa.serial);
                for seconds in [soa.refresh, soa.retry, soa.expire] {
                    self.u32(seconds.cast_unsigned());
                }
                self.u32(soa.minimum);
            }
            RData::A(addr) => self.bytes.extend(addr.0.octets()),
            RData::AAAA(addr) => self.bytes.extend(addr.0.octets()),
            other => {
                let mut data = Vec::new();
                let mut encoder = BinEncoder::new(&mut data);
                encoder.set_name_encoding(NameEncoding::Uncompressed);
                other.emit(&mut encoder)?;
                self.bytes.extend(data);
            }
        }
        // A record that is too long for the field is too long for the message: the caller takes it back.
        let len = u16::try_from(self.bytes.len() - len_at - 2).unwrap_or(u16::MAX);
        self.bytes[len_at..len_at + 2].copy_from_slice(&len.to_be_bytes());
        Ok(())
    }

    /// Writes a name, of which as much as was written before becomes a pointer. The case counts: clients compare names in
    /// their own spelling.
    fn name(&mut self, name: &Name) {
        let mut labels = Vec::with_capacity(MAX_NAME_LEN);
        let mut starts = Vec::with_capacity(8);
        for label in name.iter() {
            starts.push(labels.len());
            labels.push(u8::try_from(label.len()).expect("a label has at most 63 bytes"));
            labels.extend(label);
        }
        let known = starts.iter().find_map(|&start| Some((start, *self.names.get(&labels[start..])?)));
        let written = known.map_or(labels.len(), |(start, _)| start);
        for &start in starts.iter().take_while(|&&start| start < written) {
            if let Ok(at) = u16::try_from(self.bytes.len() + start)
                && at <= POINTER_MAX
            {
                self.names.insert(labels[start..].into(), at);
            }
        }
        self.bytes.extend(&labels[..written]);
        match known {
            Some((_, at)) => self.u16(POINTER | at),
            None => self.bytes.push(0),
        }
    }

    /// Writes the OPT record, which has the upper bits of the code (RFC 6891 section 6.1.3).
    fn opt(&mut self, edns: &Edns, code: ResponseCode) {
        self.bytes.push(0);
        self.u16(OPT);
        self.u16(edns.max_payload());
        let dnssec_ok = if edns.flags().dnssec_ok { DNSSEC_OK } else { 0 };
        self.bytes.extend([code.high(), edns.version()]);
        self.u16(dnssec_ok);
        self.u16(0);
    }

    fn u16(&mut self, value: u16) {
        self.bytes.extend(value.to_be_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.bytes.extend(value.to_be_bytes());
    }
}

const HEADER_LEN: usize = 12;
const MAX_NAME_LEN: usize = 255;
/// In the third byte of the header.
const RESPONSE: u8 = 0x80;
const OP_CODE: u8 = 0x78;
const AUTHORITATIVE: u8 = 0x04;
const TRUNCATED: u8 = 0x02;
const RECURSION_DESIRED: u8 = 0x01;
/// In the fourth.
const RECURSION_AVAILABLE: u8 = 0x80;
const CHECKING_DISABLED: u8 = 0x10;
/// The upper bits of a pointer to a name.
const POINTER: u16 = 0xc000;
/// A pointer has 14 bits.
const POINTER_MAX: u16 = 0x3fff;
const OPT: u16 = 41;
/// An OPT record without options.
const OPT_LEN: usize = 11;
const DNSSEC_OK: u16 = 0x8000;
const QUESTIONS_MAX: u16 = 8;
/// In each section: EDNS and a signature, and the SOA record of NOTIFY (RFC 1996) and IXFR (RFC 1995).
const RECORDS_MAX: u16 = 8;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::op::{Message, MessageType, OpCode};
    use hickory_proto::rr::rdata::{CNAME, SOA, SRV, TXT};
    use hickory_proto::rr::{DNSClass, RecordType};
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn question(text: &str) -> Query {
        Query::query(name(text), RecordType::A)
    }

    fn metadata() -> Metadata {
        Metadata::new(7, MessageType::Response, OpCode::Query)
    }

    fn parts<'a>(question: &'a Query, answers: &'a [Record]) -> Parts<'a> {
        Parts {
            metadata: metadata(),
            question: Some(question),
            answers,
            authorities: &[],
            additionals: &[],
            edns: None,
        }
    }

    fn address(owner: &Name, n: u32) -> Record {
        Record::from_rdata(owner.clone(), 5, RData::A(Ipv4Addr::from_bits(n).into()))
    }

    #[test]
    fn four_thousand_addresses_of_one_name_fit_into_a_message() {
        let question = question("pets.shop.svc.cluster.local.");
        let answers: Vec<_> = (0..4090).map(|n| address(&question.name, n)).collect();
        let written = parts(&question, &answers).write(u16::MAX);
        assert!(!written.is_truncated());
        assert_eq!(Message::from_vec(&written.bytes).unwrap().answers, answers);
    }

    #[test]
    fn what_does_not_fit_is_left_out_and_the_flag_tells_so() {
        let question = question("pets.shop.svc.cluster.local.");
        let answers: Vec<_> = (0..5000).map(|n| address(&question.name, n)).collect();
        for max_len in [512, 1232, u16::MAX] {
            let mut parts = parts(&question, &answers);
            parts.edns = Some(Edns::new());
            let written = parts.write(max_len);
            let len = written.bytes.len();
            assert!(written.is_truncated() && len <= usize::from(max_len) && len + 16 > usize::from(max_len));
            let read = Message::from_vec(&written.bytes).unwrap();
            assert_eq!(read.answers, answers[..read.answers.len()]);
            assert!(read.edns.is_some(), "EDNS always has its place");
        }
    }

    #[test]
    fn additional_records_that_do_not_fit_are_no_truncation() {
        let question = question("pets.shop.svc.cluster.local.");
        let additionals: Vec<_> = (0..100).map(|n| address(&name("host.example."), n)).collect();
        let parts = Parts { additionals: &additionals, ..parts(&question, &[]) };
        let written = parts.write(512);
        assert!(!written.is_truncated());
        let read = Message::from_vec(&written.bytes).unwrap();
        assert!((20..100).contains(&read.additionals.len()), "{}", read.additionals.len());
    }

    #[test]
    fn names_keep_their_case_and_only_equal_ones_are_shared() {
        let question = question("WeB.Shop.svc.cluster.local.");
        let answers = [address(&question.name, 1), address(&name("web.shop.svc.cluster.local."), 2)];
        let read = Message::from_vec(&parts(&question, &answers).write(512).bytes).unwrap();
        assert!(read.queries[0].name().eq_case(&question.name));
        assert!(read.answers[0].name.eq_case(&answers[0].name));
        assert!(read.answers[1].name.eq_case(&answers[1].name));
    }

    #[test]
    fn the_target_of_an_srv_record_is_never_a_pointer() {
        let question = question("_http._tcp.web.shop.svc.cluster.local.");
        let target = name("web.shop.svc.cluster.local.");
        let srv = RData::SRV(SRV::new(0, 100, 80, target.clone()));
        let answers = [Record::from_rdata(question.name.clone(), 5, srv)];
        let written = parts(&question, &answers).write(512);
        let whole = b"\x03web\x04shop\x03svc\x07cluster\x05local\x00";
        assert!(written.bytes.ends_with(whole), "RFC 2782");
    }

    #[test]
    fn the_short_form_has_the_question_and_sends_the_client_to_tcp() {
        let question = question("web.shop.svc.cluster.local.");
        let answers = [address(&question.name, 1)];
        let mut parts = parts(&question, &answers);
        parts.edns = Some(Edns::new());
        let read = Message::from_vec(&parts.write(512).shortened()).unwrap();
        assert!(read.metadata.truncation && read.metadata.id == 7);
        assert_eq!((read.queries, read.answers.len()), (vec![question.clone()], 0));
    }

    #[test]
    fn a_message_that_makes_no_sense_is_answered_unless_it_is_an_answer() {
        let written = malformed(&[1, 2, 0x01, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0xff]).unwrap();
        let read = Message::from_vec(&written.bytes).unwrap();
        assert_eq!((read.metadata.id, read.metadata.response_code), (0x0102, ResponseCode::FormErr));
        assert!(read.metadata.recursion_desired);
        assert_eq!(malformed(&[0; 11]), None);
        assert_eq!(malformed(&[0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None);
    }

    #[test]
    fn counts_that_no_query_has_are_seen_before_anything_is_read() {
        let with = |counts: [u8; 8]| has_plausible_counts(&[&[0; 4][..], &counts].concat());
        assert!(with([0, 1, 0, 0, 0, 1, 0, 2]));
        assert!(!with([0xff, 0xff, 0, 0, 0, 0, 0, 0]) && !with([0, 1, 0, 0, 0, 0, 0x40, 0]));
        assert!(!has_plausible_counts(&[0; 11]));
    }

    fn names() -> impl Strategy<Value = Name> {
        let label = prop::sample::select(vec!["a", "A", "svc", "web", "cluster", "local", "x1"]);
        prop::collection::vec(label, 0..6).prop_map(|labels| {
            let mut name = Name::from_labels(labels.iter().map(|label| label.as_bytes())).unwrap();
            name.set_fqdn(true);
            name
        })
    }

    fn records() -> impl Strategy<Value = Record> {
        let data = (names(), any::<u32>()).prop_flat_map(|(name, n)| {
            prop::sample::select(vec![
                RData::A(Ipv4Addr::from_bits(n).into()),
                RData::AAAA(std::net::Ipv6Addr::from_bits(n.into()).into()),
                RData::CNAME(CNAME(name.clone())),
                RData::SRV(SRV::new(1, 2, 3, name.clone())),
                RData::TXT(TXT::new(vec![n.to_string()])),
                RData::SOA(SOA::new(name.clone(), name, n, 1, -2, 3, n)),
            ])
        });
        (names(), data).prop_map(|(owner, data)| Record::from_rdata(owner, 5, data))
    }

    proptest! {
        #[test]
        fn the_library_reads_what_was_written(
            asked in names(),
            answers in prop::collection::vec(records(), 0..20),
            authorities in prop::collection::vec(records(), 0..3),
            additionals in prop::collection::vec(records(), 0..20),
            has_edns in any::<bool>(),
        ) {
            let question = Query::query(asked, RecordType::AAAA);
            prop_assert_eq!(question.query_class, DNSClass::IN);
            let edns = has_edns.then(Edns::new);
            let (answers, authorities, additionals) = (&answers[..], &authorities[..], &additionals[..]);
            let parts =
                Parts { metadata: metadata(), question: Some(&question), answers, authorities, additionals, edns };
            let read = Message::from_vec(&parts.write(u16::MAX).bytes).unwrap();
            prop_assert!(read.queries[0].name.eq_case(&question.name));
            prop_assert_eq!(&read.answers[..], answers);
            prop_assert_eq!(&read.authorities[..], authorities);
            prop_assert_eq!(&read.additionals[..], additionals);
            prop_assert_eq!(read.edns.is_some(), has_edns);
            for (read, written) in read.answers.iter().zip(answers) {
                prop_assert!(read.name.eq_case(&written.name));
            }
        }
    }
}
