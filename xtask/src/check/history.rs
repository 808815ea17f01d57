//! A history in memory: operations with their places in the order of events.

use std::collections::HashMap;

use anyhow::{Context, bail, ensure};
use mainstay_node::commands::workload::history::{Begin, Event, FORMAT, Line};
use serde_json::Value;

/// All of it.
#[derive(Debug)]
pub(crate) struct History {
    pub(crate) begin: Begin,
    /// In the order in which they began.
    pub(crate) operations: Vec<Operation>,
}

/// One operation.
#[derive(Debug, Clone)]
pub(crate) struct Operation {
    pub(crate) process: u64,
    pub(crate) f: String,
    pub(crate) asked: Value,
    /// Place of its begin among all events.
    pub(crate) began: usize,
    /// Place of its end; [`NEVER`] if nobody knows its outcome.
    pub(crate) ended: usize,
    pub(crate) outcome: Outcome,
}

/// How it ended.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    Ok(Value),
    Fail,
    /// Or without an end in the file.
    Info,
}

/// After all events.
pub(crate) const NEVER: usize = usize::MAX;

impl History {
    /// Reads the lines of a file. Its last line may be cut off, as in a file of a program that was killed.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let mut lines = whole.lines().enumerate();
        let (_, first) = lines.next().context("the file holds no whole line")?;
        let Line::Begin(begin) = line(first, 0)? else {
            bail!("the first line does not say what the history is of");
        };
        ensure!(
            begin.format == FORMAT,
            "format {} is not known here, only {FORMAT}",
            begin.format
        );
        let mut builder = Builder::default();
        let mut time = begin.time;
        for (number, text) in lines {
            let (event, end) = match line(text, number)? {
                Line::Begin(_) => bail!("line {}: a second beginning", number + 1),
                Line::Invoke(event) => (event, None),
                Line::Ok(event) => {
                    let value = event.value.clone();
                    (event, Some(Outcome::Ok(value)))
                }
                Line::Fail(event) => (event, Some(Outcome::Fail)),
                Line::Info(event) => (event, Some(Outcome::Info)),
            };
            ensure!(event.time >= time, "line {}: time goes back", number + 1);
            time = event.time;
            let added = builder.add(number, event, end);
            added.with_context(|| format!("line {}", number + 1))?;
        }
        Ok(Self {
            begin,
            operations: builder.operations,
        })
    }

    pub(crate) fn parameter(&self, name: &str) -> anyhow::Result<u64> {
        let value = self.begin.parameters[name].as_u64();
        value.with_context(|| format!("the first line does not say {name:?}"))
    }

    /// The result of the read of everything.
    pub(crate) fn last_read(&self) -> anyhow::Result<&Value> {
        let found = self
            .operations
            .iter()
            .find_map(|operation| match &operation.outcome {
                Outcome::Ok(value) if operation.f == "final" => Some(value),
                _ => None,
            });
        found.context("it does not end with a read of everything")
    }
}

fn line(text: &str, number: usize) -> anyhow::Result<Line> {
    serde_json::from_str(text).with_context(|| format!("line {}", number + 1))
}

#[derive(Default)]
struct Builder {
    operations: Vec<Operation>,
    open: HashMap<u64, usize>,
}

impl Builder {
    fn add(&mut self, place: usize, event: Event, end: Option<Outcome>) -> anyhow::Result<()> {
        let Some(outcome) = end else {
            let index = self.operations.len();
            let before = self.open.insert(event.process, index);
            ensure!(
                before.is_none(),
                "process {} does two things at a time",
                event.process
            );
            self.operations.push(Operation {
                process: event.process,
                f: event.f,
                asked: event.value,
                began: place,
                ended: NEVER,
                outcome: Outcome::Info,
            });
            return Ok(());
        };
        let index = *self
            .open
            .get(&event.process)
            .context("an end without a beginning")?;
        let operation = &mut self.operations[index];
        ensure!(operation.f == event.f, "the end of another operation");
        if !matches!(outcome, Outcome::Info) {
            // A process whose operation nobody knows the outcome of stays busy with it.
            self.open.remove(&event.process);
            operation.ended = place;
        }
        operation.outcome = outcome;
        Ok(())
    }
}

/// The greatest position that was known to somebody before a moment.
#[derive(Debug, Default)]
pub(crate) struct Known(Vec<(usize, u64)>);

