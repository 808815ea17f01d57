//! What can go wrong with a log, one enum per family of operations.

use std::io;
use std::path::PathBuf;

use mainstay_types::Lsn;

use crate::format::{BatchError, EntryError};

/// Why a log could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The directory holds segments already.
    #[error("{path} already holds a log")]
    Exists {
        /// Its directory.
        path: PathBuf,
    },
    /// The disk refused.
    #[error("create log in {path}")]
    Io {
        /// Its directory.
        path: PathBuf,
        /// The disk's answer.
        source: io::Error,
    },
}

/// Why a log could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No segment at all: the log was never created, or all of it is gone.
    #[error("{path} holds no log")]
    Missing {
        /// Its directory.
        path: PathBuf,
    },
    /// An intact segment of another volume, copy or place.
    #[error("{file}: {what} is {found}, expected {expected}")]
    Foreign {
        /// Segment file.
        file: String,
        /// Field that differs.
        what: &'static str,
        /// In the file.
        found: String,
        /// Ours.
        expected: String,
    },
    /// Written by another version of this program.
    #[error("{file}: format version {found}, this program reads {expected}")]
    Version {
        /// Segment file.
        file: String,
        /// In the file.
        found: u16,
        /// Ours.
        expected: u16,
    },
    /// An intact entry that this version does not know.
    #[error("{file}: unreadable to this program")]
    UnknownEntry {
        /// Segment file.
        file: String,
        /// What is unknown.
        source: EntryError,
    },
    /// The disk refused.
    #[error("open log in {path}")]
    Io {
        /// Its directory.
        path: PathBuf,
        /// The disk's answer.
        source: io::Error,
    },
}

/// Why an append, a cut or a mark did not happen.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// Entries that do not continue the log. Nothing was written. A fault of the caller.
    #[error("entries do not continue the log")]
    Misfit(#[from] BatchError),
    /// No room for the next segment. Nothing was written; the log is whole, and the call may be repeated.
    #[error("no space for the next segment")]
    NoSpace(#[source] io::Error),
    /// The next segment could not be prepared for another reason. Nothing was written; may be repeated.
    #[error("prepare the next segment")]
    Prepare(#[source] io::Error),
    /// A write or a sync failed, now or earlier. What was asked for is unknown; open the log again in a new process.
    #[error("log finished for this process: {reason}")]
    Poisoned {
        /// The first failure.
        reason: String,
    },
    /// The log has damage that must be cut and fetched again first.
    #[error("log damaged from {from}")]
    Damaged {
        /// First LSN lost.
        from: Lsn,
    },
    /// A cut at or below the commit point.
    #[error("cut after {asked} is below the commit point {commit}")]
    Committed {
        /// Asked for.
        asked: Lsn,
        /// Known commit point.
        commit: Lsn,
    },
    /// A cut outside the log.
    #[error("cut after {asked} is outside the log, which holds {first} to {last}")]
    OutOfRange {
        /// Asked for.
        asked: Lsn,
        /// First held.
        first: Lsn,
        /// Last held.
        last: Lsn,
    },
    /// The entry at the cut did not read back.
    #[error("read the entry at the cut")]
    Read(#[from] ReadError),
}

/// Why segments that are no longer part of the log were not given back.
#[derive(Debug, thiserror::Error)]
pub enum RecycleError {
    /// The machine lacks something for now, and no sync failed: the plan may be run again.
    #[error("unlink a segment")]
    Refused(#[source] io::Error),
    /// Whether the last file went is unknown: nothing behind it may go in this process.
    #[error("unlink a segment")]
    Failed(#[source] io::Error),
}

/// Why entries could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Recycled, or never here.
    #[error("the log begins at {first}")]
    BelowFirst {
        /// First LSN held.
        first: Lsn,
    },
    /// Not durable yet.
    #[error("the log ends at {last}")]
    AboveLast {
        /// Last LSN held.
        last: Lsn,
    },
    /// Durable once, and no longer reads back: repair from another member.
    #[error("entry {lsn} does not read back")]
    Damaged {
        /// First LSN lost.
        lsn: Lsn,
        /// What is wrong with it, where an entry was found.
        source: Option<EntryError>,
    },
    /// The disk refused.
    #[error("read log")]
    Io(#[source] io::Error),
}
