//! The section `[privileges]`: what the process may still do once it has attached.

use caps::Capability;
use serde::{Deserialize, Deserializer};

use super::value::{first_repeated, parse_with};

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Privileges {
    /// Whether capabilities that are not needed any more are given up.
    pub(crate) drop: bool,
    /// Capabilities that the control thread keeps besides.
    #[serde(deserialize_with = "capabilities")]
    pub(crate) keep: Vec<Capability>,
    /// Whether workers can make only the system calls that they need.
    pub(crate) seccomp: bool,
}

impl Default for Privileges {
    fn default() -> Self {
        Self { drop: true, keep: Vec::new(), seccomp: true }
    }
}

fn capabilities<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Capability>, D::Error> {
    let capability = |name: &String| {
        let parsed = caps::to_canonical(name).parse();
        parsed.map_err(|_unknown| format!("`{name}` is no capability such as CAP_DAC_READ_SEARCH"))
    };
    parse_with(deserializer, |list: Vec<String>| {
        let capabilities = list.iter().map(capability).collect::<Result<Vec<Capability>, _>>()?;
        match first_repeated(&capabilities) {
            Some(twice) => Err(format!("{twice} is listed twice")),
            None => Ok(capabilities),
        }
    })
}
