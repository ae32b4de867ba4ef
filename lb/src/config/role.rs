//! The key `role`.

use clap::ValueEnum;
use flowgate_control::Role;
use serde::Deserialize;

/// A role as the file and the command line name it.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RoleName {
    #[default]
    Gateway,
    Node,
}

impl From<RoleName> for Role {
    fn from(name: RoleName) -> Self {
        match name {
            RoleName::Gateway => Self::Gateway,
            RoleName::Node => Self::Node,
        }
    }
}
