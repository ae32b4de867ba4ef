//! The result of a lookup, and the steps that lead to it.

use hickory_proto::rr::rdata::CNAME;
use hickory_proto::rr::{Name, Record};

/// The result of a lookup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status of the name, or of the last name in its chain of aliases.
    pub status: Status,
    /// The records; aliases first.
    pub answers: Vec<Record>,
    /// Records that a client is likely to need next: addresses of SRV targets and name servers.
    pub additionals: Vec<Record>,
}

/// The status of a name for one record type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// It has records of this type.
    Found,
    /// NODATA: it exists without a record of this type (RFC 2308 section 2.2). With the SOA record, whose minimum is
    /// the negative TTL.
    NoData(Box<Record>),
    /// NXDOMAIN: it does not exist (RFC 2308 section 2.1). With the SOA record.
    NxDomain(Box<Record>),
    /// Not ours: neither in the cluster domain nor the reverse name of a known address. This is the name to resolve
    /// elsewhere.
    OutOfZone(Name),
}

/// The result for one name of a chain.
pub(super) enum Step {
    /// The end of the chain.
    Done { status: Status, records: Vec<Record>, additionals: Vec<Record> },
    /// An alias to another name.
    Follow(CNAME),
}

impl Step {
    pub(super) fn found(records: Vec<Record>) -> Self {
        Self::Done { status: Status::Found, records, additionals: Vec::new() }
    }

    pub(super) fn nothing(status: Status) -> Self {
        Self::Done { status, records: Vec::new(), additionals: Vec::new() }
    }
}
