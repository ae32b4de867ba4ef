//! System calls that neither aya nor xsk-rs offers. Thin and safe to call; no policy lives here.

pub(crate) mod bpf;
pub(crate) mod ethtool;
pub(crate) mod netlink;
pub(crate) mod xdp_socket;
