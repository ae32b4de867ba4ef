//! Compiles the XDP programs of the load generator with clang.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".into());
    println!("cargo::rerun-if-env-changed=CLANG");
    println!("cargo::rerun-if-changed=bpf/kernel.h");
    for program in ["generator", "sink"] {
        let source = format!("bpf/{program}.bpf.c");
        println!("cargo::rerun-if-changed={source}");
        let status = Command::new(&clang)
            .args([
                "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-target", "bpf", "-mcpu=v3", "-c", &source, "-o",
            ])
            .arg(out_dir.join(format!("{program}.o")))
            .status();
        match status {
            Ok(status) if status.success() => {}
            Ok(status) => panic!("{clang} could not compile benches/{source}: {status}"),
            Err(error) => panic!(
                "cannot run {clang} for benches/{source}: {error}; install it (apt-get install clang) or set \
                 CLANG to its path"
            ),
        }
    }
}
