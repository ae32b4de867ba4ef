//! Why the API server could not be heard, worded for whoever must act. Never decides what happens next.

use std::error::Error;
use std::time::Duration;

use kube::error::Status;

use super::access::AccessError;
use super::resource::Resource;

/// Why a request or a stream failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ApiError {
    /// There is no client to ask with.
    #[error("{0}")]
    Access(#[from] AccessError),
    /// The server answered, and it was no.
    #[error("{message} ({code})")]
    Refused { code: u16, message: String },
    /// Nobody answered.
    #[error("{0}")]
    Unreachable(String),
    /// An answer did not come in time.
    #[error("the API server did not answer within {0:?}")]
    Slow(Duration),
    /// A stream stopped without being ended.
    #[error("the API server said nothing for {0} s")]
    Silent(u64),
    /// What came is not what an API server says.
    #[error("the answer is not that of an API server: {0}")]
    Garbled(String),
    /// A stream ended too early.
    #[error("the API server ended the stream in the middle of the list")]
    Broken,
}

impl ApiError {
    /// Whether the server no longer knows the version that was asked from: only a new list helps.
    pub(super) const fn is_expired(&self) -> bool {
        matches!(self, Self::Refused { code: 410, .. })
    }

    /// Whether the server does not know the collection.
    pub(super) const fn is_absent(&self) -> bool {
        matches!(self, Self::Refused { code: 404, .. })
    }

    /// Whether the server understood the question and does not do this. 500 is what kube-apiserver says of streamed
    /// lists over an etcd that cannot report progress (before 3.4.25 and 3.5.8).
    pub(super) const fn is_unsupported(&self) -> bool {
        matches!(self, Self::Refused { code: 400 | 422 | 500, .. })
    }

    /// The whole sentence: what could not be done, why, and what to do about it.
    pub(super) fn sentence(&self, resource: &Resource) -> String {
        let plural = resource.plural;
        let remedy = match self {
            Self::Refused { code: 401, .. } => {
                ": the credentials are not accepted; renew the token or certificate".to_owned()
            }
            Self::Refused { code: 403, .. } => {
                let group = resource.group();
                format!(": grant the verbs list and watch on {plural} in apiGroup {group:?} (see rbac.yaml)")
            }
            Self::Refused { code: 404, .. } => {
                format!(": the server has no {plural} in {}", resource.kind.api_version())
            }
            _ => String::new(),
        };
        format!("cannot follow {plural}: {self}{remedy}")
    }
}

impl From<kube::Error> for ApiError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => (*status).into(),
            other => Self::Unreachable(chain(&other)),
        }
    }
}

impl From<Status> for ApiError {
    fn from(status: Status) -> Self {
        let code = match status.reason.as_str() {
            "Expired" | "Gone" => 410,
            _ => status.code,
        };
        let mut message = status.message.lines().next().unwrap_or("").to_owned();
        if let Some((end, _)) = message.char_indices().nth(MESSAGE_CHARS_MAX) {
            message.truncate(end);
        }
        if message.is_empty() {
            message = if status.reason.is_empty() { "refused".into() } else { status.reason };
        }
        Self::Refused { code, message }
    }
}

/// An error with its causes; what the words of one hold already is not said twice.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = error.source();
    }
    // kube-client's names for its own layers help nobody.
    for layer in [
        "ServiceError: ",
        "HyperError: ",
        "client error (Connect): ",
        "client error (SendRequest): ",
        "auth error: ",
    ] {
        text = text.replace(layer, "");
    }
    text
}

/// A proxy in between may answer with a whole page.
const MESSAGE_CHARS_MAX: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::kube::Scope;

    #[test]
    fn a_refusal_names_what_to_grant() {
        let slices = &Resource::all(Scope::Served, None)[1];
        let status = Status::failure("endpointslices is forbidden: User \"x\" cannot list", "Forbidden");
        let error = ApiError::from(status.with_code(403));
        assert_eq!(
            error.sentence(slices),
            "cannot follow endpointslices: endpointslices is forbidden: User \"x\" cannot list (403): grant \
             the verbs list and watch on endpointslices in apiGroup \"discovery.k8s.io\" (see rbac.yaml)"
        );
    }

    #[test]
    fn an_answer_of_a_proxy_is_cut_to_one_line() {
        let page = format!("{}\n<html>", "x".repeat(1000));
        let ApiError::Refused { code, message } = Status::failure(&page, "").with_code(502).into() else {
            panic!("a status is a refusal");
        };
        assert_eq!((code, message.len()), (502, MESSAGE_CHARS_MAX));
    }

    #[test]
    fn expiry_is_told_by_its_reason_too() {
        let status = Status::failure("too old resource version", "Expired");
        assert!(ApiError::from(status).is_expired());
    }
}
