//! What an operator may choose about single packets. Never read from a file here.

/// How packets are treated where there is more than one good way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether a TCP segment of a connection that is not known is answered with a reset, as its receiver
    /// would (RFC 9293 section 3.10.7.1), and not dropped.
    pub reset_unknown: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { reset_unknown: true }
    }
}
