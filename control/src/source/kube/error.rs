//! Errors of requests to the API server, worded for the operator.

use std::time::Duration;

use kube::error::Status;

use super::access::AccessError;
use super::error_chain::error_chain;
use super::resource::Resource;
use crate::report::Shown;

/// Why a request or a stream failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ApiError {
    /// There is no client.
    #[error("{0}")]
    Access(#[from] AccessError),
    /// The server refused the request.
    #[error("{message} ({code})")]
    Refused { code: u16, message: String },
    /// No response: connecting, TLS or HTTP failed.
    #[error("{0}")]
    Unreachable(String),
    /// The response did not come within the time limit.
    #[error("the API server did not answer within {0:?}")]
    Timeout(Duration),
    /// A stream was silent for longer than a live one can be, in seconds.
    #[error("the API server said nothing for {0} s")]
    Idle(u64),
    /// The response is not that of an API server.
    #[error("the answer is not that of an API server: {0}")]
    Malformed(String),
    /// A stream ended in the middle of a list.
    #[error("the API server ended the stream in the middle of the list")]
    ListCutOff,
}

impl ApiError {
    /// Whether the server no longer has the changes since the requested version: only a new list helps.
    pub(super) const fn is_expired(&self) -> bool {
        matches!(self, Self::Refused { code: 410, .. })
    }

    /// Whether the server does not know the collection.
    pub(super) const fn is_absent(&self) -> bool {
        matches!(self, Self::Refused { code: 404, .. })
    }

    /// Whether the server has decided that the collection cannot be read, so that asking again soon does not help.
    pub(super) const fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { code: 401 | 403 | 404 | 405 | 406, .. })
    }

    /// Whether the server does not support the requested feature. 500 is kube-apiserver's response to a streamed list
    /// over an etcd that cannot report progress (before 3.4.25 and 3.5.8).
    pub(super) const fn is_unsupported(&self) -> bool {
        matches!(self, Self::Refused { code: 400 | 422 | 500, .. })
    }

    /// One sentence: what failed, why, and what to do about it.
    pub(super) fn explain(&self, resource: &Resource) -> String {
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
        // Any proxy in between can be the author of a part, and health shows it as it is.
        Shown(&format!("cannot follow {plural}: {self}{remedy}")).to_string()
    }
}

impl From<kube::Error> for ApiError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => (*status).into(),
            other => Self::Unreachable(error_chain(&other)),
        }
    }
}

impl From<Status> for ApiError {
    fn from(status: Status) -> Self {
        let code = match status.reason.as_str() {
            // Both reasons mean an expired version, whatever the code is.
            "Expired" | "Gone" => 410,
            _ => status.code,
        };
        // One line: the message may be the HTML page of a proxy.
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
            error.explain(slices),
            "cannot follow endpointslices: endpointslices is forbidden: User \"x\" cannot list (403): grant \
             the verbs list and watch on endpointslices in apiGroup \"discovery.k8s.io\" (see rbac.yaml)"
        );
    }

    #[test]
    fn nothing_of_an_answer_acts_on_a_terminal() {
        let status = Status::failure("no \u{1b}[2Jentry\u{202e}", "Forbidden").with_code(500);
        let slices = &Resource::all(Scope::Served, None)[1];
        let explained = ApiError::from(status).explain(slices);
        assert_eq!(explained, "cannot follow endpointslices: no \\u{1b}[2Jentry\\u{202e} (500)");
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
