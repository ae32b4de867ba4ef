//! The admin socket: one question as a line of JSON, one answer as a line of JSON.
//!
//! Both sides share the types of [`view`]. Never changes anything: it only shows, but for tests.

mod client;
pub(crate) mod handler;
mod server;
mod top_talkers;
pub(crate) mod view;

use serde::{Deserialize, Serialize};

pub(crate) use client::ask;
pub(crate) use server::{AdminServer, Answerer};

/// Where a running flowgate answers unless the configuration says otherwise.
pub(crate) const DEFAULT_SOCKET: &str = "/run/flowgate/admin.sock";

/// What can be asked.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "show")]
pub(crate) enum Question {
    Services,
    Backends,
    Flows {
        limit: usize,
    },
    /// Who has the most flows.
    Users {
        by: By,
        limit: usize,
    },
    Neighbours,
    Workers,
    Drops,
    Tables,
    /// Breaks a worker; not in packages.
    #[cfg(feature = "lab")]
    Fault {
        worker: usize,
        fault: Fault,
    },
}

/// How a worker is broken.
#[cfg(feature = "lab")]
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Fault {
    Panic,
    Hang,
}

/// What makes flows one user's.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum By {
    /// The client's address.
    Client,
    /// The Service port.
    Service,
    /// The backend.
    Backend,
    /// The source address that the backend sees.
    Snat,
}

/// What comes back.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    Services(Vec<view::Service>),
    Backends(Vec<view::Backend>),
    Flows(view::Flows),
    Users(Vec<view::User>),
    Neighbours(Vec<view::Neighbour>),
    Workers(Vec<view::Worker>),
    Drops(Vec<view::Drop>),
    Tables(Box<view::Tables>),
    Error(String),
}
