//! The file in which a node keeps its events across restarts: `events.log` in its data directory (`docs/disk-format.md`).
//!
//! Written by a thread of its own, so that no event waits for a disk. What a loss of power tears off the end is cut at the next
//! start. An event log is there for people: a file that cannot be read or written costs a warning, never the node. What cannot be written
//! waits, within bounds, until it can.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use bytes::Bytes;
use mainstay_proto::v1 as pb;
use prost::Message as _;

/// `MSEVENTS`, then the version, then zeroes.
const HEADER: [u8; 16] = *b"MSEVENTS\x01\0\0\0\0\0\0\0";

/// Length and CRC-32 of the event behind them.
const RECORD_HEADER: usize = 8;

/// Beyond this the file is put aside as `events.old`, in the place of the one before.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// One event is a few hundred bytes.
const EVENT_BYTES_MAX: usize = 1 << 20;

/// What waits for a disk that takes nothing; beyond this the oldest go.
const WAITING_BYTES_MAX: usize = 1 << 20;

/// How often such a disk is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// The end that hands events over.
#[derive(Debug)]
pub struct EventFile {
    to: Option<mpsc::Sender<Vec<u8>>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl EventFile {
    /// Opens the log in `dir`, and what it holds, oldest first. A file that cannot be written yet is one later.
    ///
    /// # Errors
    /// What the log holds does not read.
    pub fn open(dir: &Path) -> io::Result<(Self, Vec<pb::Event>)> {
        std::fs::create_dir_all(dir)?;
        let path = dir.join("events.log");
        let (mut events, _) = read(&dir.join("events.old"))?;
        let (newer, intact) = read(&path)?;
        events.extend(newer);
        let (to, lines) = mpsc::channel();
        let writer = Writer {
            path,
            file: None,
            intact,
            waiting: VecDeque::new(),
            failed: false,
        };
        let thread = std::thread::Builder::new()
            .name("events".to_owned())
            .spawn(move || writer.run(&lines))?;
        let this = Self {
            to: Some(to),
            thread: Some(thread),
        };
        Ok((this, events))
    }

    /// Keeps one event. Does not wait for the disk.
    pub fn keep(&self, event: &pb::Event) {
        if let Some(to) = &self.to {
            let _ended = to.send(record(event));
        }
    }
}

impl Drop for EventFile {
    /// Waits until everything handed over is written, or was tried once more.
    fn drop(&mut self) {
        self.to = None;
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

fn record(event: &pb::Event) -> Vec<u8> {
    let body = event.encode_to_vec();
    let len = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let mut out = Vec::with_capacity(RECORD_HEADER + body.len());
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
    out.extend_from_slice(&body);
    out
}

/// Events of a file, and how many of its bytes are whole. A file that is not ours, or of another version, counts as empty
/// and is put aside under another name.
fn read(path: &Path) -> io::Result<(Vec<pb::Event>, u64)> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => Bytes::from(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), 0)),
        Err(error) => return Err(error),
    };
    if bytes.is_empty() {
        return Ok((Vec::new(), 0));
    }
    if bytes.get(..HEADER.len()) != Some(&HEADER[..]) {
        let aside = path.with_extension("unreadable");
        tracing::warn!(path = %path.display(), aside = %aside.display(), "not an event log of this version: put aside");
        std::fs::rename(path, aside)?;
        return Ok((Vec::new(), 0));
    }
    let (mut events, mut at) = (Vec::new(), HEADER.len());
    while let Some((event, next)) = decode(&bytes, at) {
        events.push(event);
        at = next;
    }
    Ok((events, at as u64))
}

