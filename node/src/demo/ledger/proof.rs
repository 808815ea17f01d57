//! Reads a ledger back and compares it with what its writer knows.
//!
//! What must hold: every acknowledged transfer is in the log exactly once, at its position and with its time; nothing
//! is there twice, and nothing that was not submitted; positions rise and times never fall; all balances together are
//! zero, and each is what the acknowledged transfers make it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use mainstay_client::{Client, Committed, LogRecord, ReadLimits};
use mainstay_types::Lsn;
use serde::Serialize;

use super::{LedgerModel, Transfer};

/// Faults that are told one by one; the rest are only counted.
const TOLD_MAX: usize = 10;

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LedgerProof {
    /// Records read.
    pub records: u64,
    /// Transfers that were acknowledged.
    pub acknowledged: u64,
    /// Acknowledged, and not in the log.
    pub lost: u64,
    /// In the log more than once.
    pub twice: u64,
    /// At another position or time than acknowledged.
    pub misplaced: u64,
    /// Never submitted, or not as it is in the log.
    pub foreign: u64,
    /// A position or a time that does not rise.
    pub disordered: u64,
    /// Submitted, without an answer that says what became of it, and in the log.
    pub unknown_present: u64,
    /// Sum of all balances.
    pub balance_sum: i64,
    /// Accounts whose balance is not what the acknowledged transfers make it.
    pub balances_wrong: u64,
    /// The first faults, in words.
    pub faults: Vec<String>,
}

impl LedgerProof {
    /// Whether everything holds.
    #[must_use]
    pub fn holds(&self) -> bool {
        let wrong = [
            self.lost,
            self.twice,
            self.misplaced,
            self.foreign,
            self.disordered,
            self.balances_wrong,
        ];
        wrong.iter().all(|count| *count == 0) && self.balance_sum == 0
    }

    fn fault(&mut self, text: impl FnOnce() -> String) {
        if self.faults.len() < TOLD_MAX {
            self.faults.push(text());
        }
    }
}

/// Reads the whole log `volume` and checks it against `model`.
///
/// # Errors
/// The log cannot be read; what is wrong with its content is in the result.
pub async fn prove(
    client: &Client,
    volume: &str,
    model: &LedgerModel,
) -> anyhow::Result<LedgerProof> {
    let log = client.log(volume).read_only().open().await?;
    let mut check = Check::new(model);
    let mut next = Lsn(1);
    loop {
        let page = log
            .read(next, ReadLimits::default())
            .await
            .context("read the ledger back")?;
        for record in &page.records {
            check.record(record);
        }
        if page.end {
            return Ok(check.finish());
        }
        next = page.next;
    }
}

struct Check<'a> {
    model: &'a LedgerModel,
    proof: LedgerProof,
    seen: BTreeSet<u64>,
    last: Option<Committed>,
    balances: BTreeMap<u16, i64>,
}

impl<'a> Check<'a> {
    fn new(model: &'a LedgerModel) -> Self {
        Self {
            model,
            proof: LedgerProof::default(),
            seen: BTreeSet::new(),
            last: None,
            balances: BTreeMap::new(),
        }
    }

    fn record(&mut self, record: &LogRecord) {
        let proof = &mut self.proof;
        proof.records += 1;
        let at = Committed {
            lsn: record.lsn,
            count: 1,
            timestamp_us: record.timestamp_us,
        };
        if let Some(last) = self.last.replace(at)
            && (at.lsn <= last.lsn || at.timestamp_us < last.timestamp_us)
        {
            proof.disordered += 1;
            proof.fault(|| format!("{at:?} follows {last:?}"));
        }
        let text = String::from_utf8_lossy(&record.data);
        let Some(transfer) = self.submitted(&text) else {
            self.proof.foreign += 1;
            self.proof
                .fault(|| format!("nobody submitted `{text}`, at {}", at.lsn));
            return;
        };
        self.transfer(transfer, at);
    }

    /// The transfer that `text` is, if it was submitted just so.
    fn submitted(&self, text: &str) -> Option<Transfer> {
        let transfer: Transfer = text.parse().ok()?;
        let index = usize::try_from(transfer.number.checked_sub(1)?).ok()?;
        (self.model.submitted.get(index) == Some(&transfer)).then_some(transfer)
    }

