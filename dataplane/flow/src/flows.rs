//! The flow tables of both families.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::hash::HashKey;
use crate::memory::OutOfMemory;
use crate::persistence::{self, Origin, PersistConfig, PersistError};
use crate::table::{FlowTable, FlowView};

/// The tables' files, IPv4 first.
const FILES: [&str; 2] = ["flows-ipv4", "flows-ipv6"];

/// The unit of `st_blocks` (inode(7)).
const BLOCK_BYTES: u64 = 512;

/// The flow tables of both families, shared by all workers.
#[derive(Debug)]
pub struct Flows {
    /// The flows of IPv4.
    pub v4: FlowTable<Ipv4Addr>,
    /// The flows of IPv6.
    pub v6: FlowTable<Ipv6Addr>,
}

impl Flows {
    /// Tables for these numbers of flows.
    ///
    /// # Errors
    /// [`OutOfMemory`]: the kernel refuses the mapping.
    pub fn new(capacity_v4: u32, capacity_v6: u32, key: HashKey) -> Result<Self, OutOfMemory> {
        Ok(Self { v4: FlowTable::new(capacity_v4, key)?, v6: FlowTable::new(capacity_v6, key)? })
    }

    /// The same in files in `folder`, which outlive the process. Tables that are [`Origin::Restored`] have to be adopted
    /// before they are used.
    ///
    /// # Errors
    /// [`PersistError`]: another process uses a file, or file system or memory fail.
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

    /// The bytes that the files in `folder` occupy by now.
    pub fn stored_bytes(folder: &Path) -> u64 {
        let of_file = |name| fs::metadata(folder.join(name)).map_or(0, |meta| meta.blocks() * BLOCK_BYTES);
        FILES.into_iter().map(of_file).sum()
    }

    /// Removes the files in `folder`, those that exist.
    ///
    /// # Errors
    /// [`PersistError`]: a process uses a file, or the file system fails.
    pub fn remove(folder: &Path) -> Result<(), PersistError> {
        FILES.iter().try_for_each(|name| persistence::remove(&folder.join(name)))
    }

    /// All flows, for output.
    pub fn views(&self) -> impl Iterator<Item = FlowView> {
        self.v4.flows().chain(self.v6.flows())
    }

    /// Capacity of both tables, in flows.
    pub fn capacity(&self) -> u64 {
        u64::from(self.v4.capacity_flows()) + u64::from(self.v6.capacity_flows())
    }

    /// Entries in use, both directions counted.
    pub fn used_entries(&self) -> usize {
        self.v4.used_entries() + self.v6.used_entries()
    }

    /// Memory used, in bytes.
    pub fn len_bytes(&self) -> usize {
        self.v4.len_bytes() + self.v6.len_bytes()
    }
}
