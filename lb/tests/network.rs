//! The binary in network namespaces. One program, since each is linked with the whole lab anew.
//!
//! Needs root for network namespaces and XDP; without it every test fails with a message.

mod churn;
mod claims;
mod cli;
mod dns;
mod exhaustion;
mod gateway;
mod gateway_v6;
mod health;
mod kernel_modules;
mod lifecycle;
mod links;
mod maps;
mod process;
mod prove;
mod restart;
mod routes;
mod support;
