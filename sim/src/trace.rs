//! What happened, as a rolling hash and, on demand, as text.
//!
//! The hash covers every event; two runs of one seed must end with the same one.

use std::collections::VecDeque;

/// Lines kept for a report.
const LINES_KEPT: usize = 400;

/// The events of one run.
#[derive(Debug)]
pub struct Trace {
    hash: u64,
    events: u64,
    lines: Option<VecDeque<String>>,
    print: bool,
}

impl Trace {
    /// Keeps lines if `keep`; prints them as they come if `print`.
    #[must_use]
    pub fn new(keep: bool, print: bool) -> Self {
        Self {
            hash: 0xcbf2_9ce4_8422_2325,
            events: 0,
            lines: (keep || print).then(VecDeque::new),
            print,
        }
    }

    /// Notes one event: its time, its kind, and two numbers that tell it from others.
    pub fn note(&mut self, at: u64, kind: u8, a: u64, b: u64, text: impl FnOnce() -> String) {
        self.events += 1;
        for word in [at, u64::from(kind), a, b] {
            self.hash = (self.hash ^ word)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .rotate_left(29);
        }
        let print = self.print;
        if let Some(lines) = &mut self.lines {
            let line = format!("{:>12.6} {}", at as f64 / 1e9, text());
            if print {
                println!("{line}");
            }
            lines.push_back(line);
            if lines.len() > LINES_KEPT {
                lines.pop_front();
            }
        }
    }

    /// Of everything noted so far.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// How much was noted.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.events
    }

    /// The newest lines.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().flatten().map(String::as_str)
    }
}