    fn transfer(&mut self, transfer: Transfer, at: Committed) {
        let proof = &mut self.proof;
        let number = transfer.number;
        if !self.seen.insert(number) {
            proof.twice += 1;
            proof.fault(|| format!("transfer {number} is there again, at {}", at.lsn));
        }
        match self.model.acknowledged.get(&number) {
            Some(acknowledged) if *acknowledged == at => {}
            Some(acknowledged) => {
                proof.misplaced += 1;
                proof.fault(|| {
                    format!("transfer {number} was acknowledged as {acknowledged:?}, is {at:?}")
                });
            }
            None if self.model.unknown.contains(&number) => proof.unknown_present += 1,
            None => {
                proof.foreign += 1;
                proof.fault(|| format!("transfer {number} was settled as never, is at {}", at.lsn));
            }
        }
        for (account, change) in [transfer.paid, transfer.received] {
            *self.balances.entry(account).or_default() += change;
        }
    }

    fn finish(mut self) -> LedgerProof {
        let mut expected: BTreeMap<u16, i64> = BTreeMap::new();
        for transfer in &self.model.submitted {
            let number = transfer.number;
            let acknowledged = self.model.acknowledged.contains_key(&number);
            if acknowledged && !self.seen.contains(&number) {
                self.proof.lost += 1;
                self.proof
                    .fault(|| format!("transfer {number} was acknowledged and is not there"));
            }
            // One that nobody could settle counts as the log has it.
            if acknowledged || self.seen.contains(&number) {
                for (account, change) in [transfer.paid, transfer.received] {
                    *expected.entry(account).or_default() += change;
                }
            }
        }
        let accounts: BTreeSet<&u16> = expected.keys().chain(self.balances.keys()).collect();
        let wrong = accounts
            .into_iter()
            .filter(|account| expected.get(account) != self.balances.get(account));
        self.proof.balances_wrong = wrong.count() as u64;
        self.proof.balance_sum = self.balances.values().sum();
        self.proof.acknowledged = self.model.acknowledged.len() as u64;
        self.proof
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transfer(number: u64) -> Transfer {
        Transfer {
            number,
            paid: (1, -5),
            received: (2, 5),
        }
    }

    fn at(lsn: u64) -> Committed {
        Committed {
            lsn: Lsn(lsn),
            count: 1,
            timestamp_us: 100 + lsn,
        }
    }

    fn check(found: &[(u64, u64)]) -> LedgerProof {
        let model = LedgerModel {
            submitted: (1..=4).map(transfer).collect(),
            acknowledged: BTreeMap::from([(1, at(10)), (2, at(11))]),
            submitted_at: Vec::new(),
            unknown: vec![3],
        };
        let mut check = Check::new(&model);
        for (number, lsn) in found {
            check.record(&LogRecord {
                lsn: Lsn(*lsn),
                timestamp_us: 100 + lsn,
                data: transfer(*number).to_string().into(),
            });
        }
        check.finish()
    }

    #[test]
    fn what_was_acknowledged_must_be_there_once_and_in_its_place() {
        assert!(check(&[(1, 10), (2, 11)]).holds());
        assert_eq!(check(&[(1, 10)]).lost, 1);
        assert_eq!(check(&[(1, 10), (2, 11), (1, 12)]).twice, 1);
        assert_eq!(check(&[(1, 10), (2, 12)]).misplaced, 1);
        assert_eq!(check(&[(2, 11), (1, 10)]).disordered, 1);
    }

    #[test]
    fn an_unknown_transfer_may_be_there_and_one_settled_as_never_may_not() {
        let proof = check(&[(1, 10), (2, 11), (3, 12)]);
        assert!(proof.holds());
        assert_eq!(proof.unknown_present, 1);
        assert_eq!(check(&[(1, 10), (2, 11), (4, 12)]).foreign, 1);
        assert_eq!(check(&[(1, 10), (2, 11), (9, 12)]).foreign, 1);
    }
}