fn decode(bytes: &Bytes, at: usize) -> Option<(pb::Event, usize)> {
    let word = |at: usize| {
        let bytes = bytes.get(at..at.checked_add(4)?)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let len = usize::try_from(word(at)?).ok()?;
    let start = at + RECORD_HEADER;
    if len > EVENT_BYTES_MAX || bytes.len() < start + len {
        return None;
    }
    let body = bytes.slice(start..start + len);
    if crc32fast::hash(&body) != word(at + 4)? {
        return None;
    }
    Some((pb::Event::decode(body).ok()?, start + len))
}

fn open_at(path: &Path, intact: u64) -> io::Result<std::fs::File> {
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)?;
    file.set_len(intact)?;
    io::Seek::seek(&mut file, io::SeekFrom::Start(intact))?;
    if intact == 0 {
        file.write_all(&HEADER)?;
    }
    Ok(file)
}

struct Writer {
    path: PathBuf,
    /// None until it is open, and after a failure: it is opened behind what is whole then, so that nothing torn hides what follows.
    file: Option<std::fs::File>,
    /// How many bytes of the file are whole.
    intact: u64,
    /// Records that are not in the file yet, oldest first.
    waiting: VecDeque<Vec<u8>>,
    /// The last try failed: that was said.
    failed: bool,
}

impl Writer {
    fn run(mut self, lines: &mpsc::Receiver<Vec<u8>>) {
        // There from the start, also if nothing happens.
        self.write_or_keep();
        loop {
            let more = if self.waiting.is_empty() {
                lines.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                lines.recv_timeout(AGAIN)
            };
            self.waiting.extend(more.as_ref().ok().cloned());
            self.waiting.extend(lines.try_iter());
            self.write_or_keep();
            if more == Err(RecvTimeoutError::Disconnected) {
                return;
            }
        }
    }

    fn write_or_keep(&mut self) {
        let written = self.write();
        let path = self.path.display();
        match written {
            Ok(()) if std::mem::take(&mut self.failed) => {
                tracing::info!(%path, "events are kept again");
            }
            Ok(()) => {}
            Err(error) => {
                if !std::mem::replace(&mut self.failed, true) {
                    tracing::warn!(%path, %error, "events cannot be kept for now: it is tried again");
                }
                self.file = None;
                let mut bytes: usize = self.waiting.iter().map(Vec::len).sum();
                while bytes > WAITING_BYTES_MAX {
                    bytes -= self
                        .waiting
                        .pop_front()
                        .map_or(bytes, |oldest| oldest.len());
                }
            }
        }
    }

