//! What the tests that need root share.

/// Fails in one clear sentence where the lab cannot run: a skipped test would look like a passed one.
pub(crate) fn require_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test makes network namespaces and needs root: run `sudo -E cargo test -p flowgate-benches`"
    );
}

/// [`wait::eventually`](flowgate_benches::lab::wait::eventually), failing the test at the time limit.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    if let Err(error) = flowgate_benches::lab::wait::eventually(what, || Ok(condition())) {
        panic!("{error}");
    }
}
