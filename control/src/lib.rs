//! Turns Kubernetes objects and kernel network state into tables.
//!
//! Values flow one way: a [`source`] and [`netlink`] send what they saw to [`reconcile`], which folds
//! changes, calls [`compile()`] and hands the tables to a sink that the binary supplies. [`model`] says what
//! the objects mean, [`report`] what is wrong with them, [`health`] whether all this works, and [`dns`] answers
//! for their names. Nothing here sees a packet or the data plane.
#![forbid(unsafe_code)]

pub mod check;
pub mod compile;
pub mod dns;
pub mod health;
pub mod http;
pub mod model;
pub mod netlink;
pub mod reconcile;
pub mod report;
mod run;
pub mod source;

pub use check::{check, check_cluster};
pub use compile::{CompileConfig, LocalPods, NodeAddresses, NodePortAddress, Role, compile};
pub use reconcile::{Status, SyncMetrics, Update};
pub use report::{Entry, ObjectRef, Place, Report, Severity};
pub use run::{Config, Source, run};
