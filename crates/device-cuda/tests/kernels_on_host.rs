//! The kernels, run on the CPU against f64 references (`kernels/host`): plainly, under AddressSanitizer, and with planted faults.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

use std::path::Path;
use std::process::Command;

/// Whether there is a C++ compiler. Without one the test is skipped, unless `REQUIRE_HOST_CXX` is set.
fn has_compiler() -> bool {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let found = Command::new(&compiler).arg("--version").output().is_ok_and(|o| o.status.success());
    let required = std::env::var_os("REQUIRE_HOST_CXX").is_some_and(|v| v != "0" && !v.is_empty());
    assert!(found || !required, "REQUIRE_HOST_CXX is set, and there is no C++ compiler {compiler}");
    if !found {
        eprintln!("SKIPPED: there is no C++ compiler {compiler} to run the kernels with");
    }
    found
}

fn check(mode: &str) {
    if !has_compiler() {
        return;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels/host/check");
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels");
    let output = Command::new(script).arg(mode).env("WARDROBE_KERNELS_OUT", out).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert!(output.status.success(), "{mode}:\n{text}\n{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn kernels_agree_with_f64_references() {
    check("plain");
}

#[test]
fn kernels_stay_within_their_memory() {
    check("asan");
}

#[test]
fn every_barrier_and_wait_is_needed_and_tested() {
    check("faults");
}
