//! One fio job on one target: which job files there are, how they are run, and what is taken from their results.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use mainstay_benches::report::Load;
use serde_json::Value;

/// A file of `benches/nbd/jobs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Job {
    Fill,
    WriteDepth32,
    FlushJobs8,
    ReadDepth32,
    WriteDepth1,
    WriteLarge,
}

impl Job {
    fn name(self) -> &'static str {
        match self {
            Self::Fill => "fill",
            Self::WriteDepth32 => "write-4k-depth-32",
            Self::FlushJobs8 => "flush-4k-jobs-8",
            Self::ReadDepth32 => "read-4k-depth-32",
            Self::WriteDepth1 => "write-4k-depth-1",
            Self::WriteLarge => "write-1m-depth-8",
        }
    }

    /// The same load for the floor, as far as it knows such loads.
    pub(crate) fn on_floor(self) -> Option<Load> {
        let load = |record_bytes, in_flight| Load {
            record_bytes,
            in_flight,
        };
        match self {
            Self::WriteDepth32 => Some(load(4096, 32)),
            Self::WriteDepth1 => Some(load(4096, 1)),
            Self::WriteLarge => Some(load(1 << 20, 8)),
            Self::Fill | Self::FlushJobs8 | Self::ReadDepth32 => None,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Fill => include_str!("jobs/fill.fio"),
            Self::WriteDepth32 => include_str!("jobs/write-4k-depth-32.fio"),
            Self::FlushJobs8 => include_str!("jobs/flush-4k-jobs-8.fio"),
            Self::ReadDepth32 => include_str!("jobs/read-4k-depth-32.fio"),
            Self::WriteDepth1 => include_str!("jobs/write-4k-depth-1.fio"),
            Self::WriteLarge => include_str!("jobs/write-1m-depth-8.fio"),
        }
    }
}

/// Where a job goes to.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    /// `nbd://HOST:PORT/EXPORT`.
    Nbd { name: &'static str, uri: String },
    /// A file, with direct I/O.
    File { name: &'static str, path: String },
}

impl Target {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Nbd { name, .. } | Self::File { name, .. } => name,
        }
    }

    /// What stands before the job.
    fn global(&self) -> String {
        match self {
            Self::Nbd { uri, .. } => format!("ioengine=nbd\nuri={uri}\n"),
            Self::File { path, .. } => format!("ioengine=libaio\ndirect=1\nfilename={path}\n"),
        }
    }
}

/// What a job came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Measured {
    pub(crate) ops_per_second: f64,
    pub(crate) bytes_per_second: f64,
    pub(crate) p50_us: f64,
}

/// Runs `job` on `target` for `seconds`, over the first `size_mib` of it. Its own files lie in `dir`.
pub(crate) fn run(
    job: Job,
    target: &Target,
    size_mib: u64,
    seconds: u32,
    dir: &Path,
) -> anyhow::Result<Measured> {
    let file = dir.join(format!("{}.fio", job.name()));
    let text = format!(
        "[global]\n{}size={size_mib}m\nruntime={seconds}\nrandrepeat=0\nthread=1\n\n{}",
        target.global(),
        job.text()
    );
    std::fs::write(&file, text)?;
    let output = Command::new("fio")
        .arg("--output-format=json")
        .arg(&file)
        .current_dir(dir)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .context("fio (Debian: fio)")?;
    let printed = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "fio: {}\n{printed}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    parse(&printed)
}

/// fio may print notes before its JSON.
fn parse(printed: &str) -> anyhow::Result<Measured> {
    let start = printed.find('{').context("fio printed no JSON")?;
    let results: Value = serde_json::from_str(&printed[start..]).context("what fio printed")?;
    let job = &results["jobs"][0];
    ensure!(job["error"] == 0, "fio: error {}", job["error"]);
    // A job does one of both.
    let side = ["write", "read"]
        .map(|side| &job[side])
        .into_iter()
        .find(|side| side["total_ios"].as_u64().is_some_and(|count| count > 0))
        .context("fio did nothing")?;
    let number = |value: &Value| value.as_f64().context("a number of fio's is missing");
    Ok(Measured {
        ops_per_second: number(&side["iops"])?,
        bytes_per_second: number(&side["bw_bytes"])?,
        p50_us: number(&side["clat_ns"]["percentile"]["50.000000"])? / 1e3,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_of_the_side_that_did_something() {
        let text = r#"note
            {"jobs": [{"error": 0,
              "read": {"total_ios": 0, "iops": 0.0, "bw_bytes": 0, "clat_ns": {}},
              "write": {"total_ios": 9, "iops": 4.5, "bw_bytes": 18432,
                        "clat_ns": {"percentile": {"50.000000": 1500}}}}]}"#;
        let measured = parse(text).expect("well formed");
        let expected = Measured {
            ops_per_second: 4.5,
            bytes_per_second: 18432.0,
            p50_us: 1.5,
        };
        assert_eq!(measured, expected);
        assert!(parse(&text.replace("\"error\": 0", "\"error\": 5")).is_err());
        assert!(parse("nothing").is_err());
    }
}
