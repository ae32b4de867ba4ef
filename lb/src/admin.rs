//! The admin socket: requests and responses, each one line of JSON. Client and server share the types of [`view`].
//! Requests change nothing, except for the faults of the lab.

mod client;
pub(crate) mod handler;
mod server;
mod top_talkers;
pub(crate) mod view;

use serde::{Deserialize, Serialize};

pub(crate) use client::request;
pub(crate) use server::{AdminError, AdminServer, Handler};

/// Where a running flowgate answers unless the configuration says otherwise.
pub(crate) const DEFAULT_SOCKET: &str = "/run/flowgate/admin.sock";

/// What a client can request. The JSON form is API.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "show")]
pub(crate) enum Request {
    Services,
    Backends,
    Flows {
        limit: usize,
    },
    /// Who has the most flows.
    #[serde(rename = "users")]
    TopTalkers {
        by: GroupBy,
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

/// By what flows are summed.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum GroupBy {
    /// The client's address.
    Client,
    /// The Service port.
    Service,
    /// The backend.
    Backend,
    /// The source address that the backend sees.
    Snat,
}

/// The response to a [`Request`]; `Error` to any. The JSON form is API.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Response {
    Services(Vec<view::Service>),
    Backends(Vec<view::Backend>),
    Flows(view::Flows),
    #[serde(rename = "users")]
    TopTalkers(Vec<view::TopTalker>),
    Neighbours(Vec<view::Neighbour>),
    Workers(Vec<view::Worker>),
    Drops(Vec<view::Drop>),
    Tables(Box<view::Tables>),
    Error(String),
}
