//! Transfers between accounts: each that was acknowledged is in the log once, no balance is ever below zero, and every read shows the balances
//! of one moment, not before anything that was known. `docs/history.md` has the rules.

use std::collections::HashMap;

use anyhow::Context;
use serde::Deserialize;
use serde_json::Value;

use super::history::{History, Known, Operation, Outcome};

/// One record of the log: position, id, from, to, amount; empty ones if it is no transfer.
type Record = (u64, Option<u64>, Option<usize>, Option<usize>, Option<i64>);

#[derive(Debug, Deserialize)]
struct All {
    transfers: Vec<Record>,
}

#[derive(Debug, Deserialize)]
struct Asked {
    id: u64,
    from: usize,
    to: usize,
    amount: i64,
    expected: u64,
}

#[derive(Debug, Deserialize)]
struct Read {
    upto: u64,
    balances: Vec<i64>,
}

struct Checker<'a> {
    accounts: usize,
    initial: i64,
    all: Vec<Record>,
    asked: HashMap<u64, (Asked, &'a Operation)>,
    known: Known,
    /// Balances after each record.
    balances: Vec<Vec<i64>>,
    violations: Vec<String>,
}

pub(super) fn violations(history: &History) -> anyhow::Result<Vec<String>> {
    let all: All = parse(history.last_read()?)?;
    let mut asked = HashMap::new();
    let mut known = Vec::new();
    for operation in &history.operations {
        let ok = match &operation.outcome {
            Outcome::Ok(value) => Some(value),
            _ => None,
        };
        match (operation.f.as_str(), ok) {
            ("transfer", ok) => {
                let transfer: Asked = parse(&operation.asked)?;
                asked.insert(transfer.id, (transfer, operation));
                let lsn = ok.map(|value| value["lsn"].as_u64().context("no position"));
                known.extend(lsn.transpose()?.map(|lsn| (operation.ended, lsn)));
            }
            ("read", Some(value)) => {
                let read: Read = parse(value)?;
                let newest = read.upto.saturating_sub(1);
                known.push((operation.ended, newest));
            }
            _ => {}
        }
    }
    let mut checker = Checker {
        accounts: usize::try_from(history.parameter("accounts")?)?,
        initial: i64::try_from(history.parameter("initial")?)?,
        all: all.transfers,
        asked,
        known: Known::new(known),
        balances: Vec::new(),
        violations: Vec::new(),
    };
    checker.transfers();
    for operation in &history.operations {
        match (&operation.outcome, operation.f.as_str()) {
            (Outcome::Ok(value), "transfer") => checker.acknowledged(value),
            (Outcome::Ok(value), "read") => checker.read(operation, &parse(value)?),
            _ => {}
        }
    }
    Ok(checker.violations)
}

fn parse<T: for<'de> Deserialize<'de>>(value: &Value) -> anyhow::Result<T> {
    T::deserialize(value).with_context(|| format!("what was written down: {value}"))
}