impl Known {
    /// Of positions and the places at which each was known.
    pub(crate) fn new(mut known: Vec<(usize, u64)>) -> Self {
        known.sort_unstable();
        let mut highest = 0;
        for (_, lsn) in &mut known {
            highest = highest.max(*lsn);
            *lsn = highest;
        }
        Self(known)
    }

    pub(crate) fn before(&self, place: usize) -> u64 {
        let earlier = self.0.partition_point(|(at, _)| *at < place);
        earlier.checked_sub(1).map_or(0, |last| self.0[last].1)
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use serde_json::{Value, json};

    use super::History;

    /// Writes histories for tests: each event comes one nanosecond after the one before.
    #[derive(Debug, Clone)]
    pub(crate) struct Writer {
        pub(crate) lines: Vec<Value>,
    }

    impl Writer {
        pub(crate) fn new(workload: &str, parameters: Value) -> Self {
            let begin = json!({
                "type": "begin", "format": 2, "workload": workload, "volume": "v", "seed": 1,
                "parameters": parameters, "time": 0,
            });
            Self { lines: vec![begin] }
        }

        pub(crate) fn event(mut self, kind: &str, process: u64, f: &str, value: Value) -> Self {
            let time = self.lines.len();
            let line =
                json!({ "type": kind, "process": process, "f": f, "value": value, "time": time });
            self.lines.push(line);
            self
        }

        /// An operation that nothing comes between.
        pub(crate) fn ok(self, process: u64, f: &str, asked: Value, result: Value) -> Self {
            self.event("invoke", process, f, asked)
                .event("ok", process, f, result)
        }

        pub(crate) fn history(&self) -> anyhow::Result<History> {
            let lines: Vec<String> = self.lines.iter().map(|line| format!("{line}\n")).collect();
            History::parse(&lines.concat())
        }

        pub(crate) fn violations(&self) -> Vec<String> {
            let history = self.history().expect("a history");
            super::super::of(&history).expect("judged").violations
        }

        /// The history with one line changed.
        pub(crate) fn with(&self, line: usize, change: impl FnOnce(&mut Value)) -> Self {
            let mut changed = self.clone();
            change(&mut changed.lines[line]);
            changed
        }
    }

    /// Asserts that exactly one kind of thing is wrong, and that it is said in these words.
    #[track_caller]
    pub(crate) fn shows(history: &Writer, words: &str) {
        let found = history.violations();
        assert!(!found.is_empty(), "nothing found, though: {words}");
        let strange = found.iter().find(|violation| !violation.contains(words));
        assert_eq!(strange, None, "among {found:#?}");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::testing::Writer;
    use super::*;

    #[test]
    fn what_is_no_history_is_refused() {
        let good = Writer::new("log", json!({"first": 1}));
        let twice = good.clone().event("invoke", 1, "append", json!([1, null]));
        let twice = twice.event("invoke", 1, "append", json!([2, null]));
        assert!(twice.history().is_err(), "one process, two operations");
        let busy = good.clone().event("invoke", 1, "append", json!([1, null]));
        let busy = busy.event("info", 1, "append", json!([1, null]));
        let busy = busy.event("invoke", 1, "append", json!([2, null]));
        assert!(busy.history().is_err(), "a process goes on after info");
        let end = good.clone().event("ok", 1, "append", json!([1, 5]));
        assert!(end.history().is_err(), "an end without a beginning");
        let back = good.clone().ok(1, "position", json!(null), json!(5));
        assert!(
            back.with(2, |line| line["time"] = json!(0))
                .history()
                .is_err()
        );
        let later = good.with(0, |line| line["format"] = json!(3));
        assert!(later.history().is_err(), "a later format");
        assert!(History::parse("").is_err());
        assert!(History::parse("{}\n").is_err());
    }

    #[test]
    fn an_operation_without_an_end_and_a_cut_line_are_of_a_program_that_was_killed() {
        let killed = Writer::new("log", json!({"first": 1}));
        let killed = killed.event("invoke", 1, "append", json!([1, null]));
        let text = format!(
            "{}\n{}\n{{\"type\":\"ok\",\"proc",
            killed.lines[0], killed.lines[1]
        );
        let history = History::parse(&text).expect("parsed");
        assert!(matches!(history.operations[0].outcome, Outcome::Info));
        assert_eq!(history.operations[0].ended, NEVER);
    }
}
