//! The parts of the tables that belong to an address family.

use std::net::{Ipv4Addr, Ipv6Addr};

use flowgate_flow::{FlowAddress, FlowTable, Flows};
use flowgate_tables::{InterfaceId, SnatPool};

/// An address family that is forwarded: IPv4 or IPv6.
pub trait Family: FlowAddress {
    /// Its flow table.
    fn table(flows: &Flows) -> &FlowTable<Self>;
    /// The source addresses of flows that leave by `egress`.
    fn snat_addresses(pool: &SnatPool, egress: InterfaceId) -> &[Self];
}

impl Family for Ipv4Addr {
    #[inline]
    fn table(flows: &Flows) -> &FlowTable<Self> {
        &flows.v4
    }

    fn snat_addresses(pool: &SnatPool, egress: InterfaceId) -> &[Self] {
        pool.addresses_v4(egress)
    }
}

impl Family for Ipv6Addr {
    #[inline]
    fn table(flows: &Flows) -> &FlowTable<Self> {
        &flows.v6
    }

    fn snat_addresses(pool: &SnatPool, egress: InterfaceId) -> &[Self] {
        pool.addresses_v6(egress)
    }
}
