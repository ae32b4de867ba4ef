//! The section `[health]`: the server of `/healthz` and `/livez`.

use std::net::{Ipv4Addr, SocketAddr};

use serde::Deserialize;

use super::value::listen;

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Health {
    /// `None`: no server.
    #[serde(deserialize_with = "listen")]
    pub(crate) listen: Option<SocketAddr>,
}

impl Default for Health {
    fn default() -> Self {
        Self { listen: Some(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 10_256))) }
    }
}
