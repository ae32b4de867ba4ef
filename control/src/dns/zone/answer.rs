//! Answers, and the steps they are made of. Never says what a name means.

use hickory_proto::rr::rdata::CNAME;
use hickory_proto::rr::{Name, Record};

/// What is known of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What is known of the name asked for, or of the last alias that leads on from it.
    pub status: Status,
    /// The records; aliases first.
    pub answers: Vec<Record>,
    /// Records that a client is likely to ask for next.
    pub additionals: Vec<Record>,
}

/// What is known of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// It has such records.
    Found,
    /// It exists and has no such record; how long this holds is said by the SOA record.
    NoData(Box<Record>),
    /// It does not exist.
    NxDomain(Box<Record>),
    /// Others know: it is neither in the cluster domain nor the name of a known address.
    OutOfZone(Name),
}

/// What one name leads to.
pub(super) enum Step {
    /// To this, for good.
    Done { status: Status, records: Vec<Record>, additionals: Vec<Record> },
    /// To another name.
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
