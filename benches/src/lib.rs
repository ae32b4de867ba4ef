//! Everything that measures or makes load.
