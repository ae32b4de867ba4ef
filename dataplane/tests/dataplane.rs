//! The worker loop over devices in memory. One program, since each compiles the test bed anew.

mod adopt;
mod exhaustion;
mod fragmenting;
mod fragments;
mod gateway;
mod golden;
mod golden_fragments;
mod golden_icmp;
mod inputs;
mod vlan;
mod windows;
