//! What the log says: balances, and the keys of all transfers. It is a function of the log alone, so everybody computes the same.
//!
//! * The first record with a key is the transfer; a later one with the same key and the same content is a repeat, and moves nothing. So an
//!   import that was cut off may be started again while requests of the first one are still on their way.
//! * A later record with the same key and another content is a conflict: it moves nothing, and `verify` reports it.
//! * Double entry: what one account pays another receives, so all balances add up to zero.

use std::collections::{BTreeMap, HashMap};

use mainstay_client::{LogVolume, ReadError, ReadLimits, Refusal};
use mainstay_types::Lsn;

use super::transfer::Transfer;

/// Balances and keys after everything below `next`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Book {
    /// First position that is not taken in.
    pub next: Lsn,
    /// In the smallest unit.
    pub balances: BTreeMap<String, i128>,
    /// Where each transfer is, and a checksum of its content.
    pub keys: HashMap<String, (Lsn, u32)>,
    /// Records that moved nothing because an equal one came before.
    pub repeats: u64,
    /// What is wrong with other records that moved nothing.
    pub problems: Vec<String>,
}

/// What a record did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// It moved money.
    Made(Transfer),
    /// It is there already.
    Repeat,
    /// It is not a transfer, or in conflict with an earlier one.
    Problem,
}

impl Default for Book {
    fn default() -> Self {
        Self {
            next: Lsn(1),
            balances: BTreeMap::new(),
            keys: HashMap::new(),
            repeats: 0,
            problems: Vec::new(),
        }
    }
}

impl Book {
    /// Takes in one record.
    pub fn take(&mut self, lsn: Lsn, record: &[u8]) -> Taken {
        self.next = lsn.next();
        let transfer = match Transfer::decode(record) {
            Ok(transfer) => transfer,
            Err(why) => {
                self.problems
                    .push(format!("the record at {lsn} is not a transfer: {why}"));
                return Taken::Problem;
            }
        };
        let sum = checksum(&transfer);
        if let Some((first, known)) = self.keys.get(&transfer.key) {
            if *known == sum {
                self.repeats += 1;
                return Taken::Repeat;
            }
            let key = &transfer.key;
            self.problems.push(format!(
                "the record at {lsn} has the key {key:?} of the one at {first}, and another content"
            ));
            return Taken::Problem;
        }
        let amount = i128::from(transfer.amount);
        *self.balances.entry(transfer.from.clone()).or_default() -= amount;
        *self.balances.entry(transfer.to.clone()).or_default() += amount;
        self.keys.insert(transfer.key.clone(), (lsn, sum));
        Taken::Made(transfer)
    }

    /// Takes in everything that is committed, and tells of each record.
    ///
    /// # Errors
    /// No primary serves in time, or the log begins above what the book has.
    pub async fn catch_up(
        &mut self,
        log: &LogVolume,
        mut tell: impl FnMut(Lsn, &Taken),
    ) -> anyhow::Result<()> {
        loop {
            let page = log.read(self.next, ReadLimits::default()).await;
            let page = page.map_err(|error| explain(self.next, error))?;
            for record in &page.records {
                let taken = self.take(record.lsn, &record.data);
                tell(record.lsn, &taken);
            }
            self.next = page.next.max(self.next);
            if page.end {
                return Ok(());
            }
        }
    }

    /// Whether a transfer is there, with the same content. An error names the one that has its key.
    pub(super) fn knows(&self, transfer: &Transfer) -> Result<bool, Lsn> {
        let found = self.place_of(&transfer.key, checksum(transfer));
        found.map(|place| place.is_some())
    }

    /// Where a transfer is of which only the key and the checksum of its content are left; errors as above.
    pub(super) fn place_of(&self, key: &str, sum: u32) -> Result<Option<Lsn>, Lsn> {
        match self.keys.get(key) {
            None => Ok(None),
            Some((lsn, known)) if *known == sum => Ok(Some(*lsn)),
            Some((lsn, _)) => Err(*lsn),
        }
    }
}

fn explain(next: Lsn, error: ReadError) -> anyhow::Error {
    match error {
        ReadError::Refused(Refusal::Trimmed { first }) => anyhow::anyhow!(
            "the log begins at {first}, and everything from {next} on is needed: name a snapshot with --snapshot that is newer"
        ),
        other => anyhow::Error::new(other).context("read the log"),
    }
}

pub(super) fn checksum(transfer: &Transfer) -> u32 {
    crc32fast::hash(&transfer.encode())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transfer(key: &str, amount: i64) -> Bytes {
        let transfer = Transfer {
            key: key.to_owned(),
            from: "cash".to_owned(),
            to: "rent".to_owned(),
            amount,
            date: None,
            memo: None,
        };
        transfer.encode()
    }

    use bytes::Bytes;

    #[test]
    fn a_key_moves_money_once() {
        let mut book = Book::default();
        assert!(matches!(
            book.take(Lsn(3), &transfer("a", 5)),
            Taken::Made(_)
        ));
        assert_eq!(book.take(Lsn(4), &transfer("a", 5)), Taken::Repeat);
        assert_eq!(book.take(Lsn(5), &transfer("a", 6)), Taken::Problem);
        assert_eq!(book.take(Lsn(6), b"?"), Taken::Problem);
        assert!(matches!(
            book.take(Lsn(9), &transfer("b", 1)),
            Taken::Made(_)
        ));
        assert_eq!((book.balances["cash"], book.balances["rent"]), (-6, 6));
        assert_eq!(
            (book.repeats, book.problems.len(), book.next),
            (1, 2, Lsn(10))
        );
    }
}
