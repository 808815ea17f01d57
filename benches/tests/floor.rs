//! The floor as a command: three processes, numbers, and nothing left behind.

use std::path::Path;
use std::process::Command;

#[test]
fn a_short_run_gives_a_row_for_each_load_and_leaves_no_file() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("floor");
    std::fs::create_dir_all(&dir).expect("a directory on a disk");
    for method in ["dsync", "fdatasync"] {
        let output = Command::new(env!("CARGO_BIN_EXE_floor"))
            .args([
                "--json",
                "--seconds",
                "0.1",
                "--in-flight",
                "1,32",
                "--method",
                method,
            ])
            .arg("--dir")
            .arg(&dir)
            .output()
            .expect("started");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        let results: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let rows = results["rows"].as_array().expect("rows");
        assert_eq!(rows.len(), 4);
        for row in rows {
            assert!(row["count"].as_u64() >= row["in_flight"].as_u64(), "{row}");
            assert!(row["p50_us"].as_f64() <= row["p99_us"].as_f64(), "{row}");
        }
        let left = std::fs::read_dir(&dir).expect("listed").count();
        assert_eq!(left, 0, "files were left in {}", dir.display());
    }
}

#[test]
fn a_load_that_makes_no_sense_is_refused() {
    let output = Command::new(env!("CARGO_BIN_EXE_floor"))
        .args(["--records", "0"])
        .output()
        .expect("started");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("use 1 byte to 16 MiB"),
        "{said}"
    );
}
