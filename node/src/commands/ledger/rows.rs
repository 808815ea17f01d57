//! From the rows of a CSV file to transfers, by the mapping of the command line. A row that it does not fit ends the import and is named.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use flate2::read::MultiGzDecoder;
use indicatif::ProgressBar;

use super::transfer::{Transfer, parse_amount};

/// Which columns mean what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// The account that the row is about.
    pub account: String,
    /// How much.
    pub amount: String,
    /// Whether the account receives or pays; without it the sign of the amount says so.
    pub direction: Option<Direction>,
    /// When.
    pub date: Option<String>,
    /// What names a row for ever; without it, its content does.
    pub key: Option<String>,
    /// The other side of every transfer.
    pub counter: String,
    /// Begins every key, so that two sources never meet.
    pub source: String,
    /// Between two fields.
    pub delimiter: u8,
    /// Of amounts.
    pub decimals: u32,
}

/// A column that tells receipts from payments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Direction {
    /// Its name.
    pub column: String,
    /// Its values in rows whose account receives.
    pub credit: Vec<String>,
    /// Its values in rows whose account pays.
    pub debit: Vec<String>,
}

/// Places of the columns.
struct Columns {
    account: usize,
    amount: usize,
    direction: Option<usize>,
    date: Option<usize>,
    key: Option<usize>,
}

/// Reads `path`, compressed or not, row by row, until `take` says that nobody wants more. `bar` follows the bytes of the file.
pub(super) fn read(
    path: &Path,
    mapping: &Mapping,
    bar: &ProgressBar,
    mut take: impl FnMut(Transfer) -> bool,
) -> anyhow::Result<()> {
    let named = || path.display().to_string();
    let file = File::open(path).with_context(named)?;
    bar.set_length(file.metadata().with_context(named)?.len());
    let mut file = BufReader::new(bar.wrap_read(file));
    let is_gz = file
        .fill_buf()
        .with_context(named)?
        .starts_with(&[0x1f, 0x8b]);
    let text: Box<dyn Read> = if is_gz {
        Box::new(MultiGzDecoder::new(file))
    } else {
        Box::new(file)
    };
    let mut csv = csv::ReaderBuilder::new()
        .delimiter(mapping.delimiter)
        .from_reader(text);
    let columns = Columns::find(csv.headers().with_context(named)?, mapping).with_context(named)?;
    let mut equal = HashMap::new();
    for row in csv.records() {
        let row = row.with_context(named)?;
        let line = row.position().map_or(0, csv::Position::line);
        let transfer = columns.transfer(&row, mapping, &mut equal);
        let transfer = transfer.with_context(|| format!("{} line {line}", path.display()))?;
        if !take(transfer) {
            return Ok(());
        }
    }
    Ok(())
}

/// What begins the keys of a file if nothing else is given: its name up to the first dot.
#[must_use]
pub fn source_of(path: &Path) -> String {
    let name = path.file_name().map(PathBuf::from).unwrap_or_default();
    let name = name.to_string_lossy();
    name.split('.').next().unwrap_or_default().to_owned()
}

impl Columns {
    fn find(header: &csv::StringRecord, mapping: &Mapping) -> anyhow::Result<Self> {
        let place = |name: &String| {
            let found = header.iter().position(|column| column == name);
            found.with_context(|| {
                let there: Vec<&str> = header.iter().collect();
                format!(
                    "there is no column {name:?} among {there:?}; is {:?} the delimiter?",
                    char::from(mapping.delimiter)
                )
            })
        };
        Ok(Self {
            account: place(&mapping.account)?,
            amount: place(&mapping.amount)?,
            direction: mapping
                .direction
                .as_ref()
                .map(|it| place(&it.column))
                .transpose()?,
            date: mapping.date.as_ref().map(place).transpose()?,
            key: mapping.key.as_ref().map(place).transpose()?,
        })
    }

    fn transfer(
        &self,
        row: &csv::StringRecord,
        mapping: &Mapping,
        equal: &mut HashMap<String, u64>,
    ) -> anyhow::Result<Transfer> {
        let field = |place: usize| row.get(place).unwrap_or_default();
        let amount =
            parse_amount(field(self.amount), mapping.decimals).map_err(anyhow::Error::msg)?;
        let receives = match (&mapping.direction, self.direction) {
            (Some(direction), Some(place)) => {
                ensure!(
                    amount >= 0,
                    "the amount {} is below zero, and {:?} says which way it goes",
                    field(self.amount),
                    direction.column
                );
                direction.receives(field(place))?
            }
            _ => amount >= 0,
        };
        let account = field(self.account).to_owned();
        let counter = mapping.counter.clone();
        let (from, to) = if receives {
            (counter, account)
        } else {
            (account, counter)
        };
        let transfer = Transfer {
            key: self.key(row, mapping, equal)?,
            from,
            to,
            amount: amount.checked_abs().context("too great an amount")?,
            date: self.date.map(|place| field(place).to_owned()),
            memo: None,
        };
        transfer.check().map_err(anyhow::Error::msg)?;
        Ok(transfer)
    }

