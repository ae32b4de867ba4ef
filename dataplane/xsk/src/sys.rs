//! System calls that aya does not offer, as thin and safe functions. What to do with them is decided elsewhere.

pub(crate) mod bpf;
pub(crate) mod bpf_map;
pub(crate) mod ethtool;
pub(crate) mod netlink;
pub(crate) mod xdp_socket;
