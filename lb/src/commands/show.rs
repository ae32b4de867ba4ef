//! `flowgate show`: prints the response of a running flowgate as a table or as JSON.

mod table;

use std::process::ExitCode;

use crate::admin::{self, Request, Response};
use crate::cli::{Output, ShowArgs, What};

/// Requests what `args` names and prints the response.
#[expect(clippy::print_stdout, reason = "the response goes to stdout")]
pub(crate) fn show(args: &ShowArgs) -> anyhow::Result<ExitCode> {
    let request = match args.what {
        What::Services => Request::Services,
        What::Backends => Request::Backends,
        What::Flows if args.top.is_some() => {
            Request::TopTalkers { by: args.by, limit: args.top.unwrap_or_default() }
        }
        What::Flows => Request::Flows { limit: args.limit },
        What::Neighbours => Request::Neighbours,
        What::Workers => Request::Workers,
        What::Drops => Request::Drops,
        What::Tables => Request::Tables,
    };
    let response = admin::request(&args.socket, request)?;
    match args.output {
        Output::Json => println!("{}", json(&response)?),
        Output::Table => println!("{}", table::table(&response)),
    }
    Ok(ExitCode::SUCCESS)
}

fn json(response: &Response) -> serde_json::Result<String> {
    match response {
        Response::Services(rows) => serde_json::to_string_pretty(rows),
        Response::Backends(rows) => serde_json::to_string_pretty(rows),
        Response::Flows(flows) => serde_json::to_string_pretty(flows),
        Response::TopTalkers(rows) => serde_json::to_string_pretty(rows),
        Response::Neighbours(rows) => serde_json::to_string_pretty(rows),
        Response::Workers(rows) => serde_json::to_string_pretty(rows),
        Response::Drops(rows) => serde_json::to_string_pretty(rows),
        Response::Tables(tables) => serde_json::to_string_pretty(tables),
        Response::Error(error) => serde_json::to_string_pretty(error),
    }
}
