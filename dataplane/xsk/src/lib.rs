//! AF_XDP sockets and the XDP steering program.