    fn write(&mut self) -> io::Result<()> {
        if self.intact > FILE_BYTES_MAX {
            self.file = None;
            std::fs::rename(&self.path, self.path.with_extension("old"))?;
            // Before anything else may fail: an empty file must not be put in the place of this one.
            self.intact = 0;
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let file = open_at(&self.path, self.intact)?;
                self.intact = self.intact.max(HEADER.len() as u64);
                self.file.insert(file)
            }
        };
        if self.waiting.is_empty() {
            return Ok(());
        }
        let batch = self.waiting.make_contiguous().concat();
        file.write_all(&batch)?;
        file.sync_data()?;
        self.intact += batch.len() as u64;
        self.waiting.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: u64) -> pb::Event {
        pb::Event {
            number,
            unix_ms: 1_700_000_000_000,
            node: 2,
            volume: "ledger".to_owned(),
            message: "serves as primary of epoch 3".to_owned(),
            ..pb::Event::default()
        }
    }

    fn numbers(dir: &Path) -> Vec<u64> {
        let (_file, events) = EventFile::open(dir).expect("opens");
        events.iter().map(|event| event.number).collect()
    }

    #[test]
    fn bytes_are_golden() {
        let small = pb::Event {
            number: 7,
            ..pb::Event::default()
        };
        let expected = [2, 0, 0, 0, 0x54, 0x0d, 0x64, 0x17, 8, 7];
        assert_eq!(HEADER[..9], *b"MSEVENTS\x01");
        assert_eq!(record(&small), expected);
    }

    #[test]
    fn events_survive_a_restart_and_a_torn_end_costs_only_itself() {
        let dir = tempfile::tempdir().expect("a directory");
        let (file, before) = EventFile::open(dir.path()).expect("opens");
        assert!(before.is_empty());
        for number in 1..=5 {
            file.keep(&event(number));
        }
        drop(file);
        assert_eq!(numbers(dir.path()), [1, 2, 3, 4, 5]);
        let path = dir.path().join("events.log");
        let whole = std::fs::read(&path).expect("read");
        for cut in [1, 9, 40] {
            std::fs::write(&path, &whole[..whole.len() - cut]).expect("written");
            assert_eq!(numbers(dir.path()), [1, 2, 3, 4], "cut by {cut}");
        }
        // What is added goes behind what was whole.
        let (file, _) = EventFile::open(dir.path()).expect("opens");
        file.keep(&event(9));
        drop(file);
        assert_eq!(numbers(dir.path()), [1, 2, 3, 4, 9]);
    }

    #[test]
    fn a_file_of_something_else_is_put_aside_and_every_flipped_byte_is_seen() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("events.log");
        std::fs::write(&path, b"not an event log at all").expect("written");
        assert!(numbers(dir.path()).is_empty());
        let aside = std::fs::read(dir.path().join("events.unreadable")).expect("kept");
        assert_eq!(aside, b"not an event log at all");
        let (file, _) = EventFile::open(dir.path()).expect("opens");
        file.keep(&event(1));
        drop(file);
        let whole = std::fs::read(&path).expect("read");
        for at in HEADER.len()..whole.len() {
            let mut bad = whole.clone();
            bad[at] ^= 0x20;
            let decoded = decode(&Bytes::from(bad), HEADER.len());
            assert!(decoded.is_none(), "byte {at}");
        }
    }

    /// A disk without room for the file at the start, or for one record later, ended it until the next start.
    #[test]
    fn events_wait_for_a_disk_that_takes_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let (elsewhere, path) = (dir.path().join("elsewhere"), dir.path().join("events.log"));
        std::os::unix::fs::symlink(elsewhere.join("events"), &path).expect("made");
        let (file, _) = EventFile::open(dir.path()).expect("nothing to be read");
        file.keep(&event(1));
        std::fs::create_dir(&elsewhere).expect("made");
        drop(file);
        assert_eq!(numbers(dir.path()), [1]);

        let intact = std::fs::metadata(&path).expect("there").len();
        let mut writer = Writer {
            path: path.clone(),
            file: None,
            intact,
            waiting: VecDeque::new(),
            failed: false,
        };
        let mut options = std::fs::OpenOptions::new();
        writer.file = Some(options.write(true).open("/dev/full").expect("opens"));
        writer.waiting.push_back(record(&event(2)));
        // What a write left that found no room for all of it.
        let mut torn = std::fs::read(&path).expect("read");
        torn.extend_from_slice(&record(&event(2))[..20]);
        std::fs::write(&path, torn).expect("written");
        writer.write_or_keep();
        assert!(writer.failed && writer.waiting.len() == 1);
        writer.waiting.push_back(record(&event(3)));
        writer.write_or_keep();
        assert!(!writer.failed && writer.waiting.is_empty());
        assert_eq!(numbers(dir.path()), [1, 2, 3]);

        // The oldest go.
        writer.path = dir.path().join("nowhere").join("events.log");
        writer.file = None;
        let many = 2 * WAITING_BYTES_MAX / record(&event(9)).len();
        writer.waiting = (0..many as u64)
            .map(|number| record(&event(number)))
            .collect();
        writer.write_or_keep();
        let kept: usize = writer.waiting.iter().map(Vec::len).sum();
        assert!(kept <= WAITING_BYTES_MAX && kept > WAITING_BYTES_MAX / 2);
        assert_eq!(
            writer.waiting.back(),
            Some(&record(&event(many as u64 - 1)))
        );
    }
}
