//! Headers, addresses and checksums.
