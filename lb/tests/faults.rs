//! Short runs of `flowgate lab faults`, `flowgate lab soak` and `flowgate lab compare-nft`; `make` runs the long ones.
//!
//! Needs root for network namespaces and XDP; without it every test fails with a message.

#[cfg(not(feature = "lab"))]
compile_error!("these tests need the lab: `make test`, or `cargo test --features flowgate/lab`");

use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use serde_json::Value;

/// The tests run one at a time, since each would disturb what the other measures.
static TURN: Mutex<()> = Mutex::new(());

/// Runs `flowgate lab ARGUMENTS` to its end; returns its last line and what else it said.
fn lab(arguments: &[&str]) -> Result<(bool, Value, String)> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let output = Command::new(env!("CARGO_BIN_EXE_flowgate")).arg("lab").args(arguments).output()?;
    let progress = String::from_utf8_lossy(&output.stderr).into_owned();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let last = stdout.lines().last().with_context(|| format!("no report; it said:\n{progress}"))?;
    Ok((output.status.success(), serde_json::from_str(last)?, progress))
}

#[test]
fn no_connection_is_lost_whatever_happens_around_it() -> Result<()> {
    let cases = [
        "hot_restart",
        "kill_restart",
        "pmtu_v4",
        "pmtu_v6",
        "backend_drain",
        "interface_gone_and_back",
        "route_change",
        "fragments",
        "rst_attack",
        "blind_storm",
        "no_leak",
    ];
    let mut arguments = vec!["faults", "--connections", "80"];
    cases.iter().for_each(|case| arguments.extend(["--case", case]));
    let (success, report, progress) = lab(&arguments)?;
    assert!(success, "{progress}");
    assert_eq!(report["cases"], cases.len(), "{report}");
    assert_eq!((&report["failed"], &report["lost_connections"]), (&0.into(), &0.into()), "{report}");
    for case in cases {
        assert!(report["detail"][case].is_object(), "{case}: {report}");
    }
    Ok(())
}

#[test]
fn linux_with_nft_makes_the_same_of_random_packets() -> Result<()> {
    let (success, report, progress) = lab(&["compare-nft", "--packets", "2000", "--pauses", "1"])?;
    assert_eq!((&report["different"], &report["strays"]), (&0.into(), &0.into()), "{report}\n{progress}");
    assert!(success && report["same"].as_u64() > Some(1000), "{report}");
    Ok(())
}

#[test]
fn whoever_abuses_the_listening_ports_everything_stays_bounded_and_no_connection_is_lost() -> Result<()> {
    let arguments = ["faults", "--connections", "40", "--case", "listener_abuse", "--abuse-seconds", "5"];
    let (_, report, progress) = lab(&arguments)?;
    assert_eq!(report["lost_connections"], 0, "{progress}");
    let case = &report["detail"]["listener_abuse"];
    let figure = |name: &str| case[name].as_u64().with_context(|| format!("no {name}:\n{progress}"));
    // 1,024 connections, and 512 forwarded queries with two sockets each.
    assert!(figure("descriptors_highest")? <= figure("descriptors")? + 2048, "{progress}");
    assert!(figure("memory_highest_kib")? <= figure("memory_kib")? + 64 * 1024, "{progress}");
    assert!(figure("log_lines")? <= 20, "{progress}");
    assert!(figure("connections")? > 100, "{progress}");
    // How many within a second depends on the machine: `make faults` looks at that.
    assert!(figure("probes_failed")? < figure("probes")?, "some probes are answered: {progress}");
    Ok(())
}

#[test]
fn a_short_soak_loses_nothing_and_leaves_nothing() -> Result<()> {
    let (success, report, progress) =
        lab(&["soak", "--seconds", "10", "--connections", "60", "--seed", "3"])?;
    assert!(success, "{progress}");
    assert_eq!(report["lost_connections"], 0, "{report}");
    assert!(report["http_exchanges"].as_u64() > Some(100), "{report}");
    Ok(())
}

#[test]
fn a_case_that_does_not_exist_is_named() -> Result<()> {
    let output = Command::new(env!("CARGO_BIN_EXE_flowgate"))
        .args(["lab", "faults", "--case", "flood_of_syns"])
        .output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && errors.contains("syn_flood"), "{errors}");
    Ok(())
}
