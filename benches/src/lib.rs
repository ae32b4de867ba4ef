//! Everything that tests and measures the gateway from outside, behind the cargo feature `lab`; no part of the packet
//! path. The crate is named after its Criterion benches (`benches/`), but most of it is:
//!
//! - [`lab`]: networks of namespaces with clients, gateway and backends on one machine, `lab up`, `lab demo`, fault
//!   cases, the soak, a real Kubernetes control plane, and comparisons with kube-proxy and a bare AF_XDP forwarder;
//! - [`loadgen`]: TCP, UDP, HTTP and raw packet load with byte-exact checks of every answer;
//! - [`vm`]: virtual machines for other kernels and for the drivers of emulated NICs;
//! - [`netns`]: anonymous network namespaces, which all of it builds on; the machine's own network is not touched.
//!
//! Read [`lab::topology`] first (who is connected to whom), then [`lab::gateway`] and one case in `lab/faults/cases`.

pub mod bare_forward;
pub mod cli;
mod clock;
pub mod error;
pub mod lab;
pub mod loadgen;
pub mod netns;
pub mod pattern;
pub mod vm;
