//! Serde for protocols: by the name in Kubernetes. The crate of the packet types has no serde.

use std::borrow::Cow;

use flowgate_wire::Protocol;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serializer};

pub(super) fn serialize<S: Serializer>(protocol: &Protocol, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(protocol.name())
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Protocol, D::Error> {
    let name: Cow<'de, str> = Deserialize::deserialize(from)?;
    name.parse().map_err(D::Error::custom)
}
