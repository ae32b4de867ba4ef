//! How sections deserialize values with rules of their own, and the error of values that contradict each other.

use std::net::SocketAddr;

use serde::de::value::StringDeserializer;
use serde::de::{Error, IntoDeserializer};
use serde::{Deserialize, Deserializer};

/// A value that contradicts another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Invalid {
    /// With its section, such as `workers.cores`.
    pub(super) key: &'static str,
    /// What is wrong with it.
    pub(super) reason: String,
}

/// Deserializes a `T` and parses it further; the error of `parse` is the reason for refusing the key.
pub(super) fn parse_with<'de, D, T, U>(
    deserializer: D,
    parse: impl FnOnce(T) -> Result<U, String>,
) -> Result<U, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    parse(T::deserialize(deserializer)?).map_err(D::Error::custom)
}

/// Deserializes one of the words of an enum by `parse`, from a string only: TOML would take a table for it too, and its errors
/// would say so.
pub(super) fn word_with<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    parse: impl FnOnce(StringDeserializer<D::Error>) -> Result<T, D::Error>,
) -> Result<T, D::Error> {
    parse(String::deserialize(deserializer)?.into_deserializer())
}

/// The same for an enum that names its words itself.
pub(super) fn word<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    word_with(deserializer, T::deserialize)
}

/// The address of a server; `None` for `off`.
pub(super) fn listen<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    parse_with(deserializer, |text: String| {
        if text == "off" {
            return Ok(None);
        }
        let address: Option<SocketAddr> = text.parse().ok();
        match address.filter(|address| address.port() != 0) {
            Some(address) => Ok(Some(address)),
            None => {
                Err(format!("`{text}` is neither an address with a port such as \"0.0.0.0:10256\" nor off"))
            }
        }
    })
}

/// The first item that is in the list twice.
pub(super) fn first_repeated<T: PartialEq>(items: &[T]) -> Option<&T> {
    items.iter().enumerate().find(|(i, item)| items[..*i].contains(item)).map(|(_, item)| item)
}
