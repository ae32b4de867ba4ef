//! The section `[gateway]`: what is served, and on which addresses.

use flowgate_control::{CompileConfig, NodePortAddress};
use serde::{Deserialize, Deserializer};

use super::value::{Invalid, first_repeated, parse_with};

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Gateway {
    pub(crate) interfaces: Vec<String>,
    #[serde(deserialize_with = "nodeport_addresses")]
    nodeport_addresses: Vec<NodePortAddress>,
}

impl Gateway {
    /// The section with the interfaces of the command line, if it names any.
    ///
    /// # Errors
    /// An interface is named twice.
    pub(super) fn resolve(self, interfaces: Vec<String>) -> Result<Self, Invalid> {
        let interfaces = if interfaces.is_empty() { self.interfaces } else { interfaces };
        if let Some(twice) = first_repeated(&interfaces) {
            let reason = format!("`{twice}` is listed twice");
            return Err(Invalid { key: "gateway.interfaces", reason });
        }
        Ok(Self { interfaces, ..self })
    }

    pub(super) fn apply_to(&self, compile: &mut CompileConfig) {
        compile.nodeport_addresses.clone_from(&self.nodeport_addresses);
    }
}

fn nodeport_addresses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<NodePortAddress>, D::Error> {
    parse_with(deserializer, |list: Vec<String>| list.iter().map(|entry| entry.parse()).collect())
}
