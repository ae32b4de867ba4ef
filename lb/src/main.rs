//! A kernel-bypass L4 load balancer for Kubernetes Services.
fn main() {}
