//! An error with all its causes on one line.

use std::error::Error;

/// The text of an error followed by those of its causes, each once: many errors repeat their cause in their own text.
pub(super) fn error_chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = error.source();
    }
    // kube-client's names for its own layers mean nothing to an operator.
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
