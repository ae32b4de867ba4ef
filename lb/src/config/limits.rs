//! The section `[limits]`: how much all objects together, one Service and one namespace may ask for. What does not fit is
//! left out with a finding that names the key.

use flowgate_control::CompileConfig;
use flowgate_tables::Budgets;
use flowgate_xsk::steering::SetLimits;
use serde::{Deserialize, Deserializer};

use super::value::parse_with;

/// Declares the section with the keys of [`Budgets`], all of one type and range.
macro_rules! limits {
    ($($key:ident),* $(,)?) => {
        #[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
        #[serde(default, deny_unknown_fields)]
        pub(crate) struct Limits {
            $(#[serde(deserialize_with = "limit")] $key: u32,)*
        }

        impl Default for Limits {
            fn default() -> Self {
                let Budgets { $($key,)* } = Budgets::default();
                Self { $($key,)* }
            }
        }

        impl Limits {
            /// The limits as control and maps take them.
            pub(crate) const fn budgets(&self) -> Budgets {
                Budgets { $($key: self.$key,)* }
            }
        }
    };
}

limits! {
    services,
    frontends,
    vips,
    vip_addresses,
    cluster_ips,
    reply_sources,
    backends,
    node_addresses,
    snat_addresses,
    service_cidrs,
    service_frontends,
    service_endpoints,
    namespace_frontends,
    namespace_endpoints,
}

impl Limits {
    /// The limits of the sets of the XDP program.
    pub(crate) const fn sets(&self) -> SetLimits {
        SetLimits {
            vips: self.vips,
            vip_addresses: self.vip_addresses,
            // With the other VIPs, of which no port is the kernel's either.
            cluster_ips: self.cluster_ips.saturating_add(self.vip_addresses),
            reply_sources: self.reply_sources,
            node_addresses: self.node_addresses.saturating_add(OTHER_OWN_ADDRESSES),
            snat_addresses: self.snat_addresses,
            service_cidrs: self.service_cidrs,
            vlans: SetLimits::VLANS,
        }
    }

    pub(super) const fn apply_to(&self, compile: &mut CompileConfig) {
        compile.budgets = self.budgets();
    }
}

/// Own addresses on interfaces that are not served, beside those that `node_addresses` bounds.
pub(crate) const OTHER_OWN_ADDRESSES: u32 = 1024;

fn limit<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    parse_with(deserializer, |entries: u32| match entries {
        1..=Budgets::MAX => Ok(entries),
        _ => Err(format!("{entries} is not from 1 to {}", Budgets::MAX)),
    })
}
