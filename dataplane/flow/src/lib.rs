//! The flow table: one fixed-capacity table per family for all workers, one conntrack entry per direction.
//!
//! Read [`entry`] first, the 64 bytes of one direction and the sequence word that guards them; then
//! [`table::FlowTable::find`], which takes no lock, and [`table::FlowTable::insert`] for the order in which the two
//! directions become visible. A full table: `table/eviction.rs`. Session affinity: [`affinity`]. Memory is allocated at
//! start; it may be a file that the next process takes over ([`persistence`], [`adopt`]). The layout is plain C, so that
//! an XDP program could read it. Nothing here reads a clock, knows a Service or touches packet bytes. Ids such as P703
//! are defined in `control/KUBERNETES.md`.
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
mod shares;
pub mod state;
mod sync;
pub mod table;
pub mod tags;
pub mod timeouts;
mod window;

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
pub use table::{FlowTable, FlowView, Found, Inserted, NewFlow, PORT_BLOCK, Probe, Tracked};
pub use timeouts::Timeouts;
