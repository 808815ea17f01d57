//! What a reader of a log is shown of the entries that were read for it.

use std::future::Future;

use mainstay_storage::EntryKind;
use mainstay_storage::format::EntryRef;
use mainstay_types::Lsn;

use crate::batch::Voids;

/// Which way a log is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From older to newer records.
    Forwards,
    /// From newer to older records.
    Backwards,
}

/// Bounds of one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageLimits {
    /// At most this many bytes of entries, but at least one record if there is one.
    pub bytes_max: usize,
    /// At most this many records; not zero.
    pub records_max: usize,
}

/// A stretch of the log that a reader wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    /// First LSN wanted; backwards, the one above it, which lies at most one above `through`.
    pub from: Lsn,
    /// Which way.
    pub direction: Direction,
    /// First LSN held.
    pub first: Lsn,
    /// Last LSN that may be shown, inclusive.
    pub through: Lsn,
    /// From here on entries were in memory when the stretch was asked for. What the disk holds there may be something else: of an ended
    /// epoch, until a cut that is on its way is carried out.
    pub in_memory: Lsn,
    /// Entries from memory that follow what a forward page takes from the disk, if the page may reach them.
    pub behind: Vec<EntryRef>,
    /// What may not be shown among them.
    pub voids: Voids,
    /// How much.
    pub limits: PageLimits,
}

/// Entries to be shown.
#[derive(Debug)]
pub struct Page {
    /// Those that may be shown, in the order in which they were asked for; bookkeeping entries are among them.
    pub entries: Vec<EntryRef>,
    /// What to ask for next: behind everything that was looked at, also behind what is hidden.
    pub next: Lsn,
    /// Nothing that may be shown lies behind them at this moment.
    pub end: bool,
    /// Last LSN that may be shown.
    pub through: Lsn,
}

impl Page {
    /// As [`Page::of`], of entries that were read from the disk, and those of memory where they follow.
    #[must_use]
    pub fn of_disk(mut entries: Vec<EntryRef>, stretch: &Stretch) -> Self {
        entries.retain(|entry| entry.header.point.lsn < stretch.in_memory);
        let last = entries.last().map(|entry| entry.header.point.lsn);
        if last.is_some_and(|last| last.next() == stretch.in_memory) {
            entries.extend_from_slice(&stretch.behind);
        }
        Self::of(entries, stretch)
    }

    /// Of `entries`, which are contiguous: from `stretch.from` on, or, backwards, up to the one before it.
    #[must_use]
    pub fn of(entries: Vec<EntryRef>, stretch: &Stretch) -> Self {
        let mut page = Self {
            entries: Vec::new(),
            next: stretch.from,
            end: false,
            through: stretch.through,
        };
        match stretch.direction {
            Direction::Forwards => page.fill(entries.into_iter(), stretch),
            Direction::Backwards => page.fill(entries.into_iter().rev(), stretch),
        }
        page.end = match stretch.direction {
            Direction::Forwards => page.next > stretch.through,
            Direction::Backwards => page.next <= stretch.first,
        };
        page
    }

    fn fill(&mut self, entries: impl Iterator<Item = EntryRef>, stretch: &Stretch) {
        let (mut bytes, mut records) = (0_usize, 0);
        for entry in entries {
            let lsn = entry.header.point.lsn;
            bytes = bytes.saturating_add(entry.bytes.len());
            let full = records >= stretch.limits.records_max
                || (bytes > stretch.limits.bytes_max && records > 0);
            if lsn > stretch.through || full {
                return;
            }
            self.next = match stretch.direction {
                Direction::Forwards => lsn.next(),
                Direction::Backwards => lsn,
            };
            if !stretch.voids.hide(lsn) {
                records += usize::from(entry.header.kind == EntryKind::Record);
                self.entries.push(entry);
            }
        }
    }
}

/// The first record in `first..=last` that is not older than `at_ns`, by bisection: timestamps never go back as positions rise.
///
/// `probe` gives the first record at or behind a position, up to `last`, with its timestamp.
///
/// # Errors
/// Those of `probe`.
pub(crate) async fn find<E, F: Future<Output = Result<Option<(Lsn, u64)>, E>>>(
    at_ns: u64,
    first: Lsn,
    last: Lsn,
    voids: &Voids,
    mut probe: impl FnMut(Lsn) -> F,
) -> Result<Option<(Lsn, u64)>, E> {
    // Every record below `low` is older; behind `high` begins with one that is not, or there is none.
    let (mut low, mut high) = (first.0, last.0.saturating_add(1));
    while low < high {
        let middle = low + (high - low) / 2;
        match probe(Lsn(middle)).await? {
            Some((lsn, stamp)) if stamp < at_ns => low = lsn.0 + 1,
            _ => high = middle,
        }
    }
    let mut from = Lsn(low);
    while from <= last {
        match probe(from).await? {
            Some((lsn, _)) if voids.hide(lsn) => from = lsn.next(),
            found => return Ok(found),
        }
    }
    Ok(None)
}