impl Checker<'_> {
    fn found(&mut self, violation: String) {
        self.violations.push(violation);
    }

    /// Each record of the log: of one transfer, as it was asked for, once, and allowed by the balances.
    fn transfers(&mut self) {
        let mut balances = vec![self.initial; self.accounts];
        let mut places: HashMap<u64, u64> = HashMap::new();
        let mut before = 0;
        for record in self.all.clone() {
            let lsn = record.0;
            if lsn <= before {
                self.found(format!("order: position {lsn} is read after {before}"));
            }
            before = lsn;
            match self.made(&record) {
                Ok((id, from, to, amount)) => {
                    if let Some(first) = places.insert(id, lsn) {
                        self.found(format!("twice: transfer {id} is at {first} and at {lsn}"));
                    }
                    balances[from] -= amount;
                    balances[to] += amount;
                    if balances[from] < 0 {
                        let balance = balances[from];
                        self.found(format!(
                            "negative: account {from} has {balance} after transfer {id} at {lsn}"
                        ));
                    }
                }
                Err(found) => self.found(found),
            }
            self.balances.push(balances.clone());
        }
    }

    /// The transfer that a record is of; in words what is wrong if it is of none.
    fn made(&self, record: &Record) -> Result<(u64, usize, usize, i64), String> {
        let (lsn, Some(id), Some(from), Some(to), Some(amount)) = *record else {
            return Err(format!(
                "made up: the record at {} is no transfer",
                record.0
            ));
        };
        let Some((asked, operation)) = self.asked.get(&id) else {
            return Err(format!("made up: nobody made transfer {id} at {lsn}"));
        };
        if matches!(operation.outcome, Outcome::Fail) {
            return Err(format!("made up: transfer {id} at {lsn} had failed"));
        }
        if (asked.from, asked.to, asked.amount) != (from, to, amount)
            || from.max(to) >= self.accounts
        {
            return Err(format!(
                "made up: transfer {id} at {lsn} is not as it was made"
            ));
        }
        if asked.expected != lsn {
            let expected = asked.expected;
            return Err(format!(
                "condition: transfer {id} is at {lsn}, asked for {expected}"
            ));
        }
        let known = self.known.before(operation.began);
        if known >= lsn {
            return Err(format!(
                "order: transfer {id} is at {lsn}, though {known} was known before it began"
            ));
        }
        Ok((id, from, to, amount))
    }

    fn acknowledged(&mut self, value: &Value) {
        let (id, lsn) = (value["id"].as_u64(), value["lsn"].as_u64().unwrap_or(0));
        let at = self.all.binary_search_by_key(&lsn, |record| record.0);
        let there = at.ok().and_then(|index| self.all[index].1);
        if there.is_none() || there != id {
            self.found(format!(
                "lost: transfer {id:?} was acknowledged at {lsn}, where {there:?} is"
            ));
        }
    }

    fn read(&mut self, operation: &Operation, read: &Read) {
        let line = operation.began + 1;
        let sum: i64 = read.balances.iter().sum();
        let whole = self
            .initial
            .saturating_mul(i64::try_from(self.accounts).unwrap_or(i64::MAX));
        if sum != whole {
            self.found(format!(
                "sum: the balances of line {line} are {sum} in all, not {whole}"
            ));
        }
        let taken = self.all.partition_point(|record| record.0 < read.upto);
        let initial = vec![self.initial; self.accounts];
        let there = match taken.checked_sub(1) {
            Some(last) => &self.balances[last],
            None => &initial,
        };
        if *there != read.balances {
            let upto = read.upto;
            self.found(format!(
                "read: the balances of line {line} are not those before {upto}"
            ));
        }
        let known = self.known.before(operation.began);
        let needed = self.all.partition_point(|record| record.0 <= known);
        if needed > taken {
            self.found(format!(
                "stale: the balances of line {line} lack what was known, up to {known}"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::history::testing::{Writer, shows};

    fn transfer(id: u64, from: u64, to: u64, amount: i64, expected: u64) -> Value {
        json!({ "id": id, "from": from, "to": to, "amount": amount, "expected": expected })
    }

    fn made(id: u64, from: u64, to: u64, amount: i64, lsn: u64) -> Value {
        let mut value = transfer(id, from, to, amount, lsn);
        value["lsn"] = json!(lsn);
        value
    }

    /// Lines: 1-2 transfer 1, 3-4 one of unknown outcome, 5-6 one that failed, 7-8 a read, 9-10 transfer 4, 11-12 the end.
    fn good() -> Writer {
        Writer::new("bank", json!({ "first": 2, "accounts": 2, "initial": 100 }))
            .ok(
                1,
                "transfer",
                transfer(1, 0, 1, 60, 2),
                made(1, 0, 1, 60, 2),
            )
            .event("invoke", 2, "transfer", transfer(2, 0, 1, 30, 3))
            .event("info", 2, "transfer", transfer(2, 0, 1, 30, 3))
            .event("invoke", 3, "transfer", transfer(3, 0, 1, 30, 3))
            .event("fail", 3, "transfer", transfer(3, 0, 1, 30, 3))
            .ok(
                1,
                "read",
                json!(null),
                json!({ "upto": 4, "balances": [10, 190] }),
            )
            .ok(
                1,
                "transfer",
                transfer(4, 1, 0, 20, 5),
                made(4, 1, 0, 20, 5),
            )
            .ok(
                9,
                "final",
                json!({ "from": 2 }),
                all(json!([
                    [2, 1, 0, 1, 60],
                    [3, 2, 0, 1, 30],
                    [5, 4, 1, 0, 20]
                ])),
            )
    }

    fn all(transfers: Value) -> Value {
        json!({ "from": 2, "transfers": transfers })
    }

    #[test]
    fn an_unknown_transfer_that_was_made_is_good() {
        assert_eq!(good().violations(), Vec::<String>::new());
    }

    #[test]
    fn each_rule_can_be_broken() {
        let ends = |transfers| good().with(12, |line| line["value"] = all(transfers));
        let has = |history: &Writer, words: &str| {
            let found = history.violations();
            assert!(
                found.iter().any(|found| found.contains(words)),
                "{words}: {found:?}"
            );
        };
        shows(
            &ends(json!([[2, 1, 0, 1, 60], [3, 2, 0, 1, 30]])),
            "lost: transfer Some(4)",
        );
        has(
            &ends(json!([
                [2, 1, 0, 1, 60],
                [3, 2, 0, 1, 30],
                [3, 2, 0, 1, 30],
                [5, 4, 1, 0, 20]
            ])),
            "twice: transfer 2",
        );
        has(
            &ends(json!([
                [2, 1, 0, 1, 60],
                [3, 3, 0, 1, 30],
                [5, 4, 1, 0, 20]
            ])),
            "had failed",
        );
        has(
            &ends(json!([
                [2, 1, 0, 1, 60],
                [3, 2, 0, 1, 30],
                [5, 4, 1, 0, 20],
                [6, 7, 0, 1, 1]
            ])),
            "nobody made",
        );
        has(
            &ends(json!([
                [2, 1, 0, 1, 60],
                [3, 2, 0, 1, 30],
                [5, 4, 1, 0, 21]
            ])),
            "not as it was made",
        );
        shows(
            &ends(json!([
                [2, 1, 0, 1, 60],
                [3, 2, 0, 1, 30],
                [5, 4, 1, 0, 20],
                [6, null, null, null, null]
            ])),
            "is no transfer",
        );
        has(
            &ends(json!([
                [2, 1, 0, 1, 60],
                [4, 2, 0, 1, 30],
                [5, 4, 1, 0, 20]
            ])),
            "condition: transfer 2",
        );
        let poor = good()
            .with(3, |line| line["value"] = transfer(2, 0, 1, 50, 3))
            .with(4, |line| line["value"] = transfer(2, 0, 1, 50, 3))
            .with(8, |line| line["value"]["balances"] = json!([-10, 210]))
            .with(12, |line| {
                line["value"] = all(json!([
                    [2, 1, 0, 1, 60],
                    [3, 2, 0, 1, 50],
                    [5, 4, 1, 0, 20]
                ]))
            });
        shows(&poor, "negative: account 0 has -10");
        let sum = good().with(8, |line| line["value"]["balances"] = json!([10, 191]));
        has(&sum, "sum: the balances of line 8 are 201");
        let read = good().with(8, |line| line["value"]["balances"] = json!([11, 189]));
        shows(&read, "read: the balances of line 8");
        let stale = good().with(8, |line| {
            line["value"] = json!({ "upto": 2, "balances": [100, 100] })
        });
        shows(&stale, "stale: the balances of line 8");
        let order = good().with(8, |line| line["value"]["upto"] = json!(9));
        has(&order, "order: transfer 4");
    }
}
