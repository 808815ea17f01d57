//! How records are told apart in a stream of bytes: a record a line, or a length before each.
//!
//! * Lines: the newline ends a record and is no part of it; everything else is, a carriage return included. The last line
//!   needs no newline. An empty line is an empty record.
//! * Framed: four bytes of length, the great end first, then that many bytes. For records that may hold newlines.
//!
//! Reading never holds more than one record beyond the limit, however long a line is.

use std::io::{self, BufRead, BufReader, Read, Write};

use bytes::Bytes;
use tokio::sync::mpsc;

/// How records are told apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Framing {
    /// A record a line.
    #[default]
    Lines,
    /// A length before each record.
    Framed,
}

/// The input is not a row of records.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// More than a record may hold.
    #[error("{unit} {number} is longer than a record may be, {bytes_max} bytes: split it")]
    TooLong {
        /// `line` or `record`.
        unit: &'static str,
        /// Which, from 1.
        number: u64,
        /// The bound, inclusive.
        bytes_max: u64,
    },
    /// The input ends within a record.
    #[error(
        "the input ends within record {number}: its length says {wanted} bytes, there are {found}"
    )]
    Truncated {
        /// Which, from 1.
        number: u64,
        /// As its length says; 4 within the length itself.
        wanted: u64,
        /// As found.
        found: u64,
    },
    /// The input cannot be read.
    #[error("the input cannot be read after {unit} {number}")]
    Io {
        /// `line` or `record`.
        unit: &'static str,
        /// The last one read whole.
        number: u64,
        /// The answer.
        source: io::Error,
    },
}

impl Framing {
    /// What a record is called in messages.
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self {
            Self::Lines => "line",
            Self::Framed => "record",
        }
    }

    /// Writes one record.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(self, record: &[u8], out: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Lines => {
                out.write_all(record)?;
                out.write_all(b"\n")
            }
            Self::Framed => {
                let len = u32::try_from(record.len()).expect("a record is far below 4 GiB");
                out.write_all(&len.to_be_bytes())?;
                out.write_all(record)
            }
        }
    }
}

/// Bytes gathered before they are handed over while more input is at hand.
const BATCH_BYTES: usize = 64 << 10;
/// Batches read ahead of the sender.
const BATCHES_AHEAD: usize = 4;

/// Reads records on a thread of its own, since standard input cannot be waited for otherwise. The receiver gets them in
/// batches, at once when the input pauses; an error is the last thing it gets. The thread ends with the input, or at the
/// first record after the receiver is gone.
///
/// # Errors
/// The thread cannot be started.
pub fn read_ahead(
    input: impl Read + Send + 'static,
    framing: Framing,
    bytes_max: u64,
) -> io::Result<mpsc::Receiver<Result<Vec<Bytes>, InputError>>> {
    let (batches, received) = mpsc::channel(BATCHES_AHEAD);
    let input = BufReader::with_capacity(BATCH_BYTES, input);
    let mut records = Records::new(input, framing, bytes_max);
    let run = move || {
        loop {
            let (batch, end) = records.batch();
            if !batch.is_empty() && batches.blocking_send(Ok(batch)).is_err() {
                return;
            }
            match end {
                Some(Ok(())) => return,
                Some(Err(error)) => {
                    let _gone = batches.blocking_send(Err(error));
                    return;
                }
                None => {}
            }
        }
    };
    std::thread::Builder::new()
        .name("input".to_owned())
        .spawn(run)?;
    Ok(received)
}

struct Records<R: Read> {
    input: BufReader<R>,
    framing: Framing,
    bytes_max: u64,
    /// Records read whole.
    number: u64,
}

impl<R: Read> Records<R> {
    fn new(input: BufReader<R>, framing: Framing, bytes_max: u64) -> Self {
        Self {
            input,
            framing,
            bytes_max,
            number: 0,
        }
    }

    /// What can be read without waiting, at least one record; and how the input ended, if it did.
    fn batch(&mut self) -> (Vec<Bytes>, Option<Result<(), InputError>>) {
        let mut batch = Vec::new();
        let mut bytes = 0;
        loop {
            match self.next() {
                Ok(Some(record)) => {
                    bytes += record.len();
                    batch.push(record);
                }
                Ok(None) => return (batch, Some(Ok(()))),
                Err(error) => return (batch, Some(Err(error))),
            }
            if bytes >= BATCH_BYTES || !self.another_is_at_hand() {
                return (batch, None);
            }
        }
    }

    /// Whether the next record can be read without waiting for input.
    fn another_is_at_hand(&self) -> bool {
        let buffered = self.input.buffer();
        match self.framing {
            Framing::Lines => buffered.contains(&b'\n'),
            Framing::Framed => buffered
                .first_chunk()
                .is_some_and(|len| buffered.len() - 4 >= u32::from_be_bytes(*len) as usize),
        }
    }

    fn next(&mut self) -> Result<Option<Bytes>, InputError> {
        let record = match self.framing {
            Framing::Lines => self.line()?,
            Framing::Framed => self.framed()?,
        };
        self.number += u64::from(record.is_some());
        Ok(record)
    }

