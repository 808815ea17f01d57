//! From bytes found on disk to a trusted log end.
//!
//! Rules: what was durable and does not read back is damage, never the end; what may never have been whole is in
//! doubt, never silently cut; everything else is accepted. One frame is in flight at a time, and the next write
//! begins only after the sync of the one before, so any intact later write proves that the earlier ones were complete.

pub(crate) mod scan;
pub mod table;
pub(crate) mod walk;

use mainstay_types::{Epoch, LogPoint, Lsn};

/// What recovery found in a log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecoveredLog {
    /// First LSN that the log can still hold. `last.lsn < first_lsn` means that it holds none.
    pub first_lsn: Lsn,
    /// Last usable entry.
    pub last: LogPoint,
    /// Its header CRC.
    pub last_crc: u32,
    /// First LSN of each epoch's run of entries, in order.
    pub runs: Vec<(Epoch, Lsn)>,
    /// Greatest commit point named by any frame, never above `last`.
    pub commit_floor: Lsn,
    /// An unreadable last batch: it was perhaps acknowledged, perhaps never whole.
    pub doubt: Option<Doubt>,
    /// Entries that were durable once and no longer read back.
    pub damage: Option<Damage>,
}

/// The last batch does not read back, and nothing tells whether its write ever ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Doubt {
    /// First LSN in doubt.
    pub from: Lsn,
    /// Last one, where the frame's header still tells.
    pub to: Option<Lsn>,
}

/// Entries that were durable once and no longer read back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    /// First LSN lost.
    pub from: Lsn,
    /// The log's true end, where intact entries behind the damage prove it.
    pub proved_end: Option<LogPoint>,
    /// Segment file.
    pub file: String,
    /// Offset in it.
    pub offset: u64,
    /// What was found there.
    pub why: DamageKind,
}

/// What was found where entries should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DamageKind {
    /// A frame does not read back, and later writes prove that it was complete.
    #[error("a frame that was complete does not read back")]
    Frame,
    /// An intact frame that belongs elsewhere.
    #[error("a frame of another place, segment or lineage")]
    Misplaced,
    /// The medium does not give the bytes back.
    #[error("the medium reports an error")]
    Unreadable,
    /// A segment's header does not read back.
    #[error("damaged wal header")]
    SegmentHeader,
    /// A segment file is shorter than it was made.
    #[error("the segment file was cut short")]
    ShortFile,
    /// A later segment begins after entries that no segment holds, or continues another history.
    #[error("the next segment does not continue this one")]
    Chain,
}
