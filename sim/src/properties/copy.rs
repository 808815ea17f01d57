//! The model of one copy: what its process believes to have logged, and what its disk must still know after a crash.

use std::collections::{BTreeSet, VecDeque};

use mainstay_replication::OpId;
use mainstay_storage::format::EntryIter;
use mainstay_types::{Epoch, Lineage, Lsn};
use mainstay_volume::WalWrite;

use super::EntryInfo;

/// Entries of a log, contiguous from behind `base`.
#[derive(Debug, Clone, Default)]
pub struct CopyLog {
    /// The position before the first entry.
    pub base: Lsn,
    entries: Vec<EntryInfo>,
}

impl CopyLog {
    /// Entries behind `base`.
    #[must_use]
    pub fn new(base: Lsn, entries: Vec<EntryInfo>) -> Self {
        Self { base, entries }
    }

    /// The entry at `lsn`.
    #[must_use]
    pub fn get(&self, lsn: Lsn) -> Option<&EntryInfo> {
        let at = lsn.0.checked_sub(self.base.0 + 1)?;
        self.entries.get(usize::try_from(at).ok()?)
    }

    /// Position of the last entry.
    #[must_use]
    pub fn last(&self) -> Lsn {
        Lsn(self.base.0 + self.entries.len() as u64)
    }

    /// All entries.
    #[must_use]
    pub fn entries(&self) -> &[EntryInfo] {
        &self.entries
    }

    fn cut(&mut self, after: Lsn) {
        let keep = usize::try_from(after.0.saturating_sub(self.base.0)).unwrap_or(usize::MAX);
        self.entries.truncate(keep);
    }
}

#[derive(Debug)]
enum Effect {
    Append(Vec<EntryInfo>),
    Other,
    Seal(Epoch),
}

/// One copy of one volume.
#[derive(Debug, Default)]
pub struct Copy {
    /// As its process believes.
    pub log: CopyLog,
    /// What must survive.
    pub durable: CopyLog,
    pending: VecDeque<(OpId, Effect)>,
    /// Every entry that was ever durable here: (LSN, epoch, CRC).
    pub ever: BTreeSet<(u64, u64, u32)>,
    /// Durably sealed.
    pub sealed: Epoch,
    /// Commit point of the present process, as far as it was checked.
    pub commit_seen: Lsn,
    /// Register (epoch, version) last seen in the present process.
    pub register_seen: (Epoch, u64),
    /// Epoch in which the present process acted last.
    pub acted: Option<Epoch>,
    /// A fault was injected that may damage what was durable.
    pub tainted: bool,
    /// The disk is gone, or the copy was set aside.
    pub gone: bool,
}

impl Copy {
    /// A write was handed to the disk.
    pub fn job(&mut self, op: OpId, write: &WalWrite, lineage: Lineage) {
        let effect = match write {
            WalWrite::Append { entries, .. } => {
                let mut infos = Vec::new();
                for bytes in entries {
                    for entry in EntryIter::headers_only(lineage, bytes.clone()).flatten() {
                        infos.push(EntryInfo::of(&entry));
                    }
                }
                self.log.entries.extend_from_slice(&infos);
                Effect::Append(infos)
            }
            WalWrite::Cut { after } => {
                self.log.cut(*after);
                self.durable.cut(*after);
                for (_, effect) in &mut self.pending {
                    if let Effect::Append(infos) = effect {
                        infos.retain(|info| info.point.lsn <= *after);
                    }
                }
                Effect::Other
            }
            WalWrite::Seal { epoch } => Effect::Seal(*epoch),
        };
        self.pending.push_back((op, effect));
    }

    /// Every write up to `op` is durable.
    pub fn stored(&mut self, op: OpId) {
        while self.pending.front().is_some_and(|(id, _)| *id <= op) {
            let Some((_, effect)) = self.pending.pop_front() else {
                return;
            };
            match effect {
                Effect::Append(infos) => {
                    for info in infos {
                        self.note_durable(&info);
                        self.durable.entries.push(info);
                    }
                }
                Effect::Seal(epoch) => self.sealed = self.sealed.max(epoch),
                Effect::Other => {}
            }
        }
    }

    /// The process read its disk: from here on, this is what it has.
    pub fn reopened(&mut self, log: CopyLog, commit: Lsn) {
        for info in &log.entries {
            self.ever
                .insert((info.point.lsn.0, info.point.epoch.0, info.crc));
        }
        self.log = log.clone();
        self.durable = log;
        self.pending.clear();
        self.commit_seen = commit.min(self.log.base);
        self.register_seen = (Epoch::ZERO, 0);
        self.acted = None;
    }

    /// The log's start moved up.
    pub fn recycled(&mut self, first: Lsn) {
        for log in [&mut self.log, &mut self.durable] {
            let gone = first.prev().0.saturating_sub(log.base.0);
            let gone = usize::try_from(gone).unwrap_or(usize::MAX);
            log.entries.drain(..gone.min(log.entries.len()));
            log.base = log.base.max(first.prev());
        }
    }

    fn note_durable(&mut self, info: &EntryInfo) {
        self.ever
            .insert((info.point.lsn.0, info.point.epoch.0, info.crc));
    }

    /// Whether this entry was ever durable here.
    #[must_use]
    pub fn held(&self, info: &EntryInfo) -> bool {
        self.ever
            .contains(&(info.point.lsn.0, info.point.epoch.0, info.crc))
    }
}
