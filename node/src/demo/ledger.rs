//! Double-entry transfers between accounts in a log volume, and the proof that all of them are there.
//!
//! Each record is one transfer with two entries: what one account pays and what another receives. The writer keeps a
//! few appends in flight and notes every acknowledged one with its position; a lost answer is settled, never guessed.

mod proof;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use mainstay_client::{AppendError, Client, Committed, LogVolume, OpId, Outcome, PendingAppend};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::gaps::Gaps;
pub use proof::{LedgerProof, prove};

/// Accounts that money moves between.
pub const ACCOUNTS: u16 = 100;
/// Greatest amount of one transfer, inclusive.
const AMOUNT_MAX: i64 = 10_000;

/// One transfer: one record of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// From 1, in the order in which they are submitted.
    pub number: u64,
    /// What the payer's balance changes by: account and a negative amount.
    pub paid: (u16, i64),
    /// What the payee's balance changes by.
    pub received: (u16, i64),
}

impl Transfer {
    fn random(number: u64, random: &mut StdRng) -> Self {
        let from = random.random_range(0..ACCOUNTS);
        let to = (from + random.random_range(1..ACCOUNTS)) % ACCOUNTS;
        let amount = random.random_range(1..=AMOUNT_MAX);
        Self {
            number,
            paid: (from, -amount),
            received: (to, amount),
        }
    }
}

impl fmt::Display for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((from, paid), (to, received)) = (self.paid, self.received);
        write!(
            f,
            "transfer {} account {from} {paid} account {to} {received}",
            self.number
        )
    }
}

impl FromStr for Transfer {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let words: Vec<&str> = text.split(' ').collect();
        let [
            "transfer",
            number,
            "account",
            from,
            paid,
            "account",
            to,
            received,
        ] = words[..]
        else {
            anyhow::bail!("not a transfer: `{text}`");
        };
        Ok(Self {
            number: number.parse()?,
            paid: (from.parse()?, paid.parse()?),
            received: (to.parse()?, received.parse()?),
        })
    }
}

/// What the writer knows when it has ended.
#[derive(Debug, Default)]
pub struct LedgerModel {
    /// All that were submitted, in order.
    pub submitted: Vec<Transfer>,
    /// Where each acknowledged one is, by its number.
    pub acknowledged: BTreeMap<u64, Committed>,
    /// When each that was submitted was so, in that order.
    pub submitted_at: Vec<Instant>,
    /// Numbers that nobody could settle: in the log once, or not at all.
    pub unknown: Vec<u64>,
}

/// A writer under way.
#[derive(Debug)]
pub struct LedgerLoad {
    gaps: Arc<Gaps>,
    stop: watch::Sender<bool>,
    writer: JoinHandle<anyhow::Result<LedgerModel>>,
}

impl LedgerLoad {
    /// Opens the log `volume` and writes to it until told to stop, `in_flight` transfers at a time.
    ///
    /// # Errors
    /// The log does not open.
    pub async fn start(
        client: &Client,
        volume: &str,
        seed: u64,
        in_flight: usize,
    ) -> anyhow::Result<Self> {
        let log = client.log(volume).open().await.context("open the log")?;
        let gaps = Arc::new(Gaps::default());
        let (stop, stopped) = watch::channel(false);
        let writer = Writer {
            log,
            random: StdRng::seed_from_u64(seed),
            model: LedgerModel::default(),
            gaps: gaps.clone(),
        };
        Ok(Self {
            gaps,
            stop,
            writer: tokio::spawn(writer.run(stopped, in_flight)),
        })
    }

    /// What it saw.
    #[must_use]
    pub fn gaps(&self) -> &Arc<Gaps> {
        &self.gaps
    }

    /// Whether it ended by itself, because of an error.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.writer.is_finished()
    }

    /// Submits nothing more, and waits until everything submitted is settled.
    ///
    /// # Errors
    /// An append was refused.
    pub async fn stop(self) -> anyhow::Result<LedgerModel> {
        self.stop.send_replace(true);
        self.writer.await.context("the ledger's writer panicked")?
    }
}

struct Writer {
    log: LogVolume,
    random: StdRng,
    model: LedgerModel,
    gaps: Arc<Gaps>,
}

impl Writer {
    async fn run(
        mut self,
        stopped: watch::Receiver<bool>,
        in_flight: usize,
    ) -> anyhow::Result<LedgerModel> {
        let mut pending = FuturesOrdered::new();
        while !*stopped.borrow() {
            while pending.len() < in_flight {
                let (number, append) = self.submit().await?;
                pending.push_back(async move { (number, append.op(), append.await) });
            }
            if let Some((number, op, result)) = pending.next().await {
                self.settle(number, op, result).await?;
            }
        }
        while let Some((number, op, result)) = pending.next().await {
            self.settle(number, op, result).await?;
        }
        Ok(self.model)
    }

    async fn submit(&mut self) -> anyhow::Result<(u64, PendingAppend)> {
        let number = self.model.submitted.len() as u64 + 1;
        let transfer = Transfer::random(number, &mut self.random);
        let append = self.log.submit(transfer.to_string()).await?;
        self.model.submitted.push(transfer);
        self.model.submitted_at.push(Instant::now());
        Ok((number, append))
    }

    async fn settle(
        &mut self,
        number: u64,
        op: OpId,
        result: Result<Committed, AppendError>,
    ) -> anyhow::Result<()> {
        let committed = match result {
            Ok(committed) => committed,
            Err(AppendError::Unknown { .. }) => match self.log.outcome(op).await {
                Ok(Outcome::Committed(committed)) => committed,
                Ok(Outcome::Never) => return Ok(()),
                Ok(Outcome::Forgotten) | Err(_) => {
                    self.model.unknown.push(number);
                    return Ok(());
                }
            },
            Err(error) => return Err(error).context(format!("transfer {number}")),
        };
        self.gaps.acknowledged();
        self.model.acknowledged.insert(number, committed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_reads_back_as_it_was_written() {
        let mut random = StdRng::seed_from_u64(1);
        for number in 1..100 {
            let transfer = Transfer::random(number, &mut random);
            assert_eq!(transfer.paid.1 + transfer.received.1, 0);
            assert_ne!(transfer.paid.0, transfer.received.0);
            let read: Transfer = transfer.to_string().parse().expect("parses");
            assert_eq!(read, transfer);
        }
        assert!("transfer 1 account 2 -5".parse::<Transfer>().is_err());
    }
}
