//! What happens, line by line, each with its time. Colour only on a terminal.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// What a line is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Something is set up or looked at.
    Note,
    /// How far the load is.
    Progress,
    /// Something is done to a process.
    Fault,
    /// A new primary.
    Primary,
    /// Something holds.
    Good,
    /// Something does not.
    Bad,
}

/// Prints lines.
#[derive(Debug, Clone, Copy)]
pub(super) struct Narrator {
    started: Instant,
    to: To,
    colour: bool,
}

#[derive(Debug, Clone, Copy)]
enum To {
    Out,
    Err,
}

impl Narrator {
    /// To standard output, or to standard error if that is wanted for something else.
    pub(super) fn new(out_is_taken: bool) -> Self {
        let (to, terminal) = if out_is_taken {
            (To::Err, std::io::stderr().is_terminal())
        } else {
            (To::Out, std::io::stdout().is_terminal())
        };
        Self {
            started: Instant::now(),
            to,
            colour: terminal && std::env::var_os("NO_COLOR").is_none(),
        }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    pub(super) fn say(&self, kind: Kind, text: impl AsRef<str>) {
        let at = self.elapsed().as_secs_f64();
        let label = self.painted(kind, &format!("{:<9}", kind.label()));
        self.line(&format!("{at:>6.2} s  {label} {}", text.as_ref()));
    }

    /// A line without a time.
    pub(super) fn line(&self, text: &str) {
        // A reader that is gone is no reason to leave processes behind.
        let _unread = match self.to {
            To::Out => writeln!(std::io::stdout(), "{text}"),
            To::Err => writeln!(std::io::stderr(), "{text}"),
        };
    }

    /// `text` in the colour of `kind`.
    pub(super) fn painted(&self, kind: Kind, text: &str) -> String {
        match kind.colour() {
            Some(colour) if self.colour => format!("\x1b[{colour}m{text}\x1b[0m"),
            _ => text.to_owned(),
        }
    }
}

impl Kind {
    fn label(self) -> &'static str {
        match self {
            Self::Note => "",
            Self::Progress => "load",
            Self::Fault => "FAULT",
            Self::Primary => "primary",
            Self::Good => "good",
            Self::Bad => "BAD",
        }
    }

    fn colour(self) -> Option<u8> {
        match self {
            Self::Note => None,
            Self::Progress => Some(2),
            Self::Fault => Some(33),
            Self::Primary => Some(36),
            Self::Good => Some(32),
            Self::Bad => Some(31),
        }
    }
}
