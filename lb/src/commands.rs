//! One file per command. The words of the command line are in [`cli`](crate::cli).

mod check;
mod detach;
mod run;
mod show;
mod trace;

pub(crate) use check::check;
pub(crate) use detach::detach;
pub(crate) use run::run;
pub(crate) use show::show;
pub(crate) use trace::{TraceArgs, trace};
