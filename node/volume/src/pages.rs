//! What a reader of a log is shown of the entries that were read for it.

use mainstay_storage::format::EntryRef;
use mainstay_types::Lsn;

use crate::batch::Voids;

/// Entries to be shown, in order.
#[derive(Debug)]
pub struct Page {
    /// Those that may be shown; bookkeeping entries are among them.
    pub entries: Vec<EntryRef>,
    /// Where to read on: behind everything that was looked at, also behind what is hidden.
    pub next: Lsn,
    /// Nothing that may be shown lies behind them at this moment.
    pub end: bool,
}

impl Page {
    /// Of `entries`, which are contiguous from `from` on, those up to `through` that `voids` does not hide.
    #[must_use]
    pub fn of(
        entries: impl IntoIterator<Item = EntryRef>,
        from: Lsn,
        through: Lsn,
        voids: &Voids,
    ) -> Self {
        let mut page = Self {
            entries: Vec::new(),
            next: from,
            end: false,
        };
        for entry in entries {
            let lsn = entry.header.point.lsn;
            if lsn > through {
                break;
            }
            page.next = lsn.next();
            if !voids.hide(lsn) {
                page.entries.push(entry);
            }
        }
        page.end = page.next > through;
        page
    }
}
