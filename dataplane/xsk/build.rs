//! Compiles the steering program with clang. Never touches anything outside `OUT_DIR`.

use std::env;
use std::path::PathBuf;
use std::process::Command;

const SOURCES: [&str; 5] = ["bpf/steer.bpf.c", "bpf/bpf.h", "bpf/maps.h", "bpf/parse.h", "bpf/reasons.h"];

fn main() {
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
    }
    println!("cargo::rerun-if-env-changed=CLANG");

    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it");
    let root = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let object = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("steer.bpf.o");
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".to_owned());

    let output = Command::new(&clang)
        .current_dir(&root)
        // v3 is in every kernel since 5.1; -g is for the BTF that describes the maps.
        .args(["-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall", "-Wextra", "-Werror"])
        .arg(format!("-ffile-prefix-map={root}=."))
        .arg("-fdebug-compilation-dir=.")
        // Debian keeps <asm/types.h> there, where clang does not look for the bpf target.
        .arg(format!("-I/usr/include/{arch}-linux-gnu"))
        .args(["-c", SOURCES[0], "-o"])
        .arg(&object)
        .output();

    match output {
        Ok(output) if output.status.success() => {}
        Ok(output) => panic!(
            "{clang} could not compile {}: it needs the kernel headers of Debian's linux-libc-dev\n{}",
            SOURCES[0],
            String::from_utf8_lossy(&output.stderr)
        ),
        Err(error) => panic!(
            "cannot run {clang} ({error}), which compiles the XDP program: install it (Debian: apt-get install \
             clang) or name another one in the environment variable CLANG"
        ),
    }
}
