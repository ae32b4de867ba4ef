//! The section `[tcp]`: how single segments are treated.

use flowgate_dataplane::{MssClamp, PipelineConfig};
use serde::{Deserialize, Deserializer};
use toml::Value;

use super::value::parse_with;

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Tcp {
    reset_unknown: bool,
    #[serde(deserialize_with = "mss_clamp")]
    mss_clamp: MssClamp,
}

impl Default for Tcp {
    fn default() -> Self {
        let PipelineConfig { reset_unknown, mss_clamp, .. } = PipelineConfig::default();
        Self { reset_unknown, mss_clamp }
    }
}

impl Tcp {
    pub(super) const fn apply_to(&self, pipeline: &mut PipelineConfig) {
        pipeline.reset_unknown = self.reset_unknown;
        pipeline.mss_clamp = self.mss_clamp;
    }
}

fn mss_clamp<'de, D: Deserializer<'de>>(deserializer: D) -> Result<MssClamp, D::Error> {
    parse_with(deserializer, |value| match value {
        Value::String(word) if word == "off" => Ok(MssClamp::Off),
        Value::String(word) if word == "auto" => Ok(MssClamp::Auto),
        Value::String(word) => Err(format!("`{word}` is neither off, auto nor a number of bytes")),
        Value::Integer(bytes) => match u16::try_from(bytes) {
            Ok(bytes @ MSS_MIN..=MSS_MAX) => Ok(MssClamp::To(bytes)),
            _ => Err(format!("{bytes} is not from {MSS_MIN} to {MSS_MAX}")),
        },
        other => Err(format!("`{other}` is neither off, auto nor a number of bytes")),
    })
}

/// What every host takes by IPv4 (RFC 9293 section 3.7.1).
const MSS_MIN: u16 = 536;
/// What fits into the largest packet.
const MSS_MAX: u16 = 65_495;
