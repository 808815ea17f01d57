//! A book in a file, so that only the tail of the log has to be read. It is replaced as a whole, durably, and checked when it is read:
//! a snapshot of another volume, of another history, or of which a bit changed is refused, never used.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use mainstay_types::Lsn;
use serde::{Deserialize, Serialize};

use super::book::Book;
use super::whose::Of;

const FORMAT: u32 = 1;

/// The first line of the file; the second is its CRC-32.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    format: u32,
    of: Of,
    next: u64,
    /// As text: JSON readers of other languages lose digits.
    balances: BTreeMap<String, String>,
    keys: BTreeMap<String, (u64, u32)>,
    repeats: u64,
    problems: Vec<String>,
}

/// The book in `path`, `None` if there is no such file; and whose it has to be. `ask` says that, and where the log ends.
///
/// The file is read before: another command may replace it meanwhile with one that has more than the log had when that was asked.
pub(super) async fn load(
    path: &Path,
    ask: impl AsyncFnOnce() -> anyhow::Result<(Of, Lsn)>,
) -> anyhow::Result<(Of, Option<Book>)> {
    let text = match fs::read_to_string(path) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    let (of, next) = ask().await?;
    let Some(text) = text else {
        return Ok((of, None));
    };
    let read = parse(&text, &of, next);
    let advice = "remove the file, and the next command computes it anew from the log";
    let book = read.with_context(|| format!("snapshot {}; {advice}", path.display()))?;
    Ok((of, Some(book)))
}

fn parse(text: &str, of: &Of, next: Lsn) -> anyhow::Result<Book> {
    let (body, sum) = text.split_once('\n').context("it is cut off")?;
    ensure!(
        sum.trim_end() == format!("{:08x}", crc32fast::hash(body.as_bytes())),
        "its checksum does not fit"
    );
    let stored: Stored = serde_json::from_str(body)?;
    ensure!(
        stored.format == FORMAT,
        "format {} is not known here",
        stored.format
    );
    if stored.of != *of {
        bail!("it is of {:?}, not of {of:?}", stored.of);
    }
    ensure!(
        stored.next <= next.0,
        "it has everything below {}, and the log ends at {next}",
        stored.next
    );
    let balance = |(account, units): (String, String)| Ok((account, units.parse()?));
    let balances: anyhow::Result<BTreeMap<String, i128>> =
        stored.balances.into_iter().map(balance).collect();
    let keys = stored.keys.into_iter();
    Ok(Book {
        next: Lsn(stored.next),
        balances: balances?,
        keys: keys
            .map(|(key, (lsn, sum))| (key, (Lsn(lsn), sum)))
            .collect(),
        repeats: stored.repeats,
        problems: stored.problems,
    })
}

/// Replaces `path`; a crash leaves the old file or the new one.
pub(super) fn save(path: &Path, of: &Of, book: &Book) -> anyhow::Result<()> {
    let balances = book.balances.iter();
    let keys = book.keys.iter();
    let stored = Stored {
        format: FORMAT,
        of: of.clone(),
        next: book.next.0,
        balances: balances
            .map(|(account, units)| (account.clone(), units.to_string()))
            .collect(),
        keys: keys
            .map(|(key, (lsn, sum))| (key.clone(), (lsn.0, *sum)))
            .collect(),
        repeats: book.repeats,
        problems: book.problems.clone(),
    };
    let body = serde_json::to_string(&stored)?;
    let text = format!("{body}\n{:08x}\n", crc32fast::hash(body.as_bytes()));
    write_durably(path, text.as_bytes()).with_context(|| format!("write {}", path.display()))
}

fn write_durably(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let aside = PathBuf::from(aside);
    let mut file = fs::File::create(&aside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&aside, path)?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    fs::File::open(dir.unwrap_or_else(|| Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::super::transfer::Transfer;
    use super::*;

    fn of(lineage: &str) -> Of {
        Of {
            volume: "ledger".to_owned(),
            id: "1".to_owned(),
            lineage: lineage.to_owned(),
        }
    }

    fn transfer() -> Transfer {
        Transfer {
            key: "k".to_owned(),
            from: "a".to_owned(),
            to: "b".to_owned(),
            amount: i64::MAX,
            date: None,
            memo: None,
        }
    }

    /// The log ends at 8 and the snapshot has all of it; another command appends, and keeps its snapshot, between the two questions of this
    /// one: where the log ends, and what is in the file.
    #[tokio::test]
    async fn a_snapshot_that_another_command_replaces_meanwhile_is_not_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("book.snapshot");
        let mut book = Book::default();
        book.take(Lsn(7), &transfer().encode());
        save(&path, &of("a"), &book).expect("saved");
        let ask = async || {
            let mut longer = book.clone();
            longer.take(Lsn(8), &transfer().encode());
            save(&path, &of("a"), &longer).expect("saved");
            Ok((of("a"), Lsn(8)))
        };
        let (_, read) = load(&path, ask).await.expect("a valid one");
        assert_eq!(read, Some(book));
    }

    #[test]
    fn a_snapshot_reads_back_and_any_other_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("book.snapshot");
        let load = |of: &Of, next| {
            let loading = load(&path, async || Ok((of.clone(), Lsn(next))));
            let read = loading.now_or_never().expect("nothing to wait for");
            read.map(|(_, book)| book)
        };
        assert_eq!(load(&of("a"), 1).expect("no file"), None);
        let mut book = Book::default();
        book.take(Lsn(7), &transfer().encode());
        book.take(Lsn(8), b"?");
        save(&path, &of("a"), &book).expect("saved");
        assert_eq!(load(&of("a"), 9).expect("read"), Some(book));
        assert!(load(&of("a"), 8).is_err(), "more than the log has");
        assert!(load(&of("b"), 9).is_err(), "another history");
        let text = fs::read_to_string(&path).expect("read");
        fs::write(&path, text.replacen("\"next\":9", "\"next\":8", 1)).expect("written");
        assert!(load(&of("a"), 9).is_err(), "a changed digit");
        fs::write(&path, &text[..text.len() / 2]).expect("written");
        assert!(load(&of("a"), 9).is_err(), "cut off");
    }
}
