//! What clients did and saw, as JSON lines (`docs/history.md`): written here, read by whoever checks it.
//!
//! * The order of the lines is the order of the events: each takes its time and its place in the file under one lock.
//! * An operation is written down before it is begun and after it has ended, so its interval in the file is never shorter than the real one.
//! * A process does one thing at a time. One whose operation ended as `info` is never heard of again: the operation may still take effect.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Of this format.
pub const FORMAT: u32 = 2;

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Line {
    /// The first one.
    Begin(Begin),
    /// An operation begins.
    Invoke(Event),
    /// It took effect, with this result.
    Ok(Event),
    /// It did not take effect and never will.
    Fail(Event),
    /// Nobody knows whether it did, or still will.
    Info(Event),
}

/// What the history is of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Begin {
    /// [`FORMAT`].
    pub format: u32,
    /// `registers`, `log` or `bank`.
    pub workload: String,
    /// The volume.
    pub volume: String,
    /// Of what is done.
    pub seed: u64,
    /// What a checker has to know beside that.
    pub parameters: Value,
    /// See [`Event::time`].
    pub time: u64,
}

/// Begin or end of an operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Who does it.
    pub process: u64,
    /// Which operation.
    pub f: String,
    /// What it is about, and its result once it is known.
    pub value: Value,
    /// Nanoseconds of the machine's monotonic clock.
    pub time: u64,
    /// Why it ended as `fail` or `info`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How an operation ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Ended {
    /// With this result.
    Ok(Value),
    /// Without effect, for ever.
    Fail(String),
    /// Nobody knows.
    Info(String),
}

/// Takes lines from all processes.
pub struct History {
    inner: Mutex<Inner>,
}

struct Inner {
    out: Box<dyn Write + Send>,
    failed: Option<io::Error>,
}

impl History {
    /// A history that begins with `begin`, whose time is set here.
    #[must_use]
    pub fn new(out: impl Write + Send + 'static, begin: Begin) -> Self {
        let history = Self {
            inner: Mutex::new(Inner {
                out: Box::new(io::BufWriter::new(out)),
                failed: None,
            }),
        };
        history.write(|time| Line::Begin(Begin { time, ..begin }));
        history
    }

    pub(super) fn invoke(&self, process: u64, f: &str, value: &Value) {
        self.write(|time| Line::Invoke(event(process, f, value.clone(), time, None)));
    }

    pub(super) fn ended(&self, process: u64, f: &str, asked: Value, ended: Ended) {
        self.write(|time| match ended {
            Ended::Ok(value) => Line::Ok(event(process, f, value, time, None)),
            Ended::Fail(why) => Line::Fail(event(process, f, asked, time, Some(why))),
            Ended::Info(why) => Line::Info(event(process, f, asked, time, Some(why))),
        });
    }

    fn write(&self, line: impl FnOnce(u64) -> Line) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let line = line(now());
        if inner.failed.is_some() {
            return;
        }
        let written = serde_json::to_writer(&mut inner.out, &line).map_err(io::Error::from);
        if let Err(error) = written.and_then(|()| inner.out.write_all(b"\n")) {
            inner.failed = Some(error);
        }
    }

    /// Everything is with the system; the first error of all writes, if there was one.
    ///
    /// # Errors
    /// The file could not be written: the history has a hole, or no end.
    pub fn finish(&self) -> io::Result<()> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        match inner.failed.take() {
            Some(error) => Err(error),
            None => inner.out.flush(),
        }
    }
}

impl std::fmt::Debug for History {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("History").finish_non_exhaustive()
    }
}

fn event(process: u64, f: &str, value: Value, time: u64, error: Option<String>) -> Event {
    let f = f.to_owned();
    Event {
        process,
        f,
        value,
        time,
        error,
    }
}

fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_reads_as_the_documentation_says() {
        let text = r#"{"type":"info","process":3,"f":"write","value":[5,77],"time":1200,"error":"no answer within 5s"}"#;
        let line: Line = serde_json::from_str(text).expect("parsed");
        let Line::Info(event) = &line else {
            panic!("{line:?}");
        };
        assert_eq!((event.process, event.time), (3, 1200));
        assert_eq!(serde_json::to_string(&line).expect("written"), text);
        let page = include_str!("../../../../docs/history.md");
        assert!(page.contains(text), "docs/history.md shows another line");
    }

    #[test]
    fn a_history_that_cannot_be_written_says_so_at_the_end() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::StorageFull.into())
            }
        }
        let begin = Begin {
            format: FORMAT,
            workload: "log".to_owned(),
            volume: "v".to_owned(),
            seed: 1,
            parameters: Value::Null,
            time: 0,
        };
        let history = History::new(Full, begin);
        history.invoke(0, "append", &Value::Null);
        assert!(history.finish().is_err());
    }
}
