//! What trials share of fio: that it has its NBD engine, and its results.

use anyhow::{Context, ensure};
use serde_json::Value;

use super::programs::{SOON, run};
use crate::tools::Tool;

pub(crate) const NEEDS: [Tool; 1] = [Tool {
    package: "fio",
    proof: "fio",
}];

/// Fails for builds of fio that cannot speak NBD.
pub(crate) async fn require_nbd_engine() -> anyhow::Result<()> {
    let engines = run("fio", &["--enghelp"], SOON).await?;
    ensure!(
        engines.lines().any(|line| line.trim() == "nbd"),
        "this fio has no nbd engine; Debian's has one"
    );
    Ok(())
}

/// The only job in what fio printed as JSON, behind notes if there are any. An error of the job is an error.
pub(crate) fn job(printed: &str) -> anyhow::Result<Value> {
    let start = printed.find('{').context("fio printed no JSON")?;
    let mut results: Value = serde_json::from_str(&printed[start..])?;
    let job = results["jobs"][0].take();
    ensure!(job["error"] == 0, "fio: error {}", job["error"]);
    Ok(job)
}
