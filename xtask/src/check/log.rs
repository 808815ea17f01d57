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
    for operation in &history.operations {
        if let Outcome::Ok(value) = &operation.outcome {
            checker.answer(operation, value)?;
        }
    }
    Ok(checker.violations)
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
                let next = value.as_u64().context("a position that is none")?;
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
    /// position, 15-16 append 5, 17-18 the end.
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
            .ok(
                9,
                "final",
                json!({"from": 2}),
                json!({"from": 2, "records": [[3, 1], [4, 2], [6, 3], [7, 5]], "end": true}),
            )
    }

    #[test]
    fn a_log_with_an_append_that_came_late_is_good() {
        assert_eq!(good().violations(), Vec::<String>::new());
        let never = good().with(18, |line| {
            line["value"]["records"] = json!([[3, 1], [4, 2], [7, 5]]);
        });
        assert_eq!(never.violations(), Vec::<String>::new());
    }

    #[test]
    fn each_rule_can_be_broken() {
        let all =
            |records: serde_json::Value| good().with(18, |line| line["value"]["records"] = records);
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
        let order = order.with(18, |line| {
            line["value"]["records"] = json!([[2, 5], [3, 1], [4, 2], [6, 3]]);
        });
        let order = order.with(12, |line| line["value"]["from"] = json!(3));
        shows(&order, "order: 5 is at 2");
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
        let found = early.violations();
        assert!(
            found
                .iter()
                .any(|found| found.contains("before its append began")),
            "{found:?}"
        );
    }

    #[test]
    fn a_log_without_its_end_is_not_judged() {
        let mut cut = good();
        cut.lines.truncate(17);
        assert!(super::super::of(&cut.history().expect("a history")).is_err());
    }
}
