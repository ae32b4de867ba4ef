//! Frames that no sane sender would send. Corpora are replayed first; `FUZZ_SECONDS` and `FUZZ_SEED` as
//! `flowgate_fuzz` says.
#![allow(clippy::unwrap_used, reason = "test support: a panic is the report")]

#[path = "fuzz/frames.rs"]
mod frames;
#[path = "fuzz/headers.rs"]
mod headers;
mod model;
mod simulation;

use flowgate_fuzz::Target;

#[test]
fn whatever_comes_in_nothing_panics_and_what_leaves_is_right() {
    Target::new("frames", env!("CARGO_MANIFEST_DIR")).run(frames::script, frames::check);
}

#[test]
fn any_bytes_are_parsed_as_another_implementation_does_and_translated_there_and_back() {
    Target::new("headers", env!("CARGO_MANIFEST_DIR")).run(headers::frame, headers::check);
}
