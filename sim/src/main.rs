//! Runs simulated clusters from the command line. See `docs/simulator.md`.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use mainstay_replication::Mistake;
use mainstay_sim::run::{Options, first_catch, run_seed};
use mainstay_sim::scenario::directed::seeds_for;

const USAGE: &str = "mainstay-sim: a whole cluster in one thread, from a seed

  --seeds N [--start S] [--jobs J] [--keep-going]
                                     run N seeds from S on
  --seed N [--trace] [--mistake NAME] replay one seed
  --mistake NAME [--seeds N]         run with one planted mistake until a seed catches it; without --seeds,
                                     all seeds below 2000, those whose theme fits first
  --mistakes [--seeds N]             the same for every mistake; each must be caught";

#[derive(Debug, Default)]
struct Arguments {
    seed: Option<u64>,
    seeds: Option<u64>,
    start: u64,
    jobs: u64,
    trace: bool,
    keep_going: bool,
    mistake: Option<Mistake>,
    mistakes: bool,
}

/// The C library's allocator gives every buffer of 128 KiB back to the kernel at once; with segments and images being
/// read and written all the time, most of a run would be spent there. Its settings are read at the start of a process.
fn keep_memory() {
    use std::os::unix::process::CommandExt;
    const DONE: &str = "MAINSTAY_SIM_KEEPS_MEMORY";
    if std::env::var_os(DONE).is_some() {
        return;
    }
    if let Ok(this) = std::env::current_exe() {
        // Returns only if it fails, and then this process does the work, slower.
        let _ = std::process::Command::new(this)
            .args(std::env::args_os().skip(1))
            .env(DONE, "1")
            .env("MALLOC_MMAP_THRESHOLD_", "1000000000")
            .env("MALLOC_TRIM_THRESHOLD_", "1000000000")
            .env("MALLOC_TOP_PAD_", "67108864")
            .exec();
    }
}

