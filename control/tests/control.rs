//! The tests of the crate from outside, in one program: each program is linked with all types of Kubernetes anew.

mod api_server;
mod budgets;
mod compile_cases;
mod dns;
mod dns_forward;
mod dns_records;
mod dns_scale;
mod dns_server;
mod fake_api;
mod fuzz;
mod hostile_objects;
mod incremental;
mod netlink;
mod observed;
