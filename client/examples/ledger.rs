//! A ledger in a hundred lines: how to append so that nothing is lost or made twice, and how to read so that nothing is stale.
//!
//! ```text
//! mainstay up --detach && mainstay volume create books --kind log
//! cargo run -p mainstay-client --example ledger -- 127.0.0.1:7400 books
//! ```
//!
//! `mainstay ledger` is the full one, with snapshots and imports.

use std::collections::{BTreeMap, HashSet};
use std::error::Error;

use mainstay_client::{AppendError, Client, ClientConfig, LogVolume, Outcome, ReadLimits};
use mainstay_types::Lsn;

/// One record: `key from to amount`. The key makes it idempotent: the first record with a key counts, a later one does not.
struct Transfer {
    key: String,
    from: String,
    to: String,
    amount: i64,
}

impl Transfer {
    fn encode(&self) -> String {
        format!("{} {} {} {}", self.key, self.from, self.to, self.amount)
    }

    fn decode(record: &[u8]) -> Option<Self> {
        let words: Vec<&str> = std::str::from_utf8(record).ok()?.split(' ').collect();
        let [key, from, to, amount] = words[..] else {
            return None;
        };
        let (key, from, to) = (key.to_owned(), from.to_owned(), to.to_owned());
        Some(Self {
            key,
            from,
            to,
            amount: amount.parse().ok()?,
        })
    }
}

/// What the log says up to a position. It is a function of the log alone, so every reader computes the same.
#[derive(Default)]
struct Book {
    balances: BTreeMap<String, i64>,
    keys: HashSet<String>,
    next: Lsn,
}

impl Book {
    /// Reads everything that was committed before the call. Keep the book, and the next call reads only what is new.
    async fn catch_up(&mut self, log: &LogVolume) -> Result<(), Box<dyn Error>> {
        loop {
            let page = log
                .read(self.next.max(Lsn(1)), ReadLimits::default())
                .await?;
            for record in &page.records {
                self.take(&record.data)
                    .ok_or("the log holds something else, too")?;
            }
            self.next = page.next;
            if page.end {
                return Ok(());
            }
        }
    }

    fn take(&mut self, record: &[u8]) -> Option<()> {
        let transfer = Transfer::decode(record)?;
        if self.keys.insert(transfer.key) {
            *self.balances.entry(transfer.from).or_default() -= transfer.amount;
            *self.balances.entry(transfer.to).or_default() += transfer.amount;
        }
        Some(())
    }
}

/// Makes transfers, all on their way at the same time. When this returns, each is committed.
async fn post(log: &LogVolume, transfers: &[Transfer]) -> Result<(), Box<dyn Error>> {
    let mut pending = Vec::new();
    for transfer in transfers {
        pending.push(log.submit(transfer.encode()).await?);
    }
    for append in pending {
        let op = append.op();
        match append.await {
            Ok(_committed) => {}
            // No answer in time, which is not "failed": it is settled before anything else is said. Failovers alone do not
            // lead here, the library waits and repeats by itself.
            Err(AppendError::Unknown { .. }) => match log.outcome(op).await? {
                Outcome::Committed(_) => {}
                Outcome::Never => {
                    return Err("not made; posting it again with the same key is safe".into());
                }
                Outcome::Forgotten => {
                    return Err("too long ago to say: look for the key in the log".into());
                }
            },
            Err(refused) => return Err(refused.into()),
        }
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(endpoint), Some(volume)) = (arguments.next(), arguments.next()) else {
        return Err("usage: ledger HOST:PORT VOLUME".into());
    };
    let client = Client::connect(ClientConfig::new([endpoint])).await?;
    let log = client.log(&volume).open().await?;

    let transfer = |key: u32| Transfer {
        key: format!("salary-{key}"),
        from: "company".to_owned(),
        to: format!("employee-{}", key % 10),
        amount: 100,
    };
    // Run it twice: the second time nothing moves.
    post(&log, &(0..1000).map(transfer).collect::<Vec<_>>()).await?;

    let mut book = Book::default();
    book.catch_up(&log).await?;
    assert_eq!(book.balances.values().sum::<i64>(), 0, "double entry");
    for (account, balance) in &book.balances {
        println!("{account}: {balance}");
    }
    log.close().await?;
    Ok(())
}
