//! Reads: of what is committed and may be shown, once the core has allowed them.

use std::collections::BTreeSet;

use mainstay_replication::{Input, Mistake};
use mainstay_storage::EntryKind;
use mainstay_storage::format::{ENTRY_HEADER_BYTES, EntryRef};
use mainstay_types::{Lsn, VolumeKind};

use crate::batch::Voids;
use crate::event::{Action, ConnId, Now, OpResult, Refusal, Token};
use crate::pages::{Direction, PageLimits, Stretch};
use crate::tree::TreeQuestion;
use crate::volume::{Read, Volume};

impl Read {
    fn asked_by(&self) -> (ConnId, Token) {
        match *self {
            Self::Block { conn, token, .. }
            | Self::Extents { conn, token, .. }
            | Self::Log { conn, token, .. }
            | Self::Find { conn, token, .. }
            | Self::Tree { conn, token, .. }
            | Self::Position { conn, token } => (conn, token),
        }
    }
}

impl Volume {
    /// A connection is gone: what it asked for is read for nobody.
    pub(crate) fn forget_reads(&mut self, now: Now, conn: ConnId) {
        let gone = self
            .reads
            .extract_if(.., |_, read| read.asked_by().0 == conn);
        let ids: BTreeSet<u64> = gone.map(|(id, _)| id).collect();
        if !ids.is_empty() {
            self.core(now, Input::ReadsGone { ids });
        }
    }

    pub(crate) fn serve_read(&mut self, id: u64, at: Lsn) {
        let Some(read) = self.reads.remove(&id) else {
            return;
        };
        match read {
            Read::Block {
                conn,
                token,
                offset,
                len,
            } => {
                self.out.push_back(Action::ReadBlock {
                    conn,
                    token,
                    offset,
                    len,
                });
            }
            Read::Extents {
                conn,
                token,
                offset,
                len,
                extents_max,
                since,
            } => self.out.push_back(Action::ReadExtents {
                conn,
                token,
                offset,
                len,
                extents_max,
                since,
            }),
            Read::Log {
                conn,
                token,
                from,
                direction,
                limits,
            } => {
                let through = self.visible().min(at);
                self.read_log(conn, token, from, direction, through, limits);
            }
            Read::Find { conn, token, at_ns } => {
                let through = self.visible().min(at);
                self.find(conn, token, at_ns, through);
            }
            Read::Tree {
                conn,
                token,
                question,
            } => {
                let through = self.visible().min(at);
                self.read_tree(conn, token, question, through);
            }
            Read::Position { conn, token } => {
                let at = self.visible().min(at);
                let first = self.first_shown();
                let epoch = self.member.sealed();
                self.reply(
                    conn,
                    token,
                    OpResult::Position {
                        first,
                        commit: at,
                        epoch,
                        retention: self.sessions.retention,
                    },
                );
            }
        }
    }

    pub(crate) fn refuse_read(&mut self, id: u64) {
        let Some(read) = self.reads.remove(&id) else {
            return;
        };
        let (conn, token) = read.asked_by();
        let refusal = self.not_primary();
        self.reply(conn, token, OpResult::Refused(refusal));
    }

    /// Reads entries up to `through`, from memory or from the disk.
    pub(crate) fn read_log(
        &mut self,
        conn: ConnId,
        token: Token,
        from: Lsn,
        direction: Direction,
        through: Lsn,
        limits: PageLimits,
    ) {
        let first = match self.first_readable(from) {
            Ok(first) => first,
            Err(refusal) => return self.reply(conn, token, OpResult::Refused(refusal)),
        };
        let from = match direction {
            Direction::Forwards => from,
            Direction::Backwards => from.min(through.next()),
        };
        let bytes_max = limits.bytes_max;
        let cached = match direction {
            Direction::Forwards if from > through => Some(Vec::new()),
            Direction::Forwards => self.tail.entries(from, through, bytes_max),
            Direction::Backwards if from <= first => Some(Vec::new()),
            Direction::Backwards => self.tail.entries_before(from, first, bytes_max),
        };
        let voids = match direction {
            Direction::Forwards => self.hidden(from, through),
            Direction::Backwards => self.hidden(first, from),
        };
        let behind = match (&cached, direction) {
            (None, Direction::Forwards) => self.behind_disk(from, through, limits),
            _ => Vec::new(),
        };
        self.out.push_back(Action::ReadLog {
            conn,
            token,
            stretch: Stretch {
                from,
                direction,
                first,
                through,
                in_memory: self.tail.first(),
                behind,
                voids,
                limits,
            },
            cached,
        });
    }

