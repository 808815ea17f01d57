//! Transfers between accounts whose balances are what the log says, and which must never fall below zero.
//!
//! A process reads the log to its end, picks a transfer that the balances allow, and appends it on condition that nothing came between. So
//! a stale read that passes for a fresh one, and a conditional append that is not one, end in a balance below zero.

use anyhow::Context as _;
use bytes::Bytes;
use mainstay_client::{Client, LogVolume, ReadError, ReadLimits};
use mainstay_types::Lsn;
use rand::Rng as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::history::Ended;
use super::{Args, Process, append_ended, patiently, read_ended};

/// In every account at the beginning.
const INITIAL: i64 = 100;
/// Greatest amount, inclusive: a good part of what an account has, so that refusals by the balance matter.
const AMOUNT_MAX: i64 = 60;

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Transfer {
    id: u64,
    from: u32,
    to: u32,
    amount: i64,
}

/// Balances after everything below `next`.
struct Book {
    balances: Vec<i64>,
    next: Lsn,
}

pub(super) async fn prepare(args: &Args, client: &Client) -> anyhow::Result<Value> {
    let log = client
        .log(&args.volume)
        .read_only()
        .open()
        .await
        .context("open the log")?;
    let position = log.position().await.context("where the log ends")?;
    Ok(json!({ "first": position.next.0, "accounts": args.keys, "initial": INITIAL }))
}

pub(super) async fn process(mut process: Process, first: Lsn) {
    let Some(mut log) = process.open_log().await else {
        return;
    };
    let mut book = Book::new(process.shared.args.keys, first);
    while process.may_begin().await {
        let over = if process.random.random_bool(0.2) {
            read(&mut process, &log, &mut book).await
        } else {
            transfer(&mut process, &log, &mut book).await
        };
        if over {
            match process.open_log().await {
                Some(opened) => log = opened,
                None => return,
            }
        }
    }
}

/// Reads every transfer, when nobody makes any more.
pub(super) async fn end(mut process: Process, first: Lsn) -> anyhow::Result<()> {
    let client = process.shared.client.clone();
    let volume = process.shared.args.volume.clone();
    let opened = || client.log(&volume).read_only().open();
    let log = patiently("open the log at the end", opened).await?;
    let all = patiently("read the log at the end", || read_all(&log, first)).await?;
    let read = async { Ended::Ok(json!({ "from": first.0, "transfers": all })) };
    process
        .perform("final", json!({ "from": first.0 }), read)
        .await;
    Ok(())
}

async fn read_all(log: &LogVolume, first: Lsn) -> Result<Vec<Value>, ReadError> {
    let mut from = first;
    let mut all = Vec::new();
    loop {
        let page = log.read(from, ReadLimits::default()).await?;
        for record in &page.records {
            let lsn = record.lsn.0;
            all.push(match serde_json::from_slice::<Transfer>(&record.data) {
                Ok(t) => json!([lsn, t.id, t.from, t.to, t.amount]),
                Err(_) => json!([lsn, null, null, null, null]),
            });
        }
        if page.end {
            return Ok(all);
        }
        from = page.next;
    }
}

impl Book {
    fn new(accounts: u32, next: Lsn) -> Self {
        Self {
            balances: vec![INITIAL; accounts as usize],
            next,
        }
    }

    /// Takes in everything that is committed.
    async fn catch_up(&mut self, log: &LogVolume) -> Result<(), ReadError> {
        loop {
            let page = log.read(self.next, ReadLimits::default()).await?;
            for record in &page.records {
                // What is no transfer moves no money; the final read shows it to the checker.
                if let Ok(transfer) = serde_json::from_slice::<Transfer>(&record.data) {
                    self.apply(&transfer);
                }
            }
            self.next = page.next;
            if page.end {
                return Ok(());
            }
        }
    }

    fn apply(&mut self, transfer: &Transfer) {
        let mut change = |account: u32, by: i64| {
            if let Some(balance) = self.balances.get_mut(account as usize) {
                *balance += by;
            }
        };
        change(transfer.from, -transfer.amount);
        change(transfer.to, transfer.amount);
    }
}

async fn read(process: &mut Process, log: &LogVolume, book: &mut Book) -> bool {
    let mut over = false;
    let operation = async {
        match book.catch_up(log).await {
            Ok(()) => Ended::Ok(json!({ "upto": book.next.0, "balances": book.balances })),
            Err(error) => read_ended(&error, &mut over),
        }
    };
    process.perform("read", Value::Null, operation).await;
    over
}

async fn transfer(process: &mut Process, log: &LogVolume, book: &mut Book) -> bool {
    if let Err(error) = book.catch_up(log).await {
        let mut over = false;
        read_ended(&error, &mut over);
        return over;
    }
    let accounts = process.shared.args.keys;
    let from = process.random.random_range(0..accounts);
    let to = (from + process.random.random_range(1..accounts)) % accounts;
    let most = AMOUNT_MAX.min(book.balances[from as usize]);
    if most < 1 {
        return false;
    }
    let amount = process.random.random_range(1..=most);
    let transfer = Transfer {
        id: process.fresh_value(),
        from,
        to,
        amount,
    };
    let expected = book.next;
    let asked = json!({ "id": transfer.id, "from": from, "to": to, "amount": amount, "expected": expected.0 });
    let mut told = asked.clone();
    let mut over = false;
    let operation = async {
        let record = serde_json::to_vec(&transfer).expect("numbers are JSON");
        match log.append_at(expected, Bytes::from(record)).await {
            Ok(committed) => {
                told["lsn"] = json!(committed.lsn.0);
                Ended::Ok(told)
            }
            Err(error) => append_ended(&error, &mut over),
        }
    };
    process.perform("transfer", asked, operation).await;
    over
}
