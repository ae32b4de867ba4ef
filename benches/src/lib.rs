//! Everything that measures or makes load: the load generator, and the lab of network namespaces that gives it
//! somewhere to run. Never part of the packet path of the product, and never touches the network of the machine.

pub mod bare_forward;
pub mod cli;
mod clock;
pub mod error;
pub mod lab;
pub mod loadgen;
pub mod netns;
pub mod pattern;
pub mod vm;
