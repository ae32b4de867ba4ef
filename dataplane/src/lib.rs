//! The worker engine.
