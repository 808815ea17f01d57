//! The program under measurement.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

/// Builds the program as users run it.
pub(crate) fn build(root: &Path) -> anyhow::Result<PathBuf> {
    build_as(root, "release", "release")
}

/// Builds it as the tests of the workspace do, which is quick after them.
pub(crate) fn build_for_tests(root: &Path) -> anyhow::Result<PathBuf> {
    build_as(root, "test", "debug")
}

fn build_as(root: &Path, profile: &str, folder: &str) -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let args = [
        "build",
        "--profile",
        profile,
        "--package",
        "mainstay-node",
        "--bin",
        "mainstay",
    ];
    let status = Command::new(cargo)
        .args(args)
        .current_dir(root)
        .status()
        .context("start cargo")?;
    ensure!(status.success(), "the {profile} build failed");
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    Ok(target.join(folder).join("mainstay"))
}
