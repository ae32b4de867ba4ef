//! The section `[metrics]`: the server of `/metrics`.

use std::net::{Ipv4Addr, SocketAddr};

use serde::Deserialize;

use super::value::{listen, word};

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Metrics {
    /// `None`: no server.
    #[serde(deserialize_with = "listen")]
    pub(crate) listen: Option<SocketAddr>,
    #[serde(deserialize_with = "word")]
    pub(crate) detail: MetricsDetail,
    /// 0: all.
    pub(crate) services_max: usize,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            listen: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 10_249))),
            detail: MetricsDetail::Services,
            services_max: 256,
        }
    }
}

/// How finely the metrics of flows are broken down; each level has what those before it have.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub(crate) enum MetricsDetail {
    Totals,
    Services,
    Backends,
}
