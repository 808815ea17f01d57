//! The benchmark of logs as a command: every case counts what was really acknowledged, and nothing is left behind. No speed is asserted.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The product as this workspace builds it, beside the directory of this test's own program.
fn product() -> PathBuf {
    let own = std::env::current_exe().expect("known");
    let built = own.ancestors().nth(2).expect("a target directory");
    let program = built.join("mainstay");
    assert!(
        program.exists(),
        "{}: build the workspace first (`cargo build --workspace`)",
        program.display()
    );
    program
}

#[test]
fn a_short_run_has_a_row_for_each_load_and_leaves_no_file() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("log");
    std::fs::create_dir_all(&dir).expect("a directory on a disk");
    let histograms = tempfile::tempdir().expect("a directory");
    let output = Command::new(env!("CARGO_BIN_EXE_log"))
        .args(["--json", "--rounds", "1", "--seconds", "0.3"])
        .args(["--records", "256", "--in-flight", "1,64"])
        .args(["--rates", "0.25", "--batch", "10"])
        .arg("--program")
        .arg(product())
        .arg("--dir")
        .arg(&dir)
        .arg("--histograms")
        .arg(histograms.path())
        .output()
        .expect("started");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let results: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let rows = results["rows"].as_array().expect("rows");
    for case in ["closed", "open", "batches", "tail", "reads"] {
        assert!(rows.iter().any(|row| row["case"] == case), "no {case}");
    }
    for row in rows {
        assert!(row["ours_per_second"].as_f64() > Some(0.0), "{row}");
        let times = &row["times"];
        if !times.is_null() {
            assert!(times["count"].as_u64() > Some(0), "{row}");
            assert!(
                times["p50_us"].as_f64() <= times["max_us"].as_f64(),
                "{row}"
            );
        }
    }
    let named = |name: &str| rows.iter().any(|row| row["theirs"]["name"] == name);
    assert!(named("the raw floor"));
    for (name, other) in [
        ("etcd, 3 members", "etcd is not installed"),
        ("PostgreSQL, ANY 1 of 2", "PostgreSQL is not installed"),
    ] {
        assert!(named(name) != errors.contains(other), "{name}: {errors}");
    }
    let written = std::fs::read_dir(histograms.path())
        .expect("listed")
        .count();
    assert!(written >= 4, "{written} histograms");
    let left = std::fs::read_dir(&dir).expect("listed").count();
    assert_eq!(left, 0, "files were left in {}", dir.display());
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (option, value, told) in [
        ("--rates", "0", "--rates: above 0"),
        ("--rounds", "0", "--rounds is at least 1"),
        ("--batch", "0", "--batch is at least 1"),
        ("--program", "/nowhere/mainstay", "build it first"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_log"))
            .args([option, value])
            .output()
            .expect("started");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(told), "{said}");
    }
}
