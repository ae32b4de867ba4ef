//! Turns Kubernetes objects and kernel network state into tables.
