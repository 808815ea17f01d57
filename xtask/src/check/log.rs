//! An append log: nothing acknowledged is lost, nothing is there twice or made up, positions follow real time, and whoever reads sees a part
//! of the one log without a gap. `docs/history.md` has the rules. No tester of the ecosystem fits: to one that tries orders, a log of
//! thousands of records is one object with as many states.

use std::collections::HashMap;

use anyhow::Context;
use serde::Deserialize;
use serde_json::Value;

use super::history::{History, Known, Operation, Outcome};

/// Position and number; no number: not a record of the workload.
type Record = (u64, Option<u64>);

/// What a read returned.
#[derive(Debug, Deserialize)]
struct Seen {
    from: u64,
    records: Vec<Record>,
    end: bool,
}

struct Checker<'a> {
    /// Everything that is in the log, in order.
    all: Vec<Record>,
    /// By their numbers.
    appends: HashMap<u64, &'a Operation>,
    /// Positions of which somebody knew that they are taken.
    known: Known,
    violations: Vec<String>,
}

pub(super) fn violations(history: &History) -> anyhow::Result<Vec<String>> {
    let last: Seen = parse(history.last_read()?)?;
    let mut appends = HashMap::new();
    let mut known = Vec::new();
    for operation in &history.operations {
        let ok = match &operation.outcome {
            Outcome::Ok(value) => Some(value),
            _ => None,
        };
        match operation.f.as_str() {
            "append" | "append_at" => {
                let number = operation.asked[0]
                    .as_u64()
                    .context("an append of no number")?;
                appends.insert(number, operation);
                let lsn = ok.map(|value| value[1].as_u64().context("an append at no position"));
                known.extend(lsn.transpose()?.map(|lsn| (operation.ended, lsn)));
            }
            "read" | "tail" => {
                let seen = ok.map(parse::<Seen>).transpose()?;
                let newest = seen.and_then(|seen| seen.records.last().copied());
                known.extend(newest.map(|(lsn, _)| (operation.ended, lsn)));
            }
            "position" => {
                let next = ok.map(next_of).transpose()?;
                known.extend(next.map(|next| (operation.ended, next.saturating_sub(1))));
            }
            _ => {}
        }
    }
    let mut checker = Checker {
        all: last.records,
        appends,
        known: Known::new(known),
        violations: Vec::new(),
    };
    checker.records();
    let mut handed_over = Vec::new();
    for operation in &history.operations {
        if let Outcome::Ok(value) = &operation.outcome {
            checker.answer(operation, value)?;
            if operation.f == "tail" {
                handed_over.extend(parse::<Seen>(value)?.records);
            }
        }
    }
    checker.tails(&handed_over);
    Ok(checker.violations)
}

/// Records that tails handed over.
pub(super) fn tailed(history: &History) -> u64 {
    let tails = history.operations.iter().filter(|it| it.f == "tail");
    let records = tails.filter_map(|tail| match &tail.outcome {
        Outcome::Ok(value) => value["records"].as_array(),
        _ => None,
    });
    records.map(|records| records.len() as u64).sum()
}

fn next_of(value: &Value) -> anyhow::Result<u64> {
    value.as_u64().context("a position that is none")
}

fn parse<T: for<'de> Deserialize<'de>>(value: &Value) -> anyhow::Result<T> {
    T::deserialize(value).with_context(|| format!("what was read: {value}"))
}

