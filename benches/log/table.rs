//! Results for people.

use crate::cases::{Results, Row};

pub(crate) fn print(results: &Results) {
    println!(
        "log volumes, committed on two of three copies; {} rounds of {} s a load, medians\n",
        results.rounds, results.seconds_per_load
    );
    println!(
        "{:<8} {:<34} {:<38} {:>10} {:>10}  {:<20} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}  {:<12}",
        "case",
        "load",
        "against",
        "ours /s",
        "theirs /s",
        "ratio (low-high)",
        "p50 us",
        "p90 us",
        "p99 us",
        "p99.9 us",
        "max us",
        "p50 them",
        "goal"
    );
    for row in &results.rows {
        println!("{}", line(row));
    }
    for probe in &results.probes {
        println!(
            "disk alone, one durable 4 KiB write: p50 {:.0} us, p99 {:.0} us",
            probe.p50_us, probe.p99_us
        );
    }
}

fn line(row: &Row) -> String {
    let theirs = row.theirs.as_ref();
    let number =
        |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.0}"));
    let ratio = theirs.map_or_else(
        || "-".to_owned(),
        |theirs| {
            format!(
                "{:.2} ({:.2}-{:.2})",
                theirs.ratio, theirs.ratio_lowest, theirs.ratio_highest
            )
        },
    );
    let goal = row.goal.map_or_else(String::new, |goal| {
        format!("{goal} {}", if row.met() { "met" } else { "MISSED" })
    });
    format!(
        "{:<8} {:<34} {:<38} {:>10} {:>10}  {:<20} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}  {:<12}",
        row.case,
        row.load,
        theirs.map_or("", |theirs| theirs.name.as_str()),
        number(Some(row.ours_per_second)),
        number(theirs.map(|theirs| theirs.per_second)),
        ratio,
        number(row.times.map(|times| times.p50_us)),
        number(row.times.map(|times| times.p90_us)),
        number(row.times.map(|times| times.p99_us)),
        number(row.times.map(|times| times.p999_us)),
        number(row.times.map(|times| times.max_us)),
        number(theirs.and_then(|theirs| theirs.p50_us)),
        goal
    )
}
