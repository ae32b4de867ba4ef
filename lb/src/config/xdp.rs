//! The section `[xdp]`: how the program and the sockets are attached.

use std::path::PathBuf;
use std::time::Duration;

use flowgate_xsk::ZeroCopy;
use flowgate_xsk::steering::XdpModePolicy;
use serde::{Deserialize, Deserializer};

use super::value::{parse_with, word_with};

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Xdp {
    pub(crate) pin_dir: PathBuf,
    #[serde(deserialize_with = "mode")]
    pub(crate) mode: XdpModePolicy,
    #[serde(deserialize_with = "zero_copy")]
    pub(crate) zero_copy: ZeroCopy,
    /// Whether interfaces prove that full-size packets arrive.
    pub(crate) prove: bool,
    /// For how long after the end of the process the program drops what is Flowgate's.
    #[serde(rename = "hold_ms", deserialize_with = "grace")]
    pub(crate) grace: Duration,
}

impl Default for Xdp {
    fn default() -> Self {
        Self {
            pin_dir: "/sys/fs/bpf/flowgate".into(),
            mode: XdpModePolicy::Auto,
            zero_copy: ZeroCopy::Auto,
            prove: true,
            grace: Duration::from_secs(5),
        }
    }
}

#[derive(Deserialize)]
#[serde(remote = "XdpModePolicy", rename_all = "lowercase")]
enum ModeName {
    Auto,
    Native,
    Generic,
}

#[derive(Deserialize)]
#[serde(remote = "ZeroCopy", rename_all = "lowercase")]
enum ZeroCopyName {
    Auto,
    Force,
    Off,
}

fn mode<'de, D: Deserializer<'de>>(deserializer: D) -> Result<XdpModePolicy, D::Error> {
    word_with(deserializer, ModeName::deserialize)
}

fn zero_copy<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ZeroCopy, D::Error> {
    word_with(deserializer, ZeroCopyName::deserialize)
}

fn grace<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    parse_with(deserializer, |ms: u64| {
        if ms > GRACE_MAX_MS {
            return Err(format!("{ms} is above {GRACE_MAX_MS}: all that time nobody is served"));
        }
        Ok(Duration::from_millis(ms))
    })
}

const GRACE_MAX_MS: u64 = 60_000;
