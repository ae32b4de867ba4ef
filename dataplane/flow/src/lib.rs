//! The flow table: one fixed-capacity table a family for all workers, one conntrack entry per direction.
//!
//! Finding a flow takes no lock; only inserting and removing synchronise, and only in here. Memory is
//! taken at start and never grows; it may be a file that the next process takes over ([`persistence`],
//! [`adopt`]). The layout is plain C ([`entry`], [`tags`]), so that an XDP program can read the same table.
//! Never reads a clock, never knows a Service, never touches packet bytes.
//!
//! # Required reading
//! - Readers: [`table::FlowTable::find`] and the sequence word in [`entry`].
//! - Writers: [`table::FlowTable::insert`] for the order in which the two directions become visible.
//! - Session affinity is a table of its own: [`affinity`].
//! - What happens when the table is full: [`table::Inserted::Full`] and `table/eviction.rs`.
#![deny(unsafe_code)]

pub mod address;
pub mod adopt;
pub mod affinity;
mod arch;
pub mod entry;
pub mod expiry;
pub mod flows;
pub mod hash;
#[cfg(feature = "interleave")]
pub mod interleave;
mod memory;
pub mod persistence;
pub mod state;
mod sync;
pub mod table;
pub mod tags;
pub mod timeouts;

pub use address::FlowAddress;
pub use adopt::{Adopted, RestoredFlow};
pub use affinity::{AffinityTable, Binding};
pub use arch::prefetch;
pub use entry::{Direction, EntryIndex, NextHopRef, Side, Tick};
pub use expiry::{Sweep, SweepContext};
pub use flows::Flows;
pub use hash::{FlowHash, HashKey};
pub use memory::OutOfMemory;
pub use persistence::{Incompatible, Origin, PersistConfig, PersistError};
pub use state::TcpPhase;
pub use table::{FlowTable, FlowView, Found, Inserted, NewFlow, Probe};
pub use timeouts::Timeouts;
