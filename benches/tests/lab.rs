//! Lab and load generator in network namespaces. One program, since each is linked with the whole crate anew.

mod common;
mod netns;
mod packets;
mod streams;
mod supervisor;
mod topology;