fn main() -> ExitCode {
    keep_memory();
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(message) => {
            eprintln!("{message}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let passed = if let Some(seed) = arguments.seed {
        replay(seed, &arguments)
    } else if arguments.mistakes {
        all_mistakes(&arguments)
    } else if let Some(mistake) = arguments.mistake {
        one_mistake(mistake, &arguments)
    } else if arguments.seeds.is_some() {
        many(&arguments)
    } else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut out = Arguments {
        jobs: std::thread::available_parallelism().map_or(1, |count| count.get() as u64),
        ..Arguments::default()
    };
    while let Some(word) = words.next() {
        let mut number = || {
            let text = words
                .next()
                .ok_or_else(|| format!("{word} needs a number"))?;
            text.parse::<u64>()
                .map_err(|_| format!("{text} is not a number"))
        };
        match word.as_str() {
            "--seed" => out.seed = Some(number()?),
            "--seeds" => out.seeds = Some(number()?),
            "--start" => out.start = number()?,
            "--jobs" => out.jobs = number()?.max(1),
            "--trace" => out.trace = true,
            "--keep-going" => out.keep_going = true,
            "--mistakes" => out.mistakes = true,
            "--mistake" => {
                let name = words.next().ok_or("--mistake needs a name")?;
                out.mistake = Some(mistake_named(&name)?);
            }
            other => return Err(format!("unknown argument {other}")),
        }
    }
    Ok(out)
}

fn mistake_named(name: &str) -> Result<Mistake, String> {
    let found = Mistake::ALL
        .into_iter()
        .find(|mistake| format!("{mistake:?}").eq_ignore_ascii_case(name));
    found.ok_or_else(|| {
        let all: Vec<String> = Mistake::ALL.iter().map(|m| format!("{m:?}")).collect();
        format!("no mistake {name}; there are {}", all.join(", "))
    })
}

fn replay(seed: u64, arguments: &Arguments) -> bool {
    let options = Options {
        mistake: arguments.mistake,
        keep: true,
        print: arguments.trace,
    };
    let report = run_seed(seed, options);
    if !arguments.trace && report.violation.is_some() {
        for line in &report.lines {
            println!("{line}");
        }
    }
    println!(
        "seed {seed}: {} events, trace hash {:016x}, {} promotions, {} other register changes, {} writes and {} reads answered, {:.1} s simulated",
        report.events,
        report.hash,
        report.promotions,
        report.changes,
        report.answered,
        report.reads,
        report.virtual_ns as f64 / 1e9
    );
    match report.violation {
        None => true,
        Some(violation) => {
            println!(
                "seed {seed} violates {}: {}",
                violation.property, violation.text
            );
            false
        }
    }
}

fn many(arguments: &Arguments) -> bool {
    let count = arguments.seeds.unwrap_or(0);
    let next = AtomicU64::new(arguments.start);
    let end = arguments.start + count;
    let (done, failed, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let begun = Instant::now();
    let totals = std::sync::Mutex::new((BTreeMap::<&'static str, u64>::new(), [0_u64; 4]));
    let longest = std::sync::Mutex::new((0, 0));
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let report = run_seed(seed, Options::default());
                    let number = done.fetch_add(1, Ordering::Relaxed) + 1;
                    if let Ok(mut totals) = totals.lock() {
                        for (kind, times) in &report.injected {
                            *totals.0.entry(*kind).or_default() += times;
                        }
                        totals.1[0] += report.promotions;
                        totals.1[1] += report.changes;
                        totals.1[2] += report.answered;
                        totals.1[3] += report.reads;
                    }
                    if let Ok(mut longest) = longest.lock() {
                        *longest = (*longest).max((report.events, seed));
                    }
                    if let Some(violation) = report.violation {
                        failed.fetch_add(1, Ordering::Relaxed);
                        if arguments.keep_going {
                            let text: String = violation.text.chars().take(400).collect();
                            println!("seed {seed} violates {}: {text}", violation.property);
                        } else if !stop.swap(true, Ordering::Relaxed) {
                            replay(seed, arguments);
                        }
                    }
                    if number.is_multiple_of(100) {
                        let rate = number as f64 / begun.elapsed().as_secs_f64();
                        println!("{number} of {count} seeds, {rate:.1} a second");
                    }
                }
            });
        }
    });
    let (number, failed) = (done.into_inner(), failed.into_inner());
    let rate = number as f64 / begun.elapsed().as_secs_f64();
    println!("{number} seeds, {rate:.1} a second, {failed} with a violation");
    if let Ok((injected, [promotions, changes, answered, reads])) = totals.into_inner() {
        for (kind, times) in injected {
            println!("{times:>10}  {kind}");
        }
        if let Ok((events, seed)) = longest.into_inner() {
            println!("{events:>10}  events in seed {seed}, the longest");
        }
        println!("{promotions:>10}  promotions");
        println!("{changes:>10}  other register changes");
        println!("{answered:>10}  writes answered");
        println!("{reads:>10}  reads answered");
    }
    failed == 0
}

fn one_mistake(mistake: Mistake, arguments: &Arguments) -> bool {
    let seeds: Vec<u64> = match arguments.seeds {
        None if arguments.start == 0 => seeds_for(mistake),
        given => (arguments.start..arguments.start + given.unwrap_or(2_000)).collect(),
    };
    let count = seeds.len();
    match first_catch(mistake, seeds) {
        Some((seed, violation)) => {
            let text: String = violation.text.chars().take(200).collect();
            println!(
                "{mistake:?}: seed {seed} violates {}: {text}",
                violation.property
            );
            true
        }
        None => {
            println!(
                "{mistake:?}: not caught by {count} seeds from {}",
                arguments.start
            );
            false
        }
    }
}

fn all_mistakes(arguments: &Arguments) -> bool {
    let next = AtomicU64::new(0);
    let missed = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs {
            scope.spawn(|| {
                loop {
                    let at =
                        usize::try_from(next.fetch_add(1, Ordering::Relaxed)).unwrap_or(usize::MAX);
                    let Some(mistake) = Mistake::ALL.get(at) else {
                        return;
                    };
                    if !one_mistake(*mistake, arguments) {
                        missed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let missed = missed.into_inner();
    println!(
        "{} of {} mistakes caught",
        Mistake::ALL.len() as u64 - missed,
        Mistake::ALL.len()
    );
    missed == 0
}
