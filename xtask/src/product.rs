//! The program under measurement.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

/// Builds the program as users run it.
pub(crate) fn build(root: &Path) -> anyhow::Result<PathBuf> {
    let args = "build --release --package mainstay-node --bin mainstay";
    build_as(root, args, "release")
}

/// Builds it as the tests of the workspace do, for one of those that start it: nothing is left to build after them.
pub(crate) fn build_for_tests(root: &Path) -> anyhow::Result<PathBuf> {
    let args = "test --workspace --no-run --test processes";
    build_as(root, args, "debug")
}

fn build_as(root: &Path, args: &str, folder: &str) -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(args.split_whitespace())
        .current_dir(root)
        .status()
        .context("start cargo")?;
    ensure!(status.success(), "`cargo {args}` failed");
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    Ok(target.join(folder).join("mainstay"))
}
