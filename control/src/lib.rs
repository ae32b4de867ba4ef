//! The control plane: turns Kubernetes objects and kernel network state into the tables of the data plane. It depends
//! on the tables' crate and not on the data plane; nothing here sees a packet.
//!
//! Read `run.rs` first: it wires everything together. Values flow one way: [`source`] (Kubernetes API or manifests) and
//! [`netlink`] send values of [`model`] to [`reconcile`], which debounces changes, calls [`compile()`] and hands the
//! tables to a sink that the binary supplies. [`dns`] and [`health`] follow the objects that are in force, over small
//! servers ([`http`]), which share a budget of [`descriptors`]; [`report`] has the findings for the operator.
//!
//! Ids of behaviour in comments and test names (P102, D1, X5) are defined in `control/KUBERNETES.md`.
#![forbid(unsafe_code)]

pub mod check;
pub mod clock;
pub mod compile;
pub mod descriptors;
pub mod dns;
pub mod health;
pub mod http;
pub mod log_limit;
pub mod model;
pub mod netlink;
pub mod reconcile;
pub mod report;
mod run;
mod servers;
pub mod source;

pub use check::{check, check_cluster};
pub use compile::{
    CompileConfig, ExternalIps, LocalPods, NodeAddresses, NodePortAddress, ProtectedPort, Role, compile,
};
pub use reconcile::{Background, Status, SyncMetrics, Update};
pub use report::{Entry, ObjectRef, Place, Report, Severity, Shown, error_chain};
pub use run::{Config, Source, run};
