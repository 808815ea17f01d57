//! The log of a volume: from proposals and appends to writes, and from what is committed to what is applied.

use bytes::Bytes;
use mainstay_replication::message::{Append, MemberEnvelope, MemberMessage};
use mainstay_replication::{Input, LogWrite, OpId};
use mainstay_storage::format::{EntryIter, EntryRef, encode_unstamped, stamp};
use mainstay_storage::{EntryKind, LogEnd};
use mainstay_types::{Epoch, Lsn, SessionId};

use super::Volume;
use crate::event::{Action, Now, WalJob, WalWrite};
use crate::tail::join;

impl Volume {
    pub(super) fn handle_peer(&mut self, now: Now, envelope: MemberEnvelope, batch: Bytes) {
        if let MemberMessage::Append(append) = &envelope.body
            && append.last >= append.first
        {
            match verify(self.log_lineage, append, &batch) {
                Ok(entries) => {
                    self.incoming = entries.into();
                    self.incoming_bytes = batch;
                }
                Err(reason) => {
                    let node = envelope.from.node;
                    return self.out.push_back(Action::PeerMisbehaved { node, reason });
                }
            }
        }
        self.core(now, Input::Message(envelope));
        self.incoming.clear();
        self.incoming_bytes = Bytes::new();
    }

    pub(super) fn persist(&mut self, now: Now, op: OpId, write: LogWrite) {
        let write = match write {
            LogWrite::Cut { after } => {
                self.tail.truncate(after);
                self.logged.cut(after);
                self.joined = None;
                WalWrite::Cut { after }
            }
            LogWrite::Seal { epoch } => WalWrite::Seal { epoch },
            LogWrite::Append { first, last } => {
                let Some(entries) = self.take_entries(now, first, last) else {
                    return self
                        .violation(format!("entries {first} to {last} do not continue the log"));
                };
                WalWrite::Append {
                    entries,
                    commit: self.member.commit(),
                }
            }
        };
        self.out.push_back(Action::Wal(WalJob { op, write }));
    }

    /// Entries `first..=last`, from the clients, the primary, or, for the first of an epoch, made here; in the tail
    /// from now on.
    fn take_entries(&mut self, _now: Now, first: Lsn, last: Lsn) -> Option<Vec<Bytes>> {
        if let Some(chunks) = self.clients.take_staged() {
            let epoch = self.member.acting_epoch()?;
            return Some(
                chunks
                    .into_iter()
                    .map(|chunk| self.stamp_chunk(epoch, chunk))
                    .collect(),
            );
        }
        if self.incoming.is_empty() {
            let epoch = self.member.acting_epoch()?;
            let entry = encode_unstamped(EntryKind::EpochStart, SessionId(0), 0, 0, 0, &[]);
            return Some(vec![self.stamp_chunk(epoch, entry)]);
        }
        let whole = self.incoming.front()?.header.point.lsn == first;
        self.incoming
            .retain(|entry| entry.header.point.lsn >= first && entry.header.point.lsn <= last);
        let entries: Vec<EntryRef> = std::mem::take(&mut self.incoming).into();
        if entries.first()?.header.prev_crc != self.tail.end().crc {
            return None;
        }
        let bytes = if whole {
            std::mem::take(&mut self.incoming_bytes)
        } else {
            join(entries.iter().map(|entry| entry.bytes.clone()).collect())
        };
        self.logged.note(bytes.len(), last);
        self.tail.push(entries, bytes.clone());
        Some(vec![bytes])
    }

    /// Gives unstamped entries that lie side by side their places in the log.
    fn stamp_chunk(&mut self, epoch: Epoch, mut chunk: bytes::BytesMut) -> Bytes {
        let lineage = self.log_lineage;
        let mut end = self.tail.end();
        let mut at = 0;
        while at < chunk.len() {
            let len = mainstay_storage::format::entry_bytes(payload_len(&chunk[at..]));
            let lsn = end.point.lsn.next();
            let crc = stamp(&mut chunk[at..at + len], lineage, epoch, lsn, end.crc);
            end = LogEnd {
                point: mainstay_types::LogPoint { epoch, lsn },
                crc,
            };
            at += len;
        }
        let bytes = chunk.freeze();
        let entries = EntryIter::headers_only(lineage, bytes.clone())
            .collect::<Result<Vec<_>, _>>()
            .expect("entries that were encoded and stamped here decode");
        self.logged.note(bytes.len(), end.point.lsn);
        self.tail.push(entries, bytes.clone());
        bytes
    }

    /// Applies what is committed and answers the clients that wait for it.
    pub(super) fn apply_through(&mut self, commit: Lsn) {
        while self.applied < commit {
            let lsn = self.applied.next();
            let entry = self
                .tail
                .get(lsn)
                .expect("entries are kept in the tail until they are applied");
            let done = self.sessions.apply(entry);
            self.release_due |= entry.header.kind == EntryKind::TrimLog;
            self.applied = lsn;
            self.since_checkpoint += entry.bytes.len() as u64;
            self.out.push_back(Action::Apply(entry.clone()));
            self.answer_committed(lsn, done);
        }
    }
}

/// Checks a batch against what the append says of it. The bytes come from a peer.
fn verify(
    lineage: mainstay_types::Lineage,
    append: &Append,
    batch: &Bytes,
) -> Result<Vec<EntryRef>, String> {
    let entries = EntryIter::new(lineage, batch.clone())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("append of {} to {}: {error}", append.first, append.last))?;
    let mut expected = append.first;
    let mut runs = append.runs.iter().peekable();
    let mut epoch = Epoch::ZERO;
    let mut crc = None;
    for entry in &entries {
        let header = &entry.header;
        while let Some((next, _)) = runs.next_if(|(_, first)| *first <= header.point.lsn) {
            epoch = *next;
        }
        if header.point.lsn != expected || header.point.epoch != epoch {
            return Err(format!(
                "append holds {} where {} of epoch {epoch} belongs",
                header.point, expected
            ));
        }
        if crc.is_some_and(|crc| crc != header.prev_crc) {
            return Err(format!("append is not chained at {}", header.point));
        }
        crc = Some(header.header_crc);
        expected = expected.next();
    }
    if expected != append.last.next() || runs.next().is_some() {
        return Err(format!(
            "append says {} to {} and ends before {expected}",
            append.first, append.last
        ));
    }
    Ok(entries)
}

/// Payload length of an encoded entry that was made by this process.
fn payload_len(entry: &[u8]) -> usize {
    u32::from_le_bytes(entry[12..16].try_into().expect("four bytes")) as usize
}
