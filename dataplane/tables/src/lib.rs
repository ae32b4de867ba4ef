//! The contract between control and workers.
