//! Reads of a log that go to its disk: pages in both directions, and the search by time.

use mainstay_storage::format::{EntryIter, EntryRef};
use mainstay_storage::wal::ReadError;
use mainstay_storage::{Disk, EntryKind, WalReader};
use mainstay_types::{Lineage, Lsn};

use crate::batch::Voids;
use crate::pages::{Direction, Page, Stretch, find};

/// Bytes that one step of a search reads: a record is seldom far behind the position that is looked at.
const PROBE_BYTES: usize = 4 << 10;

/// Reads one page.
///
/// # Errors
/// The log does not read back there, or was recycled meanwhile.
pub async fn read_page<D: Disk>(
    reader: &WalReader<D>,
    lineage: Lineage,
    stretch: &Stretch,
) -> Result<Page, ReadError> {
    let bytes_max = stretch.limits.bytes_max;
    let entries = match stretch.direction {
        Direction::Forwards => read_some(reader, lineage, stretch.from, bytes_max).await?,
        Direction::Backwards => {
            let last = stretch.from.prev();
            let reach = reader.index().reach_back(last, bytes_max as u64);
            let mut next = reach.unwrap_or(stretch.first).max(stretch.first);
            let mut entries = Vec::new();
            while next <= last {
                let more = read_some(reader, lineage, next, bytes_max).await?;
                let wanted = more.into_iter().filter(|e| e.header.point.lsn <= last);
                entries.extend(wanted);
                let end = entries
                    .last()
                    .map(|entry: &EntryRef| entry.header.point.lsn);
                next = end.map_or(last, |end| end.max(next)).next();
            }
            entries
        }
    };
    Ok(Page::of_disk(entries, stretch))
}

/// Finds the first record in `first..=last` that is not older than `at_ns`: some twenty reads, however long the log is.
///
/// # Errors
/// As [`read_page`].
pub async fn find_record<D: Disk>(
    reader: &WalReader<D>,
    lineage: Lineage,
    at_ns: u64,
    (first, last): (Lsn, Lsn),
    voids: &Voids,
) -> Result<Option<(Lsn, u64)>, ReadError> {
    let probe = |from| record_from(reader, lineage, from, last);
    find(at_ns, first, last, voids, probe).await
}

/// The first record at or behind `from`, up to `last`, with its timestamp.
async fn record_from<D: Disk>(
    reader: &WalReader<D>,
    lineage: Lineage,
    mut from: Lsn,
    last: Lsn,
) -> Result<Option<(Lsn, u64)>, ReadError> {
    while from <= last {
        for entry in read_some(reader, lineage, from, PROBE_BYTES).await? {
            let lsn = entry.header.point.lsn;
            if lsn > last {
                return Ok(None);
            }
            if entry.header.kind == EntryKind::Record {
                return Ok(Some((lsn, entry.header.arg)));
            }
            from = lsn.next();
        }
    }
    Ok(None)
}

async fn read_some<D: Disk>(
    reader: &WalReader<D>,
    lineage: Lineage,
    from: Lsn,
    bytes_max: usize,
) -> Result<Vec<EntryRef>, ReadError> {
    let batch = reader.read(from, bytes_max).await?;
    let chunks = batch.chunks.into_iter();
    let entries = chunks.flat_map(|chunk| EntryIter::headers_only(lineage, chunk));
    Ok(entries.map_while(Result::ok).collect())
}
