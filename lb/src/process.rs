//! What concerns the process as a whole: how it follows on a predecessor, how much memory it needs, which privileges it keeps,
//! and how it takes over another configuration while it runs.

pub(crate) mod memory_need;
pub(crate) mod predecessor;
pub(crate) mod privileges;
mod syscall_filter;
