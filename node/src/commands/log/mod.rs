//! `mainstay log`: append, read and follow records, trim them, say what is kept, and prove what they were.

pub mod append;
pub mod framing;
pub mod proof_file;
pub mod prove;
pub mod read;
pub mod retain;
pub mod root;
pub mod tail;
pub mod trim;
pub mod verify;

use std::io::Write;

use mainstay_client::{LogRecord, ReadError, Refusal};
use mainstay_types::Lsn;
use serde::Serialize;

use super::{print_json_line, text};
use framing::Framing;

/// How records are printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Printed {
    /// How they are told apart.
    pub framing: Framing,
    /// The position stands before each record: in decimal and a tab, or in eight bytes, the great end first.
    pub with_lsn: bool,
    /// Each is a line of JSON, whatever the rest says.
    pub json: bool,
}

/// A record as JSON.
#[derive(Serialize)]
struct Shown<'a> {
    lsn: Lsn,
    timestamp_us: u64,
    #[serde(flatten)]
    data: Data<'a>,
}

/// What was appended. Its key says how it is written.
#[derive(Serialize)]
enum Data<'a> {
    #[serde(rename = "text")]
    Text(&'a str),
    /// Two hexadecimal digits a byte, as in the files of `log prove`.
    #[serde(rename = "data_hex")]
    Hex(String),
}

impl<'a> Shown<'a> {
    fn of(record: &'a LogRecord) -> Self {
        let data = match std::str::from_utf8(&record.data) {
            Ok(text) => Data::Text(text),
            Err(_) => Data::Hex(proof_file::hex(&record.data)),
        };
        Self {
            lsn: record.lsn,
            timestamp_us: record.timestamp_us,
            data,
        }
    }
}

impl Printed {
    fn print(self, record: &LogRecord, out: &mut impl Write) -> anyhow::Result<()> {
        if self.json {
            return print_json_line(out, &Shown::of(record));
        }
        match (self.framing, self.with_lsn) {
            (Framing::Lines, true) => write!(out, "{}\t", record.lsn)?,
            (Framing::Framed, true) => out.write_all(&record.lsn.0.to_be_bytes())?,
            (_, false) => {}
        }
        self.framing.write(&record.data, out)?;
        Ok(())
    }
}

/// Why a log was not read, and what to do.
fn explain_read(volume: &str, error: ReadError) -> anyhow::Error {
    match error {
        ReadError::Refused(Refusal::Trimmed { first }) => anyhow::anyhow!(
            "log `{volume}` was trimmed: its first position is {first}; read with --from {first}"
        ),
        ReadError::Deadline { waited } => anyhow::anyhow!(
            "no primary answered for log `{volume}` within {}; `mainstay status` says why",
            text::span(waited)
        ),
        other => anyhow::Error::new(other).context(format!("log `{volume}`")),
    }
}

/// Why there is no root or no proof, and what to do.
fn explain_tree(volume: &str, error: ReadError) -> anyhow::Error {
    match error {
        ReadError::Refused(Refusal::TreeUnavailable { message }) => anyhow::anyhow!(
            "the copy of log `{volume}` that was asked can prove nothing: {message}; another copy may: see `docs/proofs.md`"
        ),
        ReadError::Refused(Refusal::BadRequest { message }) => {
            anyhow::anyhow!("log `{volume}`: {message}")
        }
        other => explain_read(volume, other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_text_in_json_if_it_is_text() {
        let shown = |data: &'static [u8]| {
            let record = LogRecord {
                lsn: Lsn(258),
                timestamp_us: 7,
                data: bytes::Bytes::from_static(data),
            };
            let printed = Printed {
                json: true,
                ..Printed::default()
            };
            let mut out = Vec::new();
            printed.print(&record, &mut out).expect("printed");
            String::from_utf8(out).expect("text")
        };
        let head = r#"{"lsn":258,"timestamp_us":7,"#;
        let text = |data: &'static [u8]| shown(data).replacen(head, "", 1);
        assert_eq!(text("a\n\"ä".as_bytes()), "\"text\":\"a\\n\\\"ä\"}\n");
        assert_eq!(text(b""), "\"text\":\"\"}\n");
        assert_eq!(text(b"a\xff\0"), "\"data_hex\":\"61ff00\"}\n");
    }

    #[test]
    fn records_are_printed_as_they_were_appended() {
        let record = LogRecord {
            lsn: Lsn(258),
            timestamp_us: 1,
            data: bytes::Bytes::from_static(b"a\0b\r"),
        };
        let shown = |framing, with_lsn| {
            let mut out = Vec::new();
            let printed = Printed {
                framing,
                with_lsn,
                json: false,
            };
            printed.print(&record, &mut out).expect("printed");
            out
        };
        assert_eq!(shown(Framing::Lines, false), b"a\0b\r\n");
        assert_eq!(shown(Framing::Lines, true), b"258\ta\0b\r\n");
        assert_eq!(shown(Framing::Framed, false), b"\0\0\0\x04a\0b\r");
        assert_eq!(
            shown(Framing::Framed, true),
            b"\0\0\0\0\0\0\x01\x02\0\0\0\x04a\0b\r"
        );
    }
}
