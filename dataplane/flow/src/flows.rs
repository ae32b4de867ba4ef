//! The flows of both families. Never looks into an entry.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use crate::hash::HashKey;
use crate::memory::OutOfMemory;
use crate::persistence::{self, Origin, PersistConfig, PersistError};
use crate::table::{FlowTable, FlowView};

/// The tables' files, IPv4 first.
const FILES: [&str; 2] = ["flows-ipv4", "flows-ipv6"];

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

    /// The same in files that outlive the process, in the folder `folder`. Where [`Origin::Restored`] says so
    /// of a family, its flows have to be adopted before the tables are used.
    ///
    /// # Errors
    /// [`PersistError`]: another process has a file, or the file system or its memory is not to be had.
    pub fn persistent(
        [capacity_v4, capacity_v6]: [u32; 2],
        key: HashKey,
        folder: &Path,
        boot: [u8; 16],
    ) -> Result<(Self, [Origin; 2]), PersistError> {
        let [v4, v6] = FILES.map(|name| PersistConfig { path: folder.join(name), boot });
        let (v4, origin_v4) = FlowTable::persistent(capacity_v4, key, &v4)?;
        let (v6, origin_v6) = FlowTable::persistent(capacity_v6, key, &v6)?;
        Ok((Self { v4, v6 }, [origin_v4, origin_v6]))
    }

    /// Removes the files in `folder`. Those that do not exist are fine.
    ///
    /// # Errors
    /// [`PersistError`]: a process has a file, or the file system refuses.
    pub fn remove(folder: &Path) -> Result<(), PersistError> {
        FILES.iter().try_for_each(|name| persistence::remove(&folder.join(name)))
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
