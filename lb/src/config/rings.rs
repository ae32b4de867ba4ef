//! The section `[rings]`: lengths of the AF_XDP rings, and of the frames in them.

use serde::{Deserialize, Deserializer};

use super::value::parse_with;

#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Rings {
    #[serde(deserialize_with = "ring_len")]
    pub(crate) rx: u32,
    #[serde(deserialize_with = "ring_len")]
    pub(crate) tx: u32,
    #[serde(deserialize_with = "ring_len")]
    pub(crate) fill: u32,
    /// 0: what the largest MTU needs.
    #[serde(deserialize_with = "frame_bytes")]
    pub(crate) frame_bytes: u32,
}

impl Default for Rings {
    fn default() -> Self {
        Self { rx: 2048, tx: 2048, fill: 4096, frame_bytes: 0 }
    }
}

fn ring_len<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    parse_with(deserializer, |len: u32| {
        if !len.is_power_of_two() || !(64..=32_768).contains(&len) {
            return Err(format!("{len} is not a power of two from 64 to 32768"));
        }
        Ok(len)
    })
}

fn frame_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    parse_with(deserializer, |bytes: u32| {
        if [0, 2048, 4096].contains(&bytes) {
            Ok(bytes)
        } else {
            Err(format!("{bytes} is not 0, 2048 or 4096"))
        }
    })
}
