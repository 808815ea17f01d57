//! What must hold before a change goes in, step by step. A failed step does not hide the later ones.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::Context;
use clap::{Args, ValueEnum};

use crate::report::{Outcome, Report};
use crate::tools;

/// Of `test`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Run only this step; may be given more than once
    #[arg(long, value_enum, value_name = "STEP")]
    only: Vec<Step>,

    /// Leave out what takes long: only format, lints and tests
    #[arg(long, conflicts_with = "only")]
    fast: bool,

    /// Seeds for the simulator
    #[arg(long, value_name = "N", default_value_t = 200)]
    seeds: u32,
}

/// One thing that must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Step {
    /// Every file is formatted.
    Format,
    /// No lint warns, in any target.
    Lints,
    /// The documentation builds without a warning.
    Docs,
    /// The programs that interoperability tests drive are there.
    Tools,
    /// All tests pass.
    Tests,
    /// What clients of a cluster saw, while its nodes were killed, paused and cut off for two minutes, holds.
    Chaos,
    /// The simulator finds no violation.
    Simulator,
}

/// In this order: what is quick to fail comes first, and tools come before the tests that need them.
const ALL: [Step; 7] = [
    Step::Format,
    Step::Lints,
    Step::Docs,
    Step::Tools,
    Step::Tests,
    Step::Chaos,
    Step::Simulator,
];
const FAST: [Step; 3] = [Step::Format, Step::Lints, Step::Tests];

/// Runs the gate. `Ok(false)` if a step failed.
pub(crate) fn test(options: &Options) -> anyhow::Result<bool> {
    let steps = if options.fast {
        FAST.to_vec()
    } else if options.only.is_empty() {
        ALL.to_vec()
    } else {
        let wanted = ALL.into_iter();
        wanted.filter(|step| options.only.contains(step)).collect()
    };
    let root = root()?;
    let mut report = Report::default();
    for step in steps {
        eprintln!("\n== {}", step.name());
        let started = Instant::now();
        let outcome = step.run(&root, options)?;
        report.add(step.name(), outcome, started.elapsed());
    }
    print!("{report}");
    Ok(report.passed())
}

/// Formats, and applies what clippy suggests. `Ok(false)` if clippy cannot even build.
pub(crate) fn fix() -> anyhow::Result<bool> {
    let root = root()?;
    let lints = "clippy --fix --allow-dirty --allow-staged --workspace --all-targets";
    let linted = cargo(&root, lints, &[])?;
    let formatted = cargo(&root, "fmt --all", &[])?;
    Ok(linted && formatted)
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Self::Format => "format",
            Self::Lints => "lints",
            Self::Docs => "docs",
            Self::Tools => "tools",
            Self::Tests => "tests",
            Self::Chaos => "chaos",
            Self::Simulator => "simulator",
        }
    }

    fn run(self, root: &Path, options: &Options) -> anyhow::Result<Outcome> {
        let passed = match self {
            Self::Format => cargo(root, "fmt --all --check", &[])?,
            Self::Lints => cargo(root, "clippy --workspace --all-targets -- -D warnings", &[])?,
            Self::Docs => {
                let warnings = [("RUSTDOCFLAGS", "-D warnings")];
                cargo(root, "doc --no-deps --workspace", &warnings)?
            }
            Self::Tools => return tools::install(),
            // Every test binary runs, also after a failure in another.
            Self::Tests => cargo(root, "test --workspace --no-fail-fast", &[])?,
            Self::Chaos => crate::chaos::in_gate(&crate::product::build_for_tests(root)?)?,
            Self::Simulator => {
                // As the tests have built it: compiling it for release takes longer than the seeds gain.
                let run = "run --package mainstay-sim --";
                cargo(root, &format!("{run} --seeds {}", options.seeds), &[])?
            }
        };
        Ok(Outcome::of(passed))
    }
}

/// Runs cargo in the workspace's root with its output shown. `Ok(false)` if it failed.
fn cargo(root: &Path, args: &str, env: &[(&str, &str)]) -> anyhow::Result<bool> {
    eprintln!("+ cargo {args}");
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(&program)
        .args(args.split_whitespace())
        .envs(env.iter().copied())
        .current_dir(root)
        .status()
        .with_context(|| format!("start {}", program.display()))?;
    Ok(status.success())
}

/// The workspace's root.
pub(crate) fn root() -> anyhow::Result<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = own.parent().context("the workspace above this package")?;
    Ok(root.to_owned())
}