    /// The same for the same row of the same file, whenever it is read: how many equal rows came before is part of it.
    fn key(
        &self,
        row: &csv::StringRecord,
        mapping: &Mapping,
        equal: &mut HashMap<String, u64>,
    ) -> anyhow::Result<String> {
        let source = &mapping.source;
        if let Some(place) = self.key {
            let key = row.get(place).unwrap_or_default();
            ensure!(!key.is_empty(), "the column of the key is empty");
            return Ok(format!("{source}/{key}"));
        }
        let content: Vec<&str> = row.iter().collect();
        let content = content.join("\u{1f}");
        let before = equal.entry(content.clone()).or_default();
        *before += 1;
        Ok(format!("{source}/{content}/{before}"))
    }
}

impl Direction {
    fn receives(&self, value: &str) -> anyhow::Result<bool> {
        let is = |values: &[String]| values.iter().any(|one| one == value);
        if is(&self.credit) {
            return Ok(true);
        }
        if is(&self.debit) {
            return Ok(false);
        }
        bail!(
            "{:?} in column {:?} is neither one of --credit {:?} nor of --debit {:?}",
            value,
            self.column,
            self.credit,
            self.debit
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping() -> Mapping {
        Mapping {
            account: "account_id".to_owned(),
            amount: "amount".to_owned(),
            direction: Some(Direction {
                column: "type".to_owned(),
                credit: vec!["IN".to_owned()],
                debit: vec!["OUT".to_owned(), "CASH".to_owned()],
            }),
            date: Some("date".to_owned()),
            key: None,
            counter: "world".to_owned(),
            source: "test".to_owned(),
            delimiter: b';',
            decimals: 2,
        }
    }

    fn read_text(text: &[u8], mapping: &Mapping) -> anyhow::Result<Vec<Transfer>> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), text)?;
        let mut all = Vec::new();
        read(file.path(), mapping, &ProgressBar::hidden(), |transfer| {
            all.push(transfer);
            true
        })?;
        Ok(all)
    }

    const TEXT: &str = "\"account_id\";\"type\";amount;date\n1;IN;7.50;930101\n1;\"OUT\";2;930102\n1;OUT;2;930102\n";

    #[test]
    fn rows_become_transfers_whose_keys_tell_equal_rows_apart() {
        let all = read_text(TEXT.as_bytes(), &mapping()).expect("read");
        let told: Vec<_> = all
            .iter()
            .map(|t| (t.from.as_str(), t.to.as_str(), t.amount))
            .collect();
        assert_eq!(
            told,
            [
                ("world", "1", 750),
                ("1", "world", 200),
                ("1", "world", 200)
            ]
        );
        assert_ne!(all[1].key, all[2].key);
        let again = read_text(TEXT.as_bytes(), &mapping()).expect("read");
        assert_eq!(all, again, "the same keys each time");
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut packed, TEXT.as_bytes()).expect("packed");
        let unpacked = read_text(&packed.finish().expect("packed"), &mapping()).expect("read");
        assert_eq!(all, unpacked);
    }

    #[test]
    fn signs_decide_without_a_column_for_it() {
        let signed = Mapping {
            direction: None,
            ..mapping()
        };
        let all = read_text(b"account_id;amount;date\n1;-2;x\n1;3;x\n", &signed).expect("read");
        assert_eq!((all[0].from.as_str(), all[1].to.as_str()), ("1", "1"));
    }

    #[test]
    fn a_row_that_does_not_fit_is_named() {
        let says = |text: &str, words: &str| {
            let error = read_text(text.as_bytes(), &mapping()).expect_err("refused");
            let error = format!("{error:#}");
            assert!(error.contains(words), "{error}");
        };
        says("account_id,type,amount,date\n", "is ';' the delimiter?");
        says(
            "account_id;type;amount;date\n1;IN;1;x\n1;LOAN;1;x\n",
            "line 3: \"LOAN\" in column \"type\"",
        );
        says(
            "account_id;type;amount;date\n1;IN;one;x\n",
            "line 2: \"one\" is not an amount",
        );
        says(
            "account_id;type;amount;date\n1;IN;-1;x\n",
            "line 2: the amount -1 is below zero",
        );
        says("account_id;type;amount;date\n1;IN;0;x\n", "above zero");
        says(
            "account_id;type;amount;date\n1;IN\n",
            "found record with 2 fields",
        );
        says("account_id;type;amount;date\nworld;IN;1;x\n", "pays itself");
    }
}