    fn line(&mut self) -> Result<Option<Bytes>, InputError> {
        let mut line = Vec::new();
        // One byte more than a record and its newline tells a line that is too long from one that just fits.
        let bytes_most = self.bytes_max.saturating_add(1);
        let read = (&mut self.input)
            .take(bytes_most)
            .read_until(b'\n', &mut line);
        read.map_err(|source| self.io(source))?;
        if line.is_empty() {
            return Ok(None);
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        } else if line.len() as u64 > self.bytes_max {
            return Err(self.too_long());
        }
        Ok(Some(line.into()))
    }

    fn framed(&mut self) -> Result<Option<Bytes>, InputError> {
        let mut len = Vec::new();
        let read = (&mut self.input).take(4).read_to_end(&mut len);
        read.map_err(|source| self.io(source))?;
        let Ok(len) = <[u8; 4]>::try_from(len.as_slice()) else {
            return if len.is_empty() {
                Ok(None)
            } else {
                Err(self.truncated(4, len.len()))
            };
        };
        let wanted = u64::from(u32::from_be_bytes(len));
        if wanted > self.bytes_max {
            return Err(self.too_long());
        }
        let mut record = Vec::new();
        let read = (&mut self.input).take(wanted).read_to_end(&mut record);
        read.map_err(|source| self.io(source))?;
        if record.len() as u64 != wanted {
            return Err(self.truncated(wanted, record.len()));
        }
        Ok(Some(record.into()))
    }

    fn too_long(&self) -> InputError {
        InputError::TooLong {
            unit: self.framing.unit(),
            number: self.number + 1,
            bytes_max: self.bytes_max,
        }
    }

    fn truncated(&self, wanted: u64, found: usize) -> InputError {
        InputError::Truncated {
            number: self.number + 1,
            wanted,
            found: found as u64,
        }
    }

    fn io(&self, source: io::Error) -> InputError {
        InputError::Io {
            unit: self.framing.unit(),
            number: self.number,
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All records, and the error at the end if there is one.
    fn read(input: &[u8], framing: Framing, bytes_max: u64) -> (Vec<Bytes>, Option<String>) {
        let mut batches =
            read_ahead(io::Cursor::new(input.to_vec()), framing, bytes_max).expect("a thread");
        let mut records = Vec::new();
        while let Some(batch) = batches.blocking_recv() {
            match batch {
                Ok(batch) => records.extend(batch),
                Err(error) => return (records, Some(error.to_string())),
            }
        }
        (records, None)
    }

    #[test]
    fn a_line_is_a_record_and_the_last_needs_no_newline() {
        let lines = |input: &[u8]| read(input, Framing::Lines, 100).0;
        assert_eq!(lines(b""), Vec::<Bytes>::new());
        assert_eq!(lines(b"a\n\nb\r\n"), ["a", "", "b\r"]);
        assert_eq!(lines(b"a\nb"), ["a", "b"]);
    }

    #[test]
    fn a_line_of_the_limit_passes_and_one_byte_more_is_refused_by_its_number() {
        let (records, error) = read(b"x\nabcd\nabcde\ny\n", Framing::Lines, 4);
        assert_eq!(records, ["x", "abcd"]);
        let text = "line 3 is longer than a record may be, 4 bytes: split it";
        assert_eq!(error.as_deref(), Some(text));
        assert_eq!(read(b"abcd", Framing::Lines, 4).0, ["abcd"]);
        assert!(read(b"abcde", Framing::Lines, 4).1.is_some());
    }

    #[test]
    fn a_framed_input_that_ends_within_a_record_is_refused() {
        let whole = b"\0\0\0\x02ab";
        assert_eq!(read(whole, Framing::Framed, 4), (vec!["ab".into()], None));
        for (cut, part) in [
            (3, "says 4 bytes, there are 3"),
            (5, "says 2 bytes, there are 1"),
        ] {
            let (records, error) = read(&whole[..cut], Framing::Framed, 4);
            assert!(records.is_empty());
            assert!(error.is_some_and(|error| error.contains(part)), "{cut}");
        }
        let (_, error) = read(b"\xff\xff\xff\xffab", Framing::Framed, 4);
        assert!(error.is_some_and(|error| error.starts_with("record 1 is longer")));
    }

    #[test]
    fn what_was_read_is_handed_over_when_the_input_pauses() {
        let (reader, mut writer) = io::pipe().expect("a pipe");
        let mut batches = read_ahead(reader, Framing::Lines, 100).expect("a thread");
        writer.write_all(b"one\ntw").expect("written");
        let first = batches.blocking_recv().expect("a batch").expect("records");
        assert_eq!(first, ["one"]);
        writer.write_all(b"o\n").expect("written");
        let second = batches.blocking_recv().expect("a batch").expect("records");
        assert_eq!(second, ["two"]);
        drop(writer);
        assert!(batches.blocking_recv().is_none());
    }

    proptest! {
        #[test]
        fn framed_records_come_back_as_they_were(
            records in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..300)
        ) {
            let mut bytes = Vec::new();
            for record in &records {
                Framing::Framed.write(record, &mut bytes).expect("written");
            }
            let (found, error) = read(&bytes, Framing::Framed, 1000);
            prop_assert_eq!(error, None);
            prop_assert_eq!(found, records);
        }
    }
}
