//! The verdicts of `flowgate trace`, rule by rule, from the built binary and manifests. Each test names its rules;
//! `control/KUBERNETES.md` defines them. Needs no privileges and opens no device.

mod claims;
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
