//! Prints the main results of the Criterion benches as one line of JSON.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::{Value, json};

/// Packets per measured iteration.
const BURST: f64 = 64.0;

fn main() -> ExitCode {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let folder = target.join("criterion");
    match report(&folder) {
        Ok(line) => {
            #[allow(clippy::print_stdout, reason = "the line is the product")]
            {
                println!("{line}");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bench-report: {error}: run `cargo bench -p flowgate-benches` first");
            ExitCode::FAILURE
        }
    }
}

fn report(folder: &Path) -> Result<Value, String> {
    let ns = |bench: &str| per_packet_ns(&folder.join(bench).join("new/estimates.json"));
    Ok(json!({
        "pipeline_ns": {
            "1k": ns("established/1k")?,
            "100k": ns("established/100k")?,
            "1m": ns("established/1m")?,
        },
        "pipeline_tcp_ns": {
            "1k": ns("established_tcp/1k")?,
            "100k": ns("established_tcp/100k")?,
        },
        "pipeline_v6_ns": {
            "1k": ns("established_v6/1k")?,
            "100k": ns("established_v6/100k")?,
            "1m": ns("established_v6/1m")?,
        },
        "new_flow_ns": ns("new_flows/udp")?,
    }))
}

fn per_packet_ns(path: &Path) -> Result<f64, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let estimates: Value =
        serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    let burst = estimates["median"]["point_estimate"].as_f64();
    let burst = burst.ok_or_else(|| format!("{}: no median", path.display()))?;
    Ok((burst / BURST * 10.0).round() / 10.0)
}
