//! Supervisors and development clusters with real processes.
//!
//! The program has its own main because it plays three parts. Started by the test runner it runs the tests. Started
//! as `PROGRAM node ...` or `PROGRAM worker ...` it is a supervisor whose reports go to a file, or a worker that only
//! answers `/healthz`; so the code under test starts and kills processes just as it does in the product.

#![forbid(unsafe_code)]

mod cluster;
mod command_line;
mod fakes;
mod supervisor;
mod support;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    let part = std::env::args().nth(1).unwrap_or_default();
    match part.as_str() {
        "node" => fakes::supervisor(),
        "worker" => fakes::worker(),
        "up" | "down" => fakes::up_or_down(),
        _ => run_tests(),
    }
}

fn run_tests() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each test waits for processes, so more of them than cores pass sooner.
    arguments.test_threads.get_or_insert(4);
    let mut trials = Vec::new();
    for group in [supervisor::TESTS, cluster::TESTS, command_line::TESTS] {
        for (name, test) in group {
            trials.push(Trial::test(*name, || outcome(*test)));
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// One test: a name and a function that panics when it fails.
type Test = (&'static str, fn());

fn outcome(test: fn()) -> Result<(), Failed> {
    test();
    Ok(())
}
