//! AF_XDP sockets and the life of the XDP program, in the kernel of this machine.

mod common;
mod growth;
mod lifecycle;
mod ports;
