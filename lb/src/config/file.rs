//! The TOML file as its sections, and serde's errors in the words of this program.

use std::fs::File;
use std::io::{self, Read as _};
use std::path;

use serde::Deserialize;
use serde_path_to_error::Path;

use super::admin::Admin;
use super::dns::Dns;
use super::flows::Flows;
use super::gateway::Gateway;
use super::health::Health;
use super::icmp::Icmp;
use super::limits::Limits;
use super::log::Log;
use super::metrics::Metrics;
use super::node::Node;
use super::privileges::Privileges;
use super::rings::Rings;
use super::services::Services;
use super::snat::Snat;
use super::source::SourceSection;
use super::tcp::Tcp;
use super::value::word;
use super::workers::Workers;
use super::xdp::Xdp;
use super::{ConfigError, RoleName};

/// The text of a file.
///
/// # Errors
/// [`ConfigError::Unreadable`], also if it is larger than any configuration.
pub(super) fn read(path: &path::Path) -> Result<String, ConfigError> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(LEN_MAX + 1).read_to_string(&mut text));
    let read = read.and_then(|len| {
        let is_too_long = len as u64 > LEN_MAX;
        if is_too_long { Err(io::Error::other(format!("longer than {LEN_MAX} bytes"))) } else { Ok(text) }
    });
    read.map_err(|cause| ConfigError::Unreadable { path: path.to_owned(), cause })
}

/// In bytes; ten times what all keys with the longest lists in use take.
const LEN_MAX: u64 = 1 << 20;

/// A whole file. A section or key that it does not have is at its default.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Sections {
    #[serde(deserialize_with = "word")]
    pub(super) role: RoleName,
    pub(super) node_name: Option<String>,
    pub(super) source: SourceSection,
    pub(super) gateway: Gateway,
    pub(super) node: Node,
    pub(super) services: Services,
    pub(super) snat: Snat,
    pub(super) workers: Workers,
    pub(super) xdp: Xdp,
    pub(super) rings: Rings,
    pub(super) flows: Flows,
    pub(super) limits: Limits,
    pub(super) tcp: Tcp,
    pub(super) icmp: Icmp,
    pub(super) dns: Dns,
    pub(super) admin: Admin,
    pub(super) health: Health,
    pub(super) metrics: Metrics,
    pub(super) privileges: Privileges,
    pub(super) log: Log,
}

impl Sections {
    /// Parses the text of the file `place`.
    ///
    /// # Errors
    /// [`ConfigError`] with `place`, for the first thing that is wrong.
    pub(super) fn parse(text: &str, place: &str) -> Result<Self, ConfigError> {
        let line = |error: &toml::de::Error| match error.span() {
            Some(span) => format!("{place}:{}", text[..span.end.min(text.len())].lines().count().max(1)),
            None => place.to_owned(),
        };
        let parsed = toml::Deserializer::parse(text);
        let deserializer = parsed.map_err(|error| ConfigError::Syntax {
            place: line(&error),
            reason: error.message().to_owned(),
        })?;
        serde_path_to_error::deserialize(deserializer).map_err(|error| {
            let (path, error) = (error.path().clone(), error.into_inner());
            refusal(&path, error.message(), place, line(&error))
        })
    }
}

/// The error for one that serde found at `path`. serde passes on only text, so its own errors are recognised by how
/// they begin (`serde::de::Error`); all others come from the sections.
fn refusal(path: &Path, message: &str, place: &str, line: String) -> ConfigError {
    let key = path.to_string();
    if message.starts_with(UNKNOWN_FIELD) {
        let parents: Vec<_> = path.iter().map(ToString::to_string).collect();
        let section: String = parents.iter().rev().skip(1).rev().map(|parent| format!("{parent}.")).collect();
        let candidates = expected(message).map(|candidate| format!("{section}{candidate}"));
        let distance = |candidate: &String| strsim::damerau_levenshtein(&key, candidate);
        let nearest =
            candidates.min_by_key(distance).filter(|nearest| distance(nearest) <= 1 + key.len() / 3);
        return ConfigError::UnknownKey { place: line, key, nearest };
    }
    if let Some((word, _)) =
        message.strip_prefix("unknown variant ").and_then(|rest| rest.rsplit_once(", expected "))
    {
        let words: Vec<_> = expected(message).collect();
        let reason = match words[..] {
            [one, other] => format!("{word} is neither {one} nor {other}"),
            _ => format!("{word} is none of {}", words.join(", ")),
        };
        return ConfigError::Value { place: place.to_owned(), key, reason };
    }
    // "invalid type", "invalid value", "invalid IP address syntax": these do not quote what was written, the line shows it.
    let place = if message.starts_with("invalid ") { line } else { place.to_owned() };
    ConfigError::Value { place, key, reason: message.to_owned() }
}

/// The names after the word "expected" of an error of serde's, which quotes each.
fn expected(message: &str) -> impl Iterator<Item = &str> {
    let (_, names) = message.rsplit_once(", expected ").unwrap_or_default();
    names.split('`').skip(1).step_by(2)
}

const UNKNOWN_FIELD: &str = "unknown field ";

/// The keys of the section that the text opens, or of the whole file.
#[cfg(test)]
pub(super) fn known_keys(section: Option<&str>) -> Vec<String> {
    let header = section.map_or_else(String::new, |section| format!("[{section}]\n"));
    let error = toml::from_str::<Sections>(&format!("{header}no-such-key = 0")).unwrap_err();
    let message = error.message();
    if message.starts_with(UNKNOWN_FIELD) {
        expected(message).map(str::to_owned).collect()
    } else {
        Vec::new()
    }
}
