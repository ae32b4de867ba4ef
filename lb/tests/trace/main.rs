//! What becomes of packets, rule by rule: the built binary is given manifests and asked by `flowgate trace`. Each test
//! names its rules; `control/KUBERNETES.md` says what they are. Needs no privileges and opens no device.

mod classes;
mod command;
mod endpoints;
mod families;
mod gateway;
mod input;
mod masquerade;
mod objects;
mod ranges_and_refusals;
mod world;
