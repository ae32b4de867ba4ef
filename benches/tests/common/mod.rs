//! What the tests that need root share.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of it")]

/// Fails in one clear sentence where the lab cannot run: a skipped test would look like a passed one.
pub fn require_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test makes network namespaces and needs root: run `sudo -E cargo test -p flowgate-benches`"
    );
}

/// Polls until `condition` holds; the limit only ends a test that would hang.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..2_000 {
        if condition() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("{what} did not happen within 10 s");
}
