//! The flows of both families. Never looks into an entry.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::hash::HashKey;
use crate::memory::OutOfMemory;
use crate::table::{FlowTable, FlowView};

/// The flow tables of both families, shared by all workers.
#[derive(Debug)]
pub struct Flows {
    /// The flows of IPv4.
    pub v4: FlowTable<Ipv4Addr>,
    /// The flows of IPv6.
    pub v6: FlowTable<Ipv6Addr>,
}

impl Flows {
    /// Tables for so many flows of each family.
    ///
    /// # Errors
    /// [`OutOfMemory`]: the kernel gives no such mapping.
    pub fn new(capacity_v4: u32, capacity_v6: u32, key: HashKey) -> Result<Self, OutOfMemory> {
        Ok(Self { v4: FlowTable::new(capacity_v4, key)?, v6: FlowTable::new(capacity_v6, key)? })
    }

    /// All flows, as views for people.
    pub fn views(&self) -> impl Iterator<Item = FlowView> {
        self.v4.flows().chain(self.v6.flows())
    }

    /// Flows that both tables are made for.
    pub fn capacity(&self) -> u64 {
        u64::from(self.v4.capacity_flows()) + u64::from(self.v6.capacity_flows())
    }

    /// Entries in use, both directions counted.
    pub fn used_entries(&self) -> usize {
        self.v4.used_entries() + self.v6.used_entries()
    }

    /// Memory taken, in bytes.
    pub fn len_bytes(&self) -> usize {
        self.v4.len_bytes() + self.v6.len_bytes()
    }
}
