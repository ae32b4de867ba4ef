//! A network on one machine: clients, the gateway, a fabric and backends, each a network namespace.
//!
//! The lab starts the gateway as a user would, by its command line, and sees it only from outside. It never configures
//! an interface that it did not make.

pub mod gateway;
pub mod manifests;
pub mod servers;
pub mod topology;
