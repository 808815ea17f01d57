//! Atomic batches: which records of a log take effect together, and which never do.
//!
//! A batch is records side by side in the log, all of one session, generation and sequence number. Each but the last carries
//! [`FLAG_MORE`]: the next entry belongs to the same batch. That is all that the log says of it, so what becomes of a batch is a
//! function of the log alone:
//!
//! * it takes effect at its last record, as one mutation;
//! * it is *void* as soon as anything but its continuation follows. Its number counts as not taken, its records are shown to nobody,
//!   now and for ever; a retry appends the batch anew.
//!
//! **Invariant**: of a batch, all records are visible or none. The order of events that would break it: A orders a batch of three,
//! two of them reach B and C and are committed, A dies. B goes on behind the second one with its `EpochStart`. Whoever took the
//! commit point for what may be shown would show half a batch, whose client hears that it never happened and sends it again.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use mainstay_storage::EntryKind;
use mainstay_storage::format::EntryHeader;
use mainstay_types::{Lsn, SessionId};

use crate::sessions::{BlobError, Done, take, u64_of};

/// Flag of a `Record`: the next entry belongs to the same batch.
pub const FLAG_MORE: u8 = 1;

/// Most records of one batch.
pub const BATCH_RECORDS_MAX: usize = 1024;

/// What the next committed entry means for batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// No record.
    Other,
    /// A record of a batch that is not whole yet: nothing takes effect.
    Held,
    /// A record, or the last one of a batch: it takes effect.
    Whole {
        /// As it is done.
        done: Done,
        /// Payload of all its records.
        bytes: u64,
    },
}

/// A batch whose last record is not committed yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Open {
    session: SessionId,
    generation: u32,
    /// As it will be done.
    done: Done,
    /// Payload of its records so far.
    bytes: u64,
}

/// Stretches of a log that are no part of what it says: the records of batches that were cut short.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Voids(Vec<(Lsn, Lsn)>);

impl Voids {
    /// Whether the entry at `lsn` is shown to nobody.
    #[must_use]
    pub fn hide(&self, lsn: Lsn) -> bool {
        let at = self.0.partition_point(|(_, last)| *last < lsn);
        self.0.get(at).is_some_and(|(first, _)| *first <= lsn)
    }

    /// Those that reach into `from..=through`.
    pub(crate) fn within(&self, from: Lsn, through: Lsn) -> Self {
        let begin = self.0.partition_point(|(_, last)| *last < from);
        let end = self.0.partition_point(|(first, _)| *first <= through);
        Self(self.0.get(begin..end).unwrap_or_default().to_vec())
    }
}

/// The batches of a log at one position of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Batches {
    open: Option<Open>,
    /// At most one for each failover: a batch is ordered whole, so only an `EpochStart` can cut it short.
    voids: Voids,
}

impl Batches {
    /// Takes the next committed entry.
    pub(crate) fn take(&mut self, header: &EntryHeader) -> Step {
        let lsn = header.point.lsn;
        let record = header.kind == EntryKind::Record;
        let continues = |open: &Open| {
            record
                && (open.session, open.generation, open.done.seq)
                    == (header.session, header.generation, header.seq)
        };
        let begun = match self.open.take() {
            Some(open) if !continues(&open) => {
                self.voids.0.push((open.done.lsn, lsn.prev()));
                None
            }
            open => open,
        };
        if !record {
            return Step::Other;
        }
        let mut open = begun.unwrap_or(Open {
            session: header.session,
            generation: header.generation,
            done: Done {
                seq: header.seq,
                lsn,
                count: 0,
                arg: header.arg,
            },
            bytes: 0,
        });
        open.done.count += 1;
        open.bytes += u64::from(header.payload_len);
        if header.flags & FLAG_MORE == 0 {
            let Open { done, bytes, .. } = open;
            return Step::Whole { done, bytes };
        }
        self.open = Some(open);
        Step::Held
    }

    /// The last entry that may be shown when everything up to `applied` was taken.
    pub(crate) fn visible(&self, applied: Lsn) -> Lsn {
        self.open.map_or(applied, |open| open.done.lsn.prev())
    }

    /// What lies below the trim point is shown to nobody anyway.
    pub(crate) fn forget_below(&mut self, first: Lsn) {
        self.voids.0.retain(|(_, last)| *last >= first);
    }

    pub(crate) fn voids(&self) -> &Voids {
        &self.voids
    }

    pub(crate) fn encode(&self, out: &mut BytesMut) {
        out.put_u8(u8::from(self.open.is_some()));
        if let Some(open) = &self.open {
            out.put_u64_le(open.session.0);
            out.put_u32_le(open.generation);
            open.done.encode(out);
            out.put_u64_le(open.bytes);
        }
        out.put_u32_le(u32::try_from(self.voids.0.len()).expect("fewer failovers than that"));
        for (first, last) in &self.voids.0 {
            out.put_u64_le(first.0);
            out.put_u64_le(last.0);
        }
    }

    pub(crate) fn decode(rest: &mut Bytes) -> Result<Self, BlobError> {
        let mut batches = Self::default();
        if take(rest, 1)?.get_u8() != 0 {
            batches.open = Some(Open {
                session: SessionId(u64_of(rest)?),
                generation: take(rest, 4)?.get_u32_le(),
                done: Done::decode(rest)?,
                bytes: u64_of(rest)?,
            });
        }
        for _ in 0..take(rest, 4)?.get_u32_le() {
            let void = (Lsn(u64_of(rest)?), Lsn(u64_of(rest)?));
            batches.voids.0.push(void);
        }
        Ok(batches)
    }
}
