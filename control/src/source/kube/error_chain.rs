//! An error of the Kubernetes client with all its causes on one line.

use std::error::Error;

use crate::report;

/// The chain without kube-client's names for its own layers, which mean nothing to an operator.
pub(super) fn error_chain(error: &(dyn Error + 'static)) -> String {
    let mut text = report::error_chain(error);
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