    /// Entries in memory that a page of the disk from `from` on may reach: not those behind more entries than fit a page.
    fn behind_disk(&self, from: Lsn, through: Lsn, limits: PageLimits) -> Vec<EntryRef> {
        let held = self.tail.first();
        let between = held.0.saturating_sub(from.0);
        if between.saturating_mul(ENTRY_HEADER_BYTES as u64) > limits.bytes_max as u64 {
            return Vec::new();
        }
        let entries = self.tail.entries(held, through, limits.bytes_max);
        entries.unwrap_or_default()
    }

    /// Finds the first record that is not older than `at_ns`: in memory, if one in memory is older, else on the disk.
    pub(crate) fn find(&mut self, conn: ConnId, token: Token, at_ns: u64, through: Lsn) {
        let first = match self.first_readable(Lsn(u64::MAX)) {
            Ok(first) => first,
            Err(refusal) => return self.reply(conn, token, OpResult::Refused(refusal)),
        };
        let held = self.tail.first().max(first);
        let voids = self.hidden(first, through);
        let oldest = self.record_from(held, through);
        let in_memory = held <= first || oldest.is_some_and(|(_, stamp)| stamp < at_ns);
        let behind = self.find_in_memory(at_ns, held, through, &voids);
        if in_memory {
            return self.reply(conn, token, OpResult::Found(behind));
        }
        self.out.push_back(Action::Find {
            conn,
            token,
            at_ns,
            first,
            last: held.prev().min(through),
            voids,
            behind,
        });
    }

    /// Has the tree asked. A log that was trimmed, or lost its beginning, still has its whole tree.
    pub(crate) fn read_tree(
        &mut self,
        conn: ConnId,
        token: Token,
        question: TreeQuestion,
        through: Lsn,
    ) {
        if self.spec.kind != VolumeKind::Log {
            return self.reply(conn, token, OpResult::Refused(Refusal::WrongKind));
        }
        self.out.push_back(Action::ReadTree {
            conn,
            token,
            question,
            through,
        });
    }

    fn find_in_memory(
        &self,
        at_ns: u64,
        first: Lsn,
        last: Lsn,
        voids: &Voids,
    ) -> Option<(Lsn, u64)> {
        let probe = |lsn| std::future::ready(Ok::<_, ()>(self.record_from(lsn, last)));
        let mut search = std::pin::pin!(crate::pages::find(at_ns, first, last, voids, probe));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match search.as_mut().poll(&mut context) {
            std::task::Poll::Ready(found) => found.ok().flatten(),
            std::task::Poll::Pending => unreachable!("what is in memory is there at once"),
        }
    }

    /// The first record in memory at or behind `from`, up to `last`, with its timestamp.
    fn record_from(&self, from: Lsn, last: Lsn) -> Option<(Lsn, u64)> {
        let mut lsn = from;
        while lsn <= last {
            let header = &self.tail.get(lsn)?.header;
            if header.kind == EntryKind::Record {
                return Some((lsn, header.arg));
            }
            lsn = lsn.next();
        }
        None
    }

    /// First LSN that can be read, if `from` is not below it.
    fn first_readable(&self, from: Lsn) -> Result<Lsn, Refusal> {
        if self.spec.kind != VolumeKind::Log {
            return Err(Refusal::WrongKind);
        }
        let first = self.first_shown();
        if from < first {
            return Err(Refusal::Trimmed { first });
        }
        if self.member.log().base().lsn >= first {
            // A sound copy gives back only what was trimmed: this one has lost something, which is not to be told as absence.
            return Err(self.not_primary());
        }
        Ok(first)
    }

    fn hidden(&self, from: Lsn, through: Lsn) -> Voids {
        if self.config.member.mistakes.has(Mistake::TornBatchShown) {
            return Voids::default();
        }
        self.sessions.voids().within(from, through)
    }
}
