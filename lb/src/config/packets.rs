//! The sections `tcp` and `icmp`: how single packets are treated.

use flowgate_dataplane::{MssClamp, PipelineConfig};
use serde::Deserialize;

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Tcp {
    reset_unknown: bool,
    mss_clamp: WordOrBytes,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(untagged)]
enum WordOrBytes {
    Word(String),
    Bytes(i64),
}

impl Tcp {
    pub(super) const KEYS: &[&str] = &["reset_unknown", "mss_clamp"];

    fn mss_clamp(&self) -> Result<MssClamp, String> {
        match &self.mss_clamp {
            WordOrBytes::Word(word) if word == "off" => Ok(MssClamp::Off),
            WordOrBytes::Word(word) if word == "auto" => Ok(MssClamp::Auto),
            WordOrBytes::Word(word) => Err(format!("`{word}` is neither off, auto nor a number of bytes")),
            WordOrBytes::Bytes(bytes) => match u16::try_from(*bytes) {
                Ok(bytes @ MSS_MIN..=MSS_MAX) => Ok(MssClamp::To(bytes)),
                _ => Err(format!("{bytes} is not from {MSS_MIN} to {MSS_MAX}")),
            },
        }
    }
}

impl Default for Tcp {
    fn default() -> Self {
        Self {
            reset_unknown: PipelineConfig::default().reset_unknown,
            mss_clamp: WordOrBytes::Word("off".into()),
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Icmp {
    echo_vips: bool,
}

impl Icmp {
    pub(super) const KEYS: &[&str] = &["echo_vips"];
}

/// What both sections mean, and the share of half-open connections that `flows` says.
pub(super) fn meant(
    tcp: &Tcp,
    icmp: &Icmp,
    half_open_percent: u8,
) -> Result<PipelineConfig, (&'static str, String)> {
    if !(1..=100).contains(&half_open_percent) {
        return Err(("flows.half_open_percent", format!("{half_open_percent} is not from 1 to 100")));
    }
    let mss_clamp = tcp.mss_clamp().map_err(|reason| ("tcp.mss_clamp", reason))?;
    Ok(PipelineConfig {
        reset_unknown: tcp.reset_unknown,
        mss_clamp,
        echo_vips: icmp.echo_vips,
        half_open_percent,
    })
}

/// What every host takes by IPv4 (RFC 9293 section 3.7.1).
const MSS_MIN: u16 = 536;
/// What fits into the largest packet.
const MSS_MAX: u16 = 65_495;
