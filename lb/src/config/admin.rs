//! The section `[admin]`: the socket of `flowgate show`.

use std::path::PathBuf;

use serde::Deserialize;

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Admin {
    pub(crate) socket: PathBuf,
}

impl Default for Admin {
    fn default() -> Self {
        Self { socket: crate::admin::DEFAULT_SOCKET.into() }
    }
}