impl Checker<'_> {
    fn found(&mut self, violation: String) {
        self.violations.push(violation);
    }

    /// Each record of the log: of one append, once, behind everything that was known before that append began.
    fn records(&mut self) {
        let mut places: HashMap<u64, u64> = HashMap::new();
        let mut before = 0;
        for (lsn, number) in self.all.clone() {
            if lsn <= before {
                self.found(format!("order: position {lsn} is read after {before}"));
            }
            before = lsn;
            let append = number.and_then(|number| self.appends.get(&number).copied());
            let (Some(number), Some(append)) = (number, append) else {
                self.found(format!(
                    "made up: the record at {lsn} is of no append ({number:?})"
                ));
                continue;
            };
            if let Some(first) = places.insert(number, lsn) {
                self.found(format!("twice: {number} is at {first} and at {lsn}"));
            }
            if matches!(append.outcome, Outcome::Fail) {
                self.found(format!("made up: {number} at {lsn}, whose append failed"));
            }
            let known = self.known.before(append.began);
            if known >= lsn {
                self.found(format!(
                    "order: {number} is at {lsn}, though {known} was known before its append began"
                ));
            }
        }
    }

    fn answer(&mut self, operation: &Operation, value: &Value) -> anyhow::Result<()> {
        match operation.f.as_str() {
            "append" | "append_at" => self.appended(operation, value),
            "position" => {
                let next = next_of(value)?;
                let known = self.known.before(operation.began);
                if next <= known {
                    self.found(format!(
                        "stale: position {next}, though {known} was known before"
                    ));
                }
            }
            "read" | "tail" => self.seen(operation, &parse(value)?),
            _ => {}
        }
        Ok(())
    }

    /// One after the other they handed over the whole log: without a hole, a repeat, or an end of their own.
    fn tails(&mut self, handed_over: &[Record]) {
        if handed_over == self.all.as_slice() {
            return;
        }
        let differs = handed_over.iter().zip(&self.all).find(|(a, b)| a != b);
        self.found(format!(
            "gap: the tails handed over {} records, the log has {} ({differs:?})",
            handed_over.len(),
            self.all.len()
        ));
    }

    fn appended(&mut self, operation: &Operation, value: &Value) {
        let (number, lsn) = (value[0].as_u64(), value[1].as_u64().unwrap_or(0));
        let at = self.all.binary_search_by_key(&lsn, |(lsn, _)| *lsn);
        let there = at.ok().and_then(|index| self.all[index].1);
        if there.is_none() || there != number {
            self.found(format!(
                "lost: {number:?} was acknowledged at {lsn}, where {there:?} is"
            ));
        }
        if let Some(expected) = operation.asked[1]
            .as_u64()
            .filter(|expected| *expected != lsn)
        {
            self.found(format!(
                "condition: {number:?} is at {lsn}, asked for {expected}"
            ));
        }
    }

    fn seen(&mut self, operation: &Operation, seen: &Seen) {
        let at = format!("line {}", operation.began + 1);
        let from = self.all.partition_point(|(lsn, _)| *lsn < seen.from);
        if let Some((last, _)) = seen.records.last() {
            let to = self.all.partition_point(|(lsn, _)| lsn <= last);
            let there = self.all.get(from..to).unwrap_or_default();
            if there != seen.records.as_slice() {
                let differs = there.iter().zip(&seen.records).find(|(a, b)| a != b);
                self.found(format!(
                    "gap: the {} at {at} saw {} records from {} to {last}, the log has {} ({differs:?})",
                    operation.f,
                    seen.records.len(),
                    seen.from,
                    there.len()
                ));
            }
        }
        for (lsn, number) in &seen.records {
            let append = number.and_then(|number| self.appends.get(&number).copied());
            if append.is_some_and(|append| append.began > operation.ended) {
                self.found(format!(
                    "made up: {lsn} was seen at {at}, before its append began"
                ));
            }
        }
        let known = self.known.before(operation.began);
        let needed = self.all.partition_point(|(lsn, _)| *lsn <= known);
        let needed = self.all.get(from..needed).and_then(|needed| needed.last());
        let newest = seen.records.last().map_or(0, |(lsn, _)| *lsn);
        if let Some((needed, _)) = needed.filter(|(needed, _)| seen.end && *needed > newest) {
            self.found(format!(
                "stale: the read at {at} saw the end of the log before {needed}, which was known"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::history::testing::{Writer, shows};

    /// Lines: 1-2 append 1, 3-4 append 2 at 4, 5-6 append 3 of unknown outcome, 7-8 one that failed, 9-10 a read, 11-12 a tail, 13-14 a
    /// position, 15-16 append 5, 17 and 20 the end, 18-19 the rest of the tail.
    fn good() -> Writer {
        Writer::new("log", json!({ "first": 2 }))
            .ok(1, "append", json!([1, null]), json!([1, 3]))
            .ok(2, "append_at", json!([2, 4]), json!([2, 4]))
            .event("invoke", 3, "append", json!([3, null]))
            .event("info", 3, "append", json!([3, null]))
            .event("invoke", 4, "append_at", json!([4, 4]))
            .event("fail", 4, "append_at", json!([4, 4]))
            .ok(
                1,
                "read",
                json!({"from": 3}),
                json!({"from": 3, "records": [[3, 1], [4, 2]], "end": true}),
            )
            .ok(
                0,
                "tail",
                json!({"from": 2}),
                json!({"from": 2, "records": [[3, 1]], "end": false}),
            )
            .ok(1, "position", json!(null), json!(5))
            .ok(1, "append", json!([5, null]), json!([5, 7]))
            .event("invoke", 9, "final", json!({"from": 2}))
            .ok(
                0,
                "tail",
                json!({"from": 4}),
                json!({"from": 4, "records": [[4, 2], [6, 3], [7, 5]], "end": false}),
            )
            .event(
                "ok",
                9,
                "final",
                json!({"from": 2, "records": [[3, 1], [4, 2], [6, 3], [7, 5]], "end": true}),
            )
    }

    /// The good history with another end, of which the first record is the same.
    fn ending(records: &serde_json::Value) -> Writer {
        let behind = &records.as_array().expect("records")[1..];
        let tailed = good().with(19, |line| line["value"]["records"] = json!(behind));
        tailed.with(20, |line| line["value"]["records"] = records.clone())
    }

    /// Among other things.
    #[track_caller]
    fn shows_also(history: &Writer, words: &str) {
        let found = history.violations();
        let one = found.iter().find(|found| found.contains(words));
        assert!(one.is_some(), "{words} is not among {found:#?}");
    }

    #[test]
    fn a_log_with_an_append_that_came_late_is_good() {
        assert_eq!(good().violations(), Vec::<String>::new());
        let never = ending(&json!([[3, 1], [4, 2], [7, 5]]));
        assert_eq!(never.violations(), Vec::<String>::new());
    }

    #[test]
    fn each_rule_can_be_broken() {
        let all = |records: serde_json::Value| ending(&records);
        shows(&all(json!([[3, 1], [4, 2], [6, 3]])), "lost: Some(5)");
        shows(
            &all(json!([[3, 1], [4, 2], [6, 3], [7, 5], [8, 3]])),
            "twice: 3",
        );
        shows(
            &all(json!([[3, 1], [4, 2], [6, 3], [7, 5], [8, 4]])),
            "whose append failed",
        );
        shows(
            &all(json!([[3, 1], [4, 2], [6, 3], [7, 5], [8, 99]])),
            "of no append",
        );
        shows(
            &all(json!([[3, 1], [4, 2], [6, 3], [7, 5], [8, null]])),
            "of no append",
        );
        let order = good().with(16, |line| line["value"] = json!([5, 2]));
        let order = order.with(20, |line| {
            line["value"]["records"] = json!([[2, 5], [3, 1], [4, 2], [6, 3]]);
        });
        shows_also(&order, "order: 5 is at 2");
        let condition = good().with(3, |line| line["value"] = json!([2, 5]));
        shows(&condition, "condition: Some(2)");
        let gap = good().with(10, |line| line["value"]["records"] = json!([[4, 2]]));
        shows(&gap, "gap: the read");
        let gap = good().with(12, |line| line["value"]["records"] = json!([[4, 2]]));
        shows(&gap, "gap: the tail");
        let repeat = good().with(12, |line| {
            line["value"]["records"] = json!([[3, 1], [3, 1]])
        });
        shows(&repeat, "gap: the tail");
        let stale = good().with(10, |line| line["value"]["records"] = json!([[3, 1]]));
        shows(&stale, "stale: the read");
        let stale = good().with(14, |line| line["value"] = json!(4));
        shows(&stale, "stale: position 4");
        let early = good().with(12, |line| {
            line["value"]["records"] = json!([[3, 1], [4, 2], [6, 3], [7, 5]]);
        });
        shows_also(&early, "before its append began");
    }

    /// Everything below a position was taken when it was told.
    #[test]
    fn what_a_position_says_holds_from_then_on() {
        let told =
            || Writer::new("log", json!({ "first": 2 })).ok(1, "position", json!(null), json!(10));
        let ending = |history: Writer, records: serde_json::Value| {
            let all = json!({"from": 2, "records": records, "end": true});
            history
                .event("invoke", 9, "final", json!({"from": 2}))
                .ok(0, "tail", json!({"from": 2}), all.clone())
                .event("ok", 9, "final", all)
        };
        let again = told().ok(2, "position", json!(null), json!(10));
        assert_eq!(ending(again, json!([])).violations(), Vec::<String>::new());
        let back = told().ok(2, "position", json!(null), json!(8));
        shows(&ending(back, json!([])), "stale: position 8");
        let append = |lsn: u64| told().ok(2, "append", json!([1, null]), json!([1, lsn]));
        assert_eq!(
            ending(append(10), json!([[10, 1]])).violations(),
            Vec::<String>::new()
        );
        shows(&ending(append(9), json!([[9, 1]])), "order: 1 is at 9");
        let read = Writer::new("log", json!({ "first": 2 }))
            .event("invoke", 3, "append", json!([1, null]))
            .event("info", 3, "append", json!([1, null]))
            .ok(1, "position", json!(null), json!(10))
            .ok(
                2,
                "read",
                json!({"from": 2}),
                json!({"from": 2, "records": [], "end": true}),
            );
        shows(&ending(read, json!([[9, 1]])), "stale: the read");
    }

    #[test]
    fn the_tails_hand_over_all_of_the_log_and_nothing_twice() {
        let nothing = good().with(12, |line| line["value"]["records"] = json!([]));
        let nothing = nothing.with(19, |line| line["value"]["records"] = json!([]));
        shows(
            &nothing,
            "gap: the tails handed over 0 records, the log has 4",
        );
        let missed = good().with(19, |line| {
            line["type"] = json!("fail");
            line["value"] = json!({"from": 4});
        });
        shows(&missed, "gap: the tails handed over 1 records");
        let hole = good().with(19, |line| {
            line["value"] = json!({"from": 6, "records": [[6, 3], [7, 5]], "end": false});
        });
        shows(&hole, "gap: the tails handed over 3 records");
        let twice = good().with(19, |line| {
            let all = json!([[3, 1], [4, 2], [6, 3], [7, 5]]);
            line["value"] = json!({"from": 3, "records": all, "end": false});
        });
        shows(&twice, "gap: the tails handed over 5 records");
    }

    #[test]
    fn a_log_without_its_end_is_not_judged() {
        let mut cut = good();
        cut.lines.truncate(20);
        assert!(super::super::of(&cut.history().expect("a history")).is_err());
    }
}
