//! A network on one machine: clients, the gateway, a fabric and backends, each a network namespace.
//!
//! The lab starts the gateway as a user would, by its command line, and observes it only from outside. It configures
//! only interfaces that it created.

pub mod bench;
pub mod compare;
pub mod compare_nft;
pub mod control_bench;
pub mod demo;
pub mod faults;
pub mod gateway;
pub mod interrupt;
pub mod kubernetes;
pub mod manifests;
pub(crate) mod output;
pub mod sample;
pub(crate) mod scratch;
pub mod servers;
pub mod soak;
pub mod supervisor;
pub mod topology;
pub mod wait;
mod wire;
