//! Lines for people and reports for programs: results go to standard output, progress to standard error.

use std::fmt::Display;
use std::io::{self, Write as _};

/// Prints a line to standard output.
pub(crate) fn print_line(text: impl Display) {
    // A closed pipe must not keep the lab from cleaning up.
    let _ = writeln!(io::stdout().lock(), "{text}");
}

/// Prints a line of progress to standard error, apart from the report on standard output.
pub(crate) fn print_progress(text: &str) {
    // A closed pipe must not keep the lab from cleaning up.
    let _ = writeln!(io::stderr().lock(), "{text}");
}
